"""A name is submitted again: each run is its own, and no trace of an old one passes as the new."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedlearn.errors import FedlearnError, JobError, PrivacyError, QuorumNotReached, StoreError
from fedlearn.job.state import JobStatus
from server.admission.exclusions import Exclusion
from server.coordinator import Coordinator
from server.jobs.active_job import noise_name
from server.jobs.records.job_store import JOBS_FILE
from server.jobs.supervisor import JobSupervisor
from server.store.models import ModelStore
from tests.harness.restarting_coordinator import (
    RestartingCoordinator,
    restarting_coordinator,
    tiny_bundle,
)

JOB = 'name = "{}"\napp = "app"\nrounds = {}\nsites = ["site-a"]\npolicy = "policy.toml"\n'
POLICY = (
    'version = {}\nname = "p"\naccept = ["sample"]\ninsecure_sample = true\n'
    '[[reference]]\nclaim = "software"\nvalue = "ab"\n'
)


@pytest.fixture
def start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[RestartingCoordinator]:
    """What starts the coordinator; its jobs are open and have no process."""
    monkeypatch.setattr(JobSupervisor, "_watch", lambda *_: None)
    with restarting_coordinator(tmp_path) as begin:
        yield begin


@pytest.fixture
def bundle(tmp_path: Path) -> bytes:
    return tiny_bundle(tmp_path / "app")


def submit(coordinator: Coordinator, bundle: bytes, name: str = "alpha", *, rounds: int = 1) -> str:
    return coordinator.submit_job(
        "alice",
        job_toml=JOB.format(name, rounds),
        bundle=bundle,
        policy_toml=POLICY.format(rounds),
    ).name


def over(coordinator: Coordinator, run: str) -> None:
    coordinator.cancel_job("alice", run)


def seal(coordinator: Coordinator, run: str) -> None:
    model = {"w": np.ones(3, np.float32)}
    coordinator._directory.store.write(run, model, job=run, round=1)


def sql(folder: Path, statement: str, *values: object) -> list[tuple[Any, ...]]:
    """Edit the file as whoever has the disk does."""
    database = sqlite3.connect(folder / "state" / JOBS_FILE)
    rows = database.execute(statement, values).fetchall()
    database.commit()
    database.close()
    return rows


def test_a_name_is_submitted_again_when_its_last_run_is_over(
    start: RestartingCoordinator, bundle: bytes
) -> None:
    coordinator = start()
    assert submit(coordinator, bundle) == "alpha"
    with pytest.raises(JobError, match="run 1 of job alpha is not over") as caught:
        submit(coordinator, bundle, rounds=2)
    assert "fedlearn job cancel alpha" in caught.value.hint
    over(coordinator, "alpha")
    assert submit(coordinator, bundle, rounds=2) == "alpha.2"
    over(coordinator, "alpha.2")
    # The numbers come from the ledger, so a restart does not begin them again.
    coordinator = start()
    assert submit(coordinator, bundle, rounds=3) == "alpha.3"
    assert [state.rounds for state in coordinator.list_jobs()] == [1, 2, 3]
    for reference, run in {
        "alpha": "alpha.3",
        "alpha@1": "alpha",
        "alpha@2": "alpha.2",
        "alpha.2": "alpha.2",
    }.items():
        assert coordinator.resolve_job(reference) == run
    with pytest.raises(JobError, match="job alpha has no run 4") as caught:
        coordinator.resolve_job("alpha@4")
    assert "alpha@1, alpha@2, alpha@3" in caught.value.hint
    with pytest.raises(JobError, match="there is no job 'beta'"):
        coordinator.resolve_job("beta")


def test_only_the_newest_run_is_resumed(start: RestartingCoordinator, bundle: bytes) -> None:
    coordinator = start()
    submit(coordinator, bundle)
    over(coordinator, "alpha")
    submit(coordinator, bundle)
    over(coordinator, "alpha.2")
    with pytest.raises(JobError, match="run 1 of job alpha cannot be resumed after run 2"):
        coordinator.resume_job("alice", "alpha")
    assert coordinator.resume_job("alice", "alpha.2").status is JobStatus.RUNNING


def test_a_name_that_is_too_long_for_the_id_of_a_second_run_is_used_once(
    start: RestartingCoordinator, bundle: bytes
) -> None:
    coordinator = start()
    name = "a" * 63
    submit(coordinator, bundle, name)
    over(coordinator, name)
    with pytest.raises(JobError, match="would be too long") as caught:
        submit(coordinator, bundle, name)
    assert "at most 58 characters" in caught.value.hint


@pytest.mark.parametrize(
    ("statement", "reason"),
    [
        # The row of the first run under the id of the second one.
        (
            "UPDATE jobs SET (spec, mac) = (SELECT spec, mac FROM jobs WHERE name = 'alpha') "
            "WHERE name = 'alpha.2'",
            "altered",
        ),
        (
            "UPDATE jobs SET spec = (SELECT spec FROM jobs WHERE name = 'alpha') "
            "WHERE name = 'alpha.2'",
            "altered",
        ),
        ("DELETE FROM jobs WHERE name = 'alpha.2'", "missing"),
    ],
)
def test_the_record_of_an_old_run_does_not_pass_as_the_new_one(
    tmp_path: Path, start: RestartingCoordinator, bundle: bytes, statement: str, reason: str
) -> None:
    coordinator = start()
    submit(coordinator, bundle, rounds=9)
    over(coordinator, "alpha")
    submit(coordinator, bundle, rounds=2)
    start.stop()
    sql(tmp_path, statement)
    coordinator = start()
    assert coordinator.jobs.named("alpha.2") is None
    assert reason in coordinator._job_store.set_apart["alpha.2"]
    with pytest.raises(StoreError):
        coordinator.submission("alpha.2")


def test_the_policy_of_an_old_run_does_not_pass_as_that_of_the_new_one(
    tmp_path: Path, start: RestartingCoordinator, bundle: bytes
) -> None:
    coordinator = start()
    submit(coordinator, bundle, rounds=1)
    over(coordinator, "alpha")
    submit(coordinator, bundle, rounds=2)
    start.stop()
    sql(tmp_path, "DELETE FROM policies WHERE job = 'alpha.2'")
    sql(tmp_path, "UPDATE policies SET job = 'alpha.2' WHERE job = 'alpha'")
    coordinator = start()
    with pytest.raises(StoreError, match="its policy is missing"):
        coordinator.submission("alpha.2")


def test_an_entry_about_an_old_run_states_nothing_about_the_new_one(
    start: RestartingCoordinator, bundle: bytes
) -> None:
    coordinator = start()
    submit(coordinator, bundle)
    over(coordinator, "alpha")
    submit(coordinator, bundle)
    ledger = coordinator._directory.ledger
    ledger.append("job", {"job": "alpha", "change": "finished", "rounds": 1})
    ledger.append("exclusion", {"job": "alpha", "site": "site-a", "change": "excluded"})
    assert coordinator.get_job("alpha.2").status is JobStatus.RUNNING


def test_delete_removes_all_of_a_run_and_its_number_stays_used(
    tmp_path: Path, start: RestartingCoordinator, bundle: bytes
) -> None:
    coordinator = start()
    submit(coordinator, bundle)
    with pytest.raises(JobError, match="only a job that is over can be deleted") as caught:
        coordinator.delete_job("alice", "alpha")
    assert "fedlearn job cancel alpha" in caught.value.hint
    seal(coordinator, "alpha")
    coordinator._directory.keys.keep(noise_name("alpha"), b"secret")
    over(coordinator, "alpha")
    coordinator.delete_job("alice", "alpha")
    with pytest.raises(JobError, match="there is no job 'alpha'"):
        coordinator.resolve_job("alpha")
    assert list(coordinator.list_jobs()) == []
    assert coordinator._directory.store.models() == ()
    assert coordinator._directory.keys.models() == {}
    assert coordinator._directory.keys.secret(noise_name("alpha")) is None
    assert list((tmp_path / "state" / "bundles").iterdir()) == []
    for table in ("jobs", "policies", "events"):
        assert sql(tmp_path, f"SELECT * FROM {table}") == []
    entries = [entry.body for entry in coordinator._directory.ledger.entries(kind="job")]
    assert entries[-1] == {
        "job": "alpha",
        "change": "deleted",
        "operator": "alice",
        "models": ["alpha", "alpha.files"],
    }
    # A store without the model is not an older one, and the id is not used again.
    coordinator = start()
    assert coordinator._job_store.set_apart == {}
    assert submit(coordinator, bundle) == "alpha.2"


def test_delete_keeps_the_model_on_demand_and_the_bundle_of_another_run(
    tmp_path: Path, start: RestartingCoordinator, bundle: bytes
) -> None:
    coordinator = start()
    submit(coordinator, bundle)
    seal(coordinator, "alpha")
    over(coordinator, "alpha")
    submit(coordinator, bundle)
    coordinator.delete_job("alice", "alpha", keep_model=True)
    assert coordinator.resolve_job("alpha") == "alpha.2"
    coordinator = start()
    assert coordinator._directory.store.models() == ("alpha",)
    assert coordinator.submission("alpha.2").bundle.data == bundle
    # The model that was kept goes with a second deletion, and not by accident.
    with pytest.raises(JobError, match="job alpha has no run 1"):
        coordinator.resolve_job("alpha@1")
    assert coordinator.resolve_job("alpha", kept=True) == "alpha.2"
    name = coordinator.resolve_job("alpha@1", kept=True)
    assert coordinator.delete_job("alice", name).name == "alpha"
    assert coordinator._directory.store.models() == ()
    with pytest.raises(JobError, match="job alpha has no run 1"):
        coordinator.resolve_job("alpha@1", kept=True)
    coordinator = start()
    assert [state.name for state in coordinator.list_jobs()] == ["alpha.2"]


@pytest.mark.parametrize("crash", ["delete", "remove"])
def test_a_deletion_that_a_crash_interrupts_is_completed_at_the_next_start(
    tmp_path: Path,
    start: RestartingCoordinator,
    bundle: bytes,
    monkeypatch: pytest.MonkeyPatch,
    crash: str,
) -> None:
    coordinator = start()
    submit(coordinator, bundle)
    seal(coordinator, "alpha")
    over(coordinator, "alpha")

    def fail(*_: object) -> None:
        raise StoreError("the machine lost its power")

    with monkeypatch.context() as patch:
        if crash == "delete":
            patch.setattr(coordinator._job_store, "delete", fail)
        else:
            patch.setattr(ModelStore, "remove", fail)
        with pytest.raises(StoreError, match="power"):
            coordinator.delete_job("alice", "alpha")
    coordinator = start()
    assert list(coordinator.list_jobs()) == []
    coordinator.deletion.finish()
    assert coordinator._directory.store.models() == ()
    assert sql(tmp_path, "SELECT * FROM jobs") == []


def test_a_row_of_a_deleted_run_that_is_put_back_is_removed_again(
    tmp_path: Path, start: RestartingCoordinator, bundle: bytes
) -> None:
    coordinator = start()
    submit(coordinator, bundle)
    over(coordinator, "alpha")
    [row] = sql(tmp_path, "SELECT * FROM jobs")
    coordinator.delete_job("alice", "alpha")
    start.stop()
    sql(tmp_path, "INSERT INTO jobs VALUES (?, ?, ?, ?, ?, ?, ?)", *row)
    coordinator = start()
    assert list(coordinator.list_jobs()) == []
    with pytest.raises(JobError, match="there is no job"):
        coordinator.resume_job("alice", "alpha")
    coordinator.deletion.finish()
    assert sql(tmp_path, "SELECT * FROM jobs") == []


def test_a_store_without_a_model_that_nobody_deleted_is_refused_as_before(
    start: RestartingCoordinator, bundle: bytes
) -> None:
    coordinator = start()
    submit(coordinator, bundle)
    seal(coordinator, "alpha")
    over(coordinator, "alpha")
    coordinator._directory.ledger.append(
        "checkpoint", {"job": "alpha", "model": "alpha", "version": 1}
    )
    coordinator._directory.store.remove("alpha")
    start.stop()
    with pytest.raises(StoreError, match="rolled back"):
        start()


def test_a_refusal_lists_everything_that_is_wrong(
    start: RestartingCoordinator, bundle: bytes
) -> None:
    coordinator = start()
    submit(coordinator, bundle)
    toml = JOB.format("alpha", 1).replace('"site-a"', '"nowhere", "elsewhere", "site-a"')
    with pytest.raises(JobError) as caught:
        coordinator.submit_job(
            "alice",
            job_toml=toml,
            bundle=b"no bundle",
            policy_toml='version = 1\nname = "p"\naccept = ["sample"]\ninsecure_sample = true\n',
        )
    for fault in ("nowhere", "elsewhere", "the app bundle", "run 1 of job alpha", "software"):
        assert fault in str(caught.value), fault
    assert len(str(caught.value).splitlines()) >= 5
    assert [state.name for state in coordinator.list_jobs()] == ["alpha"]
    # One fault alone is refused by its own kind of error, with its own hint.
    with pytest.raises(FedlearnError) as single:
        submit(coordinator, bundle)
    assert "\n" not in str(single.value)
    assert not isinstance(single.value, PrivacyError)


def test_the_policy_of_a_job_that_failed_is_corrected_and_the_job_resumed(
    start: RestartingCoordinator, bundle: bytes
) -> None:
    coordinator = start()
    submit(coordinator, bundle)
    over(coordinator, "alpha")
    coordinator.replace_policy("alice", "alpha", POLICY.format(7))
    coordinator.resume_job("alice", "alpha")
    assert coordinator.jobs.require("alpha").admittable.policy.version == 7
    coordinator._directory.ledger.append("job", {"job": "alpha", "change": "finished"})
    coordinator.jobs.remove("alpha")
    with pytest.raises(JobError, match="has finished, and no client of it is appraised"):
        coordinator.replace_policy("alice", "alpha", POLICY.format(8))


def test_what_a_site_reports_that_it_would_refuse_is_a_note(
    start: RestartingCoordinator, bundle: bytes
) -> None:
    coordinator = start()
    sites = coordinator._selection._sites
    sites.report_capabilities(
        "site-a", '{"accept": {"bundles": [], "other_bundles": "refuse", "policy_keys": ["ab"]}}'
    )
    state = coordinator.submit_job(
        "alice", job_toml=JOB.format("alpha", 1), bundle=bundle, policy_toml=POLICY.format(1)
    )
    refused, unsigned = state.notes
    assert refused.startswith("site site-a: it refuses the app bundle ")
    assert "it refuses a policy that is not signed" in unsigned
    over(coordinator, "alpha")
    sites.report_capabilities("site-a", '{"accept": {"bundles": [], "other_bundles": "ask"}}')
    state = coordinator.submit_job(
        "alice", job_toml=JOB.format("alpha", 1), bundle=bundle, policy_toml=POLICY.format(1)
    )
    assert "`fedlearn-edge approve alpha.2 " in state.notes[0]
    over(coordinator, "alpha.2")
    # What a site does not report, or reports in another form, is no note.
    sites.report_capabilities("site-a", '{"accept": {"bundles": "all"}}')
    state = coordinator.submit_job(
        "alice", job_toml=JOB.format("alpha", 1), bundle=bundle, policy_toml=POLICY.format(1)
    )
    assert state.notes == ()


def test_the_state_names_for_what_a_round_waits_and_a_removed_site_ends_the_wait(
    start: RestartingCoordinator, bundle: bytes
) -> None:
    coordinator = start()
    submit(coordinator, bundle)
    job = coordinator.jobs.require("alpha")
    fields = {"round": 1, "sites": ["site-a"], "until_unix_ms": 47_110_000}
    job.channel.event("round.waiting", fields)
    job.channel.event("round.waiting", fields)
    expected = "round 1/1 waits for site-a (not connected) until 13:05:10 UTC"
    assert coordinator.get_job("alpha").detail == expected
    events = coordinator._job_store.events.page("alpha")
    assert [event.kind for event in events].count("round.waiting") == 1
    coordinator.gate.exclude(
        Exclusion(
            job="alpha", site="site-a", client="", until=None, reason="stolen", operator="alice"
        )
    )
    assert "excluded by operator alice: stolen" in coordinator.get_job("alpha").detail
    with pytest.raises(QuorumNotReached, match="excluded by operator alice: stolen"):
        job.channel.event("round.waiting", fields)
    coordinator.gate.readmit("alpha", "site-a", client="", operator="alice")
    coordinator._selection._sites.remove("site-a")
    with pytest.raises(QuorumNotReached, match=r"site-a \(removed \d+ s ago\)"):
        job.channel.event("round.waiting", fields)
    with pytest.raises(JobError, match="not of this job"):
        job.channel.event("round.waiting", {**fields, "sites": ["elsewhere"]})
    job.channel.event("round.started", {"round": 1, "rounds": 1, "sites": ["site-a"]})
    assert coordinator.get_job("alpha").detail == ""
