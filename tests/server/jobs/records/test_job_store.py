"""What is run is what was submitted: an edit of the file of jobs gains nothing and is named."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from attestation.policy.model import AppraisalPolicy
from attestation.policy.parse import parse_policy
from fedlearn.errors import JobError, StoreError
from fedlearn.job.events import KINDS, JobFailed, Log
from fedlearn.job.owner_key import owner_key_text
from fedlearn.job.spec import JobSpec
from fedlearn.job.state import JobStatus
from server.config import ServerConfig
from server.coordinator import Coordinator
from server.jobs.records.authenticated_rows import RowKey
from server.jobs.records.bundles import Bundle, Bundles
from server.jobs.records.job_store import JOBS_FILE, JobRecord
from server.jobs.supervisor import JobSupervisor
from server.main import main
from server.state_directory import StateDirectory
from tests.harness.restarting_coordinator import (
    RestartingCoordinator,
    restarting_coordinator,
    tiny_bundle,
)

JOB = 'name = "{}"\napp = "app"\nrounds = 1\nsites = ["site-a"]\npolicy = "policy.toml"\n'
OWNER = owner_key_text(bytes(range(32)))
THIEF = owner_key_text(bytes(range(1, 33)))

Start = RestartingCoordinator


def text(version: int = 1) -> str:
    return (
        f'version = {version}\nname = "p"\naccept = ["sample"]\ninsecure_sample = true\n'
        '[[reference]]\nclaim = "software"\nvalue = "ab"\n'
    )


def policy() -> AppraisalPolicy:
    return parse_policy(text().encode())


@pytest.fixture
def start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Start]:
    """What starts the coordinator; its jobs are open and have no process."""
    monkeypatch.setattr(JobSupervisor, "_watch", lambda *_: None)
    with restarting_coordinator(tmp_path) as begin:
        yield begin


@pytest.fixture
def bundle(tmp_path: Path) -> bytes:
    return tiny_bundle(tmp_path / "app")


def submit(coordinator: Coordinator, bundle: bytes, name: str = "alpha") -> None:
    coordinator.submit_job(
        "alice",
        job_toml=JOB.format(name) + f'owner_key = "{OWNER}"\n',
        bundle=bundle,
        policy_toml=text(),
    )


def sql(folder: Path, statement: str, *values: object) -> list[tuple[Any, ...]]:
    """Edit the file as whoever has the disk does."""
    database = sqlite3.connect(folder / "state" / JOBS_FILE)
    rows = database.execute(statement, values).fetchall()
    database.commit()
    database.close()
    return rows


def last_failure(coordinator: Coordinator) -> dict[str, Any]:
    [*_, entry] = coordinator._directory.ledger.entries(kind="job")
    return dict(entry.body)


@pytest.mark.parametrize(
    ("statement", "values"),
    [
        ("UPDATE jobs SET spec = replace(spec, ?, ?)", (OWNER, THIEF)),
        ("UPDATE jobs SET spec = replace(spec, '\"rounds\": 1', '\"rounds\": 9')", ()),
        ("UPDATE jobs SET spec = '{'", ()),
        ("UPDATE jobs SET status = 'finished'", ()),
        ("UPDATE jobs SET status = 'crowned'", ()),
        ("UPDATE jobs SET round = 7", ()),
        ("UPDATE jobs SET created = 1e300", ()),
        ("UPDATE jobs SET mac = zeroblob(32)", ()),
        ("DELETE FROM jobs", ()),
    ],
)
def test_an_edited_record_is_set_apart_and_not_run(
    tmp_path: Path, start: Start, bundle: bytes, statement: str, values: tuple[object, ...]
) -> None:
    coordinator = start()
    submit(coordinator, bundle)
    submit(coordinator, bundle, "beta")
    start.stop()
    sql(tmp_path, statement + (" WHERE name = 'alpha'"), *values)
    coordinator = start()
    assert coordinator.jobs.named("alpha") is None
    assert list(coordinator._job_store.set_apart) == ["alpha"]
    view = coordinator.get_job("alpha")
    assert view.status == "failed"
    assert "jobs.sqlite" not in view.detail
    assert any(word in view.detail for word in ("altered", "missing"))
    assert last_failure(coordinator)["job"] == "alpha"
    assert last_failure(coordinator)["change"] == "failed"
    # One bad row keeps nothing else from running, nor from being listed.
    assert coordinator.jobs.named("beta") is not None
    assert {job.name: job.status for job in coordinator.list_jobs()} == {
        "alpha": "failed",
        "beta": "running",
    }
    with pytest.raises(StoreError, match="job alpha: ") as caught:
        coordinator.resume_job("alice", "alpha")
    assert "backup" in caught.value.hint
    submit(coordinator, bundle)
    assert coordinator.jobs.named("alpha") is None
    assert coordinator.jobs.require("alpha.2").record.spec.rounds == 1


def test_a_restored_file_lets_a_job_that_was_set_apart_go_on(
    tmp_path: Path, start: Start, bundle: bytes
) -> None:
    submit(start(), bundle)
    start.stop()
    shutil.copyfile(tmp_path / "state" / JOBS_FILE, tmp_path / "backup")
    (tmp_path / "state" / JOBS_FILE).unlink()
    coordinator = start()
    assert "is missing" in coordinator.get_job("alpha").detail
    start.stop()
    for suffix in ("", "-wal", "-shm"):
        Path(f"{tmp_path / 'state' / JOBS_FILE}{suffix}").unlink(missing_ok=True)
    shutil.copyfile(tmp_path / "backup", tmp_path / "state" / JOBS_FILE)
    coordinator = start()
    assert coordinator.get_job("alpha").status == "failed", "the ledger has it so"
    assert coordinator.resume_job("alice", "alpha").status == "running"


@pytest.mark.parametrize("which", ["bundle", "gone", "policy", "signature", "row"])
def test_other_code_or_another_policy_is_not_run(
    tmp_path: Path, start: Start, bundle: bytes, which: str
) -> None:
    submit(start(), bundle)
    start.stop()
    [kept] = (tmp_path / "state" / "bundles").iterdir()
    if which == "bundle":
        kept.write_bytes(tiny_bundle(tmp_path / "other") + b"more")
    elif which == "gone":
        kept.unlink()
    else:
        sql(
            tmp_path,
            {
                "policy": "UPDATE policies SET text = replace(text, 'ab', 'cd')",
                "signature": "UPDATE policies SET signature = x'00'",
                "row": "DELETE FROM policies",
            }[which],
        )
    coordinator = start()
    assert coordinator.jobs.named("alpha") is None
    detail = coordinator.get_job("alpha").detail
    assert any(word in detail for word in ("not the bundle", "no such file", "its policy"))
    assert last_failure(coordinator)["reason"] == detail


def test_a_job_that_nobody_submitted_is_not_run(
    tmp_path: Path, start: Start, bundle: bytes
) -> None:
    coordinator = start()
    submit(coordinator, bundle)
    start.stop()
    # A copy of a genuine row under another name, and one that a coordinator itself wrote
    # before it was killed.
    sql(
        tmp_path,
        "INSERT INTO jobs SELECT 'ghost', status, detail, round, replace(spec, 'alpha', 'ghost'), "
        "created, mac FROM jobs",
    )
    coordinator = start()
    record = coordinator._job_store.get("alpha")
    spec = JobSpec.from_toml(JOB.format("early"), policy=policy())
    coordinator._job_store.add(
        JobRecord(
            name="early",
            status=JobStatus.PENDING,
            spec=spec,
            policy=text(),
            policy_in_force=policy(),
            bundle=Bundle(bundle),
            created=record.created,
        )
    )
    coordinator = start()
    assert sorted(coordinator._job_store.set_apart) == ["early", "ghost"]
    assert "no entry of its submission" in coordinator._job_store.set_apart["early"]
    assert [job.name for job in coordinator.list_jobs()] == ["alpha"]
    for name in ("early", "ghost"):
        assert coordinator.jobs.named(name) is None
        with pytest.raises(JobError, match="there is no job"):
            coordinator.resume_job("alice", name)
        # The name is free: nobody has used it.
        submit(coordinator, bundle, name)
        assert coordinator.get_job(name).status == "running"
    assert coordinator._job_store.set_apart == {}


@pytest.mark.parametrize("status", ["running", "finished", "cancelled"])
def test_whether_a_job_is_open_is_for_the_ledger_to_state(
    tmp_path: Path, start: Start, bundle: bytes, status: str
) -> None:
    """Even where the file states otherwise with a MAC that is good, as an older copy does."""
    coordinator = start()
    submit(coordinator, bundle)
    submit(coordinator, bundle, "beta")
    coordinator.cancel_job("alice", "beta")
    key = RowKey(coordinator._directory.keys.root.derive("jobs"))
    start.stop()
    for *cells, mac in sql(tmp_path, "SELECT * FROM jobs"):
        assert key.genuine("jobs", cells, mac)
        cells[1] = status
        values = (status, key.mac("jobs", cells), cells[0])
        sql(tmp_path, "UPDATE jobs SET status = ?, mac = ? WHERE name = ?", *values)
    coordinator = start()
    assert coordinator._job_store.set_apart == {}
    assert coordinator.get_job("alpha").status == "running"
    assert coordinator.get_job("beta").status == "cancelled"
    assert coordinator.jobs.named("beta") is None


def test_an_end_that_a_crash_hid_is_reported(start: Start, bundle: bytes) -> None:
    coordinator = start()
    submit(coordinator, bundle)
    coordinator.supervisor.stop()
    ledger = coordinator._directory.ledger
    ledger.append("job", {"job": "alpha", "change": "failed", "reason": "no room"})
    coordinator = start()
    assert coordinator.get_job("alpha").status == "failed"
    events = coordinator._job_store.events.page("alpha")
    assert events[-1].kind == JobFailed.kind
    assert "no room" in events[-1].body
    before = len(events)
    assert len(start()._job_store.events.page("alpha")) == before


def test_altered_and_missing_events_are_named_where_they_stood(
    tmp_path: Path, start: Start, bundle: bytes
) -> None:
    coordinator = start()
    submit(coordinator, bundle)
    for number in range(8):
        coordinator.events.report("alpha", Log(line=f"line {number}"))
    count = len(coordinator._job_store.events.page("alpha"))
    start.stop()
    sql(tmp_path, "UPDATE events SET body = replace(body, 'line 2', 'line 9')")
    sql(tmp_path, "DELETE FROM events WHERE body LIKE '%line 4%' OR body LIKE '%line 5%'")
    sql(tmp_path, "UPDATE events SET at = 1e308 WHERE body LIKE '%line 7%'")
    events = start()._job_store.events.page("alpha")
    received = "\n".join(event.body for event in events)
    assert "line 9" not in received
    assert received.count("was altered on the disk") == 2
    assert "are missing on the disk" in received
    sequences = [event.sequence for event in events]
    assert sequences == sorted(set(sequences))
    assert len(sequences) >= count - 1
    assert all(KINDS[event.kind] for event in events)


def test_a_noise_secret_that_is_missing_is_not_drawn_again(
    tmp_path: Path, start: Start, bundle: bytes
) -> None:
    """Another secret gives a second, different release of a round that was charged once."""
    coordinator = start()
    privacy = (
        '[privacy]\nmechanism = "central-gaussian"\nclip = 1.0\nnoise_multiplier = 1.5\n'
        "epsilon = 8.0\ndelta = 1e-5\n"
    )
    strategy = '[strategy]\nname = "fedavg"\n'
    coordinator.submit_job(
        "alice",
        job_toml=JOB.format("alpha") + strategy + privacy,
        bundle=bundle,
        policy_toml=text(),
    )
    start.stop()
    path = tmp_path / "state" / "keys" / "secrets" / "noise-alpha.sealed"
    kept = path.read_bytes()
    assert start().get_job("alpha").status == "running"
    start.stop()
    path.unlink()
    coordinator = start()
    assert "noise secret of job alpha is missing" in coordinator.get_job("alpha").detail
    assert not path.exists()
    coordinator._directory.keys.keep("noise-alpha", bytes(32))
    with pytest.raises(StoreError, match="is not the one that was drawn"):
        coordinator.resume_job("alice", "alpha")
    path.write_bytes(kept)
    assert coordinator.resume_job("alice", "alpha").status == "running"


def test_an_edit_beside_the_running_coordinator_changes_nothing(
    tmp_path: Path, start: Start, bundle: bytes
) -> None:
    coordinator = start()
    submit(coordinator, bundle)
    before = coordinator.get_job("alpha")
    sql(tmp_path, "UPDATE jobs SET spec = replace(spec, ?, ?), status = 'failed'", OWNER, THIEF)
    sql(tmp_path, "INSERT INTO jobs SELECT 'ghost', status, '', 0, spec, 0, mac FROM jobs")
    assert coordinator.list_jobs() == [before]
    record = coordinator._job_store.get("alpha")
    assert record.spec.owner_key == OWNER
    coordinator._job_store.change("alpha", round_=1)
    coordinator = start()
    assert coordinator._job_store.get("alpha").spec.owner_key == OWNER
    assert list(coordinator._job_store.set_apart) == ["ghost"]
    # Policies and bundles are read when they are needed, and compared then.
    sql(tmp_path, "UPDATE policies SET text = replace(text, 'ab', 'cd')")
    with pytest.raises(StoreError, match="its policy was altered"):
        coordinator._job_store.get("alpha")


def test_check_names_what_is_set_apart_and_changes_nothing(
    tmp_path: Path, start: Start, bundle: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    coordinator = start()
    submit(coordinator, bundle)
    submit(coordinator, bundle, "beta")
    start.stop()

    def check() -> tuple[object, dict[str, Any]]:
        with pytest.raises(SystemExit) as caught:
            main(["check", "--config", str(tmp_path / "server.toml"), "--json"])
        return caught.value.code, json.loads(capsys.readouterr().out)

    code, found = check()
    assert (code, found["jobs"], found["set_apart"]) == (0, 2, {})
    sql(tmp_path, "UPDATE jobs SET spec = replace(spec, ?, ?) WHERE name = 'beta'", OWNER, THIEF)
    for _ in range(2):
        code, found = check()
        assert code == 2
        assert list(found["set_apart"]) == ["beta"]
    with StateDirectory.open(ServerConfig.load(tmp_path / "server.toml")) as directory:
        changes = [entry.body["change"] for entry in directory.ledger.entries(kind="job")]
    assert changes == ["submitted", "submitted"]


def test_states_are_read_without_bundles(tmp_path: Path, start: Start, bundle: bytes) -> None:
    coordinator = start()
    submit(coordinator, bundle)
    coordinator.cancel_job("alice", "alpha")
    shutil.rmtree(tmp_path / "state" / "bundles")
    assert [job.status for job in coordinator.list_jobs()] == ["cancelled"]
    assert coordinator.get_job("alpha").rounds == 1
    assert list(coordinator.follow_job("alpha", after=0, past_only=True, stop=threading.Event()))


def test_equal_bundles_are_kept_once(tmp_path: Path, start: Start, bundle: bytes) -> None:
    coordinator = start()
    for name in ("alpha", "beta", "gamma"):
        submit(coordinator, bundle, name)
    assert len(list((tmp_path / "state" / "bundles").iterdir())) == 1
    assert coordinator._job_store.get("gamma").bundle.data == bundle


@pytest.mark.parametrize("cut", [0, 1, 100, 4096, 5000, 8192])
def test_a_file_of_jobs_that_was_cut_is_named(
    tmp_path: Path, start: Start, bundle: bytes, cut: int
) -> None:
    coordinator = start()
    submit(coordinator, bundle)
    start.stop()
    path = tmp_path / "state" / JOBS_FILE
    whole = path.read_bytes()
    path.write_bytes(whole[:cut])
    if cut < 2:
        # For SQLite this is a new file: the ledger knows what is missing from it.
        assert "is missing" in start().get_job("alpha").detail
        return
    with pytest.raises(StoreError, match=r"jobs\.sqlite") as caught:
        start()
    assert caught.value.hint


# --- a policy that is replaced --------------------------------------------------------


def _killed(work: Callable[[Callable[[], None]], None], kill_at: int) -> bool:
    child = os.fork()
    if child:
        _, status = os.waitpid(child, 0)
        assert os.WIFSIGNALED(status) or os.waitstatus_to_exitcode(status) == 0
        return os.WIFSIGNALED(status)
    count = 0

    def step() -> None:
        nonlocal count
        if count == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        count += 1

    status = 1
    try:
        work(step)
        status = 0
    finally:
        os._exit(status)


def _count(coordinator: Coordinator, step: Callable[[], None]) -> None:
    """Have ``step`` called before and after each step that leaves something on the disk."""

    def around(owner: object, name: str) -> None:
        inner = getattr(owner, name)

        def counted(*args: object, **options: object) -> Any:
            step()
            done = inner(*args, **options)
            step()
            return done

        setattr(owner, name, counted)

    around(coordinator._job_store, "_put")
    around(coordinator._job_store, "_put_policy")
    around(coordinator._job_store._bundles, "keep")
    around(coordinator._directory.ledger, "_insert")
    around(coordinator._directory.ledger, "_seal")
    around(coordinator.gate, "replace_policy")
    around(os, "fsync")


def test_a_submission_that_a_kill_interrupts_is_whole_or_may_be_repeated(
    tmp_path: Path, start: Start, bundle: bytes
) -> None:
    start()
    start.stop()
    state, kept = tmp_path / "state", tmp_path / "kept"
    shutil.copytree(state, kept)
    seen = set()
    for kill_at in range(200):
        shutil.rmtree(state)
        shutil.copytree(kept, state)

        def work(step: Callable[[], None]) -> None:
            began = start()
            _count(began, step)
            submit(began, bundle)

        killed = _killed(work, kill_at)
        again = start()
        if again.jobs.named("alpha") is None:
            assert again.list_jobs() == []
            submit(again, bundle)
            seen.add("repeated")
        else:
            seen.add("whole")
        assert again.get_job("alpha").status == "running"
        assert again._job_store.set_apart == {}
        submitted = [
            entry.body
            for entry in again._directory.ledger.entries(kind="job")
            if entry.body["change"] == "submitted"
        ]
        assert len(submitted) == 1
        start.stop()
        if not killed:
            break
    assert seen == {"repeated", "whole"}
    assert kill_at > 20


def test_a_replacement_that_a_kill_interrupts_is_recorded_or_did_not_happen(
    tmp_path: Path, start: Start, bundle: bytes
) -> None:
    coordinator = start()
    submit(coordinator, bundle)
    start.stop()
    state, kept = tmp_path / "state", tmp_path / "kept"
    shutil.copytree(state, kept)
    seen = set()
    for kill_at in range(100):
        shutil.rmtree(state)
        shutil.copytree(kept, state)

        def replace(step: Callable[[], None]) -> None:
            began = start()
            _count(began, step)
            began.replace_policy("bob", "alpha", text(2))

        killed = _killed(replace, kill_at)
        again = start()
        entries = [dict(e.body) for e in again._directory.ledger.entries(kind="policy")]
        offered = again.admission.admittable("alpha")
        assert offered is not None
        recorded = next(e for e in reversed(entries) if e.get("job") == "alpha")
        assert offered.policy.digest.hex() == recorded["policy"]
        seen.add(offered.policy.version)
        start.stop()
        if not killed:
            break
    assert seen == {1, 2}
    assert kill_at > 8


def test_listing_is_quick_however_large_the_bundles_are(tmp_path: Path, start: Start) -> None:
    """15 jobs of 40 MiB were read whole at every scrape: 2.4 s and 1.2 GiB."""
    coordinator = start()
    large = bytes(40 << 20)
    bundles = Bundles(tmp_path / "state" / "bundles")
    for number in range(15):
        name = f"big-{number}"
        made = JobSpec.from_toml(JOB.format(name), policy=policy())
        large_one = Bundle(large + bytes([number]))
        bundles.keep(large_one)
        record = JobRecord(
            name=name,
            status=JobStatus.PENDING,
            spec=made,
            policy=text(),
            policy_in_force=policy(),
            bundle=Bundle(b"small"),
            created=datetime.now(UTC),
        )
        coordinator._job_store.add(record)
        submitted = {
            "change": "submitted",
            "digest": made.digest().hex(),
            "bundle": large_one.digest.hex(),
            "text": "00" * 32,
        }
        coordinator._directory.ledger.append("job", {"job": name, **submitted})
        coordinator._directory.ledger.append("job", {"job": name, "change": "cancelled"})
    began = time.perf_counter()
    for _ in range(10):
        assert len(coordinator.list_jobs()) == 15
    assert time.perf_counter() - began < 1
