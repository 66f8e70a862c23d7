"""The jobs of one coordinator, and what happened in each, in one SQLite file and the ledger.

The file holds specifications, policies and progress, never weights; bundles lie beside it
(:mod:`server.jobs.bundles`). A job's name is its identity and is used once.

Nothing of the file is believed by itself. Each row has a MAC under a sealed key
(:mod:`server.jobs.authenticated_rows`), and what is run is what the ledger says was submitted: the
digests of job, bundle and policies, and whether the job is open, are the ledger's
(:mod:`server.jobs.history`). A row that is not what was written, or that no entry of the ledger
knows, is set apart: it is named, it is not run, and it keeps nothing else from running.
"""

from __future__ import annotations

import dataclasses
import hashlib
import logging
import sqlite3
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from attestation.policy.model import AppraisalPolicy
from attestation.policy.parse import parse_policy
from fedlearn.errors import JobError, StoreError
from fedlearn.job.events import (
    MAX_EVENT_BYTES,
    CheckpointSealed,
    Event,
    JobCancelled,
    JobFailed,
    JobFinished,
    JobStarted,
    Log,
    PrivacySpent,
    RoundFinished,
    RoundStarted,
    UpdateReceived,
)
from fedlearn.job.spec import JobSpec
from fedlearn.job.state import JobState, JobStatus
from server.disk import transaction
from server.jobs.authenticated_rows import Cell, RowKey, open_database, reading
from server.jobs.bundles import Bundle, Bundles
from server.jobs.history import JobFacts, JobHistory

__all__ = ["JOBS_FILE", "JobStore", "JobRecord", "StoredEvent"]

JOBS_FILE: Final = "jobs.sqlite"
BUNDLES_FOLDER: Final = "bundles"
MAX_JOBS: Final = 10_000
MAX_EVENTS: Final = 200_000
"""Events kept of one job; beyond it only the rounds are, and twice as many in all."""

ROUNDS: Final = (
    JobStarted,
    RoundStarted,
    UpdateReceived,
    RoundFinished,
    CheckpointSealed,
    PrivacySpent,
)
"""The events of the rounds themselves; no site causes more of them than there are rounds."""

_LOG = logging.getLogger(__name__)
_APPLICATION: Final = 0x464C4A32  # "FLJ2"
_JOBS: Final = """CREATE TABLE jobs (
  name TEXT PRIMARY KEY,
  status TEXT NOT NULL,
  detail TEXT NOT NULL,
  round INTEGER NOT NULL,
  spec TEXT NOT NULL,
  created REAL NOT NULL,
  mac BLOB NOT NULL
) STRICT, WITHOUT ROWID"""
_POLICIES: Final = """CREATE TABLE policies (
  job TEXT NOT NULL,
  digest BLOB NOT NULL,
  text TEXT NOT NULL,
  signature BLOB NOT NULL,
  mac BLOB NOT NULL,
  PRIMARY KEY (job, digest)
) STRICT, WITHOUT ROWID"""
_EVENTS: Final = """CREATE TABLE events (
  job TEXT NOT NULL,
  sequence INTEGER NOT NULL,
  at REAL NOT NULL,
  kind TEXT NOT NULL,
  body TEXT NOT NULL,
  mac BLOB NOT NULL,
  PRIMARY KEY (job, sequence)
) STRICT, WITHOUT ROWID"""
_ENDS: Final = frozenset({JobFinished.kind, JobFailed.kind, JobCancelled.kind})
_UNKNOWN: Final = datetime.fromtimestamp(0, UTC)
_RESTORE: Final = "restore jobs.sqlite and bundles/ from a backup of the ledger's time"


@dataclass(frozen=True, slots=True, kw_only=True)
class JobRecord:
    """One job with everything that it is run from, as the ledger has it.

    ``policy``           as it was submitted, TOML: its digest is part of the job
    ``policy_in_force``  what clients are judged by now; an operator may have replaced it

    Beside each stands the operator's signature (:mod:`attestation.policy.sign`), or nothing.
    """

    name: str
    status: JobStatus
    spec: JobSpec
    policy: str
    policy_in_force: AppraisalPolicy
    bundle: Bundle
    created: datetime
    policy_signature: bytes = b""
    signature_in_force: bytes = b""


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredEvent:
    """One event of a job. ``sequence`` starts at 1 and has no gaps."""

    sequence: int
    at: datetime
    kind: str
    body: str


@dataclass(frozen=True, slots=True)
class _Row:
    """A row of ``jobs`` without its MAC. ``spec`` is :meth:`JobSpec.to_json`."""

    name: str
    status: str
    detail: str
    round: int
    spec: str
    created: float

    def cells(self) -> tuple[Cell, ...]:
        return (self.name, self.status, self.detail, self.round, self.spec, self.created)


@dataclass(frozen=True, slots=True)
class _Kept:
    """A job whose row is genuine: the row, and what its ``spec`` says."""

    row: _Row
    spec: JobSpec


class JobStore:
    """All jobs. Safe to use from many threads; every change is durable when it returns.

    The rows of jobs are read once, when the file is opened, and kept in memory without
    policies and bundles; an edit of the file beside the running coordinator changes nothing.
    """

    def __init__(self, folder: Path, *, key: bytes, history: JobHistory) -> None:
        """Open or create the file in ``folder``.

        :param key: 32 bytes, from which the MACs of rows are made.
        :raises StoreError: when the file cannot be opened, is damaged or is none of ours.
        """
        self._path = folder / JOBS_FILE
        self._bundles = Bundles(folder / BUNDLES_FOLDER)
        self._key = RowKey(key)
        self._history = history
        self._lock = threading.Lock()
        self._news = threading.Condition(self._lock)
        self._kept: dict[str, _Kept] = {}
        self._apart: dict[str, str] = {}
        self._db = open_database(
            self._path, schema=(_JOBS, _POLICIES, _EVENTS), application=_APPLICATION
        )
        try:
            with reading(self._path):
                self._load()
                self._sequences: dict[str, int] = dict(
                    self._db.execute(
                        "SELECT job, max(sequence) FROM events GROUP BY job"
                    ).fetchall()
                )
        except BaseException:
            self._db.close()
            raise

    @property
    def set_apart(self) -> Mapping[str, str]:
        """Names of jobs whose record is not what was written, and why each is not run."""
        with self._lock:
            return dict(self._apart)

    def close(self) -> None:
        """Close the file and wake everybody who waits for news."""
        with self._news:
            self._db.close()
            self._sequences.clear()
            self._news.notify_all()

    def add(self, record: JobRecord) -> None:
        """Keep a new job, which counts once the ledger says that it was submitted.

        What stands under its name and nobody submitted is replaced: a crash may have left it.

        :raises JobError: when its name was used before, or there are too many jobs.
        :raises StoreError: when it cannot be written.
        """
        known = self._history.all()
        if record.name in known:
            raise JobError(
                f"there is a job {record.name!r} already",
                hint="choose another `name` in job.toml; a name is used once",
            )
        if len(known) >= MAX_JOBS:
            raise JobError(f"the coordinator keeps at most {MAX_JOBS} jobs")
        self._bundles.keep(record.bundle)
        row = _Row(
            record.name,
            record.status.value,
            "",
            0,
            record.spec.to_json(),
            record.created.timestamp(),
        )
        with self._transaction() as db:
            for table in ("policies", "events"):
                db.execute(f"DELETE FROM {table} WHERE job = ?", (record.name,))  # noqa: S608
            self._put(db, row)
            self._put_policy(db, record.name, record.policy, record.policy_signature)
        with self._lock:
            self._sequences.pop(record.name, None)
            self._kept[record.name] = _Kept(row, record.spec)
            self._apart.pop(record.name, None)

    def add_policy(self, name: str, policy: str, signature: bytes) -> bytes:
        """Keep a policy of a job, which is in force once the ledger says so.

        :returns: the SHA-256 of its text, by which the ledger names it.
        """
        with self._transaction() as db:
            return self._put_policy(db, name, policy, signature)

    def states(self) -> tuple[JobState, ...]:
        """Return how all jobs stand, oldest first; bundles and policies are not read."""
        facts = self._history.all()
        with self._lock:
            since = {name: kept.row.created for name, kept in self._kept.items()}
            names = sorted(facts, key=lambda name: (since.get(name, 0.0), name))
            return tuple(self._state(facts[name]) for name in names)

    def state(self, name: str) -> JobState:
        """Return how one job stands.

        :raises JobError: when nobody submitted one of that name.
        """
        facts = self._facts(name)
        with self._lock:
            return self._state(facts)

    def get(self, name: str) -> JobRecord:
        """Return a job with all that it is run from, compared with the ledger.

        :raises JobError: when nobody submitted one of that name.
        :raises StoreError: when something of it is missing or is not what the ledger names.
        :raises PolicyError: when this version cannot read the policy in force.
        """
        facts = self._facts(name)
        with self._lock:
            kept = self._kept.get(name)
            if kept is None:
                raise StoreError(
                    f"job {name}: {self._apart.get(name, _missing(name))}", hint=_RESTORE
                )
            state = self._state(facts)
            policy, signature = self._policy(name, facts.policy)
            in_force, signed = self._policy(name, facts.in_force)
        return JobRecord(
            name=name,
            status=state.status,
            spec=kept.spec,
            policy=policy,
            policy_in_force=parse_policy(in_force.encode(), where=f"the policy of job {name}"),
            bundle=self._bundles.get(facts.bundle),
            created=_moment(kept.row.created),
            policy_signature=signature,
            signature_in_force=signed,
        )

    def change(
        self,
        name: str,
        *,
        status: JobStatus | None = None,
        detail: str | None = None,
        round_: int | None = None,
    ) -> None:
        """Change what is given and keep the rest; no change where the record was set apart.

        Whether a job has ended is for the ledger to say.
        """
        with self._lock:
            kept = self._kept.get(name)
        if kept is None:
            return
        row = dataclasses.replace(
            kept.row,
            status=kept.row.status if status is None else status.value,
            detail=kept.row.detail if detail is None else detail,
            round=kept.row.round if round_ is None else round_,
        )
        with self._transaction() as db:
            self._put(db, row)
        with self._lock:
            self._kept[name] = _Kept(row, kept.spec)

    def add_event(self, name: str, event: Event, *, at: datetime) -> int:
        """Keep one event and wake who waits for it; return its sequence number.

        Beyond :data:`MAX_EVENTS` events of a job those of its rounds are kept, beyond twice as
        many only final ones.
        """
        body = event.encode()
        if len(body.encode()) > MAX_EVENT_BYTES:
            raise StoreError(f"an event of job {name!r} is longer than {MAX_EVENT_BYTES} bytes")
        with self._news, reading(self._path):
            sequence = self._sequences.get(name, 0) + 1
            most = 2 * MAX_EVENTS if isinstance(event, ROUNDS) else MAX_EVENTS
            if sequence > most and not event.final:
                return sequence - 1
            cells = (name, sequence, at.timestamp(), str(event.to_json()["kind"]), body)
            self._db.execute(
                "INSERT INTO events VALUES (?, ?, ?, ?, ?, ?)",
                (*cells, self._key.mac("events", cells)),
            )
            self._sequences[name] = sequence
            self._news.notify_all()
        return sequence

    def events(self, name: str, *, after: int = 0, most: int = 1000) -> tuple[StoredEvent, ...]:
        """Return the events of a job that follow number ``after``, at most ``most``.

        In the place of one that is not what was written, or of some that are missing, stands a
        line that says so.
        """
        with self._lock, reading(self._path):
            rows = self._db.execute(
                "SELECT job, sequence, at, kind, body, mac FROM events"
                " WHERE job = ? AND sequence > ? ORDER BY sequence LIMIT ?",
                (name, after, most),
            ).fetchall()
        found: list[StoredEvent] = []
        expected = after + 1
        for *cells, mac in rows:
            _, sequence, at, kind, body = cells
            genuine = self._key.genuine("events", cells, mac)
            moment = _moment(at) if genuine else _UNKNOWN
            if sequence > expected:
                lost = f"events {expected} to {sequence - 1} of the job are missing on the disk"
                found.append(_damaged(sequence - 1, moment, lost))
            expected = sequence + 1
            if genuine:
                found.append(StoredEvent(sequence=sequence, at=moment, kind=kind, body=body))
            else:
                text = f"event {sequence} of the job was altered on the disk"
                found.append(_damaged(sequence, moment, text))
        return tuple(found)

    def ended(self, name: str) -> bool:
        """Say whether the newest event of a job tells how it ended."""
        with self._lock:
            newest = self._sequences.get(name, 0)
        last = self.events(name, after=newest - 1, most=1) if newest else ()
        return bool(last) and last[0].kind in _ENDS

    def wait(self, name: str, *, after: int, seconds: float) -> None:
        """Return when the job has an event after ``after``, or ``seconds`` have passed."""
        with self._news:
            self._news.wait_for(lambda: self._sequences.get(name, 0) > after, timeout=seconds)

    # --- inside -----------------------------------------------------------------------

    def _load(self) -> None:
        """Read every row of a job, and set apart what is not as the ledger has it."""
        facts = self._history.all()
        for *cells, mac in self._db.execute(
            "SELECT name, status, detail, round, spec, created, mac FROM jobs"
        ):
            name = str(cells[0])
            if not self._key.genuine("jobs", cells, mac):
                self._set_apart(name, "its record was altered on the disk")
            elif name not in facts:
                self._set_apart(name, "the ledger does not say that anybody submitted it")
            else:
                try:
                    row = _Row(*cells)
                    spec = JobSpec.from_json(row.spec, where=f"job {name}")
                    JobStatus(row.status)
                    _moment(row.created)
                except (JobError, ValueError) as error:
                    self._set_apart(name, f"its record cannot be read: {error}")
                    continue
                if spec.digest() != facts[name].digest:
                    self._set_apart(name, "its record is not the job that was submitted")
                else:
                    self._kept[name] = _Kept(row, spec)
        for name in facts.keys() - self._kept.keys() - self._apart.keys():
            self._set_apart(name, _missing(name))

    def _set_apart(self, name: str, reason: str) -> None:
        self._apart[name] = reason
        _LOG.error("%s: job %a is set apart: %s", self._path, name[:64], reason)

    def _facts(self, name: str) -> JobFacts:
        facts = self._history.facts(name)
        if facts is None:
            raise JobError(
                f"there is no job {name!r}", hint="`fedlearn job status` lists all of them"
            )
        return facts

    def _state(self, facts: JobFacts) -> JobState:
        """Return how a job stands; its model is not looked for. The caller holds the lock."""
        kept = self._kept.get(facts.job)
        if kept is None:
            return JobState(
                name=facts.job,
                id=facts.digest.hex(),
                status=facts.ended or JobStatus.INTERRUPTED,
                detail=f"set apart: {self._apart.get(facts.job, _missing(facts.job))}",
            )
        status = JobStatus(kept.row.status)
        if facts.ended is not None:
            status = facts.ended
        elif not status.open:
            status = JobStatus.INTERRUPTED
        return JobState(
            name=facts.job,
            id=facts.digest.hex(),
            status=status,
            round=kept.row.round,
            rounds=kept.spec.rounds,
            detail=facts.reason or kept.row.detail,
            sites=kept.spec.sites,
        )

    def _policy(self, name: str, digest: bytes) -> tuple[str, bytes]:
        """Return the text and signature of a policy. The caller holds the lock."""
        with reading(self._path):
            row = self._db.execute(
                "SELECT job, digest, text, signature, mac FROM policies"
                " WHERE job = ? AND digest = ?",
                (name, digest),
            ).fetchone()
        if row is None:
            raise StoreError(f"job {name}: its policy is missing on the disk", hint=_RESTORE)
        *cells, mac = row
        _, _, text, signature = cells
        if not self._key.genuine("policies", cells, mac) or _digest(text) != digest:
            raise StoreError(f"job {name}: its policy was altered on the disk", hint=_RESTORE)
        return text, signature

    def _put(self, db: sqlite3.Connection, row: _Row) -> None:
        db.execute(
            "INSERT OR REPLACE INTO jobs VALUES (?, ?, ?, ?, ?, ?, ?)",
            (*row.cells(), self._key.mac("jobs", row.cells())),
        )

    def _put_policy(
        self, db: sqlite3.Connection, name: str, policy: str, signature: bytes
    ) -> bytes:
        cells = (name, _digest(policy), policy, signature)
        db.execute(
            "INSERT OR REPLACE INTO policies VALUES (?, ?, ?, ?, ?)",
            (*cells, self._key.mac("policies", cells)),
        )
        return cells[1]

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._lock, transaction(self._db, f"{self._path}: cannot be written") as db:
            yield db


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()


def _moment(at: float) -> datetime:
    """:raises ValueError: when it is no moment that a calendar has."""
    try:
        return datetime.fromtimestamp(at, UTC)
    except (OverflowError, OSError, ValueError) as error:
        raise ValueError(f"{at!r} is not a time") from error


def _missing(name: str) -> str:
    return f"the ledger says that {name} was submitted, and its record is missing"


def _damaged(sequence: int, at: datetime, line: str) -> StoredEvent:
    event = Log(line=line, level="error")
    return StoredEvent(sequence=sequence, at=at, kind=Log.kind, body=event.encode())
