"""What an agent logs: one line an event, and what repeats once.

The reason why a client failed may have text of its app. It is not logged, but reported to the
coordinator, as before.
"""

from __future__ import annotations

import logging
import threading
from typing import Final

from fedlearn.errors import FedlearnError
from fedlearn.job.phase import Phase
from fedlearn.terminal.logs import log_event

__all__ = ["ConnectionLog", "PhaseLog"]

_LOG = logging.getLogger(__name__)
_MAX_REASON: Final = 300
_MOST: Final = 1000


class ConnectionLog:
    """The connection of one agent to its coordinator, as it is logged. Not thread-safe."""

    def __init__(self, site: str) -> None:
        self._site = site
        self._waits = False
        self._last = ""

    def waits_for_approval(self, error: FedlearnError) -> None:
        """Log once that the site waits for an operator's approval."""
        if not self._waits:
            self._waits = True
            text = f"{error}: {error.hint}" if error.hint else str(error)
            log_event(_LOG, "site.waits", text, site=self._site)

    def connected(self) -> None:
        """Log that the coordinator takes the site's reports; and before, that it is approved."""
        if self._waits:
            log_event(_LOG, "site.approved", f"site {self._site} is approved", site=self._site)
        self._waits, self._last = False, ""
        text = f"site {self._site} is connected to the coordinator"
        log_event(_LOG, "site.connected", text, site=self._site)

    def failed(self, what: str, error: BaseException) -> None:
        """Log that the connection failed; again only after it worked, or for another reason."""
        text = f"{what}: {error}"
        level = logging.DEBUG if text == self._last else logging.WARNING
        self._last = text
        log_event(_LOG, "site.disconnected", text, level=level, site=self._site)


class PhaseLog:
    """The phases of clients and the decisions about orders, as they are logged, by job.

    Safe to use from many threads.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._jobs: dict[str, str] = {}
        self._last: dict[str, tuple[Phase, str]] = {}

    def begin(self, assignment: str, job: str) -> None:
        """Name the job of an assignment that is followed from now on."""
        with self._lock:
            if assignment not in self._jobs and len(self._jobs) >= _MOST:
                oldest = next(iter(self._jobs))
                del self._jobs[oldest]
                self._last.pop(oldest, None)
            self._jobs[assignment] = job

    def phase(self, assignment: str, phase: Phase, reason: str) -> None:
        """Log a phase with its reason, unless it is the one that was logged last."""
        with self._lock:
            job = self._jobs.get(assignment, "")
            if self._last.get(assignment) == (phase, reason):
                return
            if job:
                self._last[assignment] = (phase, reason)
        if phase.final:
            text = phase.ended("" if phase in {Phase.FAILED, Phase.SUCCEEDED} else reason)
        else:
            text = f"its client is {phase}{f': {reason}' if reason else ''}"
        bad = phase in {Phase.FAILED, Phase.REFUSED}
        log_event(
            _LOG,
            f"client.{phase}",
            f"{f'job {job}' if job else f'assignment {assignment}'}: {text[:_MAX_REASON]}",
            level=logging.WARNING if bad else logging.INFO,
            job=job,
            assignment=assignment,
        )

    def approved(self, job: str, bundle: bytes) -> None:
        """Log that a job runs by the approval of a person at this site."""
        text = f"job {job} runs by the approval of a person here"
        log_event(_LOG, "job.approved", text, job=job, bundle=bundle.hex())

    def charged(self, assignment: str) -> None:
        """Log that an update was charged to the privacy budget of the site's data."""
        with self._lock:
            job = self._jobs.get(assignment, "")
        text = f"an update of job {job or assignment} is charged to the budget of its data"
        log_event(_LOG, "budget.charged", text, job=job, assignment=assignment)
