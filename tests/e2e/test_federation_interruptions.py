"""What ends a client's part in the middle of a round, and what the round does then."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from fedlearn.errors import AdmissionDenied, FedlearnError, TransportError
from tests.fakes.misbehaving_client import MisbehavingClient
from tests.harness.federation import FederationHarness, Job, descend, make_data

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def brisk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FederationHarness]:
    """A federation whose clients attest again every five seconds."""
    certificates = {"client_s": 60, "renew_after_s": 5, "renew_by_s": 10}
    with FederationHarness(
        tmp_path_factory.mktemp("brisk"), server={"certificates": certificates}
    ) as it:
        yield it


def _slow(**more: Any) -> dict[str, Any]:
    """A job that waits for ``site-c`` in round 2."""
    config = {"slow-site": "site-c", "slow-round": 2, "slow": 3.0}
    return {"config": {**config, **more.pop("config", {})}, "quorum": 2, **more}


def _updates(job: Job, round_: int) -> dict[str, list[bool]]:
    """By site: whether its updates of a round were taken, in order, as the ledger records."""
    found: dict[str, list[bool]] = {}
    for entry in job.ledger("update"):
        if entry["round"] == round_:
            found.setdefault(entry["site"], []).append(entry["accepted"])
    return found


def test_a_revoked_client_is_out_and_its_update_with_it(shared: FederationHarness) -> None:
    job = shared.job("revoked", **_slow()).submit()
    job.wait_for("update.received", round=2, site="site-a")
    shared.operator.revoke_client(job.name, "site-a", "seen on another machine", once=True)
    job.finish()
    (entry,) = [e for e in job.ledger("revocation") if "another machine" in e["reason"]]
    assert entry["site"] == "site-a"
    # What was revoked does not count, though the site attested again before the round ended.
    revoked = entry["key_thumbprint"]
    assert [e["round"] for e in job.ledger("update") if e["key_thumbprint"] == revoked] == [1, 2]
    assert any("round 2 is run again" in e.line for e in job.of("log"))
    reported = shared.command(
        *("fedlearn", "ledger", "contributions", "--state", shared.state),
        *("--job", job.name, "--json"),
    ).stdout
    made = {(c["round"], c["site"]): c["thumbprint"] for c in json.loads(reported)["contributions"]}
    assert made[1, "site-a"] == revoked
    assert made.get((2, "site-a")) != revoked
    lost = [e for e in job.of("client.lost") if e.site == "site-a"]
    assert any("another machine" in e.reason for e in lost)


def test_a_revoked_clients_update_does_not_enter_the_exact_mean(shared: FederationHarness) -> None:
    """One client is revoked with its update in hand: the model is that of the others."""
    job = shared.job("revoked-mean", rounds=1, **_slow(config={"slow-round": 1})).submit()
    job.wait_for("update.received", round=1, site="site-a")
    shared.operator.replace_policy(job.name, shared.policy(job.name, ["site-b", "site-c"]))
    job.finish()
    zero = np.zeros(4, np.float32)
    parts = {s: descend(zero, *shared.data[s], 3, 0.1) for s in ("site-b", "site-c")}
    rows = {site: len(shared.data[site][1]) for site in parts}
    mean = sum(rows[s] * parts[s].astype(np.float64) for s in parts) / sum(rows.values())
    np.testing.assert_allclose(shared.weights(job.name)["weights"], mean, rtol=1e-6)


def test_who_is_not_affirmed_by_a_new_policy_is_out_in_the_middle_of_a_round(
    shared: FederationHarness,
) -> None:
    job = shared.job("new-policy", **_slow()).submit()
    job.wait_for("update.received", round=2, site="site-a")
    shared.operator.replace_policy(job.name, shared.policy(job.name, ["site-b", "site-c"]))
    job.finish()
    change = [e for e in job.ledger("policy") if e.get("former")]
    assert len(change) == 1
    (gone,) = [e for e in job.ledger("revocation") if "policy changed" in e["reason"]]
    assert gone["site"] == "site-a"
    # Its new attempts are judged by the new policy as well.
    assert any(e["site"] == "site-a" for e in job.ledger("refusal"))
    last = [e for e in job.ledger("round") if e["phase"] == "finished"]
    assert [e["participants"] for e in last] == [3, 2, 2]


def test_a_site_that_is_removed_is_out_of_every_job(brisk: FederationHarness) -> None:
    misbehaving = MisbehavingClient(brisk)
    job = brisk.job("removed", sites=["misbehaving"], data={}, deadline_s=300).submit()
    held = misbehaving.admit(job)
    held.fleet.activate()
    brisk.operator.remove_site("misbehaving")
    with contextlib.suppress(TransportError, AdmissionDenied):  # the connection may be gone
        held.fleet.heartbeat()
    with pytest.raises(AdmissionDenied, match="removed"):
        held.fleet.heartbeat()
    with pytest.raises(FedlearnError):
        misbehaving.admit(job)
    brisk.operator.cancel_job(job.name)
    assert [e["site"] for e in job.ledger("revocation")][:1] == ["misbehaving"]


def test_data_that_changed_puts_a_client_into_quarantine(brisk: FederationHarness) -> None:
    """The commitment made at renewal is another one: the site is out, the job goes on."""
    job = brisk.job("tampered", rounds=2, quorum=2, config={"wait": 8.0}, deadline_s=60).submit()
    job.wait_for("client.admitted", 3)
    job.wait_for("round.started")
    brisk.write_data("site-b", make_data(30, seed=1))
    try:
        (gone,) = job.wait_for("client.quarantined", site="site-b", seconds=20)[:1]
        assert "not the data that it committed to" in gone.reason
        job.finish(seconds=80)
    finally:
        brisk.write_data("site-b", brisk.data["site-b"])
    assert [e["site"] for e in job.ledger("quarantine")][:1] == ["site-b"]
    ended = [e for e in job.ledger("round") if e["phase"] == "finished"]
    assert ended[-1]["participants"] == 2
    assert {e.site for e in job.of("client.renewed")} >= {"site-a", "site-c"}


def test_a_client_that_does_not_attest_again_in_time_is_in_quarantine(
    brisk: FederationHarness,
) -> None:
    """Stopped (SIGSTOP), as by a debugger or a host that suspends it."""
    job = brisk.job("frozen", rounds=1, quorum=2, config={"wait": 14.0}, deadline_s=25).submit()
    job.wait_for("round.started")
    pid = brisk.client_pid("site-c", job.name)
    os.kill(pid, signal.SIGSTOP)
    try:
        (gone,) = job.wait_for("client.quarantined", site="site-c", seconds=20)[:1]
        assert "attest again in time" in gone.reason
        job.finish(seconds=60)
    finally:
        os.kill(pid, signal.SIGCONT)
    (end,) = [e for e in job.ledger("round") if e["phase"] == "finished"]
    assert end["participants"] == 2


@contextlib.contextmanager
def _stopped(pid: int) -> Iterator[None]:
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def _outlasts(harness: FederationHarness, name: str, seconds: float) -> None:
    """A job whose coordinator is stopped in round 2 finishes with every site in every round."""
    config = {"slow-site": "site-c", "slow-round": 2, "slow": 2.0}
    job = harness.job(name, rounds=4, quorum=3, deadline_s=120, config=config).submit()
    job.wait_for("round.started", round=2)
    with _stopped(harness.server_pid()):
        time.sleep(seconds)
    job.finish(seconds=90)
    assert [event.sites for event in job.of("round.finished")] == [3, 3, 3, 3]


def test_a_coordinator_that_is_stopped_finds_its_clients_admitted(brisk: FederationHarness) -> None:
    """For twice as long as a client has to attest again."""
    _outlasts(brisk, "stopped", 20.0)


@pytest.mark.long
def test_a_coordinator_that_is_stopped_for_a_minute_fails_no_job(shared: FederationHarness) -> None:
    """For longer than a client may be silent."""
    _outlasts(shared, "stopped-long", 65.0)


def test_a_killed_client_does_not_hold_up_a_round_and_comes_back(shared: FederationHarness) -> None:
    job = shared.job("killed-client", rounds=8, quorum=2, config={"wait": 1.0}).submit()
    job.wait_for("round.started", round=2)
    pid = shared.client_pid("site-b", job.name)
    started = time.monotonic()
    os.kill(pid, signal.SIGKILL)
    job.wait_for("round.finished", round=2)
    assert time.monotonic() - started < 8
    job.finish()
    lost = [e for e in job.of("client.lost") if e.site == "site-b"]
    assert "signal 9" in " ".join(e.reason for e in lost)
    assert len([e for e in job.ledger("admission") if e["site"] == "site-b"]) == 2
    last = [e for e in job.ledger("round") if e["phase"] == "started"][-1]
    assert last["participants"] == ["site-a", "site-b", "site-c"]


def test_a_straggler_is_dropped_at_the_deadline(shared: FederationHarness) -> None:
    config = {"slow-site": "site-a", "slow-round": 1, "slow": 4.5}
    job = shared.job("late", rounds=1, quorum=2, deadline_s=3, config=config).submit()
    job.finish()
    assert [e.reason for e in job.of("update.rejected")] == ["no answer within 3 s"]
    assert _updates(job, 1) == {"site-a": [False], "site-b": [True], "site-c": [True]}


def test_a_straggler_fails_the_job_where_it_states_it(shared: FederationHarness) -> None:
    config = {"slow-site": "site-a", "slow-round": 1, "slow": 8.0}
    job = shared.job(
        "late-fails", rounds=1, quorum=2, deadline_s=3, stragglers="fail", config=config
    ).submit()
    state = job.finish("failed")
    assert "site-a did not answer within 3 s" in state.detail
    assert "Traceback" not in state.detail


def test_too_few_updates_fail_the_job_and_it_resumes_when_all_is_well(
    shared: FederationHarness,
) -> None:
    config = {"fail-site": "site-c", "fail-round": 2}
    job = shared.job("too-few", rounds=2, config=config).submit()
    state = job.finish("failed")
    assert "2 of the 3 updates that the round asked for can be used, 3 are needed" in state.detail
    assert "planted failure" in " ".join(e.reason for e in job.of("update.rejected"))
    # The app fails in the second call of a process, and round 2 is the first of the new one.
    shared.operator.resume_job(job.name)
    job.finish()
    assert [e.resumed_from for e in job.of("job.started")] == [0, 1]


def test_an_update_that_is_not_numbers_does_not_enter(shared: FederationHarness) -> None:
    job = shared.job("poison", rounds=1, quorum=2, config={"poison-site": "site-b"}).submit()
    job.finish()
    assert _updates(job, 1) == {"site-a": [True], "site-b": [False], "site-c": [True]}
    assert np.isfinite(shared.weights(job.name)["weights"]).all()
