"""The events of jobs on their way to the disk: bounded by cause, and kept while the disk fails."""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from collections.abc import Callable
from datetime import datetime
from typing import Final

from fedlearn.errors import DiskError
from fedlearn.job.events import Event, Log, RoundFinished
from server.admission.events import what_causes
from server.health import Health
from server.jobs.active_jobs import OpenJobs
from server.jobs.records.job_store import JobStore
from server.jobs.watch import PROGRESS
from server.quota import Quota

__all__ = ["JobEvents"]

_MOST_LATER: Final = 10_000
"""Events that are kept in memory while they cannot be written."""

_SITE_EVENTS: Final = 500
_SECONDS_FOR_EACH: Final = 2.0
"""How many events one site may cause in one job at once, and the seconds for one more."""

_BYTES_OF_ONE: Final = 512
"""The bytes of one event. A longer event counts as several."""

_APP_LINES: Final = 2000
_SECONDS_FOR_EACH_LINE: Final = 0.1
"""The same limits for the lines that the code of a job prints."""


class JobEvents:
    """Writes the events of jobs to their store. Safe to use from many threads.

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
        self._lock = threading.RLock()
        self._later: deque[Callable[[], object]] = deque(maxlen=_MOST_LATER)
        self._quotas = {
            True: Quota(burst=_SITE_EVENTS, every=_SECONDS_FOR_EACH),
            False: Quota(burst=_APP_LINES, every=_SECONDS_FOR_EACH_LINE),
        }

    def report(self, name: str, event: Event) -> None:
        """Write an event of a job; later, while the disk fails.

        Events that one site, or the job's own code, causes beyond its quota are counted instead.
        """
        cause = what_causes(event)
        if cause is not None:
            weight = 1 + len(event.encode()) // _BYTES_OF_ONE
            left_out = self._quotas[bool(cause)].take(f"{name}/{cause}", weight=weight)
            if left_out is None:
                return
            if left_out:
                self.append(name, _left_out(cause, left_out))
        self.append(name, event)

    def append(self, name: str, event: Event) -> None:
        """Write an event without a quota; later, while the disk fails."""
        job = self._jobs.named(name)
        if job is not None and isinstance(event, PROGRESS):
            job.progress += 1
        at = self._clock()
        round_ = event.round if isinstance(event, RoundFinished) else None

        def write_event() -> None:
            self._job_store.events.add(name, event, at=at)

        def write_round() -> None:
            self._job_store.change(name, round_=round_)

        with self._lock:
            self._later.append(write_event)
            if round_ is not None:
                self._later.append(write_round)
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
        with self._lock:
            try:
                while self._later:
                    self._later[0]()
                    self._later.popleft()
            except DiskError as error:
                self._health.fault("events", f"{len(self._later)} are not written: {error}")
                raise
            except BaseException:
                self._later.popleft()
                raise
            self._health.clear("events")


def _left_out(site: str, count: int) -> Log:
    whose = "of this site" if site else "of the job's own code"
    return Log(line=f"{count} more events {whose} were left out", site=site, level="warning")
