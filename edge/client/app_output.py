"""What the app's process writes, kept in bounded memory until a round ends.

Of one round the first lines and the last ones are kept: those tell how it began, and how it ended.
What is between them is counted. A flood costs a copy of its bytes, and no memory beyond the bounds.
"""

from __future__ import annotations

from typing import Final

from edge.client.log_records import MAX_RAW_BYTES, bounded_text, parse_line
from fedlearn.sealing.app_log import MAX_LINES, AppLogLine, OpenedAppLog

__all__ = ["MAX_ROUND_BYTES", "BoundedOutput", "LineSplitter"]

MAX_ROUND_BYTES: Final = 256 * 1024
"""Bytes of one round that are kept, half of them from its begin and half from its end."""

_HALF_BYTES: Final = MAX_ROUND_BYTES // 2
_HALF_LINES: Final = MAX_LINES // 2
_NOTES: Final = 10
"""Lines of the client itself in one round: at most so many are kept, besides the app's."""


class LineSplitter:
    """Divides bytes into lines, of which at most ``MAX_RAW_BYTES`` are kept in memory."""

    def __init__(self) -> None:
        self._partial = bytearray()
        self._left_out = 0

    def feed(self, data: bytes, start: int = 0) -> tuple[AppLogLine | None, int]:
        """Return the line that ends in ``data`` after ``start``, and where the next one starts.

        None when no line ends there; what there is of the line is kept for the next call.
        """
        end = data.find(b"\n", start)
        stop = len(data) if end < 0 else end
        room = MAX_RAW_BYTES - len(self._partial)
        self._partial += data[start : min(stop, start + room)]
        self._left_out += max(0, stop - start - room)
        if end < 0:
            return None, len(data)
        return self.flush(), end + 1

    def flush(self) -> AppLogLine:
        """Return the line that has not ended yet, as if it had."""
        line = parse_line(bytes(self._partial).rstrip(b"\r"), left_out=self._left_out)
        self._partial.clear()
        self._left_out = 0
        return line

    @property
    def pending(self) -> bool:
        """Whether there is a part of a line."""
        return bool(self._partial)


class BoundedOutput:
    """The output of one round. Not thread-safe."""

    def __init__(self) -> None:
        self._head: list[AppLogLine] = []
        self._bytes = 0
        self._splitter = LineSplitter()
        self._tail = bytearray()
        self._dropped = 0
        self._cut = False
        self._notes: list[AppLogLine] = []

    def feed(self, data: bytes) -> None:
        """Take what the app's process has written."""
        start = 0
        while start < len(data) and not self._full:
            line, end = self._splitter.feed(data, start)
            self._bytes += end - start
            start = end
            if line is not None:
                self._head.append(line)
        if start < len(data):
            self._tail += data[start:]
            if len(self._tail) > 2 * _HALF_BYTES:
                self._trim()

    def note(self, text: str) -> None:
        """Take a line of the client itself."""
        if len(self._notes) < _NOTES:
            shown = bounded_text(text[:1000])
            self._notes.append(AppLogLine(level="error", text=shown, logger="fedlearn"))

    def finish(self) -> OpenedAppLog:
        """Return the log of the round; nothing is fed to it any more."""
        self._trim()
        if self._splitter.pending:
            self._head.append(self._splitter.flush())
        tail = self._tail_lines()
        lines = [*self._head, *tail, *self._notes]
        if self._dropped:
            text = f"{self._dropped} lines were left out here: they exceed the bound of a round"
            note = AppLogLine(level="warning", text=text, logger="fedlearn")
            lines.insert(len(self._head), note)
        return OpenedAppLog(lines=tuple(lines), left_out=self._dropped)

    @property
    def _full(self) -> bool:
        return len(self._head) >= _HALF_LINES or (
            self._bytes >= _HALF_BYTES and not self._splitter.pending
        )

    def _trim(self) -> None:
        """Keep the end of the tail only."""
        cut = len(self._tail) - _HALF_BYTES
        if cut > 0:
            self._dropped += self._tail.count(b"\n", 0, cut)
            self._cut = True
            del self._tail[:cut]

    def _tail_lines(self) -> list[AppLogLine]:
        if not self._tail:
            return []
        pieces = bytes(self._tail).removesuffix(b"\n").split(b"\n")
        most = _HALF_LINES - _NOTES - 1
        # The first one has lost its begin where the tail was cut.
        over = max(len(pieces) - most, int(self._cut))
        self._dropped += over
        found = []
        for piece in pieces[over:]:
            splitter = LineSplitter()
            splitter.feed(piece)
            found.append(splitter.flush())
        return found
