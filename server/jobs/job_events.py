"""The events of jobs on their way to the disk: bounded by cause, and kept while the disk fails."""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime
from typing import Final

from fedlearn.errors import DiskError
from fedlearn.job.events import CheckpointSealed, Event, Log
from server.admission.events import what_causes
from server.health import Health
from server.jobs.active_jobs import OpenJobs
from server.jobs.records.job_store import JobStore
from server.jobs.watch import PROGRESS
from server.quota import Quota

__all__ = ["JobEvents"]

_MOST_LATER: Final = 10_000
"""Events that are kept in memory while they cannot be written."""

_MOST_AT_ONCE: Final = 1_000
"""The most events of one transaction."""

_SITE_EVENTS: Final = 500
_SECONDS_FOR_EACH: Final = 2.0
"""How many events one site may cause in one job at once, and the seconds for one more."""

_BYTES_OF_ONE: Final = 512
"""The bytes of one event. A longer event counts as several."""

_APP_LINES: Final = 2000
_SECONDS_FOR_EACH_LINE: Final = 0.1
"""The same limits for the lines that the code of a job prints."""


_Step = tuple[str, Event | int, datetime]
"""A job, and its event or the round that was sealed last, and when that was."""


class JobEvents:
    """Writes the events of jobs to their store. Safe to use from many threads.

    Events that are reported while a transaction is written are written in the next one.

    :param health: gets a fault while events cannot be written.
    """

    def __init__(
        self,
        job_store: JobStore,
        *,
        jobs: OpenJobs,
        clock: Callable[[], datetime],
        health: Health,
    ) -> None:
        self._job_store = job_store
        self._jobs = jobs
        self._clock = clock
        self._health = health
        self._lock = threading.Lock()
        self._writing = threading.RLock()
        self._later: deque[_Step] = deque(maxlen=_MOST_LATER)
        self._quotas = {
            True: Quota(burst=_SITE_EVENTS, every=_SECONDS_FOR_EACH),
            False: Quota(burst=_APP_LINES, every=_SECONDS_FOR_EACH_LINE),
        }

    def report(self, name: str, *events: Event) -> None:
        """Write events of a job, those of one call together; later, while the disk fails.

        Events that one site, or the job's own code, causes beyond its quota are counted instead.
        """
        self.append(name, *(each for event in events for each in self._within_quota(name, event)))

    def _within_quota(self, name: str, event: Event) -> Iterator[Event]:
        """Yield an event unless it is to be left out, after a line for those left out before."""
        cause = what_causes(event)
        if cause is not None:
            weight = 1 + len(event.encode()) // _BYTES_OF_ONE
            left_out = self._quotas[bool(cause)].take(f"{name}/{cause}", weight=weight)
            if left_out is None:
                return
            if left_out:
                yield _left_out(cause, left_out)
        yield event

    def append(self, name: str, *events: Event) -> None:
        """Write events without a quota, those of one call together; later, while the disk fails."""
        job, at = self._jobs.named(name), self._clock()
        steps: list[Event | int] = []
        for event in events:
            if job is not None and isinstance(event, PROGRESS):
                job.progress += 1
            steps += [event, event.round] if isinstance(event, CheckpointSealed) else [event]
        with self._lock:
            self._later.extend((name, step, at) for step in steps)
        with contextlib.suppress(DiskError):
            self.catch_up()

    def settle(self) -> None:
        """Report how many events were left out, once their cause has stopped."""
        for quota in self._quotas.values():
            for source, left_out in quota.settle().items():
                name, _, site = source.partition("/")
                if self._jobs.named(name) is not None:
                    self.append(name, _left_out(site, left_out))

    def catch_up(self) -> None:
        """Write the events that could not be written before, oldest first.

        :raises DiskError: when one still cannot be written; it and all later ones are kept.
        """
        with self._writing:
            while burst := self._next():
                try:
                    self._write(burst)
                except DiskError as error:
                    with self._lock:
                        # Of too many, the newest are kept.
                        kept = [*burst, *self._later]
                        self._later.clear()
                        self._later.extend(kept)
                    self._health.fault("events", f"{len(kept)} are not written: {error}")
                    raise
            self._health.clear("events")

    def _next(self) -> list[_Step]:
        """Take what one transaction writes: events that follow each other, or one round."""
        with self._lock:
            burst: list[_Step] = []
            while self._later and len(burst) < _MOST_AT_ONCE:
                if isinstance(self._later[0][1], int):
                    return burst or [self._later.popleft()]
                burst.append(self._later.popleft())
            return burst

    def _write(self, burst: Sequence[_Step]) -> None:
        name, first, _ = burst[0]
        if isinstance(first, int):
            self._job_store.change(name, round_=first)
            return
        self._job_store.events.add_all(
            [(job, event, at) for job, event, at in burst if isinstance(event, Event)]
        )


def _left_out(site: str, count: int) -> Log:
    whose = "of this site" if site else "of the job's own code"
    return Log(line=f"{count} more events {whose} were left out", site=site, level="warning")
