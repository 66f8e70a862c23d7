"""Several byte strings in one body: each is an 8-byte big-endian length and its bytes.

Client and fleet server exchange a message together with all of its objects in this form: the
message first, then the objects in any order. Lengths are bounded before memory is allocated. What
is large lies in a file in memory (:mod:`fedlearn.sandbox.memory_file`) from its first byte on.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from typing import Final, Protocol

from fedlearn.errors import TransportError
from fedlearn.sandbox.memory_file import SMALL_BYTES, Buffer, FilePart, MemoryFile, Part

__all__ = ["FrameReader", "body_pieces", "frames_length"]

_HEAD: Final = struct.Struct(">Q")
MAX_FRAMES: Final = 1_000_000


class _Hash(Protocol):
    def update(self, data: Buffer, /) -> None: ...


def body_pieces(parts: Iterable[Part], *, most: int, start: int = 0) -> Iterator[Buffer]:
    """Yield the body of ``parts`` from byte ``start`` on, in pieces of at most ``most`` bytes.

    Only pieces of files are copied.
    """
    skip = start
    for part in parts:
        for each in (_HEAD.pack(len(part)), part):
            if skip >= len(each):
                skip -= len(each)
            elif isinstance(each, FilePart):
                yield from each.pieces(skip, most=most)
                skip = 0
            else:
                view = memoryview(each).cast("B")
                for begin in range(skip, len(view), most):
                    yield view[begin : begin + most]
                skip = 0


def frames_length(parts: Iterable[Part]) -> int:
    """Return the length of the body of ``parts``."""
    return sum(_HEAD.size + len(part) for part in parts)


class FrameReader:
    """Parses a body piece by piece into its frames. Not thread-safe.

    A frame of :data:`fedlearn.sandbox.memory_file.SMALL_BYTES` or more lies in a file, unless it is
    one of the first. All of them lie in one file, so that a body costs at most one descriptor.

    :param limit: the bytes of the whole body; a frame whose length exceeds the rest of it is
        refused when its head is read.
    :param first: how many frames at the beginning are byte strings whatever their size.
    :param first_bytes: the most bytes of each of these.
    :param state: is updated with the bytes of all frames after these, in order.
    """

    def __init__(
        self, limit: int, *, first: int = 0, first_bytes: int = 0, state: _Hash | None = None
    ) -> None:
        self._left = limit
        self._first = first
        self._first_bytes = first_bytes
        self._state = state
        self._frames: list[bytes | tuple[int, int]] = []
        self._file: MemoryFile | None = None
        self._head = bytearray()
        self._wanted: int | None = None
        self._missing = 0
        self._body: bytearray | None = None

    @property
    def count(self) -> int:
        """The number of whole frames so far."""
        return len(self._frames)

    def small(self, index: int) -> bytes:
        """Return a whole frame that is a byte string.

        :raises TransportError: when it lies in the file.
        """
        found = self._frames[index]
        if not isinstance(found, bytes):
            raise TransportError(f"frame {index} of a body lies in a file")
        return found

    def feed(self, piece: Buffer) -> None:
        """Take the next bytes of the body.

        :raises TransportError: when a frame is longer than the body may be, there are too many, or
            there is no memory for them.
        """
        view = memoryview(piece)
        if len(view) > self._left:
            raise TransportError("the body is longer than announced")
        self._left -= len(view)
        while len(view):
            if self._wanted is None:
                take = min(_HEAD.size - len(self._head), len(view))
                self._head += view[:take]
                view = view[take:]
                if len(self._head) == _HEAD.size:
                    self._begin(self._left + len(view))
                continue
            take = min(self._missing, len(view))
            self._append(view[:take])
            view = view[take:]

    def finish(self) -> tuple[Part, ...]:
        """Return all frames; nobody can change them any more.

        :raises TransportError: when the body does not end with a whole frame.
        """
        if self._wanted is not None or self._head:
            raise TransportError("the body ends in the middle of a frame")
        file = None if self._file is None else self._file.seal()
        found: list[Part] = []
        for frame in self._frames:
            if isinstance(frame, bytes):
                found.append(frame)
            elif file is not None:
                found.append(file.part(*frame))
        return tuple(found)

    def _begin(self, left: int) -> None:
        (wanted,) = _HEAD.unpack(self._head)
        self._head.clear()
        if wanted > left or self.count >= MAX_FRAMES:
            raise TransportError("a frame is longer than the body")
        is_first = self.count < self._first
        if is_first and wanted > self._first_bytes:
            raise TransportError(
                f"frame {self.count} of a message has {wanted} bytes; "
                f"at most {self._first_bytes} are accepted"
            )
        self._wanted = self._missing = wanted
        self._body = bytearray() if is_first or wanted < SMALL_BYTES else None
        if not wanted:
            self._complete()

    def _append(self, data: memoryview) -> None:
        if self._state is not None and self.count >= self._first:
            self._state.update(data)
        if self._body is not None:
            self._body += data
        else:
            self._write(data)
        self._missing -= len(data)
        if not self._missing:
            self._complete()

    def _write(self, data: memoryview) -> None:
        try:
            if self._file is None:
                self._file = MemoryFile.create()
            self._file.append(data)
        except OSError as error:
            raise TransportError(
                f"there is no memory for a message: {error.strerror}",
                hint="raise the memory or the descriptors of this process, or send less at once",
            ) from error

    def _complete(self) -> None:
        wanted = self._wanted or 0
        if self._body is not None:
            self._frames.append(bytes(self._body))
        elif self._file is not None:
            self._frames.append((self._file.size - wanted, wanted))
        self._wanted = self._body = None
