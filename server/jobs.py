"""The jobs of one coordinator, and what happened in each, in one SQLite file.

It holds specifications, policies, code and progress, and never weights: those are in the
sealed store. A job's name is its identity and is used once.
"""

from __future__ import annotations

import enum
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from fedlearn.errors import JobError, StoreError
from fedlearn.events import MAX_EVENT_BYTES, Event
from fedlearn.job import JobSpec
from server.disk import database, transaction

__all__ = ["JobBook", "JobRecord", "JobStatus", "StoredEvent"]

MAX_JOBS: Final = 10_000
MAX_EVENTS: Final = 200_000
"""Events kept of one job; beyond it only final ones are."""

_UNREADABLE: Final = "the book of jobs cannot be read"
_QUERY: Final = """
SELECT jobs.*, coalesce(submitted, x''), coalesce(in_force, x'')
FROM jobs LEFT JOIN policy_signatures ON policy_signatures.job = jobs.name
"""
_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS jobs (
    name TEXT PRIMARY KEY,
    status TEXT NOT NULL,
    detail TEXT NOT NULL,
    round INTEGER NOT NULL,
    spec TEXT NOT NULL,
    policy TEXT NOT NULL,
    policy_in_force TEXT NOT NULL,
    bundle BLOB NOT NULL,
    created REAL NOT NULL
) STRICT;
CREATE TABLE IF NOT EXISTS policy_signatures (
    job TEXT PRIMARY KEY,
    submitted BLOB NOT NULL,
    in_force BLOB NOT NULL
) STRICT;
CREATE TABLE IF NOT EXISTS events (
    job TEXT NOT NULL,
    sequence INTEGER NOT NULL,
    at REAL NOT NULL,
    kind TEXT NOT NULL,
    body TEXT NOT NULL,
    PRIMARY KEY (job, sequence)
) STRICT, WITHOUT ROWID;
"""


class JobStatus(enum.StrEnum):
    """Where a job stands."""

    PENDING = "pending"
    RUNNING = "running"
    INTERRUPTED = "interrupted"
    """The coordinator stopped or was killed; it goes on from its last checkpoint."""
    FINISHED = "finished"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def open(self) -> bool:
        """Whether the job will run, or runs, without anybody asking again."""
        return self in {JobStatus.PENDING, JobStatus.RUNNING, JobStatus.INTERRUPTED}


@dataclass(frozen=True, slots=True, kw_only=True)
class JobRecord:
    """One job.

    ``policy``           as it was submitted: its digest is part of the job
    ``policy_in_force``  what clients are judged by now; an operator may have replaced it

    Beside each stands the operator's signature (:mod:`attestation.policysign`), or nothing.
    """

    name: str
    status: JobStatus
    spec: JobSpec
    policy: str
    policy_in_force: str
    bundle: bytes = field(repr=False)
    created: datetime
    detail: str = ""
    round: int = 0
    policy_signature: bytes = b""
    signature_in_force: bytes = b""


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredEvent:
    """One event of a job. ``sequence`` starts at 1 and has no gaps."""

    sequence: int
    at: datetime
    kind: str
    body: str


class JobBook:
    """All jobs. Safe to use from many threads; every change is durable when it returns."""

    def __init__(self, path: Path) -> None:
        """Open or create the book.

        :raises StoreError: when the file cannot be opened or is none of ours.
        """
        self._lock = threading.Lock()
        self._news = threading.Condition(self._lock)
        try:
            self._db = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
            path.chmod(0o600)
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=FULL")
            self._db.executescript(_SCHEMA)
        except (sqlite3.Error, OSError) as error:
            raise StoreError(f"{path}: cannot be used as the book of jobs: {error}") from error
        self._sequences: dict[str, int] = dict(
            self._db.execute("SELECT job, max(sequence) FROM events GROUP BY job").fetchall()
        )

    def close(self) -> None:
        """Close the file and wake everybody who waits for news."""
        with self._news:
            self._db.close()
            self._sequences.clear()
            self._news.notify_all()

    def add(self, record: JobRecord) -> None:
        """Enter a new job.

        :raises JobError: when its name was used before, or the book is full.
        """
        with self._transaction() as db:
            if db.execute("SELECT count(*) FROM jobs").fetchone()[0] >= MAX_JOBS:
                raise JobError(f"the coordinator keeps at most {MAX_JOBS} jobs")
            try:
                db.execute(
                    "INSERT INTO jobs VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
                    (
                        record.name,
                        record.status.value,
                        record.detail,
                        record.round,
                        record.spec.to_json(),
                        record.policy,
                        record.policy_in_force,
                        record.bundle,
                        record.created.timestamp(),
                    ),
                )
            except sqlite3.IntegrityError:
                raise JobError(
                    f"there is a job {record.name!r} already",
                    hint="choose another `name` in job.toml; a name is used once",
                ) from None
            db.execute(
                "INSERT INTO policy_signatures VALUES (?, ?, ?)",
                (record.name, record.policy_signature, record.signature_in_force),
            )

    def get(self, name: str) -> JobRecord:
        """Return a job.

        :raises JobError: when there is none of that name.
        """
        with self._lock, database(_UNREADABLE):
            row = self._db.execute(f"{_QUERY} WHERE name = ?", (name,)).fetchone()
        if row is None:
            raise JobError(
                f"there is no job {name!r}", hint="`fedlearn job status` lists all of them"
            )
        return _record(row)

    def all(self) -> tuple[JobRecord, ...]:
        """Return all jobs, oldest first."""
        with self._lock, database(_UNREADABLE):
            rows = self._db.execute(f"{_QUERY} ORDER BY created, name").fetchall()
        return tuple(map(_record, rows))

    def change(
        self,
        name: str,
        *,
        status: JobStatus | None = None,
        detail: str | None = None,
        round_: int | None = None,
        policy_in_force: str | None = None,
        signature_in_force: bytes | None = None,
    ) -> None:
        """Change what is given and keep the rest."""
        with self._transaction() as db:
            for column, value in (
                ("status", status.value if status else None),
                ("detail", detail),
                ("round", round_),
                ("policy_in_force", policy_in_force),
            ):
                if value is not None:
                    statement = f"UPDATE jobs SET {column} = ? WHERE name = ?"  # noqa: S608
                    db.execute(statement, (value, name))
            if signature_in_force is not None:
                db.execute(
                    "INSERT INTO policy_signatures VALUES (?, x'', ?)"
                    " ON CONFLICT (job) DO UPDATE SET in_force = excluded.in_force",
                    (name, signature_in_force),
                )

    def say(self, name: str, event: Event, *, at: datetime) -> int:
        """Keep one event and wake who waits for it; return its sequence number.

        Beyond :data:`MAX_EVENTS` events of a job, others than final ones are dropped.
        """
        body = event.encode()
        if len(body.encode()) > MAX_EVENT_BYTES:
            raise StoreError(f"an event of job {name!r} is longer than {MAX_EVENT_BYTES} bytes")
        with self._news:
            sequence = self._sequences.get(name, 0) + 1
            if sequence > MAX_EVENTS and not event.final:
                return sequence - 1
            kind = event.to_json()["kind"]
            with database("the book of jobs cannot be written"):
                self._db.execute(
                    "INSERT INTO events VALUES (?, ?, ?, ?, ?)",
                    (name, sequence, at.timestamp(), kind, body),
                )
            self._sequences[name] = sequence
            self._news.notify_all()
        return sequence

    def events(self, name: str, *, after: int = 0, most: int = 1000) -> tuple[StoredEvent, ...]:
        """Return the events of a job that follow number ``after``, at most ``most``."""
        with self._lock, database(_UNREADABLE):
            rows = self._db.execute(
                "SELECT sequence, at, kind, body FROM events WHERE job = ? AND sequence > ?"
                " ORDER BY sequence LIMIT ?",
                (name, after, most),
            ).fetchall()
        return tuple(
            StoredEvent(sequence=sequence, at=datetime.fromtimestamp(at, UTC), kind=kind, body=body)
            for sequence, at, kind, body in rows
        )

    def wait(self, name: str, *, after: int, seconds: float) -> None:
        """Return when the job has an event after ``after``, or ``seconds`` have passed."""
        with self._news:
            self._news.wait_for(lambda: self._sequences.get(name, 0) > after, timeout=seconds)

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._lock, transaction(self._db, "the book of jobs cannot be written") as db:
            yield db


def _record(
    row: tuple[str, str, str, int, str, str, str, bytes, float, bytes, bytes],
) -> JobRecord:
    name, status, detail, round_, spec, policy, policy_in_force, bundle, created, *signed = row
    return JobRecord(
        name=name,
        status=JobStatus(status),
        detail=detail,
        round=round_,
        spec=JobSpec.from_json(spec, where=f"job {name}"),
        policy=policy,
        policy_in_force=policy_in_force,
        bundle=bundle,
        created=datetime.fromtimestamp(created, UTC),
        policy_signature=signed[0],
        signature_in_force=signed[1],
    )
