"""The jobs of one coordinator and their events, in one SQLite file and the ledger.

The file holds specifications, policies and progress, never weights; bundles lie beside it
(:mod:`server.jobs.records.bundles`). The identity of a job is the id of its run
(:mod:`fedlearn.job.run`), which is used once; its name may be submitted again.

The file alone is not trusted. Each row has a MAC under a sealed key
(:mod:`server.jobs.records.authenticated_rows`). The digests of job, bundle and policies, and
whether the job is open, come from the ledger (:mod:`server.jobs.records.history`): what runs is
what was submitted. A row that was altered, or that no entry of the ledger matches, is set apart:
it is listed and not run, and other jobs are not affected.
"""

from __future__ import annotations

import dataclasses
import hashlib
import logging
import sqlite3
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Final

from attestation.policy.model import AppraisalPolicy
from attestation.policy.parse import parse_policy
from fedlearn.errors import JobError, StoreError
from fedlearn.job.run import RunName
from fedlearn.job.spec import JobSpec
from fedlearn.job.state import JobState, JobStatus
from server.jobs.records.authenticated_rows import Cell, Database
from server.jobs.records.bundles import Bundle, Bundles
from server.jobs.records.event_store import EVENTS, EventStore, moment_of
from server.jobs.records.history import JobFacts, JobHistory

__all__ = ["JOBS_FILE", "JobRecord", "JobStore"]

JOBS_FILE: Final = "jobs.sqlite"
BUNDLES_FOLDER: Final = "bundles"

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
_RESTORE: Final = "restore jobs.sqlite and bundles/ from a backup of the ledger's time"


@dataclass(frozen=True, slots=True, kw_only=True)
class JobRecord:
    """One job with everything that it is run from, as the ledger has it.

    ``policy``           as it was submitted, TOML: its digest is part of the job
    ``policy_in_force``  by which clients are appraised now; an operator may have replaced the first

    Each has the operator's signature (:mod:`attestation.policy.sign`), empty where there is none.
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
    """A job whose row is authentic: the row, and its ``spec`` parsed."""

    row: _Row
    spec: JobSpec


class JobStore:
    """All jobs. Safe to use from many threads; every change is durable when it returns.

    ``events`` are their events, ``history`` is what the ledger has of them.

    The rows of jobs are read once, when the file is opened, and kept in memory without
    policies and bundles; an edit of the file beside the running coordinator changes nothing.
    """

    def __init__(self, folder: Path, *, key: bytes, history: JobHistory) -> None:
        """Open or create the file in ``folder``.

        :param key: 32 bytes, from which the MACs of rows are made.
        :raises StoreError: when the file cannot be opened, is damaged, or is not a file of jobs.
        """
        self._path = folder / JOBS_FILE
        self._bundles = Bundles(folder / BUNDLES_FOLDER)
        self.history = history
        self._lock = threading.Lock()
        self._kept: dict[str, _Kept] = {}
        self._apart: dict[str, str] = {}
        self._left: list[str] = []
        self._database = Database(
            self._path, key=key, schema=(_JOBS, _POLICIES, EVENTS), application=_APPLICATION
        )
        try:
            self._load()
            self.events = EventStore(self._database)
        except BaseException:
            self._database.close()
            raise

    @property
    def set_apart(self) -> Mapping[str, str]:
        """The names of jobs whose record was altered or is missing, each with the reason."""
        with self._lock:
            return dict(self._apart)

    def close(self) -> None:
        """Close the file and end every wait for events."""
        self.events.close()
        self._database.close()

    def add(self, record: JobRecord) -> None:
        """Store a new run, which is in effect once the ledger has its submission.

        A row of its id that was not submitted is replaced: a crash may have left it.

        :raises JobError: when it is not the next run of its name (:meth:`JobHistory.next_run`).
        :raises StoreError: when it cannot be written.
        """
        if record.name != self.history.next_run(RunName.of_id(record.name).name).id:
            raise JobError(f"{record.name} was submitted already")
        self._bundles.keep(record.bundle)
        row = _Row(
            record.name,
            record.status.value,
            "",
            0,
            record.spec.to_json(),
            record.created.timestamp(),
        )
        with self._database.transaction() as db:
            for table in ("policies", "events"):
                db.execute(f"DELETE FROM {table} WHERE job = ?", (record.name,))  # noqa: S608
            self._put(db, row)
            self._put_policy(db, record.name, record.policy, record.policy_signature)
        self.events.forget(record.name)
        with self._lock:
            self._kept[record.name] = _Kept(row, record.spec)
            self._apart.pop(record.name, None)

    def delete(self, name: str) -> None:
        """Delete what is stored of a run that the ledger names as deleted.

        Its bundle stays while another run has it.

        :raises StoreError: when it cannot be written.
        """
        with self._database.transaction() as db:
            db.execute("DELETE FROM jobs WHERE name = ?", (name,))
            for table in ("policies", "events"):
                db.execute(f"DELETE FROM {table} WHERE job = ?", (name,))  # noqa: S608
        self.events.forget(name)
        with self._lock:
            self._kept.pop(name, None)
            self._apart.pop(name, None)
        facts = self.history.deleted().get(name)
        if facts is not None:
            in_use = {other.bundle for other in self.history.all().values()}
            if facts.bundle not in in_use:
                self._bundles.remove(facts.bundle)

    def finish_deletions(self) -> Mapping[str, tuple[str, ...]]:
        """Complete deletions that a crash interrupted; return the models of every deleted run."""
        while self._left:
            self.delete(self._left[-1])
            self._left.pop()
        return {name: facts.removed for name, facts in self.history.deleted().items()}

    def add_policy(self, name: str, policy: str, signature: bytes) -> bytes:
        """Store a policy of a job, which is in force once the ledger has it.

        :returns: the SHA-256 of its text, by which the ledger names it.
        """
        with self._database.transaction() as db:
            return self._put_policy(db, name, policy, signature)

    def states(self) -> tuple[JobState, ...]:
        """Return the states of all jobs, oldest first; bundles and policies are not read."""
        facts = self.history.all()
        with self._lock:
            since = {name: kept.row.created for name, kept in self._kept.items()}
            names = sorted(facts, key=lambda name: (since.get(name, 0.0), name))
            return tuple(self._state(facts[name]) for name in names)

    def state(self, name: str) -> JobState:
        """Return the state of one job.

        :raises JobError: when none of that name was submitted.
        """
        facts = self._facts(name)
        with self._lock:
            return self._state(facts)

    def spec(self, name: str) -> JobSpec:
        """Return the specification of a run, as the ledger has it; nothing is read from disk.

        :raises JobError: when no such run was submitted.
        :raises StoreError: when its record is missing or is not what the ledger names.
        """
        self._facts(name)
        with self._lock:
            kept = self._kept.get(name)
            if kept is None:
                reason = self._apart.get(name, _missing(name))
                raise StoreError(f"job {name}: {reason}", hint=_RESTORE)
            return kept.spec

    def get(self, name: str) -> JobRecord:
        """Return a job with everything that it runs from, compared with the ledger.

        :raises JobError: when none of that name was submitted.
        :raises StoreError: when a part of it is missing or is not the one that the ledger names.
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
            created=moment_of(kept.row.created),
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
        """Change the given values and keep the others; a record that is set apart is not changed.

        The ledger, and not this file, decides whether a job has ended.
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
        with self._database.transaction() as db:
            self._put(db, row)
        with self._lock:
            self._kept[name] = _Kept(row, kept.spec)

    # --- inside -----------------------------------------------------------------------

    def _load(self) -> None:
        """Read every row of a job, and set apart those that differ from the ledger."""
        facts, deleted = self.history.all(), self.history.deleted()
        with self._database.reading() as db:
            rows = db.execute(
                "SELECT name, status, detail, round, spec, created, mac FROM jobs"
            ).fetchall()
        for *cells, mac in rows:
            name = str(cells[0])
            if not self._database.key.genuine("jobs", cells, mac):
                self._set_apart(name, "its record was altered on the disk")
            elif name in deleted:
                self._left.append(name)
            elif name not in facts:
                self._set_apart(name, "the ledger has no entry of its submission")
            else:
                try:
                    row = _Row(*cells)
                    spec = JobSpec.from_json(row.spec, where=f"job {name}")
                    JobStatus(row.status)
                    moment_of(row.created)
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
        facts = self.history.facts(name)
        if facts is None:
            raise JobError(
                f"there is no job {name!r}", hint="`fedlearn job status` lists all of them"
            )
        return facts

    def _state(self, facts: JobFacts) -> JobState:
        """Return the state of a job without its model. The caller holds the lock."""
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
        """Return the text and signature of a policy."""
        with self._database.reading() as db:
            row = db.execute(
                "SELECT job, digest, text, signature, mac FROM policies"
                " WHERE job = ? AND digest = ?",
                (name, digest),
            ).fetchone()
        if row is None:
            raise StoreError(f"job {name}: its policy is missing on the disk", hint=_RESTORE)
        *cells, mac = row
        _, _, text, signature = cells
        if not self._database.key.genuine("policies", cells, mac) or _digest(text) != digest:
            raise StoreError(f"job {name}: its policy was altered on the disk", hint=_RESTORE)
        return text, signature

    def _put(self, db: sqlite3.Connection, row: _Row) -> None:
        db.execute(
            "INSERT OR REPLACE INTO jobs VALUES (?, ?, ?, ?, ?, ?, ?)",
            (*row.cells(), self._database.key.mac("jobs", row.cells())),
        )

    def _put_policy(
        self, db: sqlite3.Connection, name: str, policy: str, signature: bytes
    ) -> bytes:
        cells = (name, _digest(policy), policy, signature)
        db.execute(
            "INSERT OR REPLACE INTO policies VALUES (?, ?, ?, ?, ?)",
            (*cells, self._database.key.mac("policies", cells)),
        )
        return cells[1]


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()


def _missing(name: str) -> str:
    return f"the ledger has the submission of {name}, and its record is missing"
