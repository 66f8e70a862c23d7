"""Frames over one socket between the comparison's plain loop and a site's process.

Insecure: whoever reaches the port is believed. It is used on the loopback interface by
``fedlearn bench`` alone, as what protections are compared with.
"""

from __future__ import annotations

import socket
import struct
import time
from collections.abc import Sequence
from typing import Final

from fedlearn.errors import TransportError
from fedlearn.sandbox.memory_file import FilePart, Part

__all__ = ["Link"]

_COUNT: Final = struct.Struct(">I")
_SIZE: Final = struct.Struct(">Q")
_MOST_FRAMES: Final = 10_000
_MOST_BYTES: Final = 1 << 33


class Link:
    """Sends and receives lists of byte strings. ``cpu`` is the thread time that this took."""

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection
        self.cpu = 0.0

    def send(self, frames: Sequence[Part]) -> None:
        """Send the frames."""
        started = time.thread_time()
        self._socket.sendall(_COUNT.pack(len(frames)))
        for frame in frames:
            self._socket.sendall(_SIZE.pack(len(frame)))
            for piece in frame.pieces() if isinstance(frame, FilePart) else (frame,):
                self._socket.sendall(piece)
        self.cpu += time.thread_time() - started

    def receive(self) -> list[bytes] | None:
        """Return the next frames; None when the other side has ended.

        :raises TransportError: when it ended in the middle, or a count or size is above its bound.
        """
        first = self._socket.recv(1)
        if not first:
            return None
        started = time.thread_time()
        (count,) = _COUNT.unpack(first + self._exactly(_COUNT.size - 1))
        if count > _MOST_FRAMES:
            raise TransportError(f"{count} frames were announced, more than {_MOST_FRAMES}")
        frames, left = [], _MOST_BYTES
        for _ in range(count):
            (size,) = _SIZE.unpack(self._exactly(_SIZE.size))
            if size > left:
                raise TransportError(f"frames of more than {_MOST_BYTES} bytes were announced")
            left -= size
            frames.append(self._exactly(size))
        self.cpu += time.thread_time() - started
        return frames

    def close(self) -> None:
        """Close the connection."""
        self._socket.close()

    def _exactly(self, size: int) -> bytes:
        buffer = bytearray(size)
        view, at = memoryview(buffer), 0
        while at < size:
            count = self._socket.recv_into(view[at:])
            if not count:
                raise TransportError("the connection ended in the middle of a frame")
            at += count
        return bytes(buffer)
