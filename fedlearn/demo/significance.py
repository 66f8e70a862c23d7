"""Whether one model is better than others on the same test rows, or chance explains it.

Both functions give the difference to the mean of the others and its 95% interval. The interval is
about the choice of test rows, which are taken as independent; it does not cover the choice of
training rows, seeds and splits.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

__all__ = ["AREAS", "SHARES", "UNKNOWN", "Gain", "gain_in_area", "gain_in_share"]

AREAS: Final = "DeLong, DeLong and Clarke-Pearson 1988, for correlated ROC curves"
SHARES: Final = "normal approximation of the paired differences"
_Z: Final = 1.959964
"""Quantile of the normal distribution for a two-sided 95% interval."""

Values = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Gain:
    """A difference with its 95% interval and the method; NaN where it is not defined."""

    value: float = math.nan
    low: float = math.nan
    high: float = math.nan
    method: str = ""

    @property
    def known(self) -> bool:
        """Whether there is an interval."""
        return math.isfinite(self.low) and math.isfinite(self.high)

    @property
    def significant(self) -> bool:
        """Whether the interval excludes 0; False where there is none."""
        return self.known and (self.low > 0 or self.high < 0)


UNKNOWN: Final = Gain()
"""A difference that was not determined."""


def gain_in_area(
    scores: npt.ArrayLike, others: Sequence[npt.ArrayLike], positive: npt.ArrayLike
) -> Gain:
    """Return the difference of areas under the ROC curve, by the method of DeLong et al.

    E. R. DeLong, D. M. DeLong, D. L. Clarke-Pearson, "Comparing the areas under two or more
    correlated receiver operating characteristic curves: a nonparametric approach", Biometrics 44
    (1988), pages 837 to 845. Equal scores count one half.

    :param scores: (n,) those of the model.
    :param others: for each other model the (n,) scores of the same rows.
    :param positive: (n,) whether a row is positive.
    """
    chosen = np.asarray(positive, dtype=bool)
    every = np.asarray([scores, *others], dtype=np.float64)
    p, n = int(chosen.sum()), int((~chosen).sum())
    if min(p, n) == 0 or not others:
        return Gain(method=AREAS)
    weights = np.full(len(every), -1.0 / len(others))
    weights[0] = 1.0
    # Structural components: for each positive row the part of negatives that it outranks, and
    # for each negative row the part of positives that outrank it.
    of_positives, of_negatives = np.zeros(p), np.zeros(n)
    for weight, row in zip(weights, every, strict=True):
        above, below = row[chosen][:, None], row[~chosen][None, :]
        wins = (above > below) + 0.5 * (above == below)
        of_positives += weight * wins.mean(axis=1)
        of_negatives += weight * wins.mean(axis=0)
    value = float(of_positives.mean())
    if min(p, n) < 2:
        return Gain(value=value, method=AREAS)
    variance = of_positives.var(ddof=1) / p + of_negatives.var(ddof=1) / n
    return _gain(value, math.sqrt(variance), AREAS)


def gain_in_share(right: npt.ArrayLike, others: Sequence[npt.ArrayLike]) -> Gain:
    """Return the difference of shares, such as accuracies, from the differences of each row.

    :param right: (n,) whether the model is right on each row.
    :param others: for each other model the same for the same rows.
    """
    mine = np.asarray(right, dtype=np.float64)
    if len(mine) == 0 or not others:
        return Gain(method=SHARES)
    differences: npt.NDArray[Any] = mine - np.mean(
        [np.asarray(each, dtype=np.float64) for each in others], axis=0
    )
    value = float(differences.mean())
    if len(mine) < 2:
        return Gain(value=value, method=SHARES)
    return _gain(value, float(differences.std(ddof=1)) / math.sqrt(len(mine)), SHARES)


def _gain(value: float, error: float, method: str) -> Gain:
    return Gain(value=value, low=value - _Z * error, high=value + _Z * error, method=method)
