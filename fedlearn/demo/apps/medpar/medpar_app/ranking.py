"""The area under the ROC curve over all sites, without anybody's scores.

A mean of the sites' own areas is not the area over all of them: it ignores every pair of
patients at different sites. So each site counts its test patients by outcome and by the
bin their score falls into, the counts are added, and the area follows from the sums (the
Mann-Whitney statistic). No score and no row leaves a site. Pairs within one bin cannot be
ordered; they count one half, and :func:`area` returns how far off that can be.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

__all__ = ["BINS", "Area", "area", "histogram"]

BINS = 100
"""Bins of equal width over [0, 1]."""

Counts = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Area:
    """``value`` is the area; the area of the exact scores lies in [``low``, ``high``].

    ``error`` is the standard error (Hanley and McNeil, Radiology 143, 1982, equation 2).
    """

    value: float
    low: float
    high: float
    error: float


def histogram(
    scores: npt.NDArray[np.float64], outcome: npt.NDArray[np.float64]
) -> tuple[Counts, Counts]:
    """Return the number of positives and of negatives in each bin."""
    index = np.minimum((scores * BINS).astype(np.int64), BINS - 1)
    positive = outcome > 0.5
    return (
        np.bincount(index[positive], minlength=BINS),
        np.bincount(index[~positive], minlength=BINS),
    )


def area(positives: Counts, negatives: Counts) -> Area:
    """Return the area for counts that were added over the sites.

    :raises ValueError: when one of the outcomes does not occur.
    """
    p, n = int(positives.sum()), int(negatives.sum())
    if p == 0 or n == 0:
        raise ValueError("the area needs patients of both outcomes")
    below = np.cumsum(negatives) - negatives
    won = int(positives @ below)
    tied = int(positives @ negatives)
    value = (won + tied / 2) / (p * n)
    q1, q2 = value / (2 - value), 2 * value * value / (1 + value)
    variance = value * (1 - value) + (p - 1) * (q1 - value**2) + (n - 1) * (q2 - value**2)
    return Area(
        value=value,
        low=won / (p * n),
        high=(won + tied) / (p * n),
        error=float(np.sqrt(max(variance, 0.0) / (p * n))),
    )
