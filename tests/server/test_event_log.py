"""What a coordinator logs of its ledger: every kind in words, and nothing that is not named."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from server.coordinator import Coordinator
from server.event_log import log_entry
from server.ledger import KINDS, Entry
from tests.server.jobs.records.test_runs import start, submit

SECRET = "not to be logged"


def entry(kind: str, body: dict[str, Any]) -> Entry:
    return Entry(
        sequence=7,
        time=0,
        kind=kind,
        body=body,
        previous=bytes(32),
        hash=bytes(32),
        signature=b"",
    )


def record(caplog: pytest.LogCaptureFixture, kind: str, **body: Any) -> logging.LogRecord:
    caplog.clear()
    with caplog.at_level(logging.DEBUG, logger="server.event_log"):
        log_entry(entry(kind, body))
    (found,) = caplog.records
    return found


@pytest.mark.parametrize(
    ("kind", "body", "event", "level", "text"),
    [
        (
            "job",
            {"job": "heart", "change": "submitted", "operator": "alice"},
            "job.submitted",
            "INFO",
            "job heart: submitted by operator alice",
        ),
        (
            "job",
            {"job": "heart", "change": "finished", "rounds": 9},
            "job.finished",
            "INFO",
            "job heart finished with round 9",
        ),
        (
            "round",
            {"job": "heart", "round": 3, "phase": "started", "participants": ["a", "b"]},
            "round.started",
            "INFO",
            "round 3 of job heart started on 2 sites",
        ),
        (
            "admission",
            {"job": "heart", "site": "north", "client": "c1", "tee": "tpm"},
            "admission",
            "INFO",
            "client c1 of site north was admitted to job heart (tpm)",
        ),
        (
            "refusal",
            {"job": "heart", "site": "north", "client": "c1", "reason": "another measurement"},
            "refusal",
            "WARNING",
            "client c1 of site north was not admitted to job heart: another measurement",
        ),
        (
            "enrollment",
            {"site": "north", "outcome": "pending"},
            "enrollment.pending",
            "INFO",
            "enrollment of site north: pending",
        ),
        (
            "site",
            {"site": "north", "status": "active", "former": "pending"},
            "site.active",
            "INFO",
            "site north is active; it was pending",
        ),
        (
            "privacy",
            {"job": "heart", "round": 2, "epsilon": 0.5},
            "privacy",
            "INFO",
            "epsilon 0.5 of job heart is spent with round 2",
        ),
        (
            "key-release",
            {"model": "heart", "site": "north", "allowed": False, "reason": "no admission"},
            "key-release",
            "INFO",
            "a key of model heart was not released to site north: no admission",
        ),
    ],
)
def test_an_entry_is_one_line(
    caplog: pytest.LogCaptureFixture,
    kind: str,
    body: dict[str, Any],
    event: str,
    level: str,
    text: str,
) -> None:
    found = record(caplog, kind, **body)
    assert (found.event, found.levelname, found.getMessage()) == (event, level, text)  # type: ignore[attr-defined]


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_every_kind_is_logged_and_only_named_fields_are(
    caplog: pytest.LogCaptureFixture, kind: str
) -> None:
    found = record(caplog, kind, job="heart", measurements={"x": SECRET}, body=SECRET)
    assert found.getMessage()
    assert SECRET not in f"{found.getMessage()} {vars(found)['fields']}"


def test_the_reason_of_a_failed_job_is_not_logged(caplog: pytest.LogCaptureFixture) -> None:
    """It may have text of the job's code."""
    found = record(caplog, "job", job="heart", change="failed", reason=SECRET)
    assert found.levelno == logging.WARNING
    assert SECRET not in f"{found.getMessage()} {vars(found)['fields']}"
    assert "fedlearn job status heart" in found.getMessage()


def test_an_entry_is_logged_when_it_was_appended(
    caplog: pytest.LogCaptureFixture, start: Callable[[], Coordinator], tmp_path: Path
) -> None:
    from tests.harness.restarting_coordinator import tiny_bundle

    coordinator = start()
    coordinator._directory.ledger.subscribe(log_entry)
    with caplog.at_level(logging.INFO, logger="server.event_log"):
        submit(coordinator, tiny_bundle(tmp_path / "logged"), "logged")
    events = [vars(found)["event"] for found in caplog.records if found.name == "server.event_log"]
    assert events[:2] == ["job.submitted", "policy"]


__all__ = ["start"]  # the fixture
