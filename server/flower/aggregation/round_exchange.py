"""One call of ``send_and_receive``: its questions, and their answers until the deadline."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterator
from typing import Final

from flwr.app import Message

from fedlearn.clock import REAL, Clock
from fedlearn.errors import QuorumNotReached
from server.flower.aggregation.round_updates import RoundUpdates, Rules
from server.flower.aggregation.update_validator import Asked, UpdateValidator, failure
from server.flower.exchange.coordinator import Coordinator, Node

__all__ = ["WAIT_SECONDS", "RoundExchange"]

WAIT_SECONDS: Final = 5.0
"""The most seconds of one call to the coordinator that waits."""


class RoundExchange:
    """The exchange of one call. Not thread-safe.

    :param asked: the questions that were sent.
    :param pending: all questions of the job that wait; those of this exchange are removed.
    :param seconds: until the deadline.
    :param train: whether the answers are updates.
    :param intended: how many answers the strategy wanted.
    :param enough: how many updates close the exchange; None for all that were asked for.
    """

    def __init__(
        self,
        coordinator: Coordinator,
        rules: Rules,
        updates: RoundUpdates,
        validator: UpdateValidator,
        *,
        asked: dict[str, Asked],
        pending: dict[str, Asked],
        seconds: float,
        train: bool,
        intended: int,
        clock: Clock = REAL,
        enough: int | None = None,
    ) -> None:
        self._enough = enough
        self._clock = clock
        self._coordinator = coordinator
        self._rules = rules
        self._updates = updates
        self._validator = validator
        self._asked = asked
        self._pending = pending
        self._seconds = seconds
        self._end = self._clock.monotonic() + seconds
        self._train = train
        self._intended = intended

    def arrivals(self) -> Generator[tuple[Node, Message]]:
        """Yield replies with their nodes as they arrive.

        :raises QuorumNotReached: at the end, by the job's rules.
        """
        waiting = dict(self._asked)
        accepted: set[str] = set()
        try:
            while waiting and not self._closed():
                left = self._end - self._clock.monotonic()
                if left <= 0:
                    break
                replies = self._coordinator.pull(waiting, min(left, WAIT_SECONDS))
                while replies and not self._closed():
                    reply = deque([replies.popleft()])
                    for question, message in self._validator.opened(reply, waiting):
                        self._pending.pop(question, None)
                        node = self._asked[question].node
                        if message.has_content():
                            accepted.add(node.site)
                            if self._train:
                                self._updates.add(node.site)
                        yield node, message
        finally:
            if waiting:
                self._coordinator.forget(waiting)
                for id_ in waiting:
                    self._pending.pop(id_, None)
        self._close([asked.node.site for asked in waiting.values()], len(accepted))

    def _closed(self) -> bool:
        """Return whether the updates in the result are enough."""
        return self._enough is not None and len(self._updates.contributors) >= self._enough

    def live(self, replies: list[tuple[Node, Message]]) -> Iterator[tuple[Node, Message]]:
        """Yield replies; those of sites that lost their admission meanwhile become failures.

        :raises QuorumNotReached: when too few updates are left.
        """
        live = self._coordinator.live_sites()
        kept = 0
        for node, message in replies:
            if message.has_content() and node.site not in live:
                reason = "the site lost its admission in this round"
                self._updates.remove(node.site)
                self._updates.drop(node.site, reason, train=self._train)
                message = failure(message.metadata, reason)
            kept += message.has_content()
            yield node, message
        if self._train:
            self._updates.check_quorum(kept, self._intended)

    def _close(self, late: list[str], accepted: int) -> None:
        closed = self._closed()
        for site in late:
            reason = (
                f"the round was closed by the first {self._enough} updates"
                if closed
                else f"no answer within {self._seconds:g} s"
            )
            self._updates.drop(site, reason, train=self._train)
        if late and not closed and self._rules.stragglers == "fail":
            raise QuorumNotReached(
                f"{', '.join(late)} did not answer within {self._seconds:g} s",
                hint='raise `deadline_s`, or set stragglers = "drop"',
            )
        if self._train:
            self._updates.check_quorum(accepted, self._intended)
