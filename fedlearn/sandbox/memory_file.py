"""Bytes in a file that has no name, which processes pass on to each other instead of copying them.

The file is a memfd (memfd_create(2)): it lies in memory only, so that nothing in the clear
reaches a disk. Its owner appends to it and then seals it (``F_SEAL_SHRINK``, ``F_SEAL_GROW``,
``F_SEAL_WRITE``, fcntl(2)): from then on nobody can change it, so what was checked stays as it
was, and a reader cannot be cut off in the middle (SIGBUS).

A :class:`FilePart` is a range of a sealed file. It stands where byte strings stand: it has a
length and can be written to a connection piece by piece. A process that only passes it on does
not map it, so the bytes do not count as its memory.
"""

from __future__ import annotations

import fcntl
import itertools
import mmap
import os
import weakref
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Final, NoReturn

from fedlearn.errors import TransportError

__all__ = [
    "PIECE_BYTES",
    "SMALL_BYTES",
    "Buffer",
    "FilePart",
    "MemoryFile",
    "Part",
    "gathered",
    "same_bytes",
    "slice_of",
    "view_of",
]

SMALL_BYTES: Final = 64 * 1024
"""Byte strings below this size are not worth a file."""

PIECE_BYTES: Final = 1 << 20
"""The most bytes that :meth:`FilePart.pieces` yields at a time."""

# fcntl(2); Python's module has these names on Linux only.
_F_ADD_SEALS: Final = 1033
_F_GET_SEALS: Final = 1034
_F_SEAL_SEAL: Final = 0x1
_SEALED: Final = 0x2 | 0x4 | 0x8  # F_SEAL_SHRINK, F_SEAL_GROW and F_SEAL_WRITE

Buffer = bytes | bytearray | memoryview


class MemoryFile:
    """A file in memory, which is closed with its last reference.

    One thread appends; once it is sealed, any thread may read.
    """

    def __init__(self, descriptor: int, *, size: int, sealed: bool) -> None:
        self._descriptor = descriptor
        self._size = size
        self._sealed = sealed
        self._closing = weakref.finalize(self, os.close, descriptor)

    @classmethod
    def create(cls) -> MemoryFile:
        """Return an empty file to append to.

        :raises OSError: when there is no memory or no descriptor for it.
        """
        found = os.memfd_create("part", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        return cls(found, size=0, sealed=False)

    @classmethod
    def adopt(cls, descriptor: int) -> MemoryFile:
        """Return the file of a descriptor that another process sent; it is closed in any case.

        :raises TransportError: when it is not a memfd that is sealed against every change.
        """
        try:
            seals = fcntl.fcntl(descriptor, _F_GET_SEALS)
        except OSError:
            seals = 0
        if seals & _SEALED != _SEALED:
            os.close(descriptor)
            raise TransportError(
                "a record's file is not sealed against shrinking, growing and writing"
            )
        return cls(descriptor, size=os.fstat(descriptor).st_size, sealed=True)

    @property
    def size(self) -> int:
        """The bytes that were appended."""
        return self._size

    @property
    def sealed(self) -> bool:
        """Whether nobody can change it any more."""
        return self._sealed

    def __deepcopy__(self, memo: Any) -> MemoryFile:
        return self  # what is sealed does not change, and the descriptor is closed once

    def __reduce__(self) -> NoReturn:
        raise TypeError("a file in memory cannot be pickled")

    def fileno(self) -> int:
        """Return the descriptor, which stays that of this object."""
        return self._descriptor

    def append(self, data: Buffer) -> None:
        """Append bytes.

        :raises OSError: when there is no memory left, or the file is sealed.
        """
        rest = memoryview(data).cast("B")
        while rest:
            written = os.pwrite(self._descriptor, rest, self._size)
            self._size += written
            rest = rest[written:]

    def seal(self) -> MemoryFile:
        """Make it immutable for every process, this one included; return it."""
        if not self._sealed:
            fcntl.fcntl(self._descriptor, _F_ADD_SEALS, _SEALED | _F_SEAL_SEAL)
            self._sealed = True
        return self

    def part(self, start: int = 0, size: int | None = None) -> FilePart:
        """Return a range of it, by default all of it.

        :raises TransportError: when it is not sealed, or the range is not within it.
        """
        length = self._size - start if size is None else size
        if not self._sealed:
            raise TransportError("a part of a file that can still be changed")
        if start < 0 or length < 0 or start + length > self._size:
            raise TransportError(
                f"bytes {start} to {start + length} of a file that has {self._size}"
            )
        return FilePart(self, start, length)

    def map(self) -> memoryview:
        """Return all of it, read-only and in place; it is unmapped with the last view of it.

        :raises TransportError: when it is not sealed, or there is no room for it.
        """
        if not self._sealed:
            raise TransportError("a file that can still be changed is not mapped")
        if not self._size:
            return memoryview(b"")
        try:
            return memoryview(mmap.mmap(self._descriptor, self._size, prot=mmap.PROT_READ))
        except (OSError, ValueError) as error:
            raise TransportError(f"a record's file cannot be mapped: {error}") from None


@dataclass(frozen=True, slots=True, eq=False)
class FilePart:
    """A range of a sealed :class:`MemoryFile`, which it keeps open."""

    file: MemoryFile
    start: int
    size: int

    def __len__(self) -> int:
        return self.size

    def pieces(self, start: int = 0, *, most: int = PIECE_BYTES) -> Iterator[bytes]:
        """Yield copies of its bytes from ``start`` on, at most ``most`` at a time, without mapping
        it."""
        position, end = self.start + start, self.start + self.size
        while position < end:
            piece = os.pread(self.file.fileno(), min(most, end - position), position)
            position += len(piece)
            yield piece

    def read_into(self, into: memoryview, start: int = 0) -> None:
        """Fill ``into`` with its bytes from ``start`` on, without mapping it.

        :raises TransportError: when it has fewer.
        """
        if not 0 <= start <= self.size - len(into):
            raise TransportError(
                f"bytes {start} to {start + len(into)} of a part that has {self.size}"
            )
        done = 0
        while done < len(into):
            position = self.start + start + done
            done += os.preadv(self.file.fileno(), [into[done:]], position)

    def part(self, start: int, size: int) -> FilePart:
        """Return a range of it; see :meth:`MemoryFile.part`."""
        if not 0 <= start <= self.size - size:
            raise TransportError(f"bytes {start} to {start + size} of a part that has {self.size}")
        return self.file.part(self.start + start, size)

    def view(self) -> memoryview:
        """Return its bytes in place, read-only; see :meth:`MemoryFile.map`."""
        return self.file.map()[self.start : self.start + self.size]

    def __bytes__(self) -> bytes:
        return b"".join(self.pieces())


Part = Buffer | FilePart
"""A byte string of a message, wherever it lies."""


def view_of(part: Part) -> memoryview:
    """Return the bytes of a part in place; a small part of a file is copied.

    :raises TransportError: when there is no room to map its file.
    """
    if isinstance(part, FilePart):
        return part.view() if part.size >= SMALL_BYTES else memoryview(bytes(part))
    return memoryview(part)


def gathered(pieces: Iterable[Buffer]) -> Part:
    """Return pieces as one byte string, in a sealed file unless it is smaller than
    :data:`SMALL_BYTES`.

    Where this process may not write such a file (RLIMIT_FSIZE holds for a memfd too), the bytes
    are in its own memory.
    """
    left = iter(pieces)
    begun: list[Buffer] = []
    size = 0
    for piece in left:
        begun.append(piece)
        size += memoryview(piece).nbytes
        if size >= SMALL_BYTES:
            break
    else:
        return b"".join(begun)
    left = itertools.chain(begun, left)
    try:
        file = MemoryFile.create()
    except OSError:
        return b"".join(left)
    for piece in left:
        before = file.size
        try:
            file.append(piece)
        except OSError:
            return b"".join([*file.seal().part(0, before).pieces(), piece, *left])
    return file.seal().part()


def slice_of(part: Part, start: int, size: int) -> Part:
    """Return a range of a part, in place.

    :raises TransportError: when it is not within a part of a file.
    """
    if isinstance(part, FilePart):
        return part.part(start, size)
    return memoryview(part)[start : start + size]


def same_bytes(one: Part, other: Part) -> bool:
    """Return whether two parts have the same bytes."""
    if len(one) != len(other):
        return False
    if not isinstance(one, FilePart) or not isinstance(other, FilePart):
        return bytes(one) == bytes(other)
    if one.start == other.start and os.path.sameopenfile(one.file.fileno(), other.file.fileno()):
        return True  # it is sealed
    return all(a == b for a, b in zip(one.pieces(), other.pieces(), strict=True))
