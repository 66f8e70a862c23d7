"""Lines of the app's log on their way from its process to the client, over standard error.

A line that begins with a record separator (RFC 7464) is a JSON array ``[level, text, logger, file,
line]``, which :class:`RecordHandler` writes in the app's process; any other line is text that the
app printed. The client trusts neither.
"""

from __future__ import annotations

import json
import logging
import os
import threading
import warnings
from pathlib import Path
from typing import Final, TextIO

from fedlearn.app.tracebacks import AppTraceback, app_traceback, shown_file
from fedlearn.sealing.app_log import LEVELS, MAX_LINE_BYTES, AppLogLine

__all__ = ["MAX_RAW_BYTES", "RecordHandler", "bounded_text", "line_text", "parse_line"]

MAX_RAW_BYTES: Final = 2 * MAX_LINE_BYTES
"""Bytes of one line that the client keeps before it parses the line."""

_SEPARATOR: Final = b"\x1e"
_NOTE_BYTES: Final = 64
_ATOMIC_BYTES: Final = 4_096
"""What one write(2) does not mix with those of other threads (PIPE_BUF of Linux)."""

_CUT_CHARACTERS: Final = 450
_MAX_LINES: Final = 1_000
"""Of one record, such as a traceback."""


class RecordHandler(logging.Handler):
    """Writes log records, warnings and exceptions of the app, one line at a time.

    :param folder: of the unpacked bundle, to which the names of source files are relative.
    :param target: a copy of the descriptor of standard error: the app may close its own.
    """

    def __init__(self, folder: Path, target: int) -> None:
        super().__init__()
        self._folder = folder
        self._target = target

    def install(self) -> None:
        """Take the records of all loggers, warnings, and the exceptions that end threads."""
        root = logging.getLogger()
        root.handlers[:] = [self]
        root.setLevel(logging.INFO)
        # Flower's logger writes to the terminal by itself, in colours.
        logging.getLogger("flwr").handlers.clear()
        warnings.showwarning = self._warn
        threading.excepthook = self._ended

    def emit(self, record: logging.LogRecord) -> None:
        """Write one record, with its traceback if it has one."""
        try:
            text, file = record.getMessage(), shown_file(record.pathname, self._folder)
            level = record.levelname.lower()
            self._write(
                level if level in LEVELS else "info",
                text.splitlines() or [""],
                logger=record.name,
                file=file,
                line=record.lineno,
            )
            if record.exc_info and record.exc_info[1] is not None:
                self.exception(record.exc_info[1])
        except Exception:  # noqa: BLE001  as logging does: an app's record cannot be formatted
            self.handleError(record)

    def exception(self, error: BaseException) -> AppTraceback:
        """Write the traceback of an exception, each line with its place in the app; return it."""
        found = app_traceback(error, self._folder)
        self._write("error", found.lines, file=found.file, line=found.line)
        return found

    def _warn(
        self,
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        """Write a warning in place of :func:`warnings.showwarning`, also one for a ``file``."""
        text = f"{category.__name__}: {message}"
        shown = shown_file(filename, self._folder)
        self._write("warning", text.splitlines(), file=shown, line=lineno, logger="py.warnings")

    def _ended(self, hook: threading.ExceptHookArgs) -> None:
        if hook.exc_value is not None and hook.exc_type is not SystemExit:
            self.exception(hook.exc_value)

    def _write(
        self,
        level: str,
        lines: list[str] | tuple[str, ...],
        *,
        file: str,
        line: int,
        logger: str = "",
    ) -> None:
        for text in lines[:_MAX_LINES]:
            row: list[str | int] = [level, text[:MAX_LINE_BYTES], logger[:100], file[:500], line]
            data = _encoded(row)
            if len(data) > _ATOMIC_BYTES:
                row[1] = f"{text[:_CUT_CHARACTERS]} [cut]"
                data = _encoded(row)
            os.write(self._target, data)


def _encoded(row: list[str | int]) -> bytes:
    return _SEPARATOR + json.dumps(row, ensure_ascii=False).encode(errors="replace") + b"\n"


def parse_line(raw: bytes, *, left_out: int = 0) -> AppLogLine:
    """Return the line that the app's process wrote; ``left_out`` bytes of it were not kept."""
    if raw.startswith(_SEPARATOR) and not left_out:
        try:
            level, text, logger, file, line = json.loads(raw[1:])
            return AppLogLine(
                level=level, text=bounded_text(text), logger=logger, file=file, line=line
            )
        except (ValueError, TypeError, RecursionError, AttributeError):
            pass  # the app wrote it by itself: it is text
    return AppLogLine(
        level="output",
        text=bounded_text(raw.decode("utf-8", "backslashreplace"), left_out=left_out),
    )


def line_text(line: AppLogLine) -> str:
    """Return a line as one text for a person; that of a record has its level, logger and place.

    A line of a traceback is as Python prints it.
    """
    if not line.logger:
        return line.text
    place = f" ({line.file}:{line.line})" if line.file else ""
    return f"{line.level.upper()} {line.logger}: {line.text}{place}"


def bounded_text(text: str, *, left_out: int = 0) -> str:
    """Return a text of at most ``MAX_LINE_BYTES`` bytes of UTF-8, with a note when it was cut."""
    data = text.encode("utf-8", "backslashreplace")
    if len(data) <= MAX_LINE_BYTES and not left_out:
        return data.decode()
    kept = data[: MAX_LINE_BYTES - _NOTE_BYTES].decode("utf-8", "ignore")
    return f"{kept} [{left_out + len(data) - len(kept.encode())} bytes were left out]"
