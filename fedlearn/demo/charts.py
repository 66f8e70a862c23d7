"""Charts as inline SVG, coloured by the page's style sheet so that they suit light and dark.

Each has a title and a description for screen readers; the page has the numbers in tables as well.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

__all__ = ["Mark", "Row", "dumbbells", "progress", "ticks"]

_WIDTH = 720
_FONT = 13
_LEAST_SPAN = 0.01


@dataclass(frozen=True, slots=True, kw_only=True)
class Mark:
    """A reference line: its value, its name, and the class that colours it."""

    value: float
    name: str
    style: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One row of a dumbbell chart."""

    name: str
    left: float
    right: float


def ticks(low: float, high: float, *, most: int = 6) -> list[float]:
    """Return round values that span ``low`` to ``high``, at most ``most`` + 1 of them."""
    if high - low < _LEAST_SPAN:
        low, high = low - _LEAST_SPAN / 2, high + _LEAST_SPAN / 2
    span = high - low
    step = 10.0 ** math.floor(math.log10(span / most))
    for factor in (1, 2, 5, 10, 20):
        if span / (step * factor) <= most - 1:
            step *= factor
            break
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(number * step, 10) for number in range(first, last + 1)]


def progress(values: Sequence[tuple[int, float]], marks: Sequence[Mark], *, name: str) -> str:
    """Return the metric round by round, with reference lines."""
    height, left, right, top, bottom = 340, 56, 150, 18, 44
    shown = [value for _, value in values if math.isfinite(value)]
    levels = [mark.value for mark in marks if math.isfinite(mark.value)]
    scale = ticks(min(shown + levels), max(shown + levels))
    low, high = scale[0], scale[-1]
    last = max(number for number, _ in values)

    def x(number: float) -> float:
        return left + (number - 1) / max(last - 1, 1) * (_WIDTH - left - right)

    def y(value: float) -> float:
        return height - bottom - (value - low) / (high - low) * (height - top - bottom)

    parts = [
        f'<line class="grid" x1="{left}" x2="{_WIDTH - right}" y1="{y(t):.1f}" y2="{y(t):.1f}"/>'
        f'<text class="tick" x="{left - 10}" y="{y(t) + 4:.1f}" text-anchor="end">{t:g}</text>'
        for t in scale
    ]
    every = max(1, math.ceil(last / 12))
    parts += [
        f'<text class="tick" x="{x(number):.1f}" y="{height - bottom + 22}" '
        f'text-anchor="middle">{number}</text>'
        for number, _ in values
        if (number - 1) % every == 0 or number == last
    ]
    parts.append(
        f'<text class="axis" x="{(left + _WIDTH - right) / 2:.0f}" y="{height - 4}" '
        f'text-anchor="middle">round</text>'
    )
    labels = _spread([(y(mark.value), mark) for mark in marks if math.isfinite(mark.value)])
    for at, mark in labels:
        parts.append(
            f'<line class="mark {mark.style}" x1="{left}" x2="{_WIDTH - right}" '
            f'y1="{y(mark.value):.1f}" y2="{y(mark.value):.1f}"/>'
            f'<text class="label {mark.style}" x="{_WIDTH - right + 10}" y="{at + 4:.1f}">'
            f"{escape(mark.name)} {mark.value:.3f}</text>"
        )
    points = [(x(number), y(value)) for number, value in values if math.isfinite(value)]
    path = " ".join(f"{a:.1f},{b:.1f}" for a, b in points)
    parts.append(f'<polyline class="curve" points="{path}"/>')
    for (number, value), (a, b) in zip(
        [item for item in values if math.isfinite(item[1])], points, strict=True
    ):
        parts.append(
            f'<circle class="dot federated" cx="{a:.1f}" cy="{b:.1f}" r="4.5">'
            f"<title>round {number}: {value:.3f}</title></circle>"
        )
    title = f"{name} of the federated model, round by round"
    description = f"From {shown[0]:.3f} after the first round to {shown[-1]:.3f} after the last."
    return _svg(parts, height, title, description)


def dumbbells(
    rows: Sequence[Row], marks: Sequence[Mark], *, name: str, left_name: str, right_name: str
) -> str:
    """Return two values for each row, joined by a line; a missing value leaves a dot out."""
    line, left, right, top, bottom = 34, 170, 40, 34, 46
    height = top + bottom + line * len(rows)
    every = [v for row in rows for v in (row.left, row.right) if math.isfinite(v)]
    every += [mark.value for mark in marks if math.isfinite(mark.value)]
    scale = ticks(min(every), max(every))
    low, high = scale[0], scale[-1]

    def x(value: float) -> float:
        return left + (value - low) / (high - low) * (_WIDTH - left - right)

    floor = height - bottom
    parts = [
        f'<line class="grid" x1="{x(t):.1f}" x2="{x(t):.1f}" y1="{top}" y2="{floor}"/>'
        f'<text class="tick" x="{x(t):.1f}" y="{floor + 20}" text-anchor="middle">{t:g}</text>'
        for t in scale
    ]
    parts.append(
        f'<text class="axis" x="{(left + _WIDTH - right) / 2:.0f}" y="{height - 4}" '
        f'text-anchor="middle">{escape(name)}</text>'
    )
    parts += [
        f'<line class="mark {mark.style}" x1="{x(mark.value):.1f}" '
        f'x2="{x(mark.value):.1f}" y1="{top - 8}" y2="{floor}"/>'
        f'<text class="label {mark.style}" x="{x(mark.value):.1f}" y="{top - 14}" '
        f'text-anchor="middle">{escape(mark.name)} {mark.value:.3f}</text>'
        for mark in marks
        if math.isfinite(mark.value)
    ]
    for index, row in enumerate(rows):
        at = top + line * index + line / 2
        parts.append(
            f'<text class="name" x="{left - 14}" y="{at + 4:.1f}" text-anchor="end">'
            f"{escape(row.name)}</text>"
        )
        if math.isfinite(row.left) and math.isfinite(row.right):
            parts.append(
                f'<line class="bar" x1="{x(row.left):.1f}" x2="{x(row.right):.1f}" '
                f'y1="{at:.1f}" y2="{at:.1f}"/>'
            )
        for value, style, what in (
            (row.left, "alone", left_name),
            (row.right, "federated", right_name),
        ):
            if math.isfinite(value):
                parts.append(
                    f'<circle class="dot {style}" cx="{x(value):.1f}" cy="{at:.1f}" r="6">'
                    f"<title>{escape(row.name)}, {escape(what)}: {value:.3f}</title></circle>"
                )
    better = sum(row.right > row.left for row in rows)
    title = f"{name} by site: {left_name} and {right_name}"
    description = f"{right_name} is better than {left_name} at {better} of {len(rows)} sites."
    return _svg(parts, height, title, description)


def _spread(
    items: list[tuple[float, Mark]], *, apart: float = _FONT + 4.0
) -> list[tuple[float, Mark]]:
    """Move labels apart, so that none covers another."""
    placed: list[tuple[float, Mark]] = []
    for at, mark in sorted(items, key=lambda item: item[0]):
        lowest = placed[-1][0] + apart if placed else at
        placed.append((max(at, lowest), mark))
    return placed


def _svg(parts: Sequence[str], height: int, title: str, description: str) -> str:
    body = "".join(parts)
    return (
        f'<svg viewBox="0 0 {_WIDTH} {height}" role="img" '
        f'aria-label="{escape(title)}. {escape(description)}">'
        f"<title>{escape(title)}</title><desc>{escape(description)}</desc>{body}</svg>"
    )
