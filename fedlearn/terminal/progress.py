"""The progress of a job: a live view on a terminal, lines elsewhere, JSON for programs."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from types import TracebackType
from typing import Final, Protocol, Self, TextIO

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from fedlearn.job import events
from fedlearn.results.history import RunHistory
from fedlearn.results.text import (
    bytes_text,
    event_text,
    metrics_text,
    privacy_text,
    seconds_text,
)
from fedlearn.terminal.console import colours, print_json, printable

__all__ = ["Show", "draw", "lines_show", "show_for"]

_ROUNDS_SHOWN: Final = 8
_SITES_SHOWN: Final = 16


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
        lasting = events.ClientRefused | events.ClientQuarantined | events.Log
        if isinstance(event, lasting | events.UpdateRejected):
            style = "" if isinstance(event, events.Log) else "red"
            self._live.console.print(Text(event_text(event, self._metric), style=style))

    def _draw(self) -> RenderableType:
        return draw(self._history, self._metric)


_STYLES: Final[Mapping[str, str]] = {
    "admitted": "green",
    "cancelled": "yellow",
    "done": "green",
    "failed": "red",
    "finished": "green",
    "interrupted": "yellow",
    "lost": "yellow",
    "quarantined": "red",
    "refused": "bold red",
    "rejected": "red",
    "training": "cyan",
}


def draw(history: RunHistory, metric: str = "") -> RenderableType:
    """Return the history as rich draws it."""
    head = Text.assemble(
        (printable(history.job) or "job", "bold"),
        "  ",
        (history.status, _STYLES.get(history.status, "cyan")),
        f"  round {history.round}/{history.planned or '?'}",
    )
    parts: list[RenderableType] = [
        head,
        ProgressBar(total=max(history.planned, 1), completed=len(history.finished), width=40),
        _sites_table(history),
    ]
    if history.finished:
        parts.append(_rounds_table(history, metric))
    if history.privacy:
        parts.append(Text(printable(privacy_text(history.privacy[-1])), style="magenta"))
    if history.detail or history.model:
        model = f"model {history.model} is sealed" if history.model else ""
        parts.append(Text(printable("  ".join(filter(None, (history.detail, model))))))
    return Group(*parts)


def _sites_table(history: RunHistory) -> Table:
    grid = Table(box=None, pad_edge=False, header_style="dim")
    for title in ("site", "TEE", "state", "updates", "sent", ""):
        grid.add_column(title, justify="right" if title in ("updates", "sent") else "left")
    rows = list(history.sites.items())
    for name, row in rows[:_SITES_SHOWN]:
        grid.add_row(
            Text(printable(name)),
            Text(printable(row.tee or "-")),
            Text(row.state, style=_STYLES.get(row.state, "dim")),
            str(row.updates),
            bytes_text(row.bytes),
            Text(printable(row.note), style="red", overflow="ellipsis", no_wrap=True),
        )
    if len(rows) > _SITES_SHOWN:
        grid.add_row(f"and {len(rows) - _SITES_SHOWN} more", "", "", "", "", "")
    return grid


def _rounds_table(history: RunHistory, metric: str) -> Table:
    grid = Table(box=None, pad_edge=False, header_style="dim")
    for title in ("round", "clients", "seconds", "bytes", "metrics"):
        grid.add_column(title, justify="left" if title == "metrics" else "right")
    for done in history.finished[-_ROUNDS_SHOWN:]:
        grid.add_row(
            str(done.number),
            str(done.sites),
            seconds_text(done.seconds),
            bytes_text(done.bytes),
            Text(metrics_text(done.metrics, metric)),
        )
    return grid
