"""The progress of a job: a live board on a terminal, lines elsewhere, JSON for programs.

:class:`Board` collects the state from events and draws nothing; the three outputs share it.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Final, Protocol, Self, TextIO

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from fedlearn.job import events
from fedlearn.job.event_fields import Findings
from fedlearn.terminal.console import colours, print_json, printable

__all__ = [
    "Board",
    "Show",
    "SiteRow",
    "bytes_text",
    "lines_show",
    "metrics_text",
    "seconds_text",
    "show_for",
]

_ROUNDS_SHOWN: Final = 8
_SITES_SHOWN: Final = 16
_METRICS_SHOWN: Final = 3


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


# --- the state ------------------------------------------------------------------------


@dataclass(slots=True, kw_only=True)
class SiteRow:
    """One site: its TEE, its status, and its updates."""

    state: str = "waiting"
    tee: str = ""
    updates: int = 0
    bytes: int = 0
    note: str = ""


@dataclass(slots=True, kw_only=True)
class Board:
    """The state of the job after the events so far."""

    job: str = ""
    state: str = "waiting"
    round: int = 0
    rounds: int = 0
    detail: str = ""
    model: str = ""
    privacy: events.PrivacySpent | None = None
    sites: dict[str, SiteRow] = field(default_factory=dict)
    finished: list[events.RoundFinished] = field(default_factory=list)

    def fold(self, event: events.Event) -> None:
        """Update the state by one event."""
        match event:
            case events.JobSubmitted() | events.JobStarted():
                self.job, self.rounds = event.job, event.rounds
                self.state = "running" if isinstance(event, events.JobStarted) else "waiting"
                for site in event.sites:
                    self._site(site)
            case events.ClientStarting():
                self._site(event.site).state = "starting"
            case events.ClientAdmitted():
                row = self._site(event.site)
                row.state, row.tee, row.note = "admitted", event.tee, ""
            case events.ClientRefused():
                row = self._site(event.site)
                row.state, row.note = "refused", event.reason
                row.tee = event.tee or row.tee
            case events.ClientQuarantined() | events.ClientLost():
                row = self._site(event.site)
                quarantined = isinstance(event, events.ClientQuarantined)
                row.state, row.note = "quarantined" if quarantined else "lost", event.reason
            case events.RoundStarted():
                self.state, self.round, self.rounds = "running", event.round, event.rounds
                for site in event.sites:
                    self._site(site).state = "training"
            case events.UpdateReceived():
                row = self._site(event.site)
                row.state, row.updates, row.bytes = "done", row.updates + 1, row.bytes + event.bytes
            case events.UpdateRejected():
                row = self._site(event.site)
                row.state, row.note = "rejected", event.reason
            case events.RoundFinished():
                self.round, self.rounds = event.round, event.rounds or self.rounds
                self.finished.append(event)
            case events.PrivacySpent():
                self.privacy = event
            case events.JobFinished():
                self.state, self.detail, self.model = "finished", event.detail, event.model
            case events.JobFailed() | events.JobCancelled() | events.JobInterrupted():
                self.state, self.detail = event.kind.removeprefix("job."), event.detail
            case _:
                pass

    def _site(self, name: str) -> SiteRow:
        return self.sites.setdefault(name, SiteRow())


# --- text -----------------------------------------------------------------------------


def bytes_text(count: int) -> str:
    """Return a size with a binary unit: ``1.4 MiB``."""
    size = float(count)
    for unit in ("B", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} GiB"


def seconds_text(seconds: float) -> str:
    """Return a duration: ``0.42 s``, ``3 min 05 s``."""
    if seconds < 60:
        return f"{seconds:.2f} s" if seconds < 10 else f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def metrics_text(metrics: Mapping[str, float], first: str = "") -> str:
    """Return a few metrics, the loss and ``first`` before the others."""
    ranked = sorted(metrics, key=lambda key: (key != "loss", key != first, key))
    parts = []
    for key in ranked[:_METRICS_SHOWN]:
        value = metrics[key]
        shown = f"{value:.4f}" if math.isfinite(value) and abs(value) < 1e4 else f"{value:.4g}"
        parts.append(f"{printable(key)} {shown}")
    return "  ".join(parts)


def privacy_text(spent: events.PrivacySpent) -> str:
    """Return an epsilon together with the values on which it depends."""
    limit = f" of {spent.limit:g}" if spent.limit else ""
    return (
        f"epsilon {spent.epsilon:.3f}{limit} at delta {spent.delta:g}, unit {spent.unit}, "
        f"{spent.sampling}, accountant {spent.accountant}"
    )


def event_text(event: events.Event, metric: str = "") -> str:
    """Return one line of text for ``event``; empty for an event without one."""
    return printable(_sentence(event, metric))


def _sentence(event: events.Event, metric: str) -> str:
    match event:
        case events.JobSubmitted():
            return f"job {event.job}: {event.rounds} rounds, {len(event.sites)} sites"
        case events.JobStarted():
            again = f", continued after round {event.resumed_from}" if event.resumed_from else ""
            return f"job {event.job}: started{again}"
        case events.ClientStarting():
            return f"site {event.site}: starting {event.detail}".rstrip()
        case events.ClientAdmitted():
            return f"site {event.site}: admitted ({event.tee})"
        case events.ClientRefused():
            return f"site {event.site}: REFUSED: {event.reason}{_why(event.findings)}"
        case events.ClientQuarantined():
            return f"site {event.site}: QUARANTINED: {event.reason}{_why(event.findings)}"
        case events.ClientLost():
            return f"site {event.site}: lost: {event.reason}"
        case events.UpdateRejected():
            return f"round {event.round}: update of {event.site} dropped: {event.reason}"
        case events.RoundStarted():
            return f"round {event.round}/{event.rounds}: started on {len(event.sites)} sites"
        case events.RoundFinished():
            total = f"/{event.rounds}" if event.rounds else ""
            numbers = f"{event.sites} sites  {seconds_text(event.seconds)}"
            numbers += f"  {bytes_text(event.bytes)}  {metrics_text(event.metrics, metric)}"
            return f"round {event.round}{total}: {numbers}".rstrip()
        case events.PrivacySpent():
            return f"round {event.round}: {privacy_text(event)}"
        case events.Log():
            return f"{event.site or 'server'} | {event.line}"
        case events.JobFinished():
            model = f", model {event.model} is sealed" if event.model else ""
            tail = f": {event.detail}" if event.detail else ""
            return f"job finished{model}{tail}"
        case events.JobFailed() | events.JobCancelled() | events.JobInterrupted():
            hint = f" ({event.hint})" if isinstance(event, events.JobFailed) and event.hint else ""
            return f"{event.kind.replace('.', ' ')}: {event.detail}{hint}".rstrip(": ")
        case events.OtherEvent():
            return f"{event.name}: {dict(event.body)}"
        case _:
            return ""


def _why(findings: Findings) -> str:
    wrong = [item for item in findings if item.get("tier") != "affirming"]
    if not wrong:
        return ""
    first = wrong[0]
    more = f" and {len(wrong) - 1} more" if len(wrong) > 1 else ""
    return (
        f" [{first.get('claim')}: expected {first.get('expected')}, "
        f"found {first.get('actual')}{more}]"
    )


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
        print_json(body)
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
        self._board = Board()
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
        self._board.fold(event)
        lasting = events.ClientRefused | events.ClientQuarantined | events.Log
        if isinstance(event, lasting | events.UpdateRejected):
            style = "" if isinstance(event, events.Log) else "red"
            self._live.console.print(Text(event_text(event, self._metric), style=style))

    def _draw(self) -> RenderableType:
        return draw(self._board, self._metric)


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


def draw(board: Board, metric: str = "") -> RenderableType:
    """Return the board as rich draws it."""
    head = Text.assemble(
        (printable(board.job) or "job", "bold"),
        "  ",
        (board.state, _STYLES.get(board.state, "cyan")),
        f"  round {board.round}/{board.rounds or '?'}",
    )
    parts: list[RenderableType] = [
        head,
        ProgressBar(total=max(board.rounds, 1), completed=len(board.finished), width=40),
        _sites_table(board),
    ]
    if board.finished:
        parts.append(_rounds_table(board, metric))
    if board.privacy is not None:
        parts.append(Text(printable(privacy_text(board.privacy)), style="magenta"))
    if board.detail or board.model:
        model = f"model {board.model} is sealed" if board.model else ""
        parts.append(Text(printable("  ".join(filter(None, (board.detail, model))))))
    return Group(*parts)


def _sites_table(board: Board) -> Table:
    grid = Table(box=None, pad_edge=False, header_style="dim")
    for title in ("site", "TEE", "state", "updates", "sent", ""):
        grid.add_column(title, justify="right" if title in ("updates", "sent") else "left")
    rows = list(board.sites.items())
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


def _rounds_table(board: Board, metric: str) -> Table:
    grid = Table(box=None, pad_edge=False, header_style="dim")
    for title in ("round", "clients", "seconds", "bytes", "metrics"):
        grid.add_column(title, justify="left" if title == "metrics" else "right")
    for done in board.finished[-_ROUNDS_SHOWN:]:
        grid.add_row(
            str(done.round),
            str(done.sites),
            seconds_text(done.seconds),
            bytes_text(done.bytes),
            Text(metrics_text(done.metrics, metric)),
        )
    return grid
