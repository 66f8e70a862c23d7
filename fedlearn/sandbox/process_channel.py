"""Records between two processes of one machine, one of which may run user code.

The two ends are a pair of connected AF_UNIX sockets, which has no name and no port: only the
process that inherits one end can speak. A record is

* a 4-byte big-endian length, and with it, by SCM_RIGHTS, at most one file descriptor,
* a JSON object of that length, whose ``blobs`` are the lengths of the byte strings, and
* the byte strings: in the descriptor's file when there is one, else in the stream.

Large byte strings travel in a memfd, which the receiver maps instead of copying it. It maps
only a file that nobody can change any more: sealed against shrinking, growing and writing
(``F_SEAL_*``, fcntl(2)), and of exactly the announced size. Every other descriptor is refused,
so that a sender cannot cut off a file under a reader (SIGBUS) or change what was checked.

Both ends bound what they read. Pickle is not used.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import mmap
import os
import select
import socket
import struct
import threading
import time
from array import array
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Final

from fedlearn.errors import TransportError

__all__ = ["Blob", "ChannelClosed", "ChannelTimeout", "ProcessChannel"]

_HEAD: Final = struct.Struct(">I")
_PIECE: Final = 1 << 20
_LARGE: Final = 128 * 1024
_MAX_BLOBS: Final = 1_000_000
_MAX_HEADER: Final = 64 * 1024 * 1024

# fcntl(2); Python's module has these names on Linux only.
_F_ADD_SEALS: Final = 1033
_F_GET_SEALS: Final = 1034
_F_SEAL_SEAL: Final = 0x1
_SEALED: Final = 0x2 | 0x4 | 0x8  # F_SEAL_SHRINK, F_SEAL_GROW and F_SEAL_WRITE

Blob = bytes | bytearray | memoryview


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
        blobs: Sequence[Blob | Sequence[Blob]] = (),
        *,
        timeout: float | None = None,
    ) -> None:
        """Send one record. ``header`` is a JSON object without a key ``blobs``.

        A blob may be given in pieces, which arrive as one.

        After :class:`ChannelTimeout` a record may be incomplete: the channel cannot be used.

        :raises ChannelClosed: when the other end is closed.
        :raises ChannelTimeout: when it did not accept the record within ``timeout`` seconds.
        """
        pieces = [[blob] if isinstance(blob, Blob) else blob for blob in blobs]
        views = [memoryview(piece).cast("B") for blob in pieces for piece in blob]
        sizes = [sum(memoryview(piece).nbytes for piece in blob) for blob in pieces]
        body = json.dumps({**header, "blobs": sizes}).encode()
        if sum(sizes) < _LARGE:
            self._send(b"".join([_HEAD.pack(len(body)), body, *views]), None, timeout)
            return
        try:
            file = _sealed(views)
        except OSError:
            # RLIMIT_FSIZE holds for a memfd too; then the blobs are copied into the stream.
            self._send(b"".join([_HEAD.pack(len(body)), body, *views]), None, timeout)
            return
        try:
            self._send(_HEAD.pack(len(body)) + body, file, timeout)
        finally:
            os.close(file)

    def receive(
        self, *, timeout: float | None = None
    ) -> tuple[dict[str, Any], list[memoryview]] | None:
        """Return the next record, or None when the other end closed between two records.

        The blobs are read-only. Those of a large record are views of one mapping, which is
        unmapped with the last of them.

        :param timeout: seconds for the whole record; after :class:`ChannelTimeout` the channel
            cannot be used.
        :raises ChannelClosed: when a record is truncated.
        :raises ChannelTimeout: when no whole record arrives in time.
        :raises TransportError: when a record is malformed, too long, or its file may change.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        head, file = self._read_head(deadline)
        if not head:
            return None
        try:
            (length,) = _HEAD.unpack(head)
            if length > self._max_header:
                raise TransportError(
                    f"a record's header has {length} bytes; at most {self._max_header} are read"
                )
            header, sizes = _parsed(self._read(length, deadline))
            if len(sizes) > _MAX_BLOBS or sum(sizes) > self._limit:
                raise TransportError(
                    f"a record of {sum(sizes)} bytes in {len(sizes)} pieces; at most "
                    f"{self._limit} bytes in {_MAX_BLOBS} pieces are read"
                )
            if file is None:
                return header, [memoryview(self._read(size, deadline)) for size in sizes]
            return header, _mapped(file, sizes)
        finally:
            if file is not None:
                os.close(file)

    def close(self) -> None:
        """Close this end; a thread that reads from it stops."""
        with contextlib.suppress(OSError):  # the other end closed first
            self._end.shutdown(socket.SHUT_RDWR)
        self._end.close()

    # --- sending ----------------------------------------------------------------------

    def _send(self, data: bytes, file: int | None, timeout: float | None) -> None:
        deadline = None if timeout is None else time.monotonic() + timeout
        rest = memoryview(data)
        with self._sending:
            try:
                while rest:
                    self._ready(select.POLLOUT, deadline)
                    if file is None:
                        sent = self._end.send(rest[:_PIECE], socket.MSG_DONTWAIT)
                    else:
                        # The receiver expects the descriptor together with the head.
                        rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array("i", [file]))
                        sent = self._end.sendmsg(
                            [rest[: _HEAD.size]], [rights], socket.MSG_DONTWAIT
                        )
                        file = None
                    rest = rest[sent:]
            except (OSError, ValueError) as error:
                raise ChannelClosed("the other end of the channel is closed") from error

    # --- receiving --------------------------------------------------------------------

    def _read_head(self, deadline: float | None) -> tuple[bytes, int | None]:
        """Return the head, empty at the end, and the descriptor that was sent with it."""
        head = bytearray()
        file: int | None = None
        try:
            while len(head) < _HEAD.size:
                room = socket.CMSG_SPACE(2 * array("i").itemsize)
                try:
                    self._ready(select.POLLIN, deadline)
                    piece, ancillary, flags, _ = self._end.recvmsg(
                        _HEAD.size - len(head), room, socket.MSG_DONTWAIT
                    )
                except (OSError, ValueError):
                    piece, ancillary, flags = b"", [], 0
                found = _descriptors(ancillary)
                if file is None and len(found) == 1:
                    file = found.pop()
                if found or flags & socket.MSG_CTRUNC:
                    for each in found:
                        os.close(each)
                    raise TransportError("a record has more than one file")
                if not piece:
                    if head or file is not None:
                        raise ChannelClosed("the other end of the channel is closed")
                    break
                head += piece
        except BaseException:
            if file is not None:
                os.close(file)
            raise
        return bytes(head), file

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


def _sealed(views: Sequence[memoryview]) -> int:
    """Return a sealed memfd with these bytes."""
    file = os.memfd_create("record", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        for view in views:
            rest = view
            while rest:
                rest = rest[os.write(file, rest) :]
        fcntl.fcntl(file, _F_ADD_SEALS, _SEALED | _F_SEAL_SEAL)
    except BaseException:
        os.close(file)
        raise
    return file


def _mapped(file: int, sizes: Sequence[int]) -> list[memoryview]:
    """Return views of a file, after checking that it is sealed."""
    try:
        seals = fcntl.fcntl(file, _F_GET_SEALS)
    except OSError:
        seals = 0
    if seals & _SEALED != _SEALED:
        raise TransportError("a record's file is not sealed against shrinking, growing and writing")
    size, expected = os.fstat(file).st_size, sum(sizes)
    if size != expected or not size:
        raise TransportError(f"a record's file has {size} bytes, and {expected} are announced")
    try:
        whole = memoryview(mmap.mmap(file, size, prot=mmap.PROT_READ))
    except (OSError, ValueError) as error:
        raise TransportError(f"a record's file cannot be mapped: {error}") from None
    found, start = [], 0
    for each in sizes:
        found.append(whole[start : start + each])
        start += each
    return found


def _descriptors(ancillary: Sequence[tuple[int, int, bytes]]) -> list[int]:
    found = array("i")
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            found.frombytes(data[: len(data) - len(data) % found.itemsize])
    return found.tolist()


def _parsed(body: bytes) -> tuple[dict[str, Any], list[int]]:
    try:
        header = json.loads(body)
        sizes = header.pop("blobs")
        valid = isinstance(sizes, list) and all(type(each) is int and each >= 0 for each in sizes)
    except (ValueError, RecursionError, KeyError, TypeError, AttributeError):
        valid = False
    if not valid:
        raise TransportError("a record's header is not a JSON object with the lengths of its blobs")
    return header, sizes
