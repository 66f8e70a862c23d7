"""The logs of the programs that run for long: a time, a level, one line an event.

Text::

    2026-11-27T09:33:10.123Z INFO round.started: round 3 of job heart started on 2 sites

or JSON lines, with the fields of the event (``docs/reference/json.md``)::

    {"event": "round.started", "fields": {"job": "heart", ...}, "level": "INFO", ...}

Text of others that is in a message cannot begin a line of its own.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any, Final, TypeVar

from fedlearn.terminal.plaintext import json_text, printable

__all__ = ["configure_logging", "log_event", "log_options"]

LEVELS: Final = ("debug", "info", "warning", "error")
FORMATS: Final = ("text", "json")
SCHEMA: Final = "fedlearn log/1"

_Command = TypeVar("_Command", bound=Callable[..., Any])


def configure_logging(level: str = "", *, form: str = "text") -> None:
    """Log to standard error at ``level``, or what ``FEDLEARN_LOG`` names; ``WARNING`` by default.

    :param form: ``text`` or ``json``. In text, only a traceback has more lines than one.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_JsonLines() if form == "json" else _TextLines())
    chosen = level or os.environ.get("FEDLEARN_LOG", "WARNING")
    logging.basicConfig(level=chosen.upper(), handlers=[handler])


def log_options(command: _Command) -> _Command:
    """Add ``--log-level`` and ``--log-format`` to a program; they become ``level`` and ``form``."""
    import click  # not at the top: clients in TEEs log, and have no command line

    command = click.option(
        "--log-format",
        "form",
        type=click.Choice(FORMATS),
        default="text",
        show_default=True,
        envvar="FEDLEARN_LOG_FORMAT",
        help="How the log is written to standard error (or FEDLEARN_LOG_FORMAT).",
    )(command)
    return click.option(
        "--log-level",
        "level",
        type=click.Choice(LEVELS, case_sensitive=False),
        default="info",
        show_default=True,
        envvar="FEDLEARN_LOG",
        help="What is logged (or FEDLEARN_LOG).",
    )(command)


def log_event(
    log: logging.Logger, event: str, text: str, *, level: int = logging.INFO, **fields: object
) -> None:
    """Log one event. ``fields`` are for programs; neither has a secret or content of an app."""
    log.log(level, "%s", text, extra={"event": event, "fields": fields})


class _TextLines(logging.Formatter):
    def formatTime(self, record: logging.LogRecord, datefmt: str | None = None) -> str:  # noqa: N802
        """Return the time of a record."""
        return _time(record)

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 (logging's name)
        """Return the line of a record."""
        name = getattr(record, "event", record.name)
        return f"{_time(record)} {record.levelname} {name}: {printable(record.message)}"


class _JsonLines(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        """Return one JSON object; its traceback, if there is one, is text in it."""
        found: dict[str, Any] = {
            "schema": SCHEMA,
            "time": _time(record),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        event, fields = getattr(record, "event", ""), getattr(record, "fields", {})
        if event:
            found["event"] = event
        if isinstance(fields, Mapping) and fields:
            found["fields"] = dict(fields)
        if record.exc_info:
            found["traceback"] = self.formatException(record.exc_info)
        return json_text(found)


def _time(record: logging.LogRecord) -> str:
    """Return the time of a record, in UTC (RFC 3339)."""
    moment = datetime.fromtimestamp(record.created, UTC)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")
