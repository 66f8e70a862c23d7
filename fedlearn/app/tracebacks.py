"""The traceback of an exception of an app, with source files as they are named in its bundle."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

__all__ = ["AppTraceback", "app_traceback", "shown_file"]


@dataclass(frozen=True, slots=True, kw_only=True)
class AppTraceback:
    """A traceback as text, and the place in the app where it ends.

    ``file`` is relative to the bundle, empty when no frame of the app is in the traceback.
    """

    lines: tuple[str, ...]
    summary: str
    file: str = ""
    line: int = 0

    @property
    def reason(self) -> str:
        """The exception in one line, after its place: ``app/client_app.py:31: KeyError: 'x'``."""
        return f"{self.file}:{self.line}: {self.summary}" if self.file else self.summary


def app_traceback(error: BaseException, folder: Path) -> AppTraceback:
    """Return the traceback of an exception; ``folder`` is the one of the unpacked bundle.

    Chained exceptions are part of it. Paths of this machine are not, nor are the calls that led to
    the app.
    """
    found = traceback.TracebackException.from_exception(error)
    place = _place(found, folder)
    for each in _chain(found):
        inside = [_inside(frame.filename, folder) for frame in each.stack]
        if True in inside:
            del each.stack[: inside.index(True)]
        for frame in each.stack:
            frame.filename = shown_file(frame.filename, folder)
        name = getattr(each, "filename", None)  # of a SyntaxError
        if isinstance(name, str):
            each.filename = shown_file(name, folder)
    lines = "".join(found.format()).splitlines()
    file, line = place or ("", 0)
    return AppTraceback(
        lines=tuple(lines),
        summary=f"{type(error).__name__}: {_text(error)}",
        file=file,
        line=line,
    )


def shown_file(path: str, folder: Path) -> str:
    """Return a source file relative to the bundle, or else to the folder it was imported from."""
    for base in (str(folder), *sorted(sys.path, key=len, reverse=True)):
        if base and path.startswith(f"{base.rstrip('/')}/"):
            return path[len(base.rstrip("/")) + 1 :]
    return Path(path).name


def _text(error: BaseException) -> str:
    try:
        return str(error)
    except Exception as another:  # noqa: BLE001  the app wrote the method that makes the text
        return f"its text cannot be made: {type(another).__name__}"


def _place(found: traceback.TracebackException, folder: Path) -> tuple[str, int] | None:
    """Return the innermost place in the app; of a SyntaxError, where it is."""
    name, number = getattr(found, "filename", None), getattr(found, "lineno", None)
    if isinstance(name, str) and _inside(name, folder) and str(number).isdecimal():
        return shown_file(name, folder), int(str(number))
    for frame in reversed(found.stack):
        if _inside(frame.filename, folder):
            return shown_file(frame.filename, folder), frame.lineno or 0
    return None


def _inside(path: str, folder: Path) -> bool:
    return path.startswith(f"{folder}/")


def _chain(found: traceback.TracebackException) -> Iterator[traceback.TracebackException]:
    seen: set[int] = set()
    waiting = [found]
    while waiting:
        each = waiting.pop()
        if id(each) in seen:
            continue
        seen.add(id(each))
        yield each
        group = getattr(each, "exceptions", None) or ()
        waiting += [one for one in (each.__cause__, each.__context__, *group) if one is not None]
