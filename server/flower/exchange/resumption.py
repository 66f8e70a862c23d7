"""Deliveries that were cut off, and where they go on.

A client that names its delivery may continue it after the connection was cut: it asks for the
offset with ``delivery-offset`` and sends the rest with that offset. What arrived is kept for
:data:`KEPT_SECONDS`, within the memory of all deliveries, and is dropped earlier when another
delivery needs the memory. It belongs to the node, the question, the name that the client chose and
the announced length: a client that was started again has made another answer, and does not know the
name of the first one.

All calls come from the thread of the event loop.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Final, Protocol

from fedlearn.app.message_reader import MessageReader
from fedlearn.errors import TransportError

__all__ = [
    "KEPT_SECONDS",
    "CannotResume",
    "CutDeliveries",
    "Delivery",
    "Kept",
    "Start",
    "fetch_start",
]

KEPT_SECONDS: Final = 60.0
"""How long the beginning of a delivery is kept."""

_NAME: Final = re.compile(r"[0-9a-f]{32}")
_DIGITS: Final = re.compile(r"[0-9]{1,15}")
_MAX_QUESTION: Final = 4096


class CannotResume(TransportError):
    """A transfer cannot go on from the offset that was named; it can begin anew."""


class Kept(Protocol):
    """Memory in which the beginning of a delivery is kept."""

    def pin(self) -> None:
        """Keep it even if other deliveries need the memory."""
        ...

    def release(self) -> None:
        """Release the memory. May be called twice."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """Where the body of a delivery begins: its name, empty for none, and the offset."""

    name: str
    offset: int

    @classmethod
    def of(cls, headers: Iterable[tuple[bytes, bytes]]) -> Start:
        """Read it from the headers of a request.

        :raises CannotResume: when they are malformed.
        """
        found: dict[bytes, str] = {}
        for name, value in headers:
            if name in (b"fedlearn-delivery", b"fedlearn-offset"):
                if name in found:
                    raise CannotResume(f"{name.decode()} appears twice")
                found[name] = value.decode("latin-1")
        delivery = found.get(b"fedlearn-delivery", "")
        offset = found.get(b"fedlearn-offset", "0")
        if delivery and not _NAME.fullmatch(delivery):
            raise CannotResume("fedlearn-delivery has to be 32 hexadecimal digits")
        if not _DIGITS.fullmatch(offset):
            raise CannotResume("fedlearn-offset has to be a number of bytes")
        if int(offset) and not delivery:
            raise CannotResume("a delivery without a name begins at offset 0")
        return cls(name=delivery, offset=int(offset))


def fetch_start(body: bytes) -> tuple[str, int] | None:
    """Read the question and the offset of a request for the rest of a message; None for a new one.

    :raises CannotResume: when they are malformed.
    """
    if not body:
        return None
    found = _object(body)
    question, offset = found.get("question"), found.get("offset")
    if type(question) is not str or not 0 < len(question) <= _MAX_QUESTION:
        raise CannotResume("a fetch has to name the question that it goes on with")
    if type(offset) is not int or not 0 < offset < 2**48:
        raise CannotResume("a fetch has to go on from a number of bytes above 0")
    return question, offset


@dataclass(slots=True, eq=False)
class Delivery:
    """One delivery: the question that it answers, and what has been read of it."""

    name: str
    question: str
    reader: MessageReader
    memory: Kept | None = None
    timer: asyncio.TimerHandle | None = None
    dropped: bool = False

    def pin(self) -> None:
        """Hold what was kept until the delivery is over.

        :raises CannotResume: when another delivery has needed the memory.
        """
        if self.dropped:
            raise CannotResume("what was kept of the delivery is dropped; begin it anew")
        if self.memory is not None:
            self.memory.pin()


class CutDeliveries:
    """The beginnings of deliveries, at most one for each node."""

    def __init__(self) -> None:
        self._cut: dict[int, Delivery] = {}

    def offset(self, node: int, question: str, body: bytes) -> int:
        """Return from where a delivery goes on; 0 when nothing of it is kept.

        :raises CannotResume: when the request does not name a delivery and its length.
        """
        found = _object(body)
        name, length = found.get("delivery"), found.get("length")
        if type(name) is not str or not _NAME.fullmatch(name) or type(length) is not int:
            raise CannotResume("name the delivery (32 hexadecimal digits) and its length")
        cut = self._cut.get(node)
        same = cut is not None and (cut.name, cut.question, cut.reader.length) == (
            name,
            question,
            length,
        )
        return cut.reader.received if cut is not None and same else 0

    def begin(self, node: int, question: str, start: Start, length: int) -> Delivery:
        """Return a delivery to read on, from its beginning or from where it was cut.

        :param length: the bytes that follow.
        :raises CannotResume: when it was not cut there.
        """
        cut = self._cut.pop(node, None)
        if not start.offset:
            if cut is not None:
                self._free(cut)
            return Delivery(start.name, question, MessageReader(length, digest=True))
        if cut is None or cut.name != start.name:
            if cut is not None:
                self._cut[node] = cut
            raise CannotResume("nothing of a delivery with this name is kept; begin it anew")
        reader = cut.reader
        if cut.question != question:
            self._free(cut)
            raise CannotResume("the delivery answers another question; begin it anew")
        if start.offset != reader.received or start.offset + length != reader.length:
            self._cut[node] = cut
            raise CannotResume(
                f"the delivery of {reader.length} bytes goes on at {reader.received}, "
                f"not at {start.offset} with {length} more"
            )
        if cut.timer is not None:
            cut.timer.cancel()
        return cut

    def keep(
        self, node: int, cut: Delivery, room: Callable[[int, Callable[[], None]], Kept | None]
    ) -> None:
        """Keep what arrived of a delivery for a while, if it has a name and there is memory.

        :param room: ``room(bytes, drop)`` returns memory for it, or None; it calls ``drop`` when
            the memory is needed for something else.
        """
        self.end(cut)
        if not cut.name or not cut.reader.received:
            return
        self._drop(node)
        self._cut[node] = cut
        cut.memory = room(cut.reader.received, lambda: self._dropped(node, cut))
        if cut.memory is None:
            self._drop(node, cut)
            return
        loop = asyncio.get_running_loop()
        cut.timer = loop.call_later(KEPT_SECONDS, self._drop, node, cut)

    def end(self, cut: Delivery) -> None:
        """Release what a delivery that is over has kept."""
        self._free(cut)

    def _drop(self, node: int, cut: Delivery | None = None) -> None:
        found = self._cut.get(node)
        if found is not None and (cut is None or cut is found):
            del self._cut[node]
            self._free(found)

    def _dropped(self, node: int, cut: Delivery) -> None:
        cut.dropped = True
        cut.memory = None
        self._drop(node, cut)

    def _free(self, cut: Delivery) -> None:
        if cut.timer is not None:
            cut.timer.cancel()
            cut.timer = None
        if cut.memory is not None:
            cut.memory.release()
            cut.memory = None


def _object(body: bytes) -> dict[str, Any]:
    try:
        found = json.loads(body)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise CannotResume("the request is not a JSON object")
    return found
