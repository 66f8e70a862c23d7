"""The same two charts as PNG files, drawn by matplotlib without a display."""

from __future__ import annotations

import io
import math
from typing import Any, Final

from fedlearn import extras
from fedlearn.demo.outcome import DemoOutcome

__all__ = ["rounds_png", "sites_png"]

_FEDERATED: Final = "#2456c9"
_ALONE: Final = "#c2611f"
_POOLED: Final = "#5b6472"
_STYLE: Final = {
    "font.family": "sans-serif",
    "font.size": 11,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#8a93a1",
    "axes.grid": True,
    "grid.color": "#e3e7ee",
    "axes.axisbelow": True,
    "figure.dpi": 144,
}


def rounds_png(outcome: DemoOutcome) -> bytes:
    """Return the metric round by round as a PNG.

    :raises ConfigError: when matplotlib is not installed.
    """
    backend, figures, matplotlib = _matplotlib()
    with matplotlib.rc_context(_STYLE):
        figure = figures.Figure(figsize=(8, 4.5), layout="constrained")
        backend.FigureCanvasAgg(figure)
        axes = figure.add_subplot()
        known = [r for r in outcome.rounds if math.isfinite(r.metric)]
        axes.plot(
            [r.number for r in known],
            [r.metric for r in known],
            color=_FEDERATED,
            marker="o",
            linewidth=2.2,
            label=f"federated, {len(outcome.sites)} sites ({outcome.federated:.3f})",
        )
        for value, label, colour in _levels(outcome):
            axes.axhline(value, color=colour, linestyle=(0, (5, 3)), label=f"{label} ({value:.3f})")
        axes.set_xlabel("round")
        axes.set_ylabel(f"{outcome.metric_name} on the test {outcome.unit} of all sites")
        axes.set_title(outcome.title, loc="left", fontweight="bold")
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.legend(frameon=False, loc="best")
        return _png(figure)


def sites_png(outcome: DemoOutcome) -> bytes:
    """Return what each site reaches alone and in the federation as a PNG.

    :raises ConfigError: when matplotlib is not installed.
    """
    backend, figures, matplotlib = _matplotlib()
    sites = outcome.sites
    with matplotlib.rc_context(_STYLE):
        figure = figures.Figure(figsize=(8, 1.8 + 0.42 * len(sites)), layout="constrained")
        backend.FigureCanvasAgg(figure)
        axes = figure.add_subplot()
        rows = range(len(sites))
        alone = [site.alone for site in sites]
        together = [outcome.federated] * len(sites)
        axes.hlines(rows, alone, together, color="#c3cad6", linewidth=3, zorder=1)
        axes.scatter(alone, rows, s=64, color=_ALONE, label="trained alone", zorder=2)
        axes.scatter(together, rows, s=64, color=_FEDERATED, label="federated", zorder=3)
        axes.set_yticks(list(rows), [site.name for site in sites])
        axes.invert_yaxis()
        axes.grid(axis="y", visible=False)
        axes.set_xlabel(f"{outcome.metric_name} on the test {outcome.unit} of all sites")
        axes.set_title("Alone and together", loc="left", fontweight="bold")
        axes.legend(frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=2)
        return _png(figure)


def _levels(outcome: DemoOutcome) -> list[tuple[float, str, str]]:
    levels = [
        (outcome.pooled, "all data in one place", _POOLED),
        (outcome.alone, "a site alone, mean", _ALONE),
    ]
    if outcome.member is not None:
        levels.append((outcome.member, "a hospital alone, mean", "#a08a12"))
    return [level for level in levels if math.isfinite(level[0])]


def _matplotlib() -> tuple[Any, Any, Any]:
    need = "the demo's report"
    extras.require("demo", needed_for=need)
    return (
        extras.load("matplotlib.backends.backend_agg", needed_for=need),
        extras.load("matplotlib.figure", needed_for=need),
        extras.load("matplotlib", needed_for=need),
    )


def _png(figure: Any) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()
