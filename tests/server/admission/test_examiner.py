"""What the coordinator answers to a client that it does not admit."""

from __future__ import annotations

import pytest

from attestation.policy.result import Finding, Tier
from server.admission.examiner import summary


def refused(claim: str, actual: str, expected: str = "aa") -> Finding:
    return Finding(claim=claim, tier=Tier.CONTRAINDICATED, expected=expected, actual=actual)


@pytest.mark.parametrize(
    ("findings", "sentence"),
    [
        ((), "there is no finding in its favour"),
        ((refused("app", "bb"),), "app is bb, expected aa"),
        ((refused("app", "bb"), refused("app", "bb", "this job's")), "app is bb, expected aa"),
        (
            (refused("app", "bb"), refused("app", "bb", "cc"), refused("hardware_id", "dd")),
            "app is bb, expected aa, and 1 more",
        ),
    ],
)
def test_a_refusal_counts_what_its_table_shows(
    findings: tuple[Finding, ...], sentence: str
) -> None:
    assert summary(findings) == sentence
