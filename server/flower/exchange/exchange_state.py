"""The state of one job's exchange: its nodes, their questions, the answers, and the timers.

See :mod:`server.flower.exchange.job_exchange`, which guards it with one lock.
"""

from __future__ import annotations

import asyncio
import contextlib
import heapq
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from fedlearn.app.message import MESSAGE_UNAVAILABLE, NODE_UNAVAILABLE, Failure, Head
from fedlearn.errors import TransportError
from fedlearn.sandbox.memory_file import FilePart, Part
from server.clock import awake
from server.flower.exchange.nodes import NodeGone, Waiter
from server.flower.job_plan import Reply

__all__ = ["ExchangeState", "Node", "Question"]

_MAX_OPEN: Final = 1000
"""The most questions and untaken answers for each site of the job."""

_MISSED_INTERVALS: Final = 2
"""A node is lost after so many of the heartbeat intervals that it promised, as in Flower."""


@dataclass(slots=True, eq=False)
class Question:
    """A message for one node, with its parts, until its deadline."""

    head: Head
    frames: Sequence[Part]
    deadline: float


@dataclass(slots=True, eq=False)
class Node:
    """The client of one site.

    ``queue``        the ids of questions that it has not fetched, oldest first
    ``in_hand``      the id of the question that it has fetched and not answered, or empty
    ``delivering``   whether a delivery of it is being read
    ``promised``     the interval of its heartbeats, in seconds; None: it is not active
    ``alive_until``  when it goes offline unless it makes a request; 0: it is offline
    ``due``          the time of its timer; 0: it has none
    """

    number: int
    site: str
    queue: dict[str, None] = field(default_factory=dict)
    in_hand: str = ""
    delivering: bool = False
    promised: float | None = None
    alive_until: float = 0.0
    due: float = 0.0
    waiter: Waiter | None = None

    @property
    def online(self) -> bool:
        return self.alive_until > 0


class ExchangeState:
    """The state of one exchange. Not thread-safe: the caller holds the lock of the exchange.

    :param numbers: the number of each site's node, in the order of the job.
    :param changed_answers: called when there is a new answer.
    :param changed_presence: called when a node comes online.
    """

    def __init__(
        self,
        numbers: Mapping[str, int],
        *,
        changed_answers: Callable[[], object],
        changed_presence: Callable[[], object],
    ) -> None:
        self.numbers = numbers
        self.sites = {number: site for site, number in numbers.items()}
        self.nodes: dict[int, Node] = {}
        self.online_count = 0
        self.questions: dict[str, Question] = {}
        self.replies: dict[str, Reply] = {}
        self.wanted: set[str] = set()
        self.closed = False
        self.ending = "the job has ended"
        self._timers: list[tuple[float, int, str]] = []
        self._changed_answers = changed_answers
        self._changed_presence = changed_presence

    # Questions

    def check_new(self, asked: Sequence[Question]) -> None:
        """Check the ids and the number of new questions.

        :raises TransportError: when an id is not new, or too many questions are open.
        """
        fresh = {question.head.id for question in asked}
        if len(fresh) != len(asked) or not fresh.isdisjoint(self.questions):
            raise TransportError("two messages have the same id")
        if not fresh.isdisjoint(self.replies):
            raise TransportError("two messages have the same id")
        held = len(self.questions) + len(self.replies) + len(asked)
        if held > _MAX_OPEN * len(self.numbers):
            raise TransportError(
                f"{held} messages wait; at most {_MAX_OPEN} for each site are held",
                hint="take the answers, or withdraw the messages, before you send more",
            )

    def ask(self, question: Question) -> str:
        """Queue a question for its node; return its id, empty for a node not of the job."""
        head = question.head
        node = self.nodes.get(head.receiver)
        if node is None:
            return ""
        self.questions[head.id] = question
        if not node.online:
            self._fail(question, NODE_UNAVAILABLE, "the site's client is not online")
            return head.id
        node.queue[head.id] = None
        self._time(question.deadline, 0, head.id)
        self.wake([node])
        return head.id

    def close_question(self, id_: str) -> Question | None:
        """Remove a question from everything that holds it; return it."""
        question = self.questions.pop(id_, None)
        node = None if question is None else self.nodes.get(question.head.receiver)
        if node is not None:
            node.queue.pop(id_, None)
            if node.in_hand == id_:
                node.in_hand = ""
        return question

    def answer(self, question: Question, reply: Reply) -> None:
        """Close a question with its reply."""
        self.close_question(question.head.id)
        self.replies[question.head.id] = reply
        self._changed_answers()

    def ready(self, files: int) -> list[str]:
        """Return the ids of wanted answers that have at most so many files together.

        The first one is among them however many it has.
        """
        found: list[str] = []
        for id_, reply in self.replies.items():
            if id_ not in self.wanted:
                continue
            files -= sum(isinstance(part, FilePart) for part in reply.objects.values())
            if found and files < 0:
                break
            found.append(id_)
        return found

    def _fail(self, question: Question, code: int, reason: str) -> None:
        head = question.head
        failure = Head(
            id=f"{head.id}/{code}",
            run=head.run,
            sender=head.receiver,
            receiver=head.sender,
            reply_to=head.id,
            group=head.group,
            created=head.created,
            ttl=head.ttl,
            kind=head.kind,
            failure=Failure(code=code, reason=reason),
        )
        self.answer(
            question,
            Reply(
                question=head.id,
                site=self.sites[head.receiver],
                node=head.receiver,
                message=failure.to_bytes(),
                objects={},
                size=0,
            ),
        )

    def drop_all(self) -> None:
        """Drop all questions, replies and their timers."""
        self.questions.clear()
        self.replies.clear()
        self.wanted = set()
        self._timers = [each for each in self._timers if each[1]]
        for node in self.nodes.values():
            node.queue.clear()
            node.in_hand = ""

    # Nodes

    def node(self, number: int) -> Node:
        """Return a node.

        :raises NodeGone: when the job has ended, or the node is not part of it.
        """
        if self.closed:
            raise NodeGone(self.ending)
        node = self.nodes.get(number)
        if node is None:
            raise NodeGone("this node is not part of the job any more")
        return node

    def alive(self, node: Node) -> None:
        """Note a request of an active node: a node that asks for work is online.

        A client that returns after it was absent is online with its first request. Waiting for
        its next heartbeat would hold up a round for seconds.
        """
        if node.promised is None:
            return
        if not node.online:
            self.online_count += 1
            self._changed_presence()
        node.alive_until = awake() + _MISSED_INTERVALS * node.promised
        if not node.due:
            node.due = node.alive_until
            self._time(node.due, node.number, "")

    def depart(self, node: Node, reason: str) -> None:
        """Take a node offline; answer its open questions with an error."""
        if node.online:
            node.alive_until = 0.0
            self.online_count -= 1
        open_ = [node.in_hand, *node.queue] if node.in_hand else list(node.queue)
        for id_ in open_:
            question = self.questions[id_]
            self._fail(question, NODE_UNAVAILABLE, reason)
        node.in_hand = ""
        node.queue.clear()

    def listed(self) -> list[tuple[int, str]]:
        """Return number and site of every online node, in the order of the job."""
        order = ((number, site) for site, number in self.numbers.items())
        return [pair for pair in order if pair[0] in self.nodes and self.nodes[pair[0]].online]

    def wake(self, nodes: Iterable[Node]) -> None:
        """Set the events on which these nodes wait."""
        events: dict[asyncio.AbstractEventLoop, list[asyncio.Event]] = {}
        for node in nodes:
            if node.waiter is not None:
                events.setdefault(node.waiter.loop, []).append(node.waiter.event)
        for loop, found in events.items():
            with contextlib.suppress(RuntimeError):  # the loop was closed with its listener
                loop.call_soon_threadsafe(_set_all, found)

    # Time

    def _time(self, when: float, node: int, question: str) -> None:
        """Have :meth:`expire` check a node or a question at some time."""
        if len(self._timers) > 2 * (len(self.questions) + len(self.nodes)) + 64:
            # Most questions are answered long before they expire.
            self._timers = [each for each in self._timers if each[1] or each[2] in self.questions]
            heapq.heapify(self._timers)
        heapq.heappush(self._timers, (when, node, question))

    def expire(self, now: float) -> None:
        """Take silent nodes offline, and answer questions that have expired with an error."""
        while self._timers and self._timers[0][0] <= now:
            when, number, id_ = heapq.heappop(self._timers)
            question = self.questions.get(id_)
            node = self.nodes.get(number)
            if question is not None:
                self._fail(question, MESSAGE_UNAVAILABLE, "no answer within its time to live")
            elif node is not None and node.due == when:
                node.due = node.alive_until
                if node.alive_until > now:
                    self._time(node.due, number, "")
                elif node.online:
                    self.depart(node, "the site's client went silent")
                    node.due = 0.0

    def until(self, end: float, now: float) -> float:
        """Return the seconds until the next timer, or until ``end`` if that is earlier."""
        first = self._timers[0][0] if self._timers else math.inf
        return max(0.0, min(end, first) - now)


def _set_all(events: Iterable[asyncio.Event]) -> None:
    for event in events:
        event.set()
