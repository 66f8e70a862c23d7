"""A plot as one SVG file in the style of docs/assets: panels of one curve each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Final

from fedlearn.results.charts import ticks

__all__ = ["Panel", "chart"]

_WIDTH: Final = 380
_HEIGHT: Final = 200
_LEFT, _RIGHT, _TOP, _BOTTOM = 58, 16, 34, 42
_STYLE: Final = """<style>
  .d text { font: 13px system-ui, sans-serif; fill: var(--md-default-fg-color, #1f2328); }
  .d .head { font-weight: 600; }
  .d .note { fill: var(--md-default-fg-color--light, #57606a); }
  .d .axis { stroke: var(--md-default-fg-color--light, #57606a); stroke-width: 0.6; }
  .d .line { fill: none; stroke: #3f7fd6; stroke-width: 1.6; }
  @media (prefers-color-scheme: dark) {
    .d text { fill: var(--md-default-fg-color, #e6edf3); }
    .d .note { fill: var(--md-default-fg-color--light, #9da7b3); }
    .d .axis { stroke: var(--md-default-fg-color--light, #9da7b3); }
  }
</style>"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Panel:
    """One curve with its own scale, which begins at 0. ``x_name`` is below the axis."""

    name: str
    x_name: str
    points: Sequence[tuple[float, float]]


def chart(panels: Sequence[Panel], *, columns: int, title: str) -> str:
    """Return an SVG file; panels fill it column by column."""
    rows = -(-len(panels) // columns)
    ends = "; ".join(
        f"{panel.name} over {panel.x_name}: from {panel.points[0][1]:g} to {panel.points[-1][1]:g}"
        for panel in panels
    )
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" class="d" viewBox="0 0 {columns * _WIDTH} '
        f'{rows * _HEIGHT}" role="img" aria-labelledby="plot-t plot-d">',
        f'<title id="plot-t">{escape(title)}</title>',
        f'<desc id="plot-d">{escape(ends)}.</desc>',
        _STYLE,
    ]
    for number, panel in enumerate(panels):
        column, row = divmod(number, rows)
        lines.append(f'<g transform="translate({column * _WIDTH} {row * _HEIGHT})">')
        lines += _panel(panel)
        lines.append("</g>")
    return "\n".join([*lines, "</svg>"]) + "\n"


def _panel(panel: Panel) -> list[str]:
    last = max(x for x, _ in panel.points) or 1.0
    scale = ticks(0.0, max(y for _, y in panel.points) or 1.0, most=4)
    width, height = _WIDTH - _LEFT - _RIGHT, _HEIGHT - _TOP - _BOTTOM

    def at(x: float, y: float) -> tuple[float, float]:
        return _LEFT + width * x / last, _TOP + height * (1 - y / scale[-1])

    lines = [f'<text class="head" x="{_LEFT}" y="20">{escape(panel.name)}</text>']
    for value in scale:
        _, y = at(0, value)
        lines.append(
            f'<line class="axis" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
            f'<text class="note" x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{value:g}</text>'
        )
    for value in ticks(0.0, last, most=5):
        if value <= last:
            x, _ = at(value, 0)
            lines.append(
                f'<text class="note" x="{x:.1f}" y="{_HEIGHT - _BOTTOM + 17}" '
                f'text-anchor="middle">{value:g}</text>'
            )
    lines.append(
        f'<text class="note" x="{_LEFT + width / 2:.0f}" y="{_HEIGHT - 8}" '
        f'text-anchor="middle">{escape(panel.x_name)}</text>'
    )
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in (at(*point) for point in panel.points))
    lines.append(f'<polyline class="line" points="{path}"/>')
    return lines
