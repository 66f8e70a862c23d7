"""Reads what a process writes, in a thread of its own, and on request at once."""

from __future__ import annotations

import os
import select
import threading
from collections.abc import Callable
from typing import IO, Final

__all__ = ["OutputReader"]

_PIECE: Final = 64 * 1024
_MOST_AT_ONCE: Final = 2 * 1024 * 1024
"""More than the kernel keeps of it: a process that goes on writing does not hold up its reader."""


class OutputReader:
    """Reads ``stream``, the output of a process, to its end.

    It ends when no process has its other end open any more, whoever inherited that. Any thread may
    call :meth:`drain`.

    :param output: takes the bytes in their order, from one thread at a time.
    """

    def __init__(self, stream: IO[bytes], output: Callable[[bytes], None]) -> None:
        self._stream = stream
        self._output = output
        self._lock = threading.Lock()
        self._ended = False
        os.set_blocking(stream.fileno(), False)
        threading.Thread(target=self._run, name="app output", daemon=True).start()

    def drain(self) -> None:
        """Take what was written until now."""
        left = _MOST_AT_ONCE
        while left > 0 and (count := self._read()):
            left -= count

    def _run(self) -> None:
        with self._stream:
            poll = select.poll()
            poll.register(self._stream, select.POLLIN)
            while not self._ended:
                poll.poll()
                self._read()

    def _read(self) -> int:
        """Take one piece; return its length, 0 when there is none now."""
        with self._lock:
            if self._ended:
                return 0
            try:
                data = os.read(self._stream.fileno(), _PIECE)
            except BlockingIOError:
                return 0
            self._ended = not data
            if data:
                self._output(data)
            return len(data)
