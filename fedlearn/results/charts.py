"""Charts as inline SVG, coloured by the page's style sheet so that they suit light and dark.

Each chart is drawn twice, for a wide and for a narrow page, and the style sheet shows one of them:
so its text has the same size on a telephone. Each has a title and a description for screen
readers; the page has the numbers in tables as well.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from typing import Final

from fedlearn.results.markup import Html, number_text
from fedlearn.terminal.plaintext import printable

__all__ = ["MOST_SERIES", "Mark", "Row", "Series", "curves", "dumbbells", "ticks"]

MOST_SERIES: Final = 8
"""How many curves one chart can tell apart."""

_WIDE: Final = 720
_NARROW: Final = 340
_FONT: Final = 13.0
_MOST_DOTS: Final = 60
_MOST_POINTS: Final = 1000
_MOST_NAME: Final = 22
_LARGEST: Final = 1e300
_LEAST_SPAN: Final = 0.01
"""The least height of a scale, as a part of its values: differences below are noise."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Mark:
    """A reference line: its value, its name, and the class that colours it."""

    value: float
    name: str
    style: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """One curve: its name and its points (x, y); points without a finite value are left out."""

    name: str
    points: Sequence[tuple[float, float]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One row of a dumbbell chart."""

    name: str
    left: float
    right: float


def ticks(low: float, high: float, *, most: int = 6) -> list[float]:
    """Return round values that span ``low`` to ``high``, at most ``most`` + 1 of them."""
    least = max(abs(low), abs(high), 1e-9) * _LEAST_SPAN
    if high - low < least:
        low, high = low - least / 2, high + least / 2
    span = high - low
    step = 10.0 ** math.floor(math.log10(span / most))
    for factor in (1, 2, 5, 10, 20):
        if span / (step * factor) <= most - 1:
            step *= factor
            break
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [float(f"{number * step:.10g}") for number in range(first, last + 1)]


def curves(
    series: Sequence[Series], marks: Sequence[Mark] = (), *, name: str, x_name: str = "round"
) -> Html:
    """Return one curve or several over the same scale, with reference lines.

    Empty when there is nothing to draw. Of more than 1000 points every k-th is drawn, and the last.

    :raises ValueError: for more than :data:`MOST_SERIES` curves.
    """
    if len(series) > MOST_SERIES:
        raise ValueError(f"{len(series)} curves; at most {MOST_SERIES} can be reported apart")
    shown = [
        Series(name=each.name, points=points)
        for each in series
        if (points := _thinned([p for p in each.points if _drawable(p[1])]))
    ]
    if not shown:
        return Html()
    marks = [mark for mark in marks if _drawable(mark.value)]
    title = f"{name} by {x_name}"
    ends = "; ".join(
        f"{each.name}: from {number_text(each.points[0][1])} to {number_text(each.points[-1][1])}"
        for each in shown
    )
    key = "" if len(shown) == 1 else _key(shown)
    wide = _curves(shown, marks, x_name, width=_WIDE)
    narrow = _curves(shown, marks, x_name, width=_NARROW)
    return Html(key + _pair(wide, narrow, title, ends))


def dumbbells(
    rows: Sequence[Row],
    marks: Sequence[Mark] = (),
    *,
    name: str,
    left_name: str,
    right_name: str,
) -> Html:
    """Return two values for each row, joined by a line; a missing value leaves a dot out.

    Empty when no row has a value.
    """
    marks = [mark for mark in marks if _drawable(mark.value)]
    values = [v for row in rows for v in (row.left, row.right) if _drawable(v)]
    if not values:
        return Html()
    scale = ticks(
        min(values + [mark.value for mark in marks]), max(values + [mark.value for mark in marks])
    )
    known = [row for row in rows if _drawable(row.left) and _drawable(row.right)]
    better = sum(row.right > row.left for row in known)
    title = f"{name} by site: {left_name} and {right_name}"
    description = f"{right_name} is better than {left_name} at {better} of {len(known)} sites."
    names = (left_name, right_name)
    wide = _dumbbells(rows, marks, scale, name, names, width=_WIDE)
    narrow = _dumbbells(rows, marks, scale, name, names, width=_NARROW)
    legend = (
        f"<p class='legend'><span class='alone'>{_text(left_name)}</span>"
        f"<span class='federated'>{_text(right_name)}</span></p>"
    )
    return Html(legend + _pair(wide, narrow, title, description))


# --- curves ---------------------------------------------------------------------------


def _curves(
    series: Sequence[Series], marks: Sequence[Mark], x_name: str, *, width: int
) -> tuple[int, list[str]]:
    narrow = width == _NARROW
    height, left, top, bottom = (260, 44, 14, 44) if narrow else (340, 56, 18, 44)
    right = 150 if marks and not narrow else 16
    values = [y for each in series for _, y in each.points] + [mark.value for mark in marks]
    scale = ticks(min(values), max(values), most=5 if narrow else 6)
    numbers = [x for each in series for x, _ in each.points]
    x = _scale(min(numbers), max(numbers), left, width - right)
    y = _scale(scale[0], scale[-1], height - bottom, top)
    parts = [
        f'<line class="grid" x1="{left}" x2="{width - right}" y1="{y(t):.1f}" y2="{y(t):.1f}"/>'
        f'<text class="tick" x="{left - 8}" y="{y(t) + 4:.1f}" text-anchor="end">{t:.4g}</text>'
        for t in scale
    ]
    parts += [
        f'<text class="tick" x="{x(t):.1f}" y="{height - bottom + 20}" '
        f'text-anchor="middle">{t:g}</text>'
        for t in _whole_ticks(min(numbers), max(numbers), most=5 if narrow else 10)
    ]
    parts.append(
        f'<text class="axis" x="{(left + width - right) / 2:.0f}" y="{height - 4}" '
        f'text-anchor="middle">{_text(x_name)}</text>'
    )
    for index, each in enumerate(series):
        points = [(x(a), y(b)) for a, b in each.points]
        path = " ".join(f"{a:.1f},{b:.1f}" for a, b in points)
        parts.append(f'<polyline class="curve s{index}" points="{path}"/>')
        if len(points) <= _MOST_DOTS:
            parts += [
                f'<circle class="dot s{index}" cx="{a:.1f}" cy="{b:.1f}" r="4">'
                f"<title>{_text(each.name)}, {_text(x_name)} {number:g}: {number_text(value)}"
                "</title></circle>"
                for (number, value), (a, b) in zip(each.points, points, strict=True)
            ]
    return height, parts + _marks(marks, y, left=left, width=width, right=right)


def _marks(
    marks: Sequence[Mark], y: Callable[[float], float], *, left: int, width: int, right: int
) -> list[str]:
    """Return reference lines; their names are beside the plot, or on the line if narrow."""
    parts = []
    inside = width == _NARROW
    for at, mark in _spread([(y(mark.value), mark) for mark in marks]):
        line = f'x1="{left}" x2="{width - right}" y1="{y(mark.value):.1f}" y2="{y(mark.value):.1f}"'
        where = (
            f'x="{width - right}" y="{at - 4:.1f}" text-anchor="end"'
            if inside
            else f'x="{width - right + 10}" y="{at + 4:.1f}"'
        )
        parts.append(
            f'<line class="mark {mark.style}" {line}/><text class="label {mark.style}" {where}>'
            f"{_text(mark.name)} {number_text(mark.value)}</text>"
        )
    return parts


def _key(series: Sequence[Series]) -> str:
    spans = "".join(f'<span class="s{i}">{_text(s.name)}</span>' for i, s in enumerate(series))
    return f"<p class='legend'>{spans}</p>"


# --- dumbbells ------------------------------------------------------------------------


def _dumbbells(
    rows: Sequence[Row],
    marks: Sequence[Mark],
    scale: Sequence[float],
    name: str,
    names: tuple[str, str],
    *,
    width: int,
) -> tuple[int, list[str]]:
    narrow = width == _NARROW
    line, left, right, top, bottom = (44, 14, 18, 12, 46) if narrow else (34, 170, 40, 12, 46)
    top += 22 if marks else 0
    height = top + bottom + line * len(rows)
    x = _scale(scale[0], scale[-1], left, width - right)
    floor = height - bottom
    every = 2 if narrow and len(scale) > 5 else 1
    parts = [
        f'<line class="grid" x1="{x(t):.1f}" x2="{x(t):.1f}" y1="{top}" y2="{floor}"/>'
        f'<text class="tick" x="{x(t):.1f}" y="{floor + 20}" text-anchor="middle">{t:.4g}</text>'
        for t in scale[::every]
    ]
    parts.append(
        f'<text class="axis" x="{(left + width - right) / 2:.0f}" y="{height - 4}" '
        f'text-anchor="middle">{_text(name)}</text>'
    )
    parts += [
        f'<line class="mark {mark.style}" x1="{x(mark.value):.1f}" '
        f'x2="{x(mark.value):.1f}" y1="{top - 8}" y2="{floor}"/>'
        f'<text class="label {mark.style}" x="{min(max(x(mark.value), 60), width - 60):.1f}" '
        f'y="{top - 14}" text-anchor="middle">{_text(mark.name)} {number_text(mark.value)}</text>'
        for mark in marks
    ]
    for index, row in enumerate(rows):
        at = top + line * (index + 0.5) + (8 if narrow else 0)
        where = f'x="{left}" y="{at - 12:.1f}"' if narrow else f'x="{left - 14}" y="{at + 4:.1f}"'
        anchor = "" if narrow else ' text-anchor="end"'
        parts.append(f'<text class="name" {where}{anchor}>{_text(_cut(row.name))}</text>')
        dots = [
            (value, style, what)
            for value, style, what in (
                (row.left, "alone", names[0]),
                (row.right, "federated", names[1]),
            )
            if _drawable(value)
        ]
        if len(dots) == 2:
            parts.append(
                f'<line class="bar" x1="{x(row.left):.1f}" x2="{x(row.right):.1f}" '
                f'y1="{at:.1f}" y2="{at:.1f}"/>'
            )
        parts += [
            f'<circle class="dot {style}" cx="{x(value):.1f}" cy="{at:.1f}" r="6">'
            f"<title>{_text(row.name)}, {_text(what)}: {number_text(value)}</title></circle>"
            for value, style, what in dots
        ]
    return height, parts


# --- small pieces ---------------------------------------------------------------------


def _drawable(value: float) -> bool:
    return math.isfinite(value) and abs(value) < _LARGEST


def _thinned(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    every = math.ceil(len(points) / _MOST_POINTS)
    kept = points[::every] if every > 1 else list(points)
    if points and kept[-1] != points[-1]:
        kept.append(points[-1])
    return kept


def _scale(low: float, high: float, start: float, end: float) -> Callable[[float], float]:
    """Return the position of a value: ``start`` for ``low``, ``end`` for ``high``."""
    if high <= low:
        return lambda _: (start + end) / 2
    return lambda value: start + (value - low) / (high - low) * (end - start)


def _whole_ticks(low: float, high: float, *, most: int) -> list[float]:
    """Return whole numbers from ``low`` to ``high`` for an axis of rounds, both ends included."""
    first, last = math.ceil(low), math.floor(high)
    every = max(1, math.ceil((last - first) / most))
    found = [float(number) for number in range(first, last + 1, every)]
    if found and last - found[-1] >= every / 2:
        found.append(float(last))
    return found


def _spread(
    placed: Sequence[tuple[float, Mark]], *, apart: float = _FONT + 4.0
) -> list[tuple[float, Mark]]:
    """Move labels apart, so that none covers another."""
    moved: list[tuple[float, Mark]] = []
    for at, mark in sorted(placed, key=lambda item: item[0]):
        lowest = moved[-1][0] + apart if moved else at
        moved.append((max(at, lowest), mark))
    return moved


def _cut(text: str) -> str:
    return text if len(text) <= _MOST_NAME else f"{text[:12]}…{text[-8:]}"


def _text(text: str) -> str:
    return escape(printable(text))


def _pair(
    wide: tuple[int, list[str]], narrow: tuple[int, list[str]], title: str, description: str
) -> str:
    return "".join(
        f'<svg class="{style}" viewBox="0 0 {width} {height}" role="img" '
        f'aria-label="{_text(title)}. {_text(description)}">'
        f"<title>{_text(title)}</title><desc>{_text(description)}</desc>{''.join(parts)}</svg>"
        for style, width, (height, parts) in (
            ("wide", _WIDE, wide),
            ("narrow", _NARROW, narrow),
        )
    )
