"""What passes on a site's stream: its reports one way, the coordinator's orders the other."""

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
    """An assignment as it came: unverified bytes and a signature."""

    assignment_json: bytes
    signature: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Stop:
    """An assignment is to be stopped."""

    assignment: str
    reason: str


Order = Start | Stop


class Reports:
    """What a site has to say, in order, from any thread; bounded.

    The greeting comes first: ``version`` of the agent and the assignments that it runs.
    """

    def __init__(self, *, version: str, running: tuple[str, ...] = (), limit: int = 1024) -> None:
        self._queue: queue.Queue[pb.SiteReport | None] = queue.Queue(limit)
        self._queue.put(pb.SiteReport(hello=pb.Hello(version=version, running=list(running))))
        self._end: Callable[[], object] | None = None
        self.closed = False
        self.finished = False

    def workload(self, assignment: str, phase: Phase, reason: str = "") -> None:
        """Say where an assignment stands, in words that a person understands."""
        status = pb.WorkloadStatus(
            assignment=assignment, reason=reason[:2000], **phase_fields(phase)
        )
        self._put(pb.SiteReport(workload=status))

    def capabilities(self, document: str) -> None:
        """Say what the site can do: a JSON object."""
        self._put(pb.SiteReport(capabilities=pb.Capabilities(json=document)))

    def heartbeat(self) -> None:
        """Say that the site is there."""
        now = int(datetime.now(UTC).timestamp() * 1000)
        self._put(pb.SiteReport(heartbeat=pb.Heartbeat(unix_ms=now)))

    def close(self) -> None:
        """End the stream from this side."""
        self.closed = True
        if self._end is not None:
            self._end()
        # A full queue is emptied by nobody once the call has ended.
        if not self._queue.full():
            self._queue.put_nowait(None)

    def finish(self) -> None:
        """End the stream from this side when all that was said so far has been taken."""
        self.finished = True
        self._put(None)

    def ends(self, end: Callable[[], object]) -> None:
        """Have ``end`` called when the reports are closed."""
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
