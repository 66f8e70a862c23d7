"""The figures of an experiment, as PNG and PDF: only those that the results have the values for.

A line is the mean over the seeds, its band one standard deviation to each side. Colours are those
of Okabe and Ito, which colour-blind readers can tell apart, and each line has a dash pattern too.
The same results give the same bytes: files have no date.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from fedlearn import extras
from fedlearn.experiment.spec import HOOK, ExperimentSpec
from fedlearn.experiment.statistics import Arm, summarize
from fedlearn.experiment.store import CellResult, RoundResult
from fedlearn.results.text import bytes_text

__all__ = [
    "MOST_LINES",
    "Figure",
    "Figures",
    "Panel",
    "attackers_axis",
    "draw_figures",
    "panels",
    "worst_tenth",
]

MOST_LINES: Final = 8
"""How many lines of one figure can be distinguished."""

_COLOURS: Final = (
    "#0072B2",
    "#D55E00",
    "#009E73",
    "#CC79A7",
    "#E69F00",
    "#56B4E9",
    "#000000",
    "#7F7F7F",
)
_DASHES: Final = ("-", "--", "-.", ":", (0, (5, 1)), (0, (3, 1, 1, 1)), (0, (1, 1)), (0, (7, 3)))
_GRID: Final = 200
_WORST: Final = 0.1

Values = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One figure; ``name`` is the stem of its files."""

    name: str
    title: str
    caption: str
    png: bytes
    pdf: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """What was drawn, and for what was not, why."""

    drawn: tuple[Figure, ...]
    omitted: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Panel:
    """Arms that differ in the compared axis only: the lines of one figure.

    ``label`` names the points of the other axes; ``lines`` has the compared label of each arm.
    """

    label: str
    lines: tuple[tuple[str, Arm], ...]


def panels(spec: ExperimentSpec, arms: Sequence[Arm]) -> list[Panel]:
    """Return the arms by the points of all axes except the compared one."""
    axis = spec.compared
    found: dict[tuple[str, ...], list[tuple[str, Arm]]] = {}
    for arm in arms:
        others = tuple(label for name, label in arm.labels.items() if name != axis)
        found.setdefault(others, []).append((arm.labels.get(axis, arm.name), arm))
    return [Panel(label=", ".join(others), lines=tuple(lines)) for others, lines in found.items()]


def attackers_axis(spec: ExperimentSpec) -> str:
    """Return the hooks' key with the attackers' share (``hook.share``), or an empty string."""
    keys = sorted({key for axis in spec.grid for key in axis.keys})
    return next((k for k in keys if k.startswith(HOOK) and k.endswith("share")), "")


def draw_figures(spec: ExperimentSpec, arms: Sequence[Arm]) -> Figures:
    """Return every figure that the results allow.

    :raises ConfigError: when matplotlib is not installed.
    """
    extras.load("matplotlib", needed_for="the figures of a report")
    canvas = _Canvas()
    for metric in spec.report_metrics:
        for panel in panels(spec, arms):
            _curves(canvas, metric, panel)
        _privacy(canvas, spec, metric, arms)
        _robustness(canvas, spec, metric, arms)
    for panel in panels(spec, arms):
        _fairness(canvas, spec, panel)
    return Figures(drawn=tuple(canvas.drawn), omitted=tuple(dict.fromkeys(canvas.omitted)))


# --- by round, by bytes, by virtual time ----------------------------------------------


def _curves(canvas: _Canvas, metric: str, panel: Panel) -> None:
    lines = [(label, arm) for label, arm in panel.lines if any(c.series(metric) for c in arm.cells)]
    where = f" ({panel.label})" if panel.label else ""
    if not lines:
        canvas.omit(f"{metric} by round{where}", "no round has a value of it")
        return
    if len(lines) > MOST_LINES:
        canvas.omit(
            f"{metric} by round{where}",
            f"{len(lines)} arms; at most {MOST_LINES} lines of a figure can be distinguished: "
            "choose another axis with `report.compare`",
        )
        return
    kinds: tuple[tuple[str, str, Callable[[CellResult], Values | None]], ...] = (
        ("round", "round", lambda cell: _xs(cell, metric, lambda r: r.round)),
        ("bytes", "bytes sent and received", lambda cell: _bytes(cell, metric)),
        (
            "virtual-time",
            "simulated seconds",
            lambda cell: _xs(cell, metric, lambda r: r.virtual_seconds),
        ),
    )
    for name, x_name, positions in kinds:
        curves = []
        for label, arm in lines:
            curve = _mean_curve(arm, metric, positions)
            if curve is not None:
                curves.append((label, curve))
        if not curves:
            why = "the simulation had no virtual time" if name == "virtual-time" else "none counted"
            canvas.omit(f"{metric} by {x_name}{where}", why)
            continue
        seeds = sorted({len(arm.cells) for _, arm in lines})
        with canvas.figure(
            f"{metric}-by-{name}{_slug(panel.label)}",
            f"{metric} by {x_name}{where}",
            f"Mean and one standard deviation over {_counts(seeds)}.",
        ) as axes:
            for index, (label, (x, mean, deviation)) in enumerate(curves):
                axes.plot(x, mean, color=_COLOURS[index], linestyle=_DASHES[index], label=label)
                if np.isfinite(deviation).all():
                    axes.fill_between(
                        x, mean - deviation, mean + deviation, color=_COLOURS[index], alpha=0.18
                    )
            axes.set_xlabel(x_name)
            axes.set_ylabel(metric)
            if name == "bytes":
                axes.xaxis.set_major_formatter(lambda value, _: bytes_text(max(0, int(value))))
            axes.legend()


def _mean_curve(
    arm: Arm, metric: str, positions: Callable[[CellResult], Values | None]
) -> tuple[Values, Values, Values] | None:
    """Return x, mean and deviation over the seeds, on the x that all of them have reached."""
    runs = []
    for cell in arm.cells:
        x = positions(cell)
        y = np.asarray([value for _, value in cell.series(metric)])
        if x is not None and len(x) == len(y) and len(x):
            runs.append((x, y))
    if not runs:
        return None
    x = runs[0][0]
    if any(len(other) != len(x) or not np.array_equal(other, x) for other, _ in runs[1:]):
        low, high = max(r[0][0] for r in runs), min(r[0][-1] for r in runs)
        if low > high:
            return None
        x = np.linspace(low, high, _GRID)
        # Between two rounds a model is the one of the earlier round.
        found = np.stack([y[np.searchsorted(at, x, side="right") - 1] for at, y in runs])
    else:
        found = np.stack([y for _, y in runs])
    if len(runs) == 1:
        return x, found[0], np.full(len(x), math.nan)
    return x, found.mean(axis=0), found.std(axis=0, ddof=1)


def _xs(
    cell: CellResult, metric: str, position: Callable[[RoundResult], float | None]
) -> Values | None:
    found = [position(each) for each, _ in cell.series(metric)]
    known = [value for value in found if value is not None]
    return np.asarray(known, dtype=np.float64) if len(known) == len(found) else None


def _bytes(cell: CellResult, metric: str) -> Values | None:
    total, sums = 0, {}
    for each in cell.rounds:
        total += each.bytes_down + each.bytes_up
        sums[each.round] = float(total)
    return np.asarray([sums[r.round] for r, _ in cell.series(metric)]) if total else None


# --- privacy, robustness, fairness ----------------------------------------------------


def _privacy(canvas: _Canvas, spec: ExperimentSpec, metric: str, arms: Sequence[Arm]) -> None:
    what = f"{metric} against epsilon"
    points: dict[str, list[tuple[float, list[float]]]] = {}
    for arm in arms:
        spent = [c.rounds[-1].epsilon for c in arm.cells if c.rounds]
        known = [value for value in spent if value is not None and math.isfinite(value)]
        values = list(arm.values(metric, "last", maximize=spec.maximize).values())
        if known and values:
            name = arm.labels.get(spec.compared, "") if _varied_beside_epsilon(spec) else ""
            points.setdefault(name, []).append((summarize(known).mean, values))
    distinct = {round(epsilon, 6) for line in points.values() for epsilon, _ in line}
    if len(distinct) < 2:
        canvas.omit(what, "fewer than two arms spent different privacy budgets")
        return
    _points(canvas, f"{metric}-against-epsilon", what, metric, points, "epsilon spent (log)", True)


def _varied_beside_epsilon(spec: ExperimentSpec) -> bool:
    axis = next((axis for axis in spec.grid if axis.name == spec.compared), None)
    return axis is not None and not any("epsilon" in key or "noise" in key for key in axis.keys)


def _robustness(canvas: _Canvas, spec: ExperimentSpec, metric: str, arms: Sequence[Arm]) -> None:
    what = f"{metric} against the attackers' share"
    key = attackers_axis(spec)
    if not key:
        canvas.omit(what, "no axis varies the share of attackers (a key such as hook.share)")
        return
    axis = next(axis for axis in spec.grid if key in axis.keys)
    points: dict[str, list[tuple[float, list[float]]]] = {}
    for arm in arms:
        share = arm.cells[0].cell.values.get(key)
        values = list(arm.values(metric, "last", maximize=spec.maximize).values())
        if isinstance(share, int | float) and values:
            line = ", ".join(v for name, v in arm.labels.items() if name != axis.name) or "all"
            points.setdefault(line, []).append((float(share), values))
    _points(canvas, f"{metric}-against-attackers", what, metric, points, "attackers' share", False)


def _points(
    canvas: _Canvas,
    name: str,
    what: str,
    metric: str,
    points: Mapping[str, Sequence[tuple[float, list[float]]]],
    x_name: str,
    log: bool,
) -> None:
    if not points or len(points) > MOST_LINES:
        canvas.omit(what, f"{len(points)} lines; from 1 to {MOST_LINES} can be distinguished")
        return
    counts = sorted({len(values) for line in points.values() for _, values in line})
    caption = f"Last round: mean and one standard deviation over {_counts(counts)}."
    with canvas.figure(name, what, caption) as axes:
        for index, (label, line) in enumerate(points.items()):
            line = sorted(line)
            found = [summarize(values) for _, values in line]
            errors = [0.0 if math.isnan(each.deviation) else each.deviation for each in found]
            axes.errorbar(
                [x for x, _ in line],
                [each.mean for each in found],
                yerr=errors,
                color=_COLOURS[index],
                linestyle=_DASHES[index],
                marker="o",
                capsize=3,
                label=label or None,
            )
        if log:
            axes.set_xscale("log")
        axes.set_xlabel(x_name)
        axes.set_ylabel(metric)
        if any(points):
            axes.legend()


def _fairness(canvas: _Canvas, spec: ExperimentSpec, panel: Panel) -> None:
    metric = spec.metric
    where = f" ({panel.label})" if panel.label else ""
    what = f"distribution of {metric} over clients{where}"
    lines = []
    for label, arm in panel.lines:
        values = [v for cell in arm.cells for v in cell.clients.get(metric, {}).values()]
        if len(finite := sorted(v for v in values if math.isfinite(v))) >= 2:
            lines.append((label, finite))
    if not lines:
        canvas.omit(what, "the clients did not report it when they evaluated")
        return
    if len(lines) > MOST_LINES:
        canvas.omit(what, f"{len(lines)} arms; at most {MOST_LINES} can be distinguished")
        return
    caption = (
        "Part of the clients of all seeds with at most this value in their last evaluation; dots "
        "mark the mean of the worst tenth."
    )
    with canvas.figure(f"{metric}-over-clients{_slug(panel.label)}", what, caption) as axes:
        for index, (label, values) in enumerate(lines):
            style = {"color": _COLOURS[index], "linestyle": _DASHES[index], "label": label}
            axes.ecdf(values, **style)
            worst = worst_tenth(values, maximize=spec.maximize)
            axes.plot(worst, 0.0, "o", color=_COLOURS[index], clip_on=False)
        axes.set_xlabel(metric)
        axes.set_ylabel("part of the clients")
        axes.set_ylim(0, 1.02)
        axes.legend()


def worst_tenth(values: Sequence[float], *, maximize: bool) -> float:
    """Return the mean of the worst tenth of the values, at least one of them.

    >>> worst_tenth([0.9, 0.1, 0.5], maximize=True)
    0.1
    """
    ordered = sorted(values, reverse=not maximize)
    return float(np.mean(ordered[: max(1, math.floor(len(values) * _WORST))]))


# --- drawing --------------------------------------------------------------------------


class _Canvas:
    def __init__(self) -> None:
        from matplotlib import rc_context
        from matplotlib.figure import Figure as Drawing

        self._drawing: Callable[..., Any] = Drawing
        self._context: Callable[..., Any] = rc_context
        self.drawn: list[Figure] = []
        self.omitted: list[str] = []

    def omit(self, what: str, why: str) -> None:
        """Record that a figure is not drawn, and why."""
        self.omitted.append(f"{what}: {why}")

    def figure(self, name: str, title: str, caption: str) -> _Open:
        """Return a context with the axes of a new figure."""
        return _Open(self, name, title, caption)


class _Open:
    def __init__(self, canvas: _Canvas, name: str, title: str, caption: str) -> None:
        self._canvas = canvas
        self._texts = {"name": name, "title": title, "caption": caption}
        self._style = canvas._context(
            {"font.size": 10, "pdf.fonttype": 42, "svg.hashsalt": "fedlearn", "figure.dpi": 100}
        )

    def __enter__(self) -> Any:
        self._style.__enter__()
        self._figure = self._canvas._drawing(figsize=(6.4, 4.0), layout="constrained")
        axes = self._figure.add_subplot()
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
        axes.set_title(self._texts["title"], fontsize=11)
        return axes

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        try:
            if kind is None:
                png, pdf = io.BytesIO(), io.BytesIO()
                self._figure.savefig(png, format="png", dpi=160, metadata={"Software": None})
                self._figure.savefig(pdf, format="pdf", metadata={"CreationDate": None})
                figure = Figure(**self._texts, png=png.getvalue(), pdf=pdf.getvalue())
                self._canvas.drawn.append(figure)
        finally:
            self._style.__exit__(None, None, None)


def _slug(text: str) -> str:
    kept = "".join(c if c.isascii() and c.isalnum() else "-" for c in text.lower())
    parts = "-".join(filter(None, kept.split("-")))
    return f"-{parts}" if parts else ""


def _counts(counts: Sequence[int]) -> str:
    if len(counts) == 1:
        return f"{counts[0]} seed{'' if counts[0] == 1 else 's'}"
    return f"{counts[0]} to {counts[-1]} seeds"
