"""The state of an app survives its client, and a disk that was written to meanwhile is found."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from tests.harness.federation import FederationHarness, Job

pytestmark = pytest.mark.e2e


def _job(harness: FederationHarness, name: str, rounds: int) -> Job:
    """A job whose app at ``site-b`` fails in its fourth call, as it counts in ``context.state``."""
    config = {"wait": 1.0, "fail-site": "site-b", "fail-round": -1, "fail-count": 4}
    return harness.job(name, rounds=rounds, quorum=2, config=config).submit()


def _answers(job: Job) -> list[bool]:
    """Whether the updates of ``site-b`` were taken, in order."""
    return [each["accepted"] for each in job.ledger("update") if each["site"] == "site-b"]


def _states(harness: FederationHarness, job: Job) -> list[Path]:
    folder = harness.folder / "sites" / "site-b" / "state" / "app-state"
    return sorted(folder.glob(f"{job.name}-*/*.sealed"))


def test_the_state_of_a_killed_client_is_that_of_the_next_one(shared: FederationHarness) -> None:
    job = _job(shared, "state-kept", rounds=12)
    job.wait_for("round.started", round=3)
    os.kill(shared.client_pid("site-b", job.name), signal.SIGKILL)
    job.finish()
    assert len([e for e in job.ledger("admission") if e["site"] == "site-b"]) == 2
    answers = _answers(job)
    # A client that had lost its state would have counted from one again.
    planted = len(answers) - 1 - answers[::-1].index(False)
    assert sum(answers[:planted]) == 3, answers
    assert any("planted failure" in e.reason for e in job.of("update.rejected"))
    released = [e for e in job.ledger("key-release") if e["site"] == "site-b"]
    assert [e["allowed"] for e in released] == [True, True]
    # Nothing of it is on the disk in the clear.
    assert all(b"count" not in path.read_bytes() for path in _states(shared, job))


def test_a_state_that_was_altered_meanwhile_is_refused(shared: FederationHarness) -> None:
    job = _job(shared, "state-altered", rounds=10)
    job.wait_for("round.started", round=3)
    files = _states(shared, job)
    assert files
    for path in files:
        path.write_bytes(path.read_bytes()[:-1] + b"?")
    os.kill(shared.client_pid("site-b", job.name), signal.SIGKILL)
    job.finish()
    refused = [e for e in job.of("update.rejected") if e.site == "site-b"]
    assert any("it was altered, exchanged, removed or set back" in e.reason for e in refused)
    assert _answers(job)[-1] is False
