"""The live view of a run, drawn to fit a terminal of 60 columns or more.

Nothing is cut in the middle of a word without a sign: heads are never cut, names of sites are
shortened from the middle (``hosp…ls-3``), and a metric or a number that does not fit is left out as
a whole.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from rich.console import Console, ConsoleOptions, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from fedlearn.results.history import RunHistory
from fedlearn.results.text import bytes_text, event_text, metric_texts, privacy_text, seconds_text
from fedlearn.terminal.plaintext import printable

__all__ = ["draw", "shortened_name"]

_ROUNDS_SHOWN: Final = 8
_SITES_SHOWN: Final = 16
_OTHER_LINES: Final = 9
"""Lines beside those of sites and rounds, at most, and one below the view."""
_LEAST_WIDTH: Final = 40
_LEAST_NAME: Final = 9
_MOST_NAME: Final = 40
_BAR_WIDTH: Final = 60
_GAP: Final = "  "

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


def draw(history: RunHistory, metric: str = "", *, now_unix_ms: int = 0) -> RenderableType:
    """Return the view as rich draws it, at the width that rich gives it.

    :param metric: the one to show first.
    :param now_unix_ms: the time now by the clock of the events; that of the last one if it is 0.
    """
    return _View(history, metric, now_unix_ms)


def shortened_name(name: str, width: int) -> str:
    """Return a name of at most ``width`` characters, shortened from the middle.

    >>> shortened_name("hospitals-of-the-south-3", 10)
    'hosp…uth-3'
    """
    if len(name) <= width:
        return name
    head = max(1, (width - 1) // 2)
    return f"{name[:head]}…{name[len(name) - (width - 1 - head) :]}"


@dataclass(frozen=True, slots=True)
class _View:
    history: RunHistory
    metric: str
    now_unix_ms: int

    def __rich_console__(
        self, console: Console, options: ConsoleOptions
    ) -> Iterator[RenderableType]:
        width = max(_LEAST_WIDTH, options.max_width)
        history = self.history
        sites, rounds = _SITES_SHOWN, _ROUNDS_SHOWN
        if console.is_terminal:
            lines = max(6, console.size.height - _OTHER_LINES)
            rounds = min(rounds, lines // 2)
            sites = min(sites, lines - min(rounds, len(history.finished)))
        yield self._head(width)
        yield self._bar(width)
        if waiting := self._waiting(width):
            yield waiting
        yield from _sites(history, width, sites)
        if history.finished:
            yield from _rounds(history, self.metric, width, rounds)
        if history.privacy:
            yield Text(privacy_text(history.privacy[-1]), style="magenta")
        if history.detail or history.model:
            model = f"model {history.model} is sealed" if history.model else ""
            yield Text(printable(_GAP.join(filter(None, (history.detail, model)))))

    def _head(self, width: int) -> Text:
        history = self.history
        name = shortened_name(printable(history.job) or "job", max(_LEAST_NAME, width - 34))
        parts = [
            (f"round {history.round}/{history.planned or '?'}", ""),
            (seconds_text(history.elapsed(now_unix_ms=self.now_unix_ms)), ""),
            (self._left(), ""),
            (bytes_text(history.bytes) if history.bytes else "", ""),
        ]
        return _fitted(
            [(name, "bold"), (history.status, _STYLES.get(history.status, "cyan")), *parts], width
        )

    def _left(self) -> str:
        left = self.history.remaining(now_unix_ms=self.now_unix_ms)
        return f"about {seconds_text(left)} left" if left else ""

    def _bar(self, width: int) -> RenderableType:
        total = max(self.history.planned, 1)
        done = sum(each.stage == self.history.stage for each in self.history.finished)
        # A grid of one cell ends its row, which a bar alone does not.
        row = Table.grid()
        row.add_row(ProgressBar(total=total, completed=done, width=min(width, _BAR_WIDTH)))
        return row

    def _waiting(self, width: int) -> Text | None:
        history = self.history
        if history.ended:
            return None
        if history.waiting is not None:
            return Text(event_text(history.waiting), style="yellow")
        missing = history.waits_for
        if not missing:
            return Text("aggregating and evaluating", style="dim") if history.current else None
        asked = len(history.current.asked) if history.current else len(history.sites)
        for_what = "waits for" if history.current else "waits for the admission of"
        count = f"({len(missing)} of {asked})"
        text = f"{for_what} {len(missing)} sites {count}"
        for shown in range(min(len(missing), 6), 0, -1):
            names = ", ".join(shortened_name(printable(name), 16) for name in missing[:shown])
            more = f" and {len(missing) - shown} more" if len(missing) > shown else ""
            if len(found := f"{for_what} {names}{more} {count}") <= width:
                text = found
                break
        return Text(text, style="yellow")


def _sites(history: RunHistory, width: int, most: int) -> Iterator[RenderableType]:
    rows = list(history.sites.values())
    if not rows:
        return
    shown = rows[:most]
    heads = ["site", "TEE", "state", "updates", "sent"]
    cells = [
        [
            (printable(row.name), ""),
            (printable(row.tee) or "-", ""),
            (row.state, _STYLES.get(row.state, "dim")),
            (str(row.updates), ""),
            (bytes_text(row.bytes), ""),
        ]
        for row in shown
    ]
    widths = [max(len(head), *(len(row[i][0]) for row in cells)) for i, head in enumerate(heads)]
    while len(heads) > 3 and _LEAST_NAME + sum(widths[1:]) + len(_GAP) * (len(heads) - 1) > width:
        heads.pop()
        widths.pop()
    others = sum(widths[1:]) + len(_GAP) * (len(heads) - 1)
    widths[0] = min(widths[0], _MOST_NAME, max(_LEAST_NAME, width - others))
    left = width - sum(widths) - len(_GAP) * len(heads)
    yield _row([(head, "dim") for head in heads], widths, right=(3, 4))
    for row, line in zip(shown, cells, strict=True):
        line[0] = (shortened_name(line[0][0], widths[0]), "")
        text = _row(line[: len(heads)], widths, right=(3, 4))
        note = printable(row.note)
        if note and left >= 12:
            text.append(_GAP + (note if len(note) <= left else note[: left - 1] + "…"), style="red")
        yield text
    if len(rows) > len(shown):
        yield Text(f"and {len(rows) - len(shown)} more", style="dim")


def _rounds(history: RunHistory, metric: str, width: int, most: int) -> Iterator[RenderableType]:
    heads = ["round", "sites", "time", "bytes"]
    done = history.finished[-most:]
    cells = [
        [
            str(each.number),
            f"{each.sites}/{len(each.asked)}" if each.asked else str(each.sites),
            seconds_text(each.seconds),
            bytes_text(each.bytes),
        ]
        for each in done
    ]
    widths = [max(len(head), *(len(row[i]) for row in cells)) for i, head in enumerate(heads)]
    left = width - sum(widths) - len(_GAP) * len(heads)
    every = (0, 1, 2, 3)
    head = _row([(head, "dim") for head in heads], widths, right=every)
    yield head.append(f"{_GAP}metrics", style="dim") if left >= len("metrics") else head
    for each, row in zip(done, cells, strict=True):
        text = _row([(cell, "") for cell in row], widths, right=every)
        texts = metric_texts(each.metrics, metric)
        while texts and len(_GAP.join(texts)) > left:
            texts.pop()
        yield text.append(_GAP + _GAP.join(texts)) if texts else text


def _fitted(parts: Sequence[tuple[str, str]], width: int) -> Text:
    """Return the parts beside each other, without those at the end that do not fit."""
    text = Text(no_wrap=True)
    for words, style in parts:
        if not words:
            continue
        gap = _GAP if text.plain else ""
        if len(text.plain) + len(gap) + len(words) > width:
            break
        text.append(gap).append(words, style=style)
    return text


def _row(cells: Sequence[tuple[str, str]], widths: Sequence[int], *, right: Sequence[int]) -> Text:
    text = Text(no_wrap=True, overflow="ellipsis")
    for index, ((words, style), width) in enumerate(zip(cells, widths, strict=True)):
        padded = words.rjust(width) if index in right else words.ljust(width)
        text.append(_GAP if index else "").append(padded, style=style)
    text.rstrip()
    return text
