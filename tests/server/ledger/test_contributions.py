"""From a model back to who made it, with which measurements, under which policy."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from fedlearn.errors import LedgerError
from server.ledger import LEDGER_FILE, Json, Ledger


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    with Ledger.open(tmp_path / LEDGER_FILE, ec.generate_private_key(ec.SECP256R1())) as opened:
        yield opened


def admit(ledger: Ledger, site: str, app: str, kind: str = "admission") -> None:
    ledger.append(
        kind,
        {
            "job": "demo",
            "site": site,
            "client": "0",
            "key_thumbprint": f"key-{site}",
            "evidence": "ee",
            "policy": "p1",
            "measurements": {"app": app},
            "tee": "tpm",
            "expires": "2030-01-01T00:00:00Z",
            "serial": "1",
        },
    )


def update(ledger: Ledger, number: int, site: str, digest: str, accepted: bool = True) -> None:
    ledger.append(
        "update",
        {
            "job": "demo",
            "round": number,
            "site": site,
            "thumbprint": f"key-{site}",
            "digest": digest,
            "examples": 10,
            "accepted": accepted,
            "reason": "" if accepted else "late",
        },
    )


def phase(ledger: Ledger, number: int, name: str, job: str = "demo") -> None:
    ledger.append("round", {"job": job, "round": number, "phase": name})


def checkpoint(ledger: Ledger, number: int, version: int) -> None:
    ledger.append("checkpoint", {"job": "demo", "round": number, "version": version})


def run_round(ledger: Ledger, number: int, *sites: str) -> None:
    phase(ledger, number, "started")
    for site in sites:
        update(ledger, number, site, f"{site}-{number}")
    phase(ledger, number, "finished")
    checkpoint(ledger, number, number)


def digests(ledger: Ledger, **model: int) -> list[str]:
    return [item.digest for item in ledger.contributions("demo", **model)]


def test_a_model_names_its_contributors(ledger: Ledger) -> None:
    admit(ledger, "a", "app-1")
    admit(ledger, "b", "app-1")
    run_round(ledger, 1, "b", "a")
    admit(ledger, "a", "app-2", "renewal")
    run_round(ledger, 2, "a")
    found = ledger.contributions("demo")
    assert [(item.round, item.site) for item in found] == [(1, "a"), (1, "b"), (2, "a")]
    assert [item.measurements["app"] for item in found] == ["app-1", "app-1", "app-2"]
    assert {item.policy for item in found} == {"p1"}
    assert found[0].tee == "tpm"
    assert found[0].examples == 10
    assert found[0].admission_entry == 1
    assert found[0].to_json()["site"] == "a"
    assert digests(ledger, version=1) == ["a-1", "b-1"]
    assert digests(ledger, round=1) == ["a-1", "b-1"]


def test_rejected_updates_and_unfinished_rounds_are_no_part(ledger: Ledger) -> None:
    phase(ledger, 1, "started")
    update(ledger, 1, "a", "good")
    update(ledger, 1, "b", "bad", accepted=False)
    update(ledger, 1, "a", "duplicate", accepted=False)
    update(ledger, 1, "c", "withdrawn")
    update(ledger, 1, "c", "withdrawn", accepted=False)
    update(ledger, 1, "d", "quarantined")
    ledger.append("quarantine", {"job": "demo", "site": "d", "thumbprint": "key-d"})
    phase(ledger, 1, "finished")
    phase(ledger, 2, "started")
    update(ledger, 2, "a", "running")
    assert digests(ledger) == ["good"]


def test_a_round_done_again_after_a_crash_counts_once(ledger: Ledger) -> None:
    run_round(ledger, 1, "a", "b")
    phase(ledger, 2, "started")
    update(ledger, 2, "a", "lost")
    phase(ledger, 2, "started")
    update(ledger, 2, "b", "kept")
    phase(ledger, 2, "finished")
    checkpoint(ledger, 2, 2)
    assert digests(ledger) == ["a-1", "b-1", "kept"]


def test_going_back_to_a_checkpoint_takes_back_later_rounds(ledger: Ledger) -> None:
    run_round(ledger, 1, "a")
    run_round(ledger, 2, "a")
    run_round(ledger, 3, "a")
    phase(ledger, 2, "started")
    update(ledger, 2, "b", "again")
    phase(ledger, 2, "finished")
    checkpoint(ledger, 2, 4)
    assert digests(ledger) == ["a-1", "again"]
    assert digests(ledger, version=3) == ["a-1", "a-2", "a-3"]
    assert digests(ledger, version=4) == ["a-1", "again"]


def test_a_round_that_has_finished_makes_the_model_when_it_is_sealed(ledger: Ledger) -> None:
    run_round(ledger, 1, "a")
    phase(ledger, 2, "started")
    update(ledger, 2, "a", "a-2")
    phase(ledger, 2, "finished")
    phase(ledger, 3, "started")
    update(ledger, 3, "a", "a-3")
    assert digests(ledger) == ["a-1"]
    # A site that is quarantined while round 2 is sealed is part of it.
    ledger.append("quarantine", {"job": "demo", "site": "a", "key_thumbprint": "key-a"})
    checkpoint(ledger, 2, 2)
    assert digests(ledger) == digests(ledger, version=2) == ["a-1", "a-2"]
    # After a crash before the seal of round 3, the job goes on from round 2.
    phase(ledger, 3, "finished")
    phase(ledger, 3, "started")
    assert digests(ledger) == ["a-1", "a-2"]


def test_an_update_without_a_key_is_joined_by_its_site(ledger: Ledger) -> None:
    admit(ledger, "a", "app-1")
    phase(ledger, 1, "started")
    for site in "ab":
        body: dict[str, Json] = {
            "job": "demo",
            "round": 1,
            "site": site,
            "digest": site,
            "accepted": True,
        }
        ledger.append("update", body)
    phase(ledger, 1, "finished")
    found = ledger.contributions("demo")
    assert [item.admission_entry for item in found] == [1, None]


def test_a_checkpoint_ends_a_round_before_it_is_called_finished(ledger: Ledger) -> None:
    checkpoint(ledger, 0, 1)
    phase(ledger, 1, "started")
    update(ledger, 1, "a", "a-1")
    checkpoint(ledger, 1, 2)
    assert digests(ledger, version=2) == ["a-1"]
    phase(ledger, 1, "finished")
    assert digests(ledger) == digests(ledger, version=2) == ["a-1"]
    assert digests(ledger, version=1) == []


def test_other_jobs_are_no_part(ledger: Ledger) -> None:
    phase(ledger, 1, "started", job="else")
    ledger.append(
        "update",
        {"job": "else", "round": 1, "site": "x", "digest": "x", "accepted": True},
    )
    phase(ledger, 1, "finished", job="else")
    run_round(ledger, 1, "a")
    assert digests(ledger) == ["a-1"]
    other = ledger.contributions("else")
    assert [(item.site, item.admission_entry, item.policy) for item in other] == [("x", None, "")]


def test_a_model_that_is_unknown_is_refused(ledger: Ledger) -> None:
    with pytest.raises(LedgerError, match="no finished round of a job 'demo'"):
        ledger.contributions("demo")
    run_round(ledger, 1, "a")
    with pytest.raises(LedgerError, match="version 9"):
        ledger.contributions("demo", version=9)
    with pytest.raises(LedgerError, match="finished round 9"):
        ledger.contributions("demo", round=9)
    with pytest.raises(LedgerError, match="of round 1, not 2"):
        ledger.contributions("demo", version=1, round=2)


def test_an_entry_without_its_fields_is_named(ledger: Ledger) -> None:
    ledger.append("round", {"job": "demo", "phase": "started"})
    with pytest.raises(LedgerError, match="entry 1") as caught:
        ledger.contributions("demo")
    assert caught.value.entry == 1
