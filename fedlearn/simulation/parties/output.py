"""What the user's code prints during a simulation: lines of its log, not of this program."""

from __future__ import annotations

import contextlib
import io
import sys
from collections.abc import Callable, Iterator
from typing import Final, TextIO, cast

__all__ = ["Streams", "captured", "here", "printing_to"]

_MOST: Final = 4096


Streams = tuple[TextIO, TextIO]


class _Lines(io.TextIOBase):
    """Takes text, and hands it on line by line."""

    def __init__(self, take: Callable[[str], object]) -> None:
        self._take = take
        self._begun = ""

    def writable(self) -> bool:
        return True

    def write(self, text: str) -> int:
        *whole, self._begun = (self._begun + text).split("\n")
        for line in whole:
            self._hand_on(line)
        if len(self._begun) > _MOST:
            self.end()
        return len(text)

    def end(self) -> None:
        """Hand on what has no line end yet."""
        if self._begun:
            line, self._begun = self._begun, ""
            self._hand_on(line)

    def _hand_on(self, line: str) -> None:
        if line.strip():
            self._take(line.rstrip()[:_MOST])


@contextlib.contextmanager
def captured(take: Callable[[str], object]) -> Iterator[None]:
    """A context in which what Python code prints goes to ``take``, line by line."""
    lines = _Lines(take)
    with printing_to((cast("TextIO", lines), cast("TextIO", lines))):
        yield
    lines.end()


@contextlib.contextmanager
def printing_to(streams: Streams) -> Iterator[None]:
    """A context in which standard output and error are these, as :func:`here` returns them."""
    before = here()
    sys.stdout, sys.stderr = streams
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before


def here() -> Streams:
    """Return standard output and error as they are now."""
    return sys.stdout, sys.stderr
