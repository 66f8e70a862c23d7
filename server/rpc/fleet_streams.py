"""Bodies of requests and responses at the fleet listener, bounded in memory and in time.

The page is docs/adr/0038-model-bytes-over-http.md.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, MutableMapping
from typing import Any, Final

from uvicorn.protocols.http.flow_control import FlowControl

from server.rpc.fleet_api import Receive, Send

__all__ = [
    "ArrivingBody",
    "DeliveryMemory",
    "KeptBytes",
    "RequestBody",
    "RequestRefused",
    "ResponseBody",
]

_STILL_SECONDS: Final = 30.0
"""How long a body may make no progress, in either direction."""

_PIECE_BYTES: Final = 256 * 1024
_LEAST_PIECE: Final = 1024
"""What a piece counts for at least, so that few tiny ones wait, too."""

_ARRIVED_BYTES: Final = 1024 * 1024
"""How much of a body may wait in memory; beyond it, nothing is read from the connection."""

_LEAST_RATE: Final = 32 * 1024
"""Bytes per second below which a request or a response is aborted."""


class RequestRefused(Exception):
    """A request that is answered with a status and one line."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status


class DeliveryMemory:
    """A budget of bytes for the bodies of all deliveries being read; first in, first out.

    A delivery that is larger than the budget is read when no other one is. The beginnings of
    deliveries that were cut off are kept in what is left of the budget. Not thread-safe: all calls
    come from one event loop.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._reserved = 0
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()
        self._kept: dict[KeptBytes, None] = {}

    async def reserve(self, size: int) -> None:
        """Wait until ``size`` bytes are free, and reserve them."""
        if not self._waiting and self._fits(size):
            self._reserved += size
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((size, turn))
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self.release(size)
            raise

    def release(self, size: int) -> None:
        """Release ``size`` bytes."""
        self._reserved -= size
        while self._waiting:
            wanted, turn = self._waiting[0]
            if not turn.cancelled():
                if not self._fits(wanted):
                    return
                self._reserved += wanted
                turn.set_result(None)
            self._waiting.popleft()

    def keep(self, size: int, drop: Callable[[], None]) -> KeptBytes | None:
        """Reserve ``size`` bytes that nobody waits for; None when they are not free.

        :param drop: called, after the bytes were released, when a delivery needs them.
        """
        if self._waiting or self._reserved + size > self._size:
            return None
        self._reserved += size
        kept = KeptBytes(self, size, drop)
        self._kept[kept] = None
        return kept

    def unkeep(self, kept: KeptBytes) -> None:
        """Take kept bytes out of those that are dropped when needed; they stay reserved."""
        self._kept.pop(kept, None)

    def _fits(self, size: int) -> bool:
        while self._kept and self._reserved + size > self._size:
            oldest = next(iter(self._kept))
            del self._kept[oldest]
            self._reserved -= oldest.size
            oldest.dropped()
        return self._reserved == 0 or self._reserved + size <= self._size


class KeptBytes:
    """Bytes of the budget that hold the beginning of a delivery."""

    def __init__(self, memory: DeliveryMemory, size: int, drop: Callable[[], None]) -> None:
        self.size = size
        self._memory: DeliveryMemory | None = memory
        self._drop = drop

    def pin(self) -> None:
        """Hold them even if another delivery needs them."""
        if self._memory is not None:
            self._memory.unkeep(self)

    def release(self) -> None:
        """Release them. May be called twice."""
        memory, self._memory = self._memory, None
        if memory is not None:
            memory.unkeep(self)
            memory.release(self.size)

    def dropped(self) -> None:
        """Note that they were released for another delivery."""
        self._memory = None
        self._drop()


class ArrivingBody:
    """What has arrived of a request's body and was not taken yet."""

    def __init__(self, flow: FlowControl) -> None:
        self._flow = flow
        self._pieces: list[bytes] = []
        self._size = 0
        self._paused = False
        self._whole = False
        self._lost = False
        # Every idle connection has one of these: an Event or a deque takes 760 bytes.
        self._waiter: asyncio.Future[None] | None = None

    def put(self, piece: bytes) -> None:
        """Add bytes; reading pauses when too many wait."""
        self._pieces.append(piece)
        self._size += max(len(piece), _LEAST_PIECE)
        if self._size >= _ARRIVED_BYTES and not self._paused:
            self._paused = True
            self._flow.pause_reading()
        self._wake()

    def end(self) -> None:
        """Note that the body is whole."""
        self._whole = True
        self._wake()

    def lose(self) -> None:
        """Note that the connection has ended."""
        self._lost = True
        self._wake()

    async def receive(self) -> MutableMapping[str, Any]:
        """Return the next piece as an ASGI event, after waiting for it.

        A piece is what one read of the connection gave. Larger ones, put together here, do not pay:
        they leave the cache of the processor before they are hashed.
        """
        while not self._pieces and not self._whole and not self._lost:
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        if self._lost and not self._whole and not self._pieces:
            return {"type": "http.disconnect"}
        piece = b""
        if self._pieces:
            piece = self._pieces.pop(0)
            self._size -= max(len(piece), _LEAST_PIECE)
        if self._paused and self._size < _ARRIVED_BYTES // 2:
            self._paused = False
            self._flow.resume_reading()
        more = bool(self._pieces) or not self._whole
        return {"type": "http.request", "body": piece, "more_body": more}

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


class RequestBody:
    """The body of a request: it waits for memory, and must arrive at a least rate."""

    def __init__(self, receive: Receive, length: int, memory: DeliveryMemory | None) -> None:
        self._receive = receive
        self._length = length
        self._memory = memory
        self._reserved = False
        self._whole = False
        self._read = 0
        self._waited = 0.0

    async def receive(self) -> MutableMapping[str, Any]:
        """Return the next piece.

        :raises RequestRefused: when it does not arrive in time.
        """
        if self._whole:
            return await self._receive()
        if self._memory is not None and not self._reserved:
            await self._memory.reserve(self._length)
            self._reserved = True
        loop = asyncio.get_running_loop()
        began = loop.time()
        try:
            async with asyncio.timeout(_STILL_SECONDS):
                event = await self._receive()
        except TimeoutError:
            raise RequestRefused(
                408, f"no byte of the body arrived for {_STILL_SECONDS:g} s"
            ) from None
        # Only the time spent waiting for the peer counts.
        self._waited += loop.time() - began
        self._read += len(event.get("body", b""))
        self._whole = not event.get("more_body", False)
        if not self._whole and self._waited > _STILL_SECONDS + self._read / _LEAST_RATE:
            raise RequestRefused(408, f"the body arrived at less than {_LEAST_RATE} bytes a second")
        return event

    def keep(self, size: int, drop: Callable[[], None]) -> KeptBytes | None:
        """Release the memory that the body reserved, but for what arrived and is to be kept.

        See :meth:`DeliveryMemory.keep`.
        """
        self.close()
        return None if self._memory is None else self._memory.keep(size, drop)

    def close(self) -> None:
        """Release the memory that the body reserved."""
        if self._memory is not None and self._reserved:
            self._memory.release(self._length)
            self._reserved = False


class ResponseBody:
    """A response that is sent in pieces, which the peer must take at a least rate.

    A single write of a model would be encrypted and buffered as a whole, however slowly the
    peer reads.
    """

    def __init__(self, send: Send, flow: FlowControl) -> None:
        self._send = send
        self._flow = flow
        self.started = False
        self._sent = 0
        self._waited = 0.0

    async def send(self, event: MutableMapping[str, Any]) -> None:
        """Send one ASGI event.

        :raises RequestRefused: when the peer does not read it in time.
        """
        self.started = True
        body = memoryview(event.get("body", b""))
        more = event.get("more_body", False)
        for start in range(0, max(len(body), 1), _PIECE_BYTES):
            piece = body[start : start + _PIECE_BYTES]
            last = start + _PIECE_BYTES >= len(body)
            await self._send({**event, "body": piece, "more_body": more or not last})
            await self._drained(len(piece))

    async def _drained(self, size: int) -> None:
        self._sent += size
        if not self._flow.write_paused:
            return
        loop = asyncio.get_running_loop()
        began = loop.time()
        left = _STILL_SECONDS + self._sent / _LEAST_RATE - self._waited
        try:
            await asyncio.wait_for(self._flow.drain(), max(left, 0.01))
        except TimeoutError:
            raise RequestRefused(408, "the response was not read in time") from None
        self._waited += loop.time() - began
