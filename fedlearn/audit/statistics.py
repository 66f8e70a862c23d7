"""Curves and intervals of an attack that separates members from others."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import beta, norm, rankdata

from fedlearn.errors import ConfigError

__all__ = ["Rate", "area", "area_interval", "clopper_pearson", "roc", "true_positive_rate"]

Vector = NDArray[np.float64]
Mask = NDArray[np.bool_]


@dataclass(frozen=True, slots=True, kw_only=True)
class Rate:
    """The true positive rate at a false positive rate, with its interval.

    ``resolved``  whether there are enough others to measure so small a false positive rate: one
                  false positive among them is at most that rate
    """

    false_positive: float
    true_positive: float
    low: float
    high: float
    resolved: bool


def clopper_pearson(count: int, total: int, *, confidence: float = 0.95) -> tuple[float, float]:
    """Return the exact interval of a share (Clopper and Pearson 1934).

    >>> low, high = clopper_pearson(0, 10)
    >>> low, round(high, 4)
    (0.0, 0.3085)
    """
    tail = (1 - confidence) / 2
    low = 0.0 if count == 0 else float(beta.ppf(tail, count, total - count + 1))
    high = 1.0 if count == total else float(beta.ppf(1 - tail, count + 1, total - count))
    return low, high


def roc(scores: Vector, members: Mask) -> tuple[Vector, Vector]:
    """Return false and true positive rates from (0, 0) to (1, 1), one point for each threshold.

    :raises ConfigError: without a member or without another, or with NaN in the scores.
    """
    _check(scores, members)
    order = np.argsort(-scores, kind="stable")
    ranked, truth = scores[order], members[order]
    last = np.append(np.flatnonzero(np.diff(ranked)), len(ranked) - 1)
    true = np.cumsum(truth)[last] / truth.sum()
    false = np.cumsum(~truth)[last] / (~truth).sum()
    return np.insert(false, 0, 0.0), np.insert(true, 0, 0.0)


def area(scores: Vector, members: Mask) -> float:
    """Return the area under the curve: 1/2 for chance (Mann and Whitney 1947, ties count half)."""
    _check(scores, members)
    ranks = rankdata(scores)
    positives, negatives = int(members.sum()), int((~members).sum())
    above = float(ranks[members].sum()) - positives * (positives + 1) / 2
    return above / (positives * negatives)


def area_interval(
    scores: Vector, members: Mask, *, confidence: float = 0.95
) -> tuple[float, float]:
    """Return an interval for the area, by the standard error of Hanley and McNeil 1982.

    It takes the scores as independent, as those of a threshold attack on one model are.
    """
    found = area(scores, members)
    positives, negatives = int(members.sum()), int((~members).sum())
    first, second = found / (2 - found), 2 * found**2 / (1 + found)
    variance = (
        found * (1 - found)
        + (positives - 1) * (first - found**2)
        + (negatives - 1) * (second - found**2)
    ) / (positives * negatives)
    reach = float(norm.ppf((1 + confidence) / 2)) * math.sqrt(max(0.0, variance))
    return max(0.0, found - reach), min(1.0, found + reach)


def true_positive_rate(scores: Vector, members: Mask, false_positive: float) -> Rate:
    """Return the largest true positive rate with at most this false positive rate.

    The interval is that of Clopper and Pearson for the members alone; the threshold is taken as
    given.
    """
    false, true = roc(scores, members)
    reached = float(true[false <= false_positive].max())
    total = int(members.sum())
    low, high = clopper_pearson(round(reached * total), total)
    return Rate(
        false_positive=false_positive,
        true_positive=reached,
        low=low,
        high=high,
        resolved=int((~members).sum()) * false_positive >= 1,
    )


def _check(scores: Vector, members: Mask) -> None:
    if members.all() or not members.any():
        raise ConfigError(
            f"of {len(members)} examples {int(members.sum())} are members; an attack needs both",
            hint="use more examples",
        )
    if not np.isfinite(scores).all():
        raise ConfigError("the scores of the attack contain NaN or infinity")
