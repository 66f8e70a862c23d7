"""Nearest-neighbor mixing: every update becomes the mean of those that are closest to it.

NNM, Allouah et al. 2023 (arXiv:2302.01772), algorithm 2. With ``n`` updates, of which ``f`` may be
malicious, the mixed update ``y_i`` is the mean of the ``n - f`` updates with the least distance
from ``x_i``, itself among them. A robust rule over the mixed updates has an error of the order of
``f / n`` also where the sites' data differ (their theorem 1), which the rule alone has not.

The mixed updates are never in memory: a rule gets the matrix ``M`` with ``Y = M X``, applies it to
a block of the updates at a time, and takes distances from the mixed Gram matrix ``M G M'``.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from server.flower.aggregation.robust.distances import squared_distances

__all__ = ["mixed_gram", "nearest_neighbor_means"]

Matrix = NDArray[np.float64]


def nearest_neighbor_means(products: Matrix, outliers: int) -> Matrix:
    """Return the matrix that makes mixed updates of the updates, (n, n); its rows sum to 1.

    Of updates at the same distance the first in the order of the updates is closer.

    :param products: the Gram matrix of the updates.
    :param outliers: how many updates each of them is not mixed with; at least one is left.
    """
    count = len(products)
    kept = max(1, count - outliers)
    distances = squared_distances(products)
    np.fill_diagonal(distances, -1)  # an update is its own nearest neighbor
    nearest = np.argsort(distances, axis=1, kind="stable")[:, :kept]
    mix = np.zeros((count, count))
    np.put_along_axis(mix, nearest, 1 / kept, axis=1)
    return mix


def mixed_gram(products: Matrix, mix: Matrix) -> Matrix:
    """Return the Gram matrix of the mixed updates.

    Those that an update with an infinite norm is mixed into have an infinite norm.
    """
    infinite = ~np.isfinite(np.diagonal(products))
    finite = np.where(infinite[:, None] | infinite[None, :], 0, products)
    found: Matrix = mix @ finite @ mix.T
    spoilt = mix[:, infinite].any(axis=1)
    found[spoilt, :] = np.inf
    found[:, spoilt] = np.inf
    return found
