"""One job's exchange: the questions for its nodes, and their answers.

Two sides use it:

* *nodes*, the clients in their TEEs, through :mod:`server.rpc.fleet`, which decides who is
  speaking, and :mod:`server.flower.exchange.nodes`, which serves what a node may do.
* *the job's process*, through :mod:`server.flower.job_runner`, which calls
  :meth:`JobExchange.push`, :meth:`JobExchange.pull` and the rest from a thread of its own.

A *question* is a message for one node; its *answer* is the node's reply, or an error that the
exchange makes when the node is gone or the question is too old. Every question gets at most
one answer, and only from its node. Nodes have a queue each, questions and answers are found by
id, and both sides wait on events, so no call costs more than what it touches. Parts that
several questions share are held once, until the last of these questions is answered.

A node is a site of the job. Its number comes from the job and the site, and survives a new
key and a restarted client: a question that was handed out and not answered is handed out
again when its node asks for work. Whether a node is there is judged by the time for which the
coordinator ran (:func:`server.clock.awake`).

The page is docs/adr/0013-exchange.md.
"""

from __future__ import annotations

import asyncio
import contextlib
import heapq
import math
import threading
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

from fedlearn.app.message import (
    MAX_CONTENT_BYTES,
    MAX_HEAD_BYTES,
    MESSAGE_UNAVAILABLE,
    NODE_UNAVAILABLE,
    Failure,
    Head,
)
from fedlearn.errors import JobError, TransportError
from fedlearn.job.seeds import node_number
from server.clock import awake
from server.flower.exchange.nodes import (
    Delivered,
    NodeActions,
    NodeBusy,
    NodeGone,
    TooLarge,
    Waiter,
)
from server.flower.job_plan import JobPlan, Reply
from server.rpc.fleet_api import Receive, Scope, Send

__all__ = ["JobExchange", "Waiter"]

_MAX_OPEN: Final = 1000
"""The most questions for each site of the job that are held, and answers that nobody took."""

_PATIENCE: Final = 2
"""A node is taken for lost after as many of the intervals that it promised, as in Flower."""

_LONGEST_WAIT: Final = 3600.0
"""The most seconds of one :meth:`JobExchange.pull`; a job asks again if it wants to wait longer."""

_ENVELOPE_BYTES: Final = MAX_HEAD_BYTES + MAX_CONTENT_BYTES
"""What a delivery may have beside its arrays."""


@dataclass(slots=True, eq=False)
class _Question:
    head: Head
    frames: Sequence[bytes]
    deadline: float


@dataclass(slots=True, eq=False)
class _Node:
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


class JobExchange:
    """The exchange of one job. Safe to use from many threads; see the module."""

    def __init__(self, plan: JobPlan) -> None:
        self.plan = plan
        self._lock = threading.Lock()
        self._answers = threading.Condition(self._lock)
        self._presence = threading.Condition(self._lock)
        self._numbers = {site: node_number(plan.digest, site) for site in plan.spec.sites}
        self._sites = {number: site for site, number in self._numbers.items()}
        self._nodes: dict[int, _Node] = {}
        self._online = 0
        self._questions: dict[str, _Question] = {}
        self._replies: dict[str, Reply] = {}
        self._wanted: set[str] = set()
        self._timers: list[tuple[float, int, str]] = []
        self._received = 0
        self._sent = 0
        self._closed = False
        self._ending = "the job has ended"
        self._actions = NodeActions(self)

    # What the coordinator does

    @property
    def run_id(self) -> int:
        """Flower's number for this run of the job; the same whenever the job is resumed."""
        return self.plan.run_id

    def create_node(self, site: str, tls_key: bytes) -> int:
        """Admit a site, or note that the client of an admitted site has a new key.

        :param tls_key: DER SPKI of the key of the client's certificate. The front checks it on
            every request; the node stays the same.
        :raises JobError: when the site does not belong to the job.
        """
        number = self._numbers.get(site)
        if number is None:
            raise JobError(f"{site} is not a site of job {self.plan.spec.name}")
        with self._lock:
            self._nodes.setdefault(number, _Node(number, site))
        return number

    def delete_node(self, site: str) -> None:
        """Take a site's node away. What it was asked is answered with an error at once."""
        with self._lock:
            node = self._nodes.pop(self._numbers.get(site, 0), None)
            if node is None:
                return
            self._depart(node, "the site is not admitted any more")
            self._wake([node])

    def absent(self, site: str) -> None:
        """Note that no connection of the site's client is left: it is not online any more."""
        with self._lock:
            node = self._nodes.get(self._numbers.get(site, 0))
            if node is not None:
                self._depart(node, "the site's client has no connection")

    @property
    def closed(self) -> bool:
        """Whether the job has ended here for good."""
        return self._closed

    def start_over(self) -> None:
        """Withdraw all that a process of the job that is gone has asked of nodes."""
        with self._lock:
            self._drop_all()

    def close(self, *, completed: bool) -> None:
        """End the job here, drop everything that it holds, and let nobody wait any longer.

        :param completed: whether the job finished; nodes are told.
        """
        with self._lock:
            if self._closed:
                return
            self._closed = True
            if completed:
                self._ending = "the job has finished"
            self._drop_all()
            self._answers.notify_all()
            self._presence.notify_all()
            self._wake(self._nodes.values())

    # What the job's process does

    def traffic(self) -> tuple[int, int]:
        """Return the bytes sent to and received from nodes so far."""
        with self._lock:
            return self._sent, self._received

    def online(self) -> list[tuple[int, str]]:
        """Return number and site of every node that is online, in the order of the job."""
        with self._lock:
            self._expire(awake())
            return self._listed()

    def wait_online(self, count: int, seconds: float) -> list[tuple[int, str]]:
        """Return :meth:`online` once it has ``count`` entries or the time is up."""
        end = _end(seconds)
        with self._lock:
            while True:
                now = awake()
                self._expire(now)
                if self._online >= count or now >= end or self._closed:
                    return self._listed()
                self._presence.wait(self._until(end, now))

    def push(self, messages: Sequence[bytes], objects: Iterable[tuple[str, bytes]]) -> list[str]:
        """Put questions into the queues of their nodes; return their ids.

        An id is empty where the node is not part of the job. A question for a node that is not
        online is answered with an error at once.

        :param messages: the heads; see :class:`fedlearn.app.message.Head`.
        :param objects: the parts that the heads name. Each is held once for all of them.
        :raises TransportError: when something is malformed or a part is missing; then no
            question is put.
        """
        parts = dict(objects)
        asked: list[_Question] = []
        now = awake()
        for data in messages:
            head = Head.from_bytes(data)
            if not head.ttl > 0:
                raise TransportError(f"a message with a time to live of {head.ttl} s")
            try:
                frames = (data, *(parts[name] for name in head.parts))
            except KeyError:
                raise TransportError("a part of the message is missing") from None
            asked.append(_Question(head, frames, now + head.ttl))
        with self._lock:
            if self._closed:
                raise TransportError(self._ending)
            self._check_new(asked)
            return [self._ask(question) for question in asked]

    def pull(self, ids: Iterable[str] | None, seconds: float) -> list[Reply]:
        """Wait until some of the questions are answered; return and forget those answers.

        Empty when the time is up. Answers come in the order in which they arrived.

        :param ids: the questions; None for those of the last call that it did not answer, which
            costs nothing for the many that are still open.
        """
        end = _end(seconds)
        wanted = None if ids is None else set(ids)
        with self._lock:
            if wanted is not None:
                self._wanted = wanted
            while True:
                now = awake()
                self._expire(now)
                ready = [id_ for id_ in self._replies if id_ in self._wanted]
                if ready or now >= end or self._closed:
                    self._wanted.difference_update(ready)
                    return [self._replies.pop(id_) for id_ in ready]
                self._answers.wait(self._until(end, now))

    def forget(self, ids: Iterable[str]) -> None:
        """Withdraw questions. Answers that still arrive are not taken."""
        with self._lock:
            for id_ in ids:
                self._close_question(id_)
                self._replies.pop(id_, None)

    # What nodes do, through NodeActions

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one action of one node; see :mod:`server.flower.exchange.nodes`."""
        await self._actions(scope, receive, send)

    def beat(self, node: int, interval: float) -> None:
        """Note that a node is there, and will say so again within ``interval`` seconds.

        :raises NodeGone: when it is not part of the job.
        """
        with self._lock:
            found = self._node(node)
            found.promised = interval
            self._alive(found)

    def leave(self, node: int) -> None:
        """Take a node offline, as it asks, until its next :meth:`beat`."""
        with self._lock:
            found = self._node(node)
            found.promised = None
            self._depart(found, "the site's client left")

    @contextlib.contextmanager
    def waiting(self, node: int, loop: asyncio.AbstractEventLoop) -> Iterator[Waiter]:
        """Yield a waiter whose event is set whenever there may be a question for a node.

        A node waits in one place: an earlier waiter is replaced.

        :raises NodeGone: when the job has ended, or the node is not part of it.
        """
        waiter = Waiter(loop, asyncio.Event())
        with self._lock:
            found = self._node(node)
            if found.waiter is not None:
                found.waiter.replaced = True
                self._wake([found])
            found.waiter = waiter
        try:
            yield waiter
        finally:
            with self._lock:
                if found.waiter is waiter:
                    found.waiter = None

    def next_question(self, node: int) -> Sequence[bytes] | None:
        """Return the question that a node has to answer, head first; ``None`` for none.

        A question that was handed out and not answered is handed out again.

        :raises NodeGone: when the job has ended, or the node is not part of it.
        """
        with self._lock:
            now = awake()
            self._expire(now)
            found = self._node(node)
            self._alive(found)
            if not found.in_hand:
                if not found.queue:
                    return None
                found.in_hand = next(iter(found.queue))
                del found.queue[found.in_hand]
            return self._questions[found.in_hand].frames

    def count_sent(self, size: int) -> None:
        """Add to :meth:`traffic`."""
        with self._lock:
            self._sent += size

    @contextlib.contextmanager
    def delivery(self, node: int, length: int) -> Iterator[None]:
        """Admit one delivery of a node, before anything of it is read.

        :param length: the bytes that it will have.
        :raises NodeGone: when the node has no question in hand.
        :raises NodeBusy: when another delivery of the node is under way.
        :raises TooLarge: when it is larger than an answer may be.
        """
        most = self.plan.max_update_bytes + _ENVELOPE_BYTES
        with self._lock:
            found = self._node(node)
            if not found.in_hand:
                raise NodeGone("no question of this node waits for an answer")
            if found.delivering:
                raise NodeBusy("another delivery of this node is under way")
            if length > most:
                raise TooLarge(f"an answer of {length} bytes; at most {most} are taken")
            found.delivering = True
        try:
            yield
        finally:
            with self._lock:
                found.delivering = False

    def accept(self, node: int, delivered: Delivered, *, size: int, key: bytes) -> bool:
        """Take the answer to the question that a node has in hand.

        The metadata of the reply is that of the question, whatever the node wrote.

        :param size: the bytes of the delivery.
        :param key: the thumbprint of the admission with which it was made.
        :returns: False when nobody waits for this answer any more.
        :raises NodeGone: when the job has ended, or the node is not part of it.
        """
        with self._lock:
            self._received += size
            found = self._node(node)
            question = self._questions.get(delivered.head.reply_to)
            if question is None or delivered.head.reply_to != found.in_hand:
                return False
            head = _reply_head(question.head, delivered.head).with_parts(len(delivered.parts))
            self._answer(
                question,
                Reply(
                    question=question.head.id,
                    site=found.site,
                    node=node,
                    message=head.to_bytes(),
                    objects=dict(zip(head.parts, delivered.parts, strict=True)),
                    size=size,
                    key=key.hex(),
                    digest=delivered.digest,
                ),
            )
            return True

    # Questions; the lock is held

    def _check_new(self, asked: Sequence[_Question]) -> None:
        fresh = {question.head.id for question in asked}
        if len(fresh) != len(asked) or not fresh.isdisjoint(self._questions):
            raise TransportError("two messages have the same id")
        if not fresh.isdisjoint(self._replies):
            raise TransportError("two messages have the same id")
        held = len(self._questions) + len(self._replies) + len(asked)
        if held > _MAX_OPEN * len(self._numbers):
            raise TransportError(
                f"{held} messages wait; at most {_MAX_OPEN} for each site are held",
                hint="take the answers, or withdraw the messages, before you send more",
            )

    def _ask(self, question: _Question) -> str:
        head = question.head
        node = self._nodes.get(head.receiver)
        if node is None:
            return ""
        self._questions[head.id] = question
        if not node.online:
            self._fail(question, NODE_UNAVAILABLE, "the site's client is not online")
            return head.id
        node.queue[head.id] = None
        self._time(question.deadline, 0, head.id)
        self._wake([node])
        return head.id

    def _close_question(self, id_: str) -> _Question | None:
        """Take a question out of everything that holds it."""
        question = self._questions.pop(id_, None)
        node = None if question is None else self._nodes.get(question.head.receiver)
        if node is not None:
            node.queue.pop(id_, None)
            if node.in_hand == id_:
                node.in_hand = ""
        return question

    def _answer(self, question: _Question, reply: Reply) -> None:
        self._close_question(question.head.id)
        self._replies[question.head.id] = reply
        self._answers.notify_all()

    def _fail(self, question: _Question, code: int, reason: str) -> None:
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
        self._answer(
            question,
            Reply(
                question=head.id,
                site=self._sites[head.receiver],
                node=head.receiver,
                message=failure.to_bytes(),
                objects={},
                size=0,
            ),
        )

    def _drop_all(self) -> None:
        self._questions.clear()
        self._replies.clear()
        self._wanted = set()
        self._timers = [each for each in self._timers if each[1]]
        for node in self._nodes.values():
            node.queue.clear()
            node.in_hand = ""

    # Nodes; the lock is held

    def _node(self, number: int) -> _Node:
        if self._closed:
            raise NodeGone(self._ending)
        node = self._nodes.get(number)
        if node is None:
            raise NodeGone("this node is not part of the job any more")
        return node

    def _alive(self, node: _Node) -> None:
        """Note a sign of life of a node that is active: whoever asks for work is there.

        A client that came back after :meth:`absent` is online with its first question; to
        wait for its next heartbeat would hold up a round for seconds.
        """
        if node.promised is None:
            return
        if not node.online:
            self._online += 1
            self._presence.notify_all()
        node.alive_until = awake() + _PATIENCE * node.promised
        if not node.due:
            node.due = node.alive_until
            self._time(node.due, node.number, "")

    def _depart(self, node: _Node, reason: str) -> None:
        """Take a node offline; what it has not answered is answered with an error."""
        if node.online:
            node.alive_until = 0.0
            self._online -= 1
        open_ = [node.in_hand, *node.queue] if node.in_hand else list(node.queue)
        for id_ in open_:
            question = self._questions[id_]
            self._fail(question, NODE_UNAVAILABLE, reason)
        node.in_hand = ""
        node.queue.clear()

    def _listed(self) -> list[tuple[int, str]]:
        order = ((self._numbers[site], site) for site in self.plan.spec.sites)
        return [pair for pair in order if pair[0] in self._nodes and self._nodes[pair[0]].online]

    def _wake(self, nodes: Iterable[_Node]) -> None:
        events: dict[asyncio.AbstractEventLoop, list[asyncio.Event]] = {}
        for node in nodes:
            if node.waiter is not None:
                events.setdefault(node.waiter.loop, []).append(node.waiter.event)
        for loop, found in events.items():
            with contextlib.suppress(RuntimeError):  # the loop was closed with its listener
                loop.call_soon_threadsafe(_set_all, found)

    # Time; the lock is held

    def _time(self, when: float, node: int, question: str) -> None:
        """Have :meth:`_expire` look at a node or a question at some time."""
        if len(self._timers) > 2 * (len(self._questions) + len(self._nodes)) + 64:
            # Most questions are answered long before they expire.
            self._timers = [each for each in self._timers if each[1] or each[2] in self._questions]
            heapq.heapify(self._timers)
        heapq.heappush(self._timers, (when, node, question))

    def _expire(self, now: float) -> None:
        """Take silent nodes offline, and answer questions that have waited too long."""
        while self._timers and self._timers[0][0] <= now:
            when, number, id_ = heapq.heappop(self._timers)
            question = self._questions.get(id_)
            node = self._nodes.get(number)
            if question is not None:
                self._fail(question, MESSAGE_UNAVAILABLE, "no answer within its time to live")
            elif node is not None and node.due == when:
                node.due = node.alive_until
                if node.alive_until > now:
                    self._time(node.due, number, "")
                elif node.online:
                    self._depart(node, "the site's client went silent")
                    node.due = 0.0

    def _until(self, end: float, now: float) -> float:
        """Return for how many seconds nothing happens by itself, up to ``end``."""
        first = self._timers[0][0] if self._timers else math.inf
        return max(0.0, min(end, first) - now)


def _end(seconds: float) -> float:
    """Return when a wait ends that a job's process asks for.

    :raises TransportError: for what is no number of seconds.
    """
    if not seconds >= 0:
        raise TransportError(f"a wait of {seconds} s")
    return awake() + min(seconds, _LONGEST_WAIT)


def _reply_head(question: Head, reply: Head) -> Head:
    return replace(
        reply,
        run=question.run,
        sender=question.receiver,
        receiver=question.sender,
        reply_to=question.id,
        group=question.group,
        kind=question.kind,
    )


def _set_all(events: Iterable[asyncio.Event]) -> None:
    for event in events:
        event.set()
