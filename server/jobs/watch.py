"""Runs one open job from its first process to its outcome: crashes, disk failures and time limits.

A process that crashed is started again, a few times. A process that ended because the disk failed
is started again when the disk works, any number of times: until then the job is *interrupted*,
with the reason in its status, and its clients keep running. A job that makes no progress, or takes
longer than all of its rounds may, is ended: its own code may hang.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Final

from fedlearn.backoff import Backoff
from fedlearn.errors import DiskError, FedlearnError
from fedlearn.job.events import (
    CheckpointSealed,
    Event,
    JobStarted,
    Log,
    RoundFinished,
    RoundStarted,
    UpdateReceived,
    UpdateRejected,
)
from fedlearn.job.state import JobStatus
from server.flower.job_plan import Outcome
from server.health import Health
from server.jobs.active_job import OpenJob

__all__ = ["PROGRESS", "JobWatch", "longest", "longest_pause"]

PROGRESS: Final = (
    JobStarted,
    RoundStarted,
    UpdateReceived,
    UpdateRejected,
    RoundFinished,
    CheckpointSealed,
)
"""The events that count as progress of a job."""

_MAX_CRASHES: Final = 3
_LOOK_SECONDS: Final = 1.0
_SLACK_SECONDS: Final = 300.0
_FIRST_PAUSE: Final = 0.5
_LONGEST_PAUSE: Final = 60.0
_PROBE_SECONDS: Final = 5.0


def longest_pause(deadline_s: float) -> float:
    """Return how many seconds a job may go without progress.

    A round waits for its sites, for their updates and for their evaluation, each at most
    ``deadline_s``; what the app itself does between them has five minutes.
    """
    return 3 * deadline_s + _SLACK_SECONDS


def longest(deadline_s: float, rounds: int) -> float:
    """Return how many seconds a job may take from the start of its process."""
    return (rounds + 1) * longest_pause(deadline_s)


class JobWatch:
    """Runs one job. :meth:`run` returns its outcome, or ``None`` when the job is closed already.

    ``report``   writes an event of the job
    ``mark``     ``mark(reason)`` records why the job is interrupted, ``mark("")`` that it runs;
                 raises DiskError while the disk fails
    ``probe``    raises DiskError while the disk fails
    ``current``  whether the job is still open
    ``over``     set when the coordinator stops
    """

    def __init__(
        self,
        job: OpenJob,
        *,
        report: Callable[[Event], object],
        mark: Callable[[str], object],
        probe: Callable[[], object],
        current: Callable[[], bool],
        over: threading.Event,
        health: Health,
    ) -> None:
        self._job = job
        self._report = report
        self._mark = mark
        self._probe = probe
        self._current = current
        self._over = over
        self._health = health
        self._fault = f"job {job.record.name}"
        self._backoff = Backoff(first=_FIRST_PAUSE, longest=_LONGEST_PAUSE)
        self._round = -1
        self._idle = 0.0
        self._total = 0.0
        self._seen = job.progress

    def run(self) -> Outcome | None:
        """Start the job's process as often as needed."""
        while True:
            self._job.disk.clear()
            try:
                self._job.host.start()
                outcome = self._wait()
            except FedlearnError as error:
                if isinstance(error, DiskError):
                    self._job.disk.append(str(error))
                outcome = Outcome(
                    status=JobStatus.FAILED, code=error.code, message=str(error), hint=error.hint
                )
            if self._over.is_set() or not self._current():
                return None
            if self._job.ending is not None:
                return self._job.ending
            if outcome.status is JobStatus.FAILED and self._job.disk:
                if not self._outlast(self._job.disk[0]):
                    return None
                continue
            crashed = outcome.status is JobStatus.FAILED and outcome.code == "crashed"
            if not crashed or self._job.crashes >= _MAX_CRASHES:
                return outcome
            self._job.crashes += 1
            self._report(Log(line=f"{outcome.message}; starting it again", level="warning"))

    def _wait(self) -> Outcome:
        """Return how the process ended; end one that is overdue."""
        spec = self._job.record.spec
        before = time.monotonic()
        while (outcome := self._job.host.wait(_LOOK_SECONDS)) is None:
            # Time during which the coordinator was suspended does not count.
            now = time.monotonic()
            passed, before = min(now - before, 2 * _LOOK_SECONDS), now
            self._total += passed
            self._idle = 0.0 if self._seen != self._job.progress else self._idle + passed
            self._seen = self._job.progress
            if self._job.ending is not None:
                continue
            pause, whole = longest_pause(spec.deadline_s), longest(spec.deadline_s, spec.rounds)
            if self._idle > pause:
                self._end(f"the job made no progress for {pause:g} s")
            elif self._total > whole:
                self._end(f"the job took longer than {whole:g} s, which all of its rounds may take")
        return outcome

    def _end(self, message: str) -> None:
        self._job.ending = Outcome(
            status=JobStatus.FAILED,
            code="deadline",
            message=message,
            hint="find out why its app takes so long; `deadline_s` in job.toml sets the time, and "
            "`fedlearn job resume` continues from the last checkpoint",
        )
        self._job.host.cancel(message)

    def _outlast(self, reason: str) -> bool:
        """Wait until the disk works again; return whether the job continues."""
        name = self._job.record.name
        self._job.interrupted = reason
        self._health.fault(self._fault, f"interrupted: {reason}")
        self._report(
            Log(
                line=f"interrupted: {reason}; the job continues when the disk works again",
                level="warning",
            )
        )
        try:
            if self._job.channel.round > self._round:
                self._backoff.reset()
            self._round = self._job.channel.round
            pause = self._backoff.next()
            while True:
                if self._over.wait(pause) or not self._current():
                    return False
                if self._job.ending is not None:
                    return True
                try:
                    self._mark(reason)
                    self._probe()
                    self._mark("")
                except DiskError as error:
                    self._health.fault(self._fault, f"interrupted: {reason}; now: {error}")
                    pause = _PROBE_SECONDS
                    continue
                self._report(
                    Log(line=f"the disk works again; job {name} continues", level="warning")
                )
                return True
        finally:
            self._job.interrupted = ""
            self._health.clear(self._fault)
