"""Summaries over seeds, and paired tests between arms.

Seeds pair the runs of two arms: the same seed gives the same split of the data and the same first
model. The test is the paired t-test (Student 1908) of the differences, two-sided, which takes them
as independent and normal; with k comparisons its p-values are corrected by Holm's step-down method
(Holm 1979, Scandinavian Journal of Statistics 6, pages 65 to 70).
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

import numpy as np
from scipy import stats

from fedlearn.experiment.store import CellResult

__all__ = ["TEST", "Arm", "Choice", "Comparison", "Summary", "arms", "compare", "holm", "summarize"]

TEST: Final = "paired t-test over seeds, two-sided, with Holm's correction"

Choice: TypeAlias = Literal["best", "last"]
"""Which round of a run counts: the best one by the metric, or the last one.

The best round is chosen on the same data on which it is reported, so it is biased upwards; papers
report it often, which is why it is here.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Arm:
    """All cells of one point, in the order of their seeds."""

    name: str
    labels: Mapping[str, str]
    cells: tuple[CellResult, ...]

    def values(self, metric: str, choice: Choice, *, maximize: bool) -> dict[int, float]:
        """Return the metric by seed; seeds without a finite value are left out."""
        found = {}
        for cell in self.cells:
            numbers = [value for _, value in cell.series(metric)]
            if numbers:
                best = max(numbers) if maximize else min(numbers)
                found[cell.cell.seed] = best if choice == "best" else numbers[-1]
        return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """Mean and sample standard deviation (n - 1) over n seeds; NaN where not defined."""

    count: int
    mean: float = math.nan
    deviation: float = math.nan

    def text(self, *, percent: bool = False, between: str = " ± ") -> str:
        """Return ``mean ± sd``; the mean alone for one seed."""
        if not self.count:
            return ""
        scale = 100.0 if percent else 1.0
        digits = 2 if percent else 4
        mean = f"{scale * self.mean:.{digits}f}"
        if self.count < 2:
            return mean
        return f"{mean}{between}{scale * self.deviation:.{digits}f}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """The difference of two arms over their common seeds.

    ``difference``  mean of ``left`` less ``right``; ``low``, ``high``: its 95% interval
    ``p``           of the paired t-test; ``corrected``: by Holm's method
    ``note``        why there is no test, where there is none
    """

    left: str
    right: str
    seeds: int
    difference: float = math.nan
    low: float = math.nan
    high: float = math.nan
    p: float = math.nan
    corrected: float = math.nan
    note: str = ""


def arms(results: Sequence[CellResult]) -> list[Arm]:
    """Return the arms in the order in which they first occur."""
    found: dict[str, list[CellResult]] = {}
    for each in results:
        found.setdefault(each.cell.arm, []).append(each)
    return [
        Arm(
            name=name,
            labels=cells[0].cell.labels,
            cells=tuple(sorted(cells, key=lambda each: each.cell.seed)),
        )
        for name, cells in found.items()
    ]


def summarize(values: Sequence[float]) -> Summary:
    """Return the mean and the sample standard deviation.

    >>> summarize([0.8, 0.9, 1.0]).text(percent=True)
    '90.00 ± 10.00'
    """
    if not values:
        return Summary(count=0)
    deviation = statistics.stdev(values) if len(values) > 1 else math.nan
    return Summary(count=len(values), mean=statistics.fmean(values), deviation=deviation)


def compare(
    pairs: Sequence[tuple[Arm, Arm]], metric: str, choice: Choice, *, maximize: bool
) -> list[Comparison]:
    """Return the comparison of each pair; the p-values of all of them are corrected together."""
    found = [_compared(left, right, metric, choice, maximize=maximize) for left, right in pairs]
    known = [index for index, each in enumerate(found) if math.isfinite(each.p)]
    corrected = holm([found[index].p for index in known])
    for index, value in zip(known, corrected, strict=True):
        each = found[index]
        found[index] = Comparison(
            left=each.left,
            right=each.right,
            seeds=each.seeds,
            difference=each.difference,
            low=each.low,
            high=each.high,
            p=each.p,
            corrected=value,
        )
    return found


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p-values corrected by Holm's step-down method, in the order given.

    >>> [round(p, 3) for p in holm([0.01, 0.04, 0.03])]
    [0.03, 0.06, 0.06]
    """
    order = sorted(range(len(p_values)), key=lambda index: p_values[index])
    corrected = [0.0] * len(p_values)
    largest = 0.0
    for rank, index in enumerate(order):
        largest = max(largest, min(1.0, (len(order) - rank) * p_values[index]))
        corrected[index] = largest
    return corrected


def _compared(left: Arm, right: Arm, metric: str, choice: Choice, *, maximize: bool) -> Comparison:
    mine = left.values(metric, choice, maximize=maximize)
    theirs = right.values(metric, choice, maximize=maximize)
    common = sorted(mine.keys() & theirs.keys())
    differences = np.asarray([mine[seed] - theirs[seed] for seed in common])
    if len(common) < 2:
        only = float(differences[0]) if common else math.nan
        note = f"{len(common)} common seed{'' if len(common) == 1 else 's'}: no test"
        return Comparison(
            left=left.name, right=right.name, seeds=len(common), difference=only, note=note
        )
    mean = float(differences.mean())
    if float(differences.std(ddof=1)) == 0.0:
        return Comparison(
            left=left.name,
            right=right.name,
            seeds=len(common),
            difference=mean,
            note="the same difference for every seed: no test",
        )
    tested = stats.ttest_1samp(differences, 0.0)
    interval = tested.confidence_interval(0.95)
    return Comparison(
        left=left.name,
        right=right.name,
        seeds=len(common),
        difference=mean,
        low=float(interval.low),
        high=float(interval.high),
        p=float(tested.pvalue),
    )
