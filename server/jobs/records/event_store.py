"""The events of all jobs, each with a sequence number, in the database of jobs."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

from fedlearn.errors import StoreError
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
from server.jobs.records.authenticated_rows import Cell, Database

__all__ = ["EVENTS", "MAX_EVENTS", "UNKNOWN", "EventStore", "StoredEvent", "moment_of"]

MAX_EVENTS: Final = 200_000
"""Stored events of one job. Beyond it only those of rounds are, up to twice as many in all."""

ROUNDS: Final = (
    JobStarted,
    RoundStarted,
    UpdateReceived,
    RoundFinished,
    CheckpointSealed,
    PrivacySpent,
)
"""The events of rounds; a site cannot cause more of them than there are rounds."""

EVENTS: Final = """CREATE TABLE events (
  job TEXT NOT NULL,
  sequence INTEGER NOT NULL,
  at REAL NOT NULL,
  kind TEXT NOT NULL,
  body TEXT NOT NULL,
  mac BLOB NOT NULL,
  PRIMARY KEY (job, sequence)
) STRICT, WITHOUT ROWID"""
_ENDS: Final = frozenset({JobFinished.kind, JobFailed.kind, JobCancelled.kind})
UNKNOWN: Final = datetime.fromtimestamp(0, UTC)
"""The time of an event whose row was altered."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredEvent:
    """One event of a job. ``sequence`` starts at 1 and has no gaps."""

    sequence: int
    at: datetime
    kind: str
    body: str


class EventStore:
    """The events of all jobs. Safe to use from many threads; each is durable when stored."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._news = threading.Condition()
        with database.reading() as db:
            self._sequences: dict[str, int] = dict(
                db.execute("SELECT job, max(sequence) FROM events GROUP BY job").fetchall()
            )

    def close(self) -> None:
        """End every wait."""
        with self._news:
            self._sequences.clear()
            self._news.notify_all()

    def forget(self, name: str) -> None:
        """Begin the sequence numbers of a job again, after its events were deleted."""
        with self._news:
            self._sequences.pop(name, None)

    def add(self, name: str, event: Event, *, at: datetime) -> int:
        """Store one event, as :meth:`add_all`; return its sequence number."""
        return self.add_all([(name, event, at)])[0]

    def add_all(self, events: Sequence[tuple[str, Event, datetime]]) -> list[int]:
        """Store events of jobs, each with its time, all or none, and end the waits for them.

        Return their sequence numbers. Beyond :data:`MAX_EVENTS` events of a job only those of its
        rounds are stored, and beyond twice as many only final ones.
        """
        bodies = [event.encode() for _, event, _ in events]
        for (name, _, _), body in zip(events, bodies, strict=True):
            if len(body.encode()) > MAX_EVENT_BYTES:
                raise StoreError(f"an event of job {name!r} is longer than {MAX_EVENT_BYTES} bytes")
        with self._news:
            last: dict[str, int] = {}
            numbers: list[int] = []
            rows: list[tuple[Cell, ...]] = []
            for (name, event, at), body in zip(events, bodies, strict=True):
                sequence = last.get(name, self._sequences.get(name, 0)) + 1
                most = 2 * MAX_EVENTS if isinstance(event, ROUNDS) else MAX_EVENTS
                if sequence > most and not event.final:
                    numbers.append(sequence - 1)
                    continue
                kind = str(event.to_json()["kind"])
                cells = (name, sequence, at.timestamp(), kind, body)
                rows.append((*cells, self._database.key.mac("events", cells)))
                last[name] = sequence
                numbers.append(sequence)
            with self._database.transaction() as db:
                for row in rows:
                    db.execute("INSERT INTO events VALUES (?, ?, ?, ?, ?, ?)", row)
            self._sequences |= last
            self._news.notify_all()
        return numbers

    def page(self, name: str, *, after: int = 0, most: int = 1000) -> tuple[StoredEvent, ...]:
        """Return the events of a job that follow number ``after``, at most ``most``.

        An event that was altered, or some that are missing, are replaced by a log line that
        states this.
        """
        with self._database.reading() as db:
            rows = db.execute(
                "SELECT job, sequence, at, kind, body, mac FROM events"
                " WHERE job = ? AND sequence > ? ORDER BY sequence LIMIT ?",
                (name, after, most),
            ).fetchall()
        found: list[StoredEvent] = []
        expected = after + 1
        for *cells, mac in rows:
            _, sequence, at, kind, body = cells
            genuine = self._database.key.genuine("events", cells, mac)
            moment = moment_of(at) if genuine else UNKNOWN
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
        """Return whether the newest event of a job reports its end."""
        with self._news:
            newest = self._sequences.get(name, 0)
        last = self.page(name, after=newest - 1, most=1) if newest else ()
        return bool(last) and last[0].kind in _ENDS

    def wait(self, name: str, *, after: int, seconds: float) -> None:
        """Return when the job has an event after ``after``, or ``seconds`` have passed."""
        with self._news:
            self._news.wait_for(lambda: self._sequences.get(name, 0) > after, timeout=seconds)


def moment_of(at: float) -> datetime:
    """Return the time of a Unix timestamp.

    :raises ValueError: when it is out of the range of ``datetime``.
    """
    try:
        return datetime.fromtimestamp(at, UTC)
    except (OverflowError, OSError, ValueError) as error:
        raise ValueError(f"{at!r} is not a time") from error


def _damaged(sequence: int, at: datetime, line: str) -> StoredEvent:
    event = Log(line=line, level="error")
    return StoredEvent(sequence=sequence, at=at, kind=Log.kind, body=event.encode())
