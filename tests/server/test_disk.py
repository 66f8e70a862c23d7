"""A disk that fails: what is an error of it, and that nothing is half done afterwards."""

from __future__ import annotations

import errno
import sqlite3
import threading
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from fedlearn.errors import DiskError, LedgerDiskError, LedgerError, StoreError
from fedlearn.job.events import Log
from fedlearn.wire.failure import Unreachable, status_of, trailing_of
from server.admission.registry import Change
from server.disk import disk_failed, ledger_error, store_error, transaction
from server.health import Health
from server.jobs.supervisor import JobSupervisor
from tests.harness.deployment import Deployment
from tests.harness.restarting_coordinator import restarting_coordinator, tiny_bundle


def sqlite_error(code: int) -> sqlite3.OperationalError:
    error = sqlite3.OperationalError("disk I/O error")
    error.sqlite_errorcode = code
    return error


@pytest.mark.parametrize(
    ("error", "failed"),
    [
        (OSError(errno.EIO, "Input/output error"), True),
        (OSError(errno.ENOSPC, "No space left on device"), True),
        (OSError(errno.EROFS, "Read-only file system"), True),
        (OSError(errno.EFBIG, "File too large"), True),
        (OSError(errno.EACCES, "Permission denied"), False),
        (FileNotFoundError(errno.ENOENT, "No such file"), False),
        (sqlite_error(sqlite3.SQLITE_IOERR_WRITE), True),
        (sqlite_error(sqlite3.SQLITE_FULL), True),
        (sqlite_error(sqlite3.SQLITE_READONLY), True),
        (sqlite_error(sqlite3.SQLITE_CORRUPT), False),
        (sqlite_error(sqlite3.SQLITE_NOTADB), False),
        (ValueError("not of a disk"), False),
    ],
)
def test_a_failing_disk_is_no_damaged_file(error: Exception, failed: bool) -> None:
    assert disk_failed(error) is failed
    assert type(store_error("x", error)) is (DiskError if failed else StoreError)
    assert type(ledger_error("x", error)) is (LedgerDiskError if failed else LedgerError)


def test_an_error_of_the_ledgers_disk_is_both_and_may_be_tried_again() -> None:
    error = ledger_error("the ledger", OSError(errno.EIO, "x"))
    assert isinstance(error, DiskError)
    assert isinstance(error, LedgerError)
    assert (error.code, bool(error.hint)) == ("disk", True)
    assert status_of(error).name == "UNAVAILABLE"

    from fedlearn.wire.failure import _rebuilt

    received = _rebuilt(error.code, str(error), dict(trailing_of(error)))
    assert isinstance(received, Unreachable)


class Failing:
    """A connection to SQLite whose statements fail while they are instructed to."""

    def __init__(self, real: sqlite3.Connection) -> None:
        self._real = real
        self.fails: str | None = None
        self.tried = 0

    def execute(self, statement: str, *arguments: str) -> Any:
        if self.fails is not None and statement.lstrip().startswith(self.fails):
            self.tried += 1
            raise sqlite_error(sqlite3.SQLITE_IOERR_FSYNC)
        return self._real.execute(statement, *arguments)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)


def test_a_commit_that_fails_is_undone_and_the_next_one_goes_on(tmp_path: Path) -> None:
    real = sqlite3.connect(tmp_path / "x.sqlite", isolation_level=None)
    real.execute("CREATE TABLE t (n INTEGER)")
    db: Any = Failing(real)
    db.fails = "COMMIT"
    with pytest.raises(DiskError, match="the table: disk I/O error"):
        with transaction(db, "the table"):
            db.execute("INSERT INTO t VALUES (1)")
    db.fails = None
    with transaction(db, "the table"):
        db.execute("INSERT INTO t VALUES (2)")
    assert real.execute("SELECT n FROM t").fetchall() == [(2,)]
    real.close()


def test_the_book_of_jobs_states_that_its_disk_failed_and_works_afterwards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(JobSupervisor, "_watch", lambda *_: None)
    with restarting_coordinator(tmp_path) as start:
        coordinator = start()
        coordinator.submit_job(
            "alice",
            job_toml='name = "x"\napp = "app"\nrounds = 1\nsites = ["site-a"]\npolicy = "p"\n',
            bundle=tiny_bundle(tmp_path / "app"),
            policy_toml='version = 1\nname = "p"\naccept = ["sample"]\ninsecure_sample = true\n'
            '[[reference]]\nclaim = "software"\nvalue = "ab"\n',
        )
        book = coordinator._job_store
        real, before = book._database._db, book.events.page("x")
        failing: Any = Failing(real)
        book._database._db = failing
        now = datetime.now(UTC)
        for statement, act in (
            ("INSERT", lambda: book.events.add("x", Log(line="a"), at=now)),
            ("BEGIN", lambda: book.change("x", detail="a")),
            ("SELECT", lambda: book.get("x")),
            ("SELECT", lambda: book.events.page("x")),
        ):
            failing.fails = statement
            with pytest.raises(DiskError, match=r"jobs\.sqlite: cannot be"):
                act()
        # Of several events that were reported together none is there, and all are later.
        burst = [("x", Log(line=line), now) for line in ("c", "d")]
        failing.fails = "COMMIT"
        with pytest.raises(DiskError, match=r"jobs\.sqlite: cannot be"):
            book.events.add_all(burst)
        coordinator.events.append("x", *(event for _, event, _ in burst))
        assert "2 are not written" in coordinator.events._health.faults()["events"]
        failing.fails = None
        assert book.events.page("x") == before
        coordinator.events.catch_up()
        assert "events" not in coordinator.events._health.faults()
        before = book.events.page("x")
        assert [event.body for event in before[-2:]] == [event.encode() for _, event, _ in burst]
        assert book.state("x").detail == ""
        number = len(before) + 1
        assert book.events.add("x", Log(line="b"), at=now) == number
        assert [event.sequence for event in book.events.page("x", after=number - 1)] == [number]
        book._database._db = real


def test_an_ending_that_the_disk_does_not_take_is_entered_later(deployment: Deployment) -> None:
    admitted = deployment.admit(deployment.client())
    broken = True

    def fail(kind: str, body: Mapping[str, object]) -> None:
        if broken:
            raise LedgerDiskError("the disk is full")

    deployment.before_entry = fail
    deployment.registry.revoke(admitted.admission.thumbprint, "enough", now=deployment.clock())
    assert Change.REVOKED.value not in deployment.kinds()
    # It has ended all the same, and nobody is admitted who cannot be entered.
    with pytest.raises(DiskError):
        deployment.gate.challenge("alpha", "site-a", "ip:test")
    with pytest.raises(DiskError):
        deployment.gate.sweep()
    broken = False
    deployment.gate.sweep()
    assert deployment.last("revocation")["reason"] == "enough"
    assert deployment.kinds().count("revocation") == 1


def test_health_has_what_is_wrong_until_it_is_not() -> None:
    health = Health()
    assert health.faults() == {}
    health.fault("disk", "is full")
    health.check("fleet", lambda: "has ended")
    health.check("gate", lambda: "")
    assert health.faults() == {"disk": "is full", "fleet": "has ended"}
    health.clear("disk")
    health.check("fleet", lambda: [][1])
    assert list(health.faults()) == ["fleet"]


@pytest.mark.parametrize("raises", [True, False])
def test_a_thread_that_dies_is_seen(raises: bool) -> None:
    health, over = Health(), threading.Event()

    def body() -> None:
        if raises:
            raise OSError(errno.EIO, "Input/output error")

    thread = health.thread("sweep", body, over=over.is_set)
    thread.start()
    thread.join(5)
    assert "the thread ended" in health.faults()["thread sweep"]
    over.set()
    calm = Health()
    thread = calm.thread("sweep", body, over=over.is_set)
    thread.start()
    thread.join(5)
    assert calm.faults() == {}
