"""The assignments that an agent follows, and the phases in which others ended."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Final

from edge.agent.agent_log import PhaseLog
from edge.protocol.site_stream import Reports
from fedlearn.errors import JobError, TransportError
from fedlearn.job.phase import Phase

__all__ = ["AssignmentTable", "StatusSender"]

_LOG = logging.getLogger(__name__)
_MOST_ENDED: Final = 1000


class AssignmentTable:
    """Which assignments are followed here. Safe to use from many threads.

    An assignment is followed from :meth:`begin` until :meth:`remove` or :meth:`finish`; between
    the two it may wait. One that has finished does not begin again.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._followed: dict[str, threading.Timer | None] = {}
        self._ended: dict[str, tuple[Phase, str]] = {}

    def begin(self, assignment: str) -> bool:
        """Follow ``assignment``, or end its waiting; return whether the caller decides on it now.

        False: it was decided on already, and runs or has ended.
        """
        with self._lock:
            if assignment in self._ended:
                return False
            if assignment in self._followed:
                timer = self._followed[assignment]
                if timer is None:
                    return False
                timer.cancel()
            self._followed[assignment] = None
            return True

    def wait(self, assignment: str, seconds: float, decide: Callable[[], None]) -> None:
        """Call ``decide`` after ``seconds``, unless the assignment begins or is removed before."""

        def end_waiting() -> None:
            with self._lock:
                if self._followed.get(assignment) is not timer:
                    return
                self._followed[assignment] = None
            decide()

        timer = threading.Timer(seconds, end_waiting)
        timer.daemon = True
        with self._lock:
            if assignment not in self._followed:
                return
            self._followed[assignment] = timer
        timer.start()

    def check_followed(self, assignment: str) -> None:
        """Check that ``assignment`` is followed here.

        :raises JobError: when it is not.
        """
        with self._lock:
            if assignment not in self._followed:
                raise JobError(f"assignment {assignment} does not run here")

    def ended(self, assignment: str) -> tuple[Phase, str] | None:
        """Return the phase in which ``assignment`` ended and the reason; None if it did not end.

        The last 1,000 that ended are kept.
        """
        with self._lock:
            return self._ended.get(assignment)

    def remove(self, assignment: str) -> None:
        """Do not follow ``assignment`` any more; a later order for it begins anew."""
        with self._lock:
            timer = self._followed.pop(assignment, None)
        if timer is not None:
            timer.cancel()

    def finish(self, assignment: str, phase: Phase, reason: str) -> None:
        """Record that ``assignment`` ended in ``phase``."""
        with self._lock:
            self._followed.pop(assignment, None)
            self._ended[assignment] = (phase, reason)
            while len(self._ended) > _MOST_ENDED:
                del self._ended[next(iter(self._ended))]

    def clear(self) -> None:
        """Remove every assignment."""
        with self._lock:
            timers = list(self._followed.values())
            self._followed.clear()
        for timer in timers:
            if timer is not None:
                timer.cancel()


class StatusSender:
    """Sends the phases of assignments on the stream that is open; without one, sends nothing.

    ``stream`` is set by the agent, ``log`` logs every phase. Nothing is lost without a stream: the
    coordinator asks for what runs when the next one opens, and repeats each order whose end it
    has not received.
    """

    def __init__(self) -> None:
        self.stream: Reports | None = None
        self.log = PhaseLog()

    def send(self, assignment: str, phase: Phase, reason: str) -> None:
        """Report that ``assignment`` is in ``phase``; a report that cannot be sent is logged."""
        self.log.phase(assignment, phase, reason)
        stream = self.stream
        if stream is None:
            return
        try:
            stream.workload(assignment, phase, reason)
        except TransportError as error:
            _LOG.info("a report was not sent: %s", error)
