"""Several runs beside each other: one row a run, and their metrics over the same axes.

Texts of the runs come from other parties and are escaped in the page.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from fedlearn import __version__
from fedlearn.errors import ConfigError
from fedlearn.results.charts import MOST_SERIES, Series, curves
from fedlearn.results.history import RunHistory
from fedlearn.results.markup import (
    NOT_KNOWN,
    Head,
    Html,
    counted,
    document,
    footer,
    header,
    joined,
    note,
    number_text,
    section,
    table,
)
from fedlearn.results.text import bytes_text, compression_text, ranked_metrics, seconds_text

__all__ = ["Comparison", "compare"]

_CHARTS: Final = 3
_COLUMNS: Final = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Runs by name, in the order in which they were named, and the metrics that they share.

    ``metrics`` has the chosen one first; a metric is shared when two runs have it.
    """

    runs: Mapping[str, RunHistory]
    metrics: tuple[str, ...]

    def rows(self) -> list[dict[str, Any]]:
        """Return one JSON-ready row a run; ``metrics`` are those of its last round with any."""
        return [
            {
                "run": name,
                "status": run.status,
                "rounds": len(run.finished),
                "planned": run.planned,
                "sites": sum(site.updates > 0 for site in run.sites.values()),
                "refusals": sum(each.count for each in run.refusals) + run.refusals_left_out,
                "skipped": len(run.skipped),
                "seconds": run.elapsed(),
                "median_round_seconds": _median(run),
                "bytes": run.bytes,
                "bytes_received": run.bytes_received or None,
                "bytes_saved": run.bytes_saved,
                "compression": run.compression,
                "epsilon": run.privacy[-1].epsilon if run.privacy else None,
                "metrics": {key: value for key, value in _last(run).items() if key in self.metrics},
            }
            for name, run in self.runs.items()
        ]

    def heads(self) -> list[str]:
        """Return the heads of :meth:`cells`."""
        return [
            "run",
            "status",
            "rounds",
            *self.metrics[:_COLUMNS],
            "sites",
            "refusals",
            "skipped",
            "elapsed",
            "median round",
            "traffic",
            "from sites",
            "compression",
            "epsilon",
        ]

    def cells(self) -> list[list[str]]:
        """Return one row a run, as text."""
        return [
            [
                row["run"],
                row["status"],
                f"{row['rounds']}/{row['planned']}",
                *(number_text(row["metrics"].get(key)) for key in self.metrics[:_COLUMNS]),
                str(row["sites"]),
                str(row["refusals"]) if row["refusals"] else NOT_KNOWN,
                str(row["skipped"]) if row["skipped"] else NOT_KNOWN,
                seconds_text(row["seconds"]),
                seconds_text(median) if (median := row["median_round_seconds"]) else NOT_KNOWN,
                bytes_text(row["bytes"]),
                bytes_text(up) if (up := row["bytes_received"]) else NOT_KNOWN,
                compression_text(row["compression"], up or 0, row["bytes_saved"]) or NOT_KNOWN,
                number_text(row["epsilon"]),
            ]
            for row in self.rows()
        ]

    def page(self) -> str:
        """Return the comparison as one HTML page that loads nothing from the network."""
        charts = [
            joined(Html(f"<h3>{joined(name)}</h3>"), chart)
            for name in self.metrics[:_CHARTS]
            if (chart := curves(self._series(name), name=name))
        ]
        heads = [Head(name, numeric=index > 1) for index, name in enumerate(self.heads())]
        names = ", ".join(self.runs)
        return document(
            f"Comparison of {names}",
            header(f"{counted(len(self.runs), 'run')} compared", names),
            section(
                "Round by round",
                note("Metrics are those that the code of each job reports, on its own test data."),
                *charts,
            ),
            section("Side by side", table(heads, self.cells(), cards=True)),
            footer(
                f"fedlearn {__version__}. This page is complete and loads nothing from the network."
            ),
        )

    def _series(self, metric: str) -> list[Series]:
        return [
            Series(
                name=name,
                points=[
                    (each.number, each.metrics[metric])
                    for each in run.finished
                    if metric in each.metrics and each.stage == run.stage
                ],
            )
            for name, run in self.runs.items()
        ]


def compare(runs: Sequence[tuple[str, RunHistory]], *, metric: str = "") -> Comparison:
    """Compare runs, each with its name.

    :param metric: the one to show first; the loss by default.
    :raises ConfigError: for fewer than two runs or more than eight, a run that is named twice, or
        a metric that no run reports.
    """
    if not 2 <= len(runs) <= MOST_SERIES:
        raise ConfigError(f"{len(runs)} runs are named; 2 to {MOST_SERIES} can be compared")
    named = dict(runs)
    if len(named) != len(runs):
        twice = next(name for name, _ in runs if sum(name == other for other, _ in runs) > 1)
        raise ConfigError(f"{twice} is named twice", hint="name different runs")
    count: dict[str, int] = {}
    for run in named.values():
        for key in {key for each in run.finished for key in each.metrics}:
            count[key] = count.get(key, 0) + 1
    if metric and metric not in count:
        known = ", ".join(sorted(count)[:20]) or "none"
        raise ConfigError(f"no run reports the metric {metric!r}; there are: {known}")
    shared = [key for key, number in count.items() if number > 1 or key == metric]
    return Comparison(runs=named, metrics=tuple(ranked_metrics(shared, metric)))


def _last(run: RunHistory) -> Mapping[str, float]:
    return next((each.metrics for each in reversed(run.finished) if each.metrics), {})


def _median(run: RunHistory) -> float | None:
    seconds = [each.seconds for each in run.finished]
    return statistics.median(seconds) if seconds else None
