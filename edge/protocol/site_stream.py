"""The messages on a site's stream: reports of the site, and orders of the coordinator."""

from __future__ import annotations

import queue
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime

from fedlearn.errors import TransportError
from fedlearn.job.phase import Phase
from fedlearn.wire import fedlearn_pb2 as pb
from fedlearn.wire.phases import phase_fields

__all__ = ["Order", "Reports", "Start", "Stop"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """An assignment as it was received: unverified bytes and a signature."""

    assignment_json: bytes
    signature: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Stop:
    """An assignment is to be stopped."""

    assignment: str
    reason: str


Order = Start | Stop


class Reports:
    """The reports of a site, in order, from any thread; bounded.

    The first one states the ``version`` of the agent and the assignments that it runs.
    """

    def __init__(self, *, version: str, running: tuple[str, ...] = (), limit: int = 1024) -> None:
        self._queue: queue.Queue[pb.SiteReport | None] = queue.Queue(limit)
        self._queue.put(pb.SiteReport(hello=pb.Hello(version=version, running=list(running))))
        self._end: Callable[[], object] | None = None
        self.closed = False
        self.finished = False

    def workload(self, assignment: str, phase: Phase, reason: str = "") -> None:
        """Report the phase of an assignment, with a reason for people."""
        status = pb.WorkloadStatus(
            assignment=assignment, reason=reason[:2000], **phase_fields(phase)
        )
        self._put(pb.SiteReport(workload=status))

    def capabilities(self, document: str) -> None:
        """Report what the site can run, a JSON object."""
        self._put(pb.SiteReport(capabilities=pb.Capabilities(json=document)))

    def heartbeat(self) -> None:
        """Report that the site is connected."""
        now = int(datetime.now(UTC).timestamp() * 1000)
        self._put(pb.SiteReport(heartbeat=pb.Heartbeat(unix_ms=now)))

    def close(self) -> None:
        """End the stream from this side."""
        self.closed = True
        if self._end is not None:
            self._end()
        # Once the call has ended, nothing empties a full queue.
        if not self._queue.full():
            self._queue.put_nowait(None)

    def finish(self) -> None:
        """End the stream from this side when all reports so far have been sent."""
        self.finished = True
        self._put(None)

    def ends(self, end: Callable[[], object]) -> None:
        """Call ``end`` when the reports are closed."""
        self._end = end
        if self.closed:
            end()

    def __iter__(self) -> Iterator[pb.SiteReport]:
        """Yield reports until they are closed."""
        while not self.closed:
            report = self._queue.get()
            if report is None:
                return
            yield report

    def _put(self, report: pb.SiteReport | None) -> None:
        try:
            self._queue.put_nowait(report)
        except queue.Full:
            raise TransportError("the coordinator does not take this site's reports") from None
