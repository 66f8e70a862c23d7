"""Records between two processes of one machine, one of which may run user code.

The two ends are a pair of connected AF_UNIX sockets, which has no name and no port: only the
process that inherits one end can speak. A record is

* a 4-byte big-endian length, and with it, by SCM_RIGHTS, the descriptors of its files, if any,
* a JSON object of that length: ``files`` are the sizes of the files, and ``blobs`` are the byte
  strings, each its length, or the number of its file, its start there and its length, and
* those byte strings that lie in no file.

Large byte strings travel as memfds (:mod:`fedlearn.sandbox.memory_file`): the descriptor of a
:class:`FilePart` is passed on as it is, and other large byte strings are written into one file
of the record. The receiver maps them instead of copying them, or passes them on in turn. It
accepts only files that nobody can change any more, of exactly the announced sizes and number.
Every other descriptor is refused, so that a sender cannot cut off a file under a reader (SIGBUS)
or change what was checked.

Both ends bound what they read. Pickle is not used.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import socket
import struct
import threading
import time
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Final

from fedlearn.errors import TransportError
from fedlearn.sandbox.memory_file import Buffer, FilePart, MemoryFile, Part

__all__ = ["MAX_FILES", "ChannelClosed", "ChannelTimeout", "ProcessChannel"]

MAX_FILES: Final = 64
"""The most files of one record; the kernel takes 253 (SCM_MAX_FD)."""


_HEAD: Final = struct.Struct(">I")
_PIECE: Final = 1 << 20
_LARGE: Final = 128 * 1024
_MAX_BLOBS: Final = 1_000_000
_MAX_HEADER: Final = 64 * 1024 * 1024

_Place = int | list[int]
"""A byte string in the stream: its length. In a file: its number, the start and the length."""


class ChannelClosed(TransportError):
    """The other end is closed."""

    code: ClassVar[str] = "channel-closed"


class ChannelTimeout(TransportError):
    """The other end did not send, or accept, a whole record in time."""

    code: ClassVar[str] = "channel-timeout"


class ProcessChannel:
    """One end. One thread may send and another one receive; several senders take turns.

    :param end: one socket of ``socket.socketpair()``, which the channel closes.
    :param limit: the most bytes that one record's blobs may have together.
    :param max_header: the most bytes that one record's JSON may have.
    """

    def __init__(self, end: socket.socket, *, limit: int, max_header: int = _MAX_HEADER) -> None:
        self._end = end
        self._limit = limit
        self._max_header = max_header
        self._sending = threading.Lock()
        self._end.setblocking(True)

    def send(
        self,
        header: Mapping[str, Any],
        blobs: Sequence[Part | Sequence[Buffer]] = (),
        *,
        timeout: float | None = None,
    ) -> None:
        """Send one record. ``header`` is a JSON object without the keys ``blobs`` and ``files``.

        A blob may be given in pieces, which arrive as one.

        After :class:`ChannelTimeout` a record may be incomplete: the channel cannot be used.

        :raises ChannelClosed: when the other end is closed.
        :raises ChannelTimeout: when it did not accept the record within ``timeout`` seconds.
        """
        record = _Outgoing()
        record.place(blobs)
        sizes = [file.size for file in record.files]
        body = json.dumps({**header, "files": sizes, "blobs": record.places}).encode()
        data = b"".join([_HEAD.pack(len(body)), body, *record.stream])
        self._send(data, record.files, timeout)

    def receive(
        self, *, timeout: float | None = None
    ) -> tuple[dict[str, Any], list[memoryview]] | None:
        """Return the next record, or None when the other end closed between two records.

        The blobs are read-only. Those of a file are views of one mapping, which is unmapped with
        the last of them.

        :param timeout: seconds for the whole record; after :class:`ChannelTimeout` the channel
            cannot be used.
        :raises ChannelClosed: when a record is truncated.
        :raises ChannelTimeout: when no whole record arrives in time.
        :raises TransportError: when a record is malformed, too long, or its file may change.
        """
        record = self.receive_parts(timeout=timeout)
        if record is None:
            return None
        header, parts = record
        mapped: dict[int, memoryview] = {}
        views: list[memoryview] = []
        for part in parts:
            if not isinstance(part, FilePart):
                views.append(memoryview(part))
                continue
            whole = mapped.get(id(part.file))
            if whole is None:
                whole = mapped[id(part.file)] = part.file.map()
            views.append(whole[part.start : part.start + part.size])
        return header, views

    def receive_parts(
        self, *, timeout: float | None = None
    ) -> tuple[dict[str, Any], list[bytes | FilePart]] | None:
        """As :meth:`receive`, but what lies in files is not mapped: it can be passed on."""
        deadline = None if timeout is None else time.monotonic() + timeout
        head, descriptors = self._read_head(deadline)
        if not head:
            return None
        try:
            (length,) = _HEAD.unpack(head)
            if length > self._max_header:
                raise TransportError(
                    f"a record's header has {length} bytes; at most {self._max_header} are read"
                )
            header, sizes, places = _parsed(self._read(length, deadline))
            total = sum(place if isinstance(place, int) else place[2] for place in places)
            if len(places) > _MAX_BLOBS or max(total, sum(sizes)) > self._limit:
                raise TransportError(
                    f"a record of {total} bytes in {len(places)} pieces, with files of "
                    f"{sum(sizes)} bytes; at most {self._limit} bytes in {_MAX_BLOBS} pieces "
                    "are read"
                )
            files = _adopted(descriptors, sizes)
        finally:
            for each in descriptors:
                os.close(each)
        parts: list[bytes | FilePart] = []
        for place in places:
            if isinstance(place, int):
                parts.append(self._read(place, deadline))
                continue
            number, start, size = place
            if number >= len(files):
                raise TransportError(f"file {number} of a record that has {len(files)}")
            parts.append(files[number].part(start, size))
        return header, parts

    def close(self) -> None:
        """Close this end; a thread that reads from it stops."""
        with contextlib.suppress(OSError):  # the other end closed first
            self._end.shutdown(socket.SHUT_RDWR)
        self._end.close()

    # --- sending ----------------------------------------------------------------------

    def _send(self, data: bytes, files: Sequence[MemoryFile], timeout: float | None) -> None:
        deadline = None if timeout is None else time.monotonic() + timeout
        rest = memoryview(data)
        with self._sending:
            try:
                while rest:
                    self._ready(select.POLLOUT, deadline)
                    if not files:
                        sent = self._end.send(rest[:_PIECE], socket.MSG_DONTWAIT)
                    else:
                        # The receiver expects the descriptors together with the head.
                        numbers = array("i", [file.fileno() for file in files])
                        rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, numbers)
                        sent = self._end.sendmsg(
                            [rest[: _HEAD.size]], [rights], socket.MSG_DONTWAIT
                        )
                        files = ()
                    rest = rest[sent:]
            except (OSError, ValueError) as error:
                raise ChannelClosed("the other end of the channel is closed") from error

    # --- receiving --------------------------------------------------------------------

    def _read_head(self, deadline: float | None) -> tuple[bytes, list[int]]:
        """Return the head, empty at the end, and the descriptors that were sent with it."""
        head = bytearray()
        files: list[int] = []
        try:
            while len(head) < _HEAD.size:
                room = socket.CMSG_SPACE(MAX_FILES * array("i").itemsize)
                try:
                    self._ready(select.POLLIN, deadline)
                    piece, ancillary, flags, _ = self._end.recvmsg(
                        _HEAD.size - len(head), room, socket.MSG_DONTWAIT | socket.MSG_CMSG_CLOEXEC
                    )
                except (OSError, ValueError):
                    piece, ancillary, flags = b"", [], 0
                files += _descriptors(ancillary)
                if len(files) > MAX_FILES or flags & socket.MSG_CTRUNC:
                    raise TransportError(f"a record has more than {MAX_FILES} files")
                if not piece:
                    if head or files:
                        raise ChannelClosed("the other end of the channel is closed")
                    break
                head += piece
        except BaseException:
            for each in files:
                os.close(each)
            raise
        return bytes(head), files

    def _read(self, length: int, deadline: float | None) -> bytes:
        # Grows with the received bytes, so that a length alone allocates no memory.
        data = bytearray()
        try:
            while len(data) < length:
                self._ready(select.POLLIN, deadline)
                piece = self._end.recv(min(length - len(data), _PIECE), socket.MSG_DONTWAIT)
                if not piece:
                    raise ChannelClosed("the other end of the channel is closed")
                data += piece
        except (OSError, ValueError) as error:
            raise ChannelClosed("the other end of the channel is closed") from error
        return bytes(data)

    def _ready(self, event: int, deadline: float | None) -> None:
        """Wait until the socket can be read or written, or the other end is closed."""
        poll = select.poll()
        poll.register(self._end, event)
        rest = None if deadline is None else max(deadline - time.monotonic(), 0.0) * 1000
        if not poll.poll(rest):
            raise ChannelTimeout("the other end of the channel did not send or receive in time")


@dataclass(slots=True)
class _Outgoing:
    """Where the byte strings of a record go: into files that exist, into a new one, the stream."""

    files: list[MemoryFile] = field(default_factory=list)
    places: list[_Place] = field(default_factory=list)
    stream: list[Buffer] = field(default_factory=list)

    def place(self, blobs: Sequence[Part | Sequence[Buffer]]) -> None:
        numbers: dict[int, int] = {}
        rest: list[tuple[int, Sequence[Buffer] | FilePart, int]] = []
        for index, blob in enumerate(blobs):
            self.places.append(0)
            if not isinstance(blob, FilePart):
                pieces = [memoryview(each).cast("B") for each in _pieces(blob)]
                rest.append((index, pieces, sum(map(len, pieces))))
                continue
            number = numbers.get(id(blob.file))
            if number is None and len(self.files) < MAX_FILES - 1:  # one is left for the rest
                number = numbers[id(blob.file)] = len(self.files)
                self.files.append(blob.file)
            if number is None:
                rest.append((index, blob, blob.size))
            else:
                self.places[index] = [number, blob.start, blob.size]
        file = _written([each for _, each, _ in rest]) if _large(rest) else None
        position = 0
        for index, each, size in rest:
            if file is None:
                self.places[index] = size
                self.stream += each.pieces() if isinstance(each, FilePart) else each
            else:
                self.places[index] = [len(self.files), position, size]
                position += size
        if file is not None:
            self.files.append(file)


def _pieces(blob: Buffer | Sequence[Buffer]) -> Sequence[Buffer]:
    return [blob] if isinstance(blob, Buffer) else blob


def _large(rest: Sequence[tuple[int, Sequence[Buffer] | FilePart, int]]) -> bool:
    return sum(size for _, _, size in rest) >= _LARGE


def _written(blobs: Sequence[Sequence[Buffer] | FilePart]) -> MemoryFile | None:
    """Return a sealed file of these byte strings; None where this process may not write one.

    RLIMIT_FSIZE holds for a memfd too; the byte strings are then copied into the stream.
    """
    try:
        file = MemoryFile.create()
        for blob in blobs:
            for piece in blob.pieces() if isinstance(blob, FilePart) else blob:
                file.append(piece)
        return file.seal()
    except OSError:
        return None


def _adopted(descriptors: list[int], sizes: Sequence[int]) -> list[MemoryFile]:
    """Return the files of descriptors, which it removes from the list, after checking them."""
    if len(descriptors) != len(sizes):
        raise TransportError(
            f"a record has {len(descriptors)} files, and {len(sizes)} are announced"
        )
    files = []
    for expected in sizes:
        file = MemoryFile.adopt(descriptors.pop(0))
        if file.size != expected or not expected:
            raise TransportError(
                f"a record's file has {file.size} bytes, and {expected} are announced"
            )
        files.append(file)
    return files


def _descriptors(ancillary: Sequence[tuple[int, int, bytes]]) -> list[int]:
    found = array("i")
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            found.frombytes(data[: len(data) - len(data) % found.itemsize])
    return found.tolist()


def _parsed(body: bytes) -> tuple[dict[str, Any], list[int], list[_Place]]:
    try:
        header = json.loads(body)
        places, sizes = header.pop("blobs"), header.pop("files")
        valid = (
            isinstance(places, list)
            and isinstance(sizes, list)
            and all(map(_is_size, sizes))
            and all(_is_size(each) or _is_range(each) for each in places)
        )
    except (ValueError, RecursionError, KeyError, TypeError, AttributeError):
        valid = False
    if not valid:
        raise TransportError(
            "a record's header is not a JSON object with the places of its blobs and the sizes "
            "of its files"
        )
    return header, sizes, places


def _is_size(value: Any) -> bool:
    return type(value) is int and value >= 0


def _is_range(value: Any) -> bool:
    return type(value) is list and len(value) == 3 and all(map(_is_size, value))
