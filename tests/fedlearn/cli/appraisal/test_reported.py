"""Policies and evidence that were reported as judged wrongly, through the command line.

``tdx_out_of_date_quote.dat`` is a quote of a domain of Alibaba's to which a service TD is bound,
on a platform that is out of date; ``service_td.policy.toml`` was drafted from it, and names
another service TD, of Azure's evidence only.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from attestation.policy.parse import parse_policy
from fedlearn.cli import main

REPORTED = Path(__file__).parents[3] / "attestation" / "reported"
QUOTE = REPORTED / "tdx_out_of_date_quote.dat"
COLLATERAL = REPORTED / "collateral_root_first.json"
AT = "2026-02-01T00:00:00Z"
SERVICE_TD = "mrservicetd"


def run(*arguments: object) -> Result:
    result = CliRunner().invoke(main, ["policy", *map(str, arguments)])
    assert "Traceback" not in result.output
    return result


def verified(policy: Path) -> tuple[int, dict[str, str]]:
    """Return the exit status, and what each refusing check found."""
    result = run(
        *("verify", "--evidence", QUOTE, "--collateral", COLLATERAL, "--at", AT),
        *("--policy", policy, "--json"),
    )
    document: dict[str, Any] = json.loads(result.stdout)
    refused = [f for f in document["findings"] if f["tier"] not in ("affirming", "none")]
    return result.exit_code, {item["claim"]: item["actual"] for item in refused}


@pytest.fixture
def drafted(tmp_path: Path) -> Path:
    policy = tmp_path / "drafted.toml"
    made = run(
        *("init", "--from-evidence", QUOTE, "--collateral", COLLATERAL, "--at", AT),
        *("--output", policy),
    )
    assert made.exit_code == 0, made.output
    return policy


def test_a_service_td_is_refused_that_only_other_evidence_may_have(tmp_path: Path) -> None:
    text = (REPORTED / "service_td.policy.toml").read_text()
    policy = tmp_path / "policy.toml"
    policy.write_text(text)
    code, refused = verified(policy)
    assert code == 2
    assert list(refused) == [SERVICE_TD]
    bound = refused[SERVICE_TD]
    assert bound.startswith("383c87d3")
    # The twin: a reference value that this evidence must match, and does.
    policy.write_text(text.replace("11" * 48, bound).replace('tee = "azure-vtpm"', 'tee = "tdx"'))
    assert verified(policy) == (0, {})


def test_the_service_td_of_the_drafted_evidence_is_required(drafted: Path) -> None:
    assert verified(drafted) == (0, {})
    text = drafted.read_text()
    [bound] = [
        item.value.hex()
        for item in parse_policy(text.encode()).references
        if item.claim == SERVICE_TD
    ]
    drafted.write_text(text.replace(bound, "00" * 48))
    assert verified(drafted) == (2, {SERVICE_TD: bound})


def test_a_machine_that_is_patched_stays_accepted(drafted: Path) -> None:
    policy = parse_policy(drafted.read_bytes())
    assert set(policy.tdx.tcb_status) == {"UpToDate", "OutOfDate"}
    drafted.write_text(drafted.read_text().replace('"UpToDate", "OutOfDate"', '"UpToDate"'))
    assert verified(drafted) == (2, {"tcb_status": "OutOfDate"})
