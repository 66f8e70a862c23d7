"""The refusals of a run: clients that were not admitted, or were quarantined, and why."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fedlearn.job.event_fields import Findings

__all__ = ["Refusal", "findings_against"]


@dataclass(slots=True, kw_only=True)
class Refusal:
    """A client that was refused, or quarantined; ``count`` times in the same words.

    ``findings`` are as ``attestation.policy.result.Finding.to_json`` returns them; ``round`` is
    the round that ran, 0 before the first.
    """

    site: str
    reason: str
    quarantined: bool = False
    tee: str = ""
    findings: Findings = ()
    round: int = 0
    unix_ms: int = 0
    count: int = 1

    @property
    def against(self) -> Findings:
        """The findings that speak against the client, one for each claim and value."""
        return findings_against(self.findings)


def findings_against(findings: Findings) -> Findings:
    """Return the findings that are not affirming, one for each claim and value."""
    seen: dict[tuple[str, str], Mapping[str, Any]] = {}
    for finding in findings:
        if finding.get("tier") != "affirming":
            seen.setdefault((str(finding.get("claim")), str(finding.get("actual"))), finding)
    return tuple(seen.values())
