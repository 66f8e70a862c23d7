"""Several byte strings in one body: each is an 8-byte big-endian length and its bytes.

Client and fleet server exchange a message together with all of its objects in this form: the
message first, then the objects in any order. Lengths are bounded before memory is allocated.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Iterable, Iterator
from typing import Final

from fedlearn.errors import TransportError
from fedlearn.sandbox.memory_file import Buffer, FilePart, Part

__all__ = ["FrameReader", "frames_length", "write_frames"]

_HEAD: Final = struct.Struct(">Q")
MAX_FRAMES: Final = 1_000_000


def write_frames(parts: Iterable[Part]) -> Iterator[Buffer]:
    """Yield a body of ``parts``, without copying them; what lies in a file comes in pieces."""
    for part in parts:
        yield _HEAD.pack(len(part))
        if isinstance(part, FilePart):
            yield from part.pieces()
        else:
            yield part


def frames_length(parts: Iterable[Part]) -> int:
    """Return the length of the body that :func:`write_frames` makes of ``parts``."""
    return sum(_HEAD.size + len(part) for part in parts)


class FrameReader:
    """Parses a body piece by piece into its frames.

    :param limit: the most bytes that the whole body may have; a frame whose length exceeds the
        rest of it is refused when its head is read.
    """

    def __init__(self, limit: int) -> None:
        self._left = limit
        self._count = 0
        self._head = bytearray()
        self._body: io.BytesIO | None = None
        self._wanted = 0

    def feed(self, piece: bytes | memoryview) -> Iterator[bytes]:
        """Yield the frames that ``piece`` completes.

        :raises TransportError: when a frame is longer than the body may be, or there are too
            many.
        """
        view = memoryview(piece)
        if len(view) > self._left:
            raise TransportError("the body is longer than announced")
        self._left -= len(view)
        while len(view):
            if self._body is None:
                take = min(_HEAD.size - len(self._head), len(view))
                self._head += view[:take]
                view = view[take:]
                if len(self._head) < _HEAD.size:
                    return
                (self._wanted,) = _HEAD.unpack(self._head)
                self._head.clear()
                self._count += 1
                if self._wanted > self._left + len(view) or self._count > MAX_FRAMES:
                    raise TransportError("a frame is longer than the body")
                self._body = io.BytesIO()
            take = min(self._wanted - self._body.tell(), len(view))
            self._body.write(view[:take])
            view = view[take:]
            if self._body.tell() == self._wanted:
                # A view of the buffer instead of a copy: a frame may be a whole model.
                done, self._body = self._body.getvalue(), None
                yield done

    def finish(self) -> None:
        """Check that the body ended with a whole frame.

        :raises TransportError: when it did not.
        """
        if self._body is not None or self._head:
            raise TransportError("the body ends in the middle of a frame")
