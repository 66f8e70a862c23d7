"""A job that is run again, deleted and cloned, and one that loses a site for good."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from fedlearn.errors import JobError
from tests.harness.federation import FederationHarness

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FederationHarness]:
    """A federation of its own: a site of it is removed in the end."""
    with FederationHarness(tmp_path_factory.mktemp("pair"), ("site-a", "site-b")) as harness:
        yield harness


def test_a_name_is_run_again_and_each_run_is_deleted_or_cloned_by_itself(
    pair: FederationHarness, tmp_path: Path
) -> None:
    pair.run("again", rounds=1)
    second = pair.job("again", rounds=1).submit()
    state = second.finish()
    assert (state.reference, state.run_id, state.model) == ("again@2", "again.2", "again.2")
    assert pair.operator.get_job("again@1").model == "again"
    # At the sites, in certificates and in the ledger it is another job.
    admitted = {entry["job"] for entry in pair.ledger("admission")}
    assert {"again", "again.2"} <= admitted
    assert len(pair.sealed("again.2")) == 1
    assert pair.digest("again") == pair.digest("again.2")

    out = tmp_path / "clone"
    pair.command("fedlearn", "job", "clone", "again@1", "--out", out)
    pair.command("fedlearn", "job", "validate", out / "job.toml")
    assert "seed = 5" in (out / "job.toml").read_text()

    done = pair.command("fedlearn", "job", "delete", "again@1", "--yes", "--json")
    assert json.loads(done.stdout)["run_id"] == "again"
    assert pair.sealed("again") == []
    assert pair.operator.get_job("again").run == 2
    with pytest.raises(JobError, match="job again has no run 1"):
        pair.operator.get_job("again@1")
    pair.stop_coordinator()
    pair.command("fedlearn-server", "check", "--config", pair.server_toml)
    pair.start_coordinator()
    assert [state.reference for state in pair.operator.list_jobs()] == ["again@2"]


def test_a_round_does_not_wait_for_a_site_that_was_removed(pair: FederationHarness) -> None:
    job = pair.job("short", rounds=400, deadline_s=300, config={"wait": 0.2}).submit()
    job.wait_for("round.finished", round=1)
    pair.operator.remove_site("site-b")
    removed = time.monotonic()
    state = job.finish("failed", seconds=60)
    assert time.monotonic() - removed < 45
    assert "site-b (removed" in state.detail
    last = job.events()[-1].to_json()
    assert (last["kind"], last["detail"]) == ("job.failed", state.detail)
