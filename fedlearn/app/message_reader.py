"""Reads one message of an application from a body, while it arrives."""

from __future__ import annotations

import hashlib
from typing import Final

from fedlearn.app.message import MAX_CONTENT_BYTES, MAX_HEAD_BYTES, Head
from fedlearn.errors import TransportError
from fedlearn.sandbox.memory_file import Buffer, Part
from fedlearn.update.frames import FrameReader

__all__ = ["MessageReader"]

_ENVELOPE: Final = 2  # head and content, which are parsed here; all else is only passed on


class MessageReader:
    """Parses the body of one message. Not thread-safe.

    Head and content are byte strings; a part that is large lies in a file in memory, and is
    hashed while it arrives.

    ``head`` is known once it arrived whole; ``received`` are the bytes so far.

    :param length: the bytes of the whole body.
    :param digest: whether the parts after the content are hashed.
    """

    def __init__(self, length: int, *, digest: bool = False) -> None:
        self.length = length
        self.received = 0
        self._state = hashlib.sha256() if digest else None
        most = max(MAX_HEAD_BYTES, MAX_CONTENT_BYTES)
        self._frames = FrameReader(length, first=_ENVELOPE, first_bytes=most, state=self._state)
        self.head: Head | None = None
        self._failed = False

    def feed(self, piece: Buffer) -> None:
        """Take the next bytes.

        :raises TransportError: when they are not those of a message.
        """
        self._failed = True  # unless it gets to the end
        self._frames.feed(piece)
        self.received += len(piece)
        if self.head is None and self._frames.count:
            self.head = Head.from_bytes(self._frames.small(0))
        if self.head is not None and self._frames.count > 1 + len(self.head.parts):
            raise TransportError("a part that the head of the message does not name")
        self._failed = False

    @property
    def resumable(self) -> bool:
        """Whether the rest may follow later: what arrived is the beginning of a message with a
        known head."""
        return self.head is not None and not self._failed and self.received < self.length

    def finish(self) -> tuple[Head, bytes, tuple[Part, ...]]:
        """Return the head, its bytes, and the parts that it names, content first.

        :raises TransportError: when the body does not end with the last of them.
        """
        head, *parts = self._frames.finish() or (b"",)
        if self.head is None or len(parts) != len(self.head.parts):
            raise TransportError("a message ends before all of its parts are there")
        return self.head, bytes(head), tuple(parts)

    def digest(self) -> str:
        """Return the SHA-256 of the parts after the content, in hexadecimal; empty if there are
        none."""
        if self._state is None or self._frames.count <= _ENVELOPE:
            return ""
        return self._state.hexdigest()
