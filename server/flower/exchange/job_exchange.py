"""One job's exchange: the questions for its nodes, and their answers.

Two sides use it:

* *nodes*, the clients in their TEEs, through :mod:`server.rpc.fleet`, which authenticates them,
  and :mod:`server.flower.exchange.nodes`, which serves the actions of nodes.
* *the job's process*, through :mod:`server.flower.job_runner`, which calls
  :meth:`JobExchange.push`, :meth:`JobExchange.pull` and the rest from a thread of its own.

A *question* is a message for one node; its *answer* is the node's reply, or an error that the
exchange makes when the node is gone or the question is too old. Every question gets at most
one answer, and only from its node. Nodes have a queue each, questions and answers are found by
id, and both sides wait on events: no call iterates over all of them. Parts that several questions
share are held once, until the last of these questions is answered.

A node is a site of the job. Its number comes from the job and the site, and survives a new
key and a restarted client: a question that was handed out and not answered is handed out
again when its node asks for work. Whether a node is online is measured by the time for which the
coordinator ran (:func:`server.clock.awake`).

The page is docs/adr/0013-exchange.md.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Final

from fedlearn.app.message import (
    MAX_CONTENT_BYTES,
    MAX_HEAD_BYTES,
    Head,
)
from fedlearn.errors import JobError, TransportError
from fedlearn.job.seeds import node_number
from fedlearn.sandbox.memory_file import Part
from fedlearn.sandbox.process_channel import MAX_FILES
from server.clock import awake
from server.flower.exchange.exchange_state import ExchangeState, Node, Question
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

_LONGEST_WAIT: Final = 3600.0
"""The most seconds of one :meth:`JobExchange.pull`; a job calls again to wait longer."""

_ENVELOPE_BYTES: Final = MAX_HEAD_BYTES + MAX_CONTENT_BYTES
"""The most bytes of a delivery beside its arrays."""


class JobExchange:
    """The exchange of one job. Safe to use from many threads; see the module."""

    def __init__(self, plan: JobPlan) -> None:
        self.plan = plan
        self._lock = threading.Lock()
        self._answers = threading.Condition(self._lock)
        self._presence = threading.Condition(self._lock)
        self._state = ExchangeState(
            {site: node_number(plan.digest, site) for site in plan.spec.sites},
            changed_answers=self._answers.notify_all,
            changed_presence=self._presence.notify_all,
        )
        self._received = 0
        self._sent = 0
        self._actions = NodeActions(self)

    # What the coordinator does

    @property
    def run_id(self) -> int:
        """Flower's number for this run of the job; the same whenever the job is resumed."""
        return self.plan.run_id

    def create_node(self, site: str, tls_key: bytes) -> int:
        """Admit a site, or note that the client of an admitted site has a new key.

        :param tls_key: DER SPKI of the key of the client's certificate. The fleet listener
            checks it on every request; the node stays the same.
        :raises JobError: when the site does not belong to the job.
        """
        number = self._state.numbers.get(site)
        if number is None:
            raise JobError(f"{site} is not a site of job {self.plan.spec.name}")
        with self._lock:
            self._state.nodes.setdefault(number, Node(number, site))
        return number

    def delete_node(self, site: str) -> None:
        """Remove a site's node. Its open questions are answered with an error at once."""
        with self._lock:
            node = self._state.nodes.pop(self._state.numbers.get(site, 0), None)
            if node is None:
                return
            self._state.depart(node, "the site is not admitted any more")
            self._state.wake([node])

    def absent(self, site: str) -> None:
        """Note that no connection of the site's client is left: it is not online any more."""
        with self._lock:
            node = self._state.nodes.get(self._state.numbers.get(site, 0))
            if node is not None:
                self._state.depart(node, "the site's client has no connection")

    @property
    def closed(self) -> bool:
        """Whether the job has ended here for good."""
        return self._state.closed

    def start_over(self) -> None:
        """Withdraw all questions of a process of the job that has ended."""
        with self._lock:
            self._state.drop_all()

    def close(self, *, completed: bool) -> None:
        """End the exchange, drop everything that it holds, and end every wait.

        :param completed: whether the job finished, which the nodes are informed of.
        """
        with self._lock:
            if self._state.closed:
                return
            self._state.closed = True
            if completed:
                self._state.ending = "the job has finished"
            self._state.drop_all()
            self._answers.notify_all()
            self._presence.notify_all()
            self._state.wake(self._state.nodes.values())

    # What the job's process does

    def traffic(self) -> tuple[int, int]:
        """Return the bytes sent to and received from nodes so far."""
        with self._lock:
            return self._sent, self._received

    def online(self) -> list[tuple[int, str]]:
        """Return number and site of every node that is online, in the order of the job."""
        with self._lock:
            self._state.expire(awake())
            return self._state.listed()

    def wait_online(self, count: int, seconds: float) -> list[tuple[int, str]]:
        """Return :meth:`online` once it has ``count`` entries or the time is up."""
        end = _end(seconds)
        with self._lock:
            while True:
                now = awake()
                self._state.expire(now)
                if self._state.online_count >= count or now >= end or self._state.closed:
                    return self._state.listed()
                self._presence.wait(self._state.until(end, now))

    def push(self, messages: Sequence[bytes], objects: Iterable[tuple[str, Part]]) -> list[str]:
        """Put questions into the queues of their nodes; return their ids.

        An id is empty where the node is not part of the job. A question for a node that is not
        online is answered with an error at once.

        :param messages: the heads; see :class:`fedlearn.app.message.Head`.
        :param objects: the parts that the heads name. Each is held once for all of them.
        :raises TransportError: when something is malformed or a part is missing; then no
            question is put.
        """
        parts = dict(objects)
        asked: list[Question] = []
        now = awake()
        for data in messages:
            head = Head.from_bytes(data)
            if not head.ttl > 0:
                raise TransportError(f"a time to live must be above 0 s, not {head.ttl}")
            try:
                frames: tuple[Part, ...] = (data, *(parts[name] for name in head.parts))
            except KeyError:
                raise TransportError("a part of the message is missing") from None
            asked.append(Question(head, frames, now + head.ttl))
        with self._lock:
            if self._state.closed:
                raise TransportError(self._state.ending)
            self._state.check_new(asked)
            return [self._state.ask(question) for question in asked]

    def pull(
        self, ids: Iterable[str] | None, seconds: float, *, files: int = MAX_FILES
    ) -> list[Reply]:
        """Wait until some of the questions are answered; return and forget those answers.

        Empty when the time is up. Answers come in the order in which they arrived.

        :param ids: the questions; None for those of the last call that it did not answer, which
            costs nothing for the many that are still open.
        :param files: the most files that the answers have together; others wait for the next call.
        """
        end = _end(seconds)
        wanted = None if ids is None else set(ids)
        with self._lock:
            if wanted is not None:
                self._state.wanted = wanted
            while True:
                now = awake()
                self._state.expire(now)
                ready = self._state.ready(files)
                if ready or now >= end or self._state.closed:
                    self._state.wanted.difference_update(ready)
                    return [self._state.replies.pop(id_) for id_ in ready]
                self._answers.wait(self._state.until(end, now))

    def forget(self, ids: Iterable[str]) -> None:
        """Withdraw questions. Answers that still arrive are refused."""
        with self._lock:
            for id_ in ids:
                self._state.close_question(id_)
                self._state.replies.pop(id_, None)

    # What nodes do, through NodeActions

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one action of one node; see :mod:`server.flower.exchange.nodes`."""
        await self._actions(scope, receive, send)

    def beat(self, node: int, interval: float) -> None:
        """Note that a node is online, and repeats this within ``interval`` seconds.

        :raises NodeGone: when it is not part of the job.
        """
        with self._lock:
            found = self._state.node(node)
            found.promised = interval
            self._state.alive(found)

    def leave(self, node: int) -> None:
        """Take a node offline at its request, until its next :meth:`beat`."""
        with self._lock:
            found = self._state.node(node)
            found.promised = None
            self._state.depart(found, "the site's client left")

    @contextlib.contextmanager
    def waiting(self, node: int, loop: asyncio.AbstractEventLoop) -> Iterator[Waiter]:
        """Yield a waiter whose event is set whenever there may be a question for a node.

        A node waits in one place: an earlier waiter is replaced.

        :raises NodeGone: when the job has ended, or the node is not part of it.
        """
        waiter = Waiter(loop, asyncio.Event())
        with self._lock:
            found = self._state.node(node)
            if found.waiter is not None:
                found.waiter.replaced = True
                self._state.wake([found])
            found.waiter = waiter
        try:
            yield waiter
        finally:
            with self._lock:
                if found.waiter is waiter:
                    found.waiter = None

    def next_question(self, node: int) -> Sequence[Part] | None:
        """Return the question that a node has to answer, head first; ``None`` for none.

        A question that was handed out and not answered is handed out again.

        :raises NodeGone: when the job has ended, or the node is not part of it.
        """
        with self._lock:
            now = awake()
            self._state.expire(now)
            found = self._state.node(node)
            self._state.alive(found)
            if not found.in_hand:
                if not found.queue:
                    return None
                found.in_hand = next(iter(found.queue))
                del found.queue[found.in_hand]
            return self._state.questions[found.in_hand].frames

    def question_in_hand(self, node: int) -> tuple[str, Sequence[Part]]:
        """Return the id and the frames of the question that a node has fetched; empty for none.

        :raises NodeGone: when the job has ended, or the node is not part of it.
        """
        with self._lock:
            self._state.expire(awake())
            found = self._state.node(node)
            self._state.alive(found)
            if not found.in_hand:
                return "", ()
            return found.in_hand, self._state.questions[found.in_hand].frames

    def count_sent(self, size: int) -> None:
        """Add to :meth:`traffic`."""
        with self._lock:
            self._sent += size

    @contextlib.contextmanager
    def delivery(self, node: int, length: int) -> Iterator[str]:
        """Admit one delivery of a node, before anything of it is read; yield its question.

        :param length: the bytes that it will have.
        :raises NodeGone: when the node has no question in hand.
        :raises NodeBusy: when another delivery of the node is under way.
        :raises TooLarge: when it is larger than an answer may be.
        """
        most = self.plan.max_update_bytes + _ENVELOPE_BYTES
        with self._lock:
            found = self._state.node(node)
            if not found.in_hand:
                raise NodeGone("no question of this node waits for an answer")
            if found.delivering:
                raise NodeBusy("another delivery of this node is under way")
            if length > most:
                raise TooLarge(f"an answer of {length} bytes; at most {most} are accepted")
            found.delivering = True
            question = found.in_hand
        try:
            yield question
        finally:
            with self._lock:
                found.delivering = False

    def accept(self, node: int, delivered: Delivered, *, size: int, key: bytes) -> bool:
        """Accept the answer to the question that a node has in hand.

        The metadata of the reply is taken from the question, not from the node.

        :param size: the bytes of the delivery.
        :param key: the thumbprint of the admission with which it was made.
        :returns: False when the answer is not expected any more.
        :raises NodeGone: when the job has ended, or the node is not part of it.
        """
        with self._lock:
            self._received += size
            found = self._state.node(node)
            question = self._state.questions.get(delivered.head.reply_to)
            if question is None or delivered.head.reply_to != found.in_hand:
                return False
            head = _reply_head(question.head, delivered.head).with_parts(len(delivered.parts))
            self._state.answer(
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


def _end(seconds: float) -> float:
    """Return when a wait that a job's process requests ends.

    :raises TransportError: when ``seconds`` is negative or not a number.
    """
    if not seconds >= 0:
        raise TransportError(f"a wait must be of 0 seconds or more, not {seconds}")
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
