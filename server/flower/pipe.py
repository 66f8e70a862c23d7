"""Requests from a job's process to the coordinator, over a pair of connected sockets.

The pair has no name and no port: only the process that inherits one end can speak. A record
is a 4-byte big-endian length, a JSON object of that length, and the byte strings whose
lengths the object lists under ``blobs``. Both ends bound what they read; Pickle is not used.
"""

from __future__ import annotations

import contextlib
import json
import socket
import struct
from collections.abc import Mapping, Sequence
from typing import Any, Final

from fedlearn.errors import TransportError

__all__ = ["Pipe", "PipeClosed"]

_HEAD: Final = struct.Struct(">I")
_MAX_HEADER: Final = 64 * 1024 * 1024
_MAX_BLOBS: Final = 1_000_000
_PIECE: Final = 1 << 20

Blob = bytes | bytearray | memoryview


class PipeClosed(TransportError):
    """The other end is gone."""


class Pipe:
    """One end of the pair. Not safe for several threads at once.

    :param limit: the most bytes that one record's blobs may have together.
    """

    def __init__(self, end: socket.socket, *, limit: int) -> None:
        self._end = end
        self._limit = limit

    def send(self, header: Mapping[str, Any], blobs: Sequence[Blob] = ()) -> None:
        """Send one record.

        :raises PipeClosed: when the other end is gone.
        """
        body = json.dumps({**header, "blobs": [len(b) for b in blobs]}).encode()
        try:
            self._end.sendall(_HEAD.pack(len(body)) + body)
            for blob in blobs:
                self._end.sendall(blob)
        except OSError as error:
            raise PipeClosed("the other end of the pipe is gone") from error

    def receive(self) -> tuple[dict[str, Any], list[bytearray]] | None:
        """Return the next record, or None when the other end closed between two records.

        :raises PipeClosed: when a record is cut off.
        :raises TransportError: when a record is malformed or too long.
        """
        head = self._read(_HEAD.size, at_start=True)
        if head is None:
            return None
        (length,) = _HEAD.unpack(head)
        if length > _MAX_HEADER:
            raise TransportError("a record's header is too long")
        try:
            header = json.loads(self._whole(length))
            sizes = header.pop("blobs")
            valid = all(type(size) is int and size >= 0 for size in sizes)
        except (ValueError, RecursionError, KeyError, TypeError, AttributeError):
            raise TransportError("a record's header is not what it should be") from None
        if not valid or len(sizes) > _MAX_BLOBS or sum(sizes) > self._limit:
            raise TransportError("a record is larger than allowed")
        return header, [self._whole(size) for size in sizes]

    def close(self) -> None:
        """Close this end, also under a thread that reads from it."""
        with contextlib.suppress(OSError):  # the other end closed first
            self._end.shutdown(socket.SHUT_RDWR)
        self._end.close()

    def _whole(self, length: int) -> bytearray:
        data = self._read(length, at_start=False)
        if data is None:
            raise PipeClosed("the other end of the pipe is gone")
        return data

    def _read(self, length: int, *, at_start: bool) -> bytearray | None:
        # Grows with what arrives, so that an announced length alone takes no memory.
        data = bytearray()
        try:
            while len(data) < length:
                piece = self._end.recv(min(length - len(data), _PIECE))
                if not piece:
                    if at_start and not data:
                        return None
                    raise PipeClosed("the other end of the pipe is gone")
                data += piece
        except OSError as error:
            if at_start and not data:
                return None
            raise PipeClosed("the other end of the pipe is gone") from error
        return data
