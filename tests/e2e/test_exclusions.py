"""A site that an operator keeps out of a running job, through a restart, and lets back in."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest

from tests.harness.federation import FederationHarness, Job, eventually

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def trio(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FederationHarness]:
    """A federation of its own, whose coordinator is killed."""
    with FederationHarness(tmp_path_factory.mktemp("trio")) as harness:
        yield harness


def _refusals(job: Job, site: str) -> list[str]:
    return [e["reason"] for e in job.ledger("refusal") if e["site"] == site]


def _admitted(job: Job) -> list[str]:
    return [e["site"] for e in job.ledger("admission")]


def _participants(job: Job) -> list[int]:
    return [e["participants"] for e in job.ledger("round") if e["phase"] == "finished"]


def test_a_site_that_is_kept_out_stays_out_through_a_restart_and_comes_back(
    trio: FederationHarness,
) -> None:
    job = trio.job("kept-out", rounds=60, quorum=2, config={"wait": 0.5}).submit()
    job.wait_for("round.finished", round=1)
    trio.operator.revoke_client(job.name, "site-a", "seen on another machine")
    # An honest client tries again, and learns why not.
    (received,) = job.wait_for("client.refused", site="site-a")[:1]
    assert "is excluded from job kept-out by operator operator" in received.reason
    assert "seen on another machine" in received.reason
    assert received.findings[0]["claim"] == "exclusion"
    (shown,) = trio.operator.get_job(job.name).exclusions
    assert (shown.site, shown.until) == ("site-a", None)

    trio.kill_coordinator()
    trio.start_coordinator()
    before = len(_refusals(job, "site-a"))
    with eventually(60) as wait:
        wait(lambda: len(_refusals(job, "site-a")) > before)
        wait(lambda: _admitted(job).count("site-b") == 2)
    assert _admitted(job).count("site-a") == 1

    trio.operator.readmit_client(job.name, "site-a")
    with eventually(60) as wait:
        wait(lambda: _admitted(job).count("site-a") == 2)
    rounds = len(_participants(job))
    with eventually(60) as wait:
        wait(lambda: 3 in _participants(job)[rounds:])
    trio.operator.cancel_job(job.name)
    assert [e["change"] for e in job.ledger("exclusion")] == ["laid", "lifted"]


def test_a_client_that_was_turned_away_for_good_is_started_again_when_it_may(
    trio: FederationHarness,
) -> None:
    job = trio.job("turned-away", rounds=60, quorum=2, config={"wait": 0.5}).submit()
    job.wait_for("round.finished", round=1)
    pid = trio.client_pid("site-b", job.name)
    trio.operator.revoke_client(job.name, "site-b", "to be looked at")
    os.kill(pid, signal.SIGKILL)
    # The client that is started in its place is new, refused, and ends.
    with eventually(60) as wait:
        wait(lambda: any("refused" in e.reason for e in job.of("client.lost")))
    assert job.status == "running"
    trio.operator.readmit_client(job.name, "site-b")
    with eventually(60) as wait:
        wait(lambda: _admitted(job).count("site-b") == 2)
    trio.operator.cancel_job(job.name)
