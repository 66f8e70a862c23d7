"""Which updates Krum, Multi-Krum and the first phase of Bulyan select."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from server.flower.aggregation.robust.distances import ROUNDING, squared_distances

__all__ = ["multi_krum"]


def multi_krum(products: NDArray[np.float64], malicious: int, count: int) -> list[int]:
    """Return the ``count`` updates with the lowest scores, the lowest first.

    The score of an update is the sum of its squared distances to the ``n - malicious - 2`` others
    that are closest to it, of which there is at least one (Blanchard et al. 2017,
    arXiv:1703.02757, section 4); Bulyan selects ``n - 2 * malicious`` in the same way. Scores
    that differ by less than their error are equal, and of equal ones the first in the order of
    the updates is lower.

    :param products: the Gram matrix of the updates.
    """
    norms, distances = np.diagonal(products), squared_distances(products)
    closest = max(1, len(norms) - malicious - 2)
    np.fill_diagonal(distances, np.inf)  # an update is none of the others
    order = np.argsort(distances, axis=1, kind="stable")[:, :closest]
    with np.errstate(over="ignore", invalid="ignore"):
        scores = np.take_along_axis(distances, order, axis=1).sum(axis=1)
        errors = ROUNDING * (norms[:, None] + norms[order]).sum(axis=1)
    found: list[int] = []
    left = np.ones(len(norms), bool)
    while len(found) < min(count, len(norms)):
        best = int(np.argmin(np.where(left, scores, np.inf)))
        # Nothing but infinite scores is left where the lowest is one.
        limit = scores[best] + errors[best] if left[best] else np.inf
        chosen = int(np.flatnonzero(left & (scores <= limit))[0])
        found.append(chosen)
        left[chosen] = False
    return found
