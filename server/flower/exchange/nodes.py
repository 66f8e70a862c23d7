"""The actions of the nodes of a job, as an ASGI application behind :mod:`server.rpc.fleet`.

The fleet listener has authenticated the caller (``scope["fedlearn.caller"]``), has bounded the
length of the body (``scope["fedlearn.length"]``), and aborts a request or a response that makes
no progress. The actions are those of :data:`server.rpc.fleet_api.ACTIONS`. A node is identified by
its certificate alone: no request names one.

==================== ============================= ========================================
action               request                       answer
==================== ============================= ========================================
activate-node        ``{"interval": seconds}``     ``{"node": number, "run": number}``
send-node-heartbeat  ``{"interval": seconds}``     nothing
deactivate-node      nothing                       nothing
fetch                nothing                       a message in frames, or 204 after a while
deliver              a message in frames           nothing; 410 when it is not expected
delivery-offset      ``{"delivery": name,          ``{"offset": bytes}``
                     "length": bytes}``
==================== ============================= ========================================

A transfer that was cut off goes on at a byte of its body. A fetch with ``{"question": id,
"offset": bytes}`` is answered with the rest of the message in hand, and ``fedlearn-offset`` in the
head of the answer. A delivery with the headers ``fedlearn-delivery`` (32 hexadecimal digits, drawn
by the client) and ``fedlearn-offset`` has the rest only; see
:mod:`server.flower.exchange.resumption`. An offset at which nothing goes on is refused with 416. A
client that uses none of this begins anew.

The first frame of a message is its head, the others are its parts; see
:mod:`fedlearn.app.message` and :mod:`fedlearn.update.frames`.
"""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Final, Protocol

from fedlearn.app.message import Head, read_content
from fedlearn.errors import TransportError
from fedlearn.sandbox.memory_file import SMALL_BYTES, Buffer, Part
from fedlearn.update.frames import body_pieces, frames_length
from server.flower.exchange.resumption import (
    CannotResume,
    CutDeliveries,
    Delivery,
    Start,
    fetch_start,
)
from server.rpc.fleet_api import Caller, Receive, Scope, Send

__all__ = [
    "Delivered",
    "NodeActions",
    "NodeBusy",
    "NodeGone",
    "NodeQuestions",
    "TooLarge",
    "Waiter",
]

_PIECE_BYTES: Final = 256 * 1024
_HOLD_SECONDS: Final = 20.0
"""How long a request for work waits before the response that there is none."""

_SHORTEST_INTERVAL: Final = 10.0
_LONGEST_INTERVAL: Final = 1800.0


class NodeGone(TransportError):
    """The job has no more work for this node."""


class NodeBusy(TransportError):
    """The node makes this request already."""


class TooLarge(TransportError):
    """A body has more bytes than an answer may have."""


class _Left(Exception):
    """The connection ended in the middle of a request."""


_STATUS: Final = {NodeGone: 410, NodeBusy: 409, TooLarge: 413, CannotResume: 416}


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivered:
    """A complete, well-formed message of a node, not checked further.

    ``digest`` is the SHA-256 of the parts after the content, one after the other, in
    hexadecimal; empty where there are none. For the usual update, one packed ArrayRecord, this
    is the SHA-256 of its document, which is :func:`fedlearn.update.arrays.digest` of its arrays.
    """

    head: Head
    parts: tuple[Part, ...]
    digest: str


@dataclass(slots=True, eq=False)
class Waiter:
    """A request for work that waits; ``replaced`` once the same node has made a newer one."""

    loop: asyncio.AbstractEventLoop
    event: asyncio.Event
    replaced: bool = False


class NodeQuestions(Protocol):
    """What the actions of nodes need of a job.

    See :class:`server.flower.exchange.job_exchange.JobExchange`.
    """

    @property
    def run_id(self) -> int: ...

    def beat(self, node: int, interval: float) -> None: ...

    def leave(self, node: int) -> None: ...

    def waiting(
        self, node: int, loop: asyncio.AbstractEventLoop
    ) -> AbstractContextManager[Waiter]: ...

    def next_question(self, node: int) -> Sequence[Part] | None: ...

    def question_in_hand(self, node: int) -> tuple[str, Sequence[Part]]: ...

    def count_sent(self, size: int) -> None: ...

    def delivery(self, node: int, length: int) -> AbstractContextManager[str]: ...

    def accept(self, node: int, delivered: Delivered, *, size: int, key: bytes) -> bool: ...


class NodeActions:
    """The actions of the nodes of one job."""

    def __init__(self, questions: NodeQuestions) -> None:
        self._questions = questions
        self._cut = CutDeliveries()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one action of one node."""
        caller: Caller = scope["fedlearn.caller"]
        action = str(scope["path"]).rpartition("/")[2]
        length = int(scope["fedlearn.length"])
        try:
            if action == "deliver":
                await self._deliver(scope, receive, send)
                return
            body = b"".join([piece async for piece in _pieces(receive, length)])
            if action == "fetch":
                await self._fetch(caller, body, send)
            else:
                answer = self._simple(action, caller, body)
                await _respond(send, 200, [answer], size=len(answer))
        except _Left:
            return
        except TransportError as error:
            await _refuse(send, error)

    def _simple(self, action: str, caller: Caller, body: bytes) -> bytes:
        if action == "activate-node":
            self._questions.beat(caller.node_id, _interval(body))
            return json.dumps({"node": caller.node_id, "run": self._questions.run_id}).encode()
        if action == "delivery-offset":
            with self._questions.delivery(caller.node_id, 0) as question:
                offset = self._cut.offset(caller.node_id, question, body)
            return json.dumps({"offset": offset}).encode()
        if action == "send-node-heartbeat":
            self._questions.beat(caller.node_id, _interval(body))
        elif action == "deactivate-node":
            self._questions.leave(caller.node_id)
        else:
            raise TransportError(f"{action} is not an action")
        return b""

    async def _fetch(self, caller: Caller, body: bytes, send: Send) -> None:
        """Answer with the next message and its parts, or with 204 after a while."""
        rest = fetch_start(body)
        if rest is not None:
            await self._fetch_rest(caller, *rest, send)
            return
        node = caller.node_id
        loop = asyncio.get_running_loop()
        with self._questions.waiting(node, loop) as waiter:
            end = loop.time() + _HOLD_SECONDS
            while (frames := self._questions.next_question(node)) is None:
                if waiter.replaced or loop.time() >= end:
                    await _respond(send, 204, (), size=0)
                    return
                try:
                    async with asyncio.timeout_at(end):
                        await waiter.event.wait()
                except TimeoutError:
                    continue
                waiter.event.clear()
                caller.still_live()
        caller.still_live()
        size = frames_length(frames)
        self._questions.count_sent(size)
        await _respond(send, 200, body_pieces(frames, most=_PIECE_BYTES), size=size)

    async def _fetch_rest(self, caller: Caller, question: str, offset: int, send: Send) -> None:
        """Answer with the rest of the message in hand."""
        in_hand, frames = self._questions.question_in_hand(caller.node_id)
        if in_hand != question:
            raise CannotResume("the node has another question in hand; fetch it anew")
        left = frames_length(frames) - offset
        if left <= 0:
            raise CannotResume(f"the message has {left + offset} bytes and ends before {offset}")
        self._questions.count_sent(left)
        pieces = body_pieces(frames, most=_PIECE_BYTES, start=offset)
        await _respond(send, 200, pieces, size=left, offset=offset)

    async def _deliver(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Accept the answer to the question in hand; refused before it is read if there is none."""
        caller: Caller = scope["fedlearn.caller"]
        length = int(scope["fedlearn.length"])
        start = Start.of(scope["headers"])
        node = caller.node_id
        with self._questions.delivery(node, start.offset + length) as question:
            cut = self._cut.begin(node, question, start, length)
            try:
                delivered = await _delivered(receive, cut, length)
            except (TransportError, asyncio.CancelledError):
                self._cut.end(cut)
                raise
            except Exception:
                # The connection ended or was too slow: the client may go on with another one.
                self._cut.keep(node, cut, scope["fedlearn.keep"])
                raise
            self._cut.end(cut)
            if delivered.head.sender != node:
                raise TransportError("a node may send messages of its own only")
            caller.still_live()
            taken = self._questions.accept(node, delivered, size=cut.reader.length, key=caller.key)
        await _respond(send, 200 if taken else 410, (), size=0)


async def _delivered(receive: Receive, cut: Delivery, length: int) -> Delivered:
    """Read the ``length`` bytes that are missing of a message, piece by piece as they arrive.

    :raises TransportError: when it is not one message, whole and well-formed.
    """
    reader = cut.reader
    async for piece in _pieces(receive, length):
        cut.pin()
        await _off_loop(reader.feed, piece)
    head, _, parts = reader.finish()
    if parts:
        await _off_loop(read_content, bytes(parts[0]), len(parts) - 1)
    return Delivered(head=head, parts=parts, digest=reader.digest())


async def _off_loop(function: Callable[..., object], data: bytes, *more: object) -> None:
    """Call a function; in a thread where the data is large, so that others need not wait."""
    if len(data) < SMALL_BYTES:
        function(data, *more)
    else:
        await asyncio.to_thread(function, data, *more)


async def _pieces(receive: Receive, length: int) -> AsyncIterator[bytes]:
    """Yield a body as it arrives.

    :raises TransportError: when it is longer than announced.
    :raises _Left: when the connection ends.
    """
    received = 0
    while True:
        event = await receive()
        if event["type"] == "http.disconnect":
            raise _Left
        piece: bytes = event.get("body", b"")
        received += len(piece)
        if received > length:
            raise TransportError("the body is longer than announced")
        yield piece
        if not event.get("more_body", False):
            return


def _interval(body: bytes) -> float:
    """Read the interval of heartbeats that a node promises."""
    try:
        found = json.loads(body)["interval"]
        interval = float(found)
    except (ValueError, TypeError, KeyError, RecursionError, OverflowError):
        raise TransportError("a heartbeat has to have its interval in seconds") from None
    if not math.isfinite(interval) or not _SHORTEST_INTERVAL <= interval <= _LONGEST_INTERVAL:
        raise TransportError(
            f"a heartbeat comes every {_SHORTEST_INTERVAL:g} to {_LONGEST_INTERVAL:g} s"
        )
    return interval


async def _refuse(send: Send, error: TransportError) -> None:
    text = b"text/plain; charset=utf-8"
    reason = str(error).encode()
    await _respond(send, _STATUS.get(type(error), 400), [reason], size=len(reason), kind=text)


async def _respond(
    send: Send,
    status: int,
    parts: Iterable[Buffer],
    *,
    size: int,
    offset: int = 0,
    kind: bytes = b"application/octet-stream",
) -> None:
    headers = [(b"content-type", kind), (b"content-length", str(size).encode())]
    if offset:
        headers.append((b"fedlearn-offset", str(offset).encode()))
    if status == 204:
        headers = []
    await send({"type": "http.response.start", "status": status, "headers": headers})
    for part in parts:
        await send({"type": "http.response.body", "body": part, "more_body": True})
    await send({"type": "http.response.body", "body": b"", "more_body": False})
