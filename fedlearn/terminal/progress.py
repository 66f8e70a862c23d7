"""The progress of a job: a live view on a terminal, lines elsewhere, JSON for programs."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Protocol, Self, TextIO

from rich.console import Console, RenderableType
from rich.live import Live
from rich.text import Text

from fedlearn.job import events
from fedlearn.results.history import RunHistory
from fedlearn.results.text import event_text
from fedlearn.terminal.console import colours, print_json
from fedlearn.terminal.view import draw

__all__ = ["Show", "draw", "lines_show", "show_for"]


class Show(Protocol):
    """An output that shows events as they are received."""

    def __enter__(self) -> Self:
        """Start the output."""
        ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Restore the terminal."""
        ...

    def show(self, event: events.Event, *, unix_ms: int = 0) -> None:
        """Show one event; ``unix_ms`` is its time, 0 when that is not known."""
        ...


def show_for(*, as_json: bool, stream: TextIO | None = None, metric: str = "") -> Show:
    """Return an output: JSON lines, a live board on a terminal, or plain lines elsewhere.

    ``metric`` is the one to show first.
    """
    if as_json:
        return _JsonShow()
    target = stream or sys.stdout
    if target.isatty() and colours():
        return _LiveShow(Console(file=target), metric)
    return _PlainShow(target, metric)


def lines_show(*, as_json: bool, stream: TextIO | None = None, metric: str = "") -> Show:
    """Return an output that prints one line an event, on a terminal as well."""
    return _JsonShow() if as_json else _PlainShow(stream or sys.stdout, metric)


# --- the three outputs ----------------------------------------------------------------


class _Quiet:
    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        return None


class _JsonShow(_Quiet):
    def show(self, event: events.Event, *, unix_ms: int = 0) -> None:
        """Print one object on one line."""
        body = event.to_json()
        if unix_ms:
            body["unix_ms"] = unix_ms
        print_json(body, schema=events.EVENT_SCHEMA)
        sys.stdout.flush()


class _PlainShow(_Quiet):
    def __init__(self, stream: TextIO, metric: str) -> None:
        self._stream = stream
        self._metric = metric

    def show(self, event: events.Event, *, unix_ms: int = 0) -> None:
        """Print one line."""
        if text := event_text(event, self._metric):
            print(text, file=self._stream, flush=True)


class _LiveShow:
    def __init__(self, console: Console, metric: str) -> None:
        self._history = RunHistory()
        self._metric = metric
        self._received = time.monotonic()
        self._live = Live(
            console=console, refresh_per_second=8, get_renderable=self._draw, transient=False
        )

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._live.stop()

    def show(self, event: events.Event, *, unix_ms: int = 0) -> None:
        """Redraw the board; lines that must stay visible are printed above it."""
        self._history.add(event, unix_ms=unix_ms)
        self._received = time.monotonic()
        lasting = events.ClientRefused | events.ClientQuarantined | events.Log
        if isinstance(event, lasting | events.UpdateRejected):
            style = "" if isinstance(event, events.Log) else "red"
            self._live.console.print(Text(event_text(event, self._metric), style=style))

    def _draw(self) -> RenderableType:
        # By the clock of the events, which may differ from the one here.
        passed = int(1000 * (time.monotonic() - self._received))
        now = self._history.last_unix_ms + passed if self._history.last_unix_ms else 0
        return draw(self._history, self._metric, now_unix_ms=now)
