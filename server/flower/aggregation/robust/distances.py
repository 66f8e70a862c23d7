"""The Gram matrix of the updates, from which all distances between them follow.

An update is taken as its difference ``d`` from the model that the sites trained, all arrays
together as one vector of float64. The error of an entry ``<d_i, d_j>`` grows with the norms of
these two updates and of no other: what another site sends, however large, takes no digit from the
distance of two updates. It would, if the differences were taken from one of the updates.

Sums are made for each block and then added, so a squared distance is wrong by about
``2**-50 * (|d_i|^2 + |d_j|^2)``; :data:`ROUNDING` leaves room for the order in which a BLAS adds.
Flower's own float32 products lose the distance of updates that differ by less than a thousandth
of their norm.

Values whose squares are beyond float64 make a norm infinite, and the entries of such an update
infinite or NaN.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import reduce
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from server.flower.aggregation.robust.blocks import (
    Arrays,
    Block,
    flat,
    in_lanes,
    lanes_of,
    load,
    wide_type,
)

__all__ = ["ROUNDING", "gram", "squared_distances", "squared_norms"]

ROUNDING: Final = 2.0**-44
"""The error of a squared distance, relative to the sum of both squared norms."""

Vectors = NDArray[np.float64]


def gram(updates: Sequence[Arrays], around: Arrays) -> NDArray[np.float64]:
    """Return the inner products of the updates' differences from ``around``, (n, n)."""
    return _summed(updates, around, lambda rows: rows @ rows.T)


def squared_norms(updates: Sequence[Arrays], around: Arrays) -> NDArray[np.float64]:
    """Return the squared norms of the updates' differences from ``around``, (n,).

    In time that grows linearly with the number of updates, unlike :func:`gram`.
    """
    return _summed(updates, around, lambda rows: np.einsum("ij,ij->i", rows, rows))


def squared_distances(products: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the squared distances of the updates from their Gram matrix, (n, n).

    Nothing is below 0, and a distance that float64 cannot hold is infinite.
    """
    norms = np.diagonal(products)
    with np.errstate(over="ignore", invalid="ignore"):
        found = norms[:, None] + norms[None, :] - 2 * products
    found[np.isnan(found)] = np.inf
    np.maximum(found, 0, out=found)
    np.fill_diagonal(found, 0)
    return found


def _summed(
    updates: Sequence[Arrays], around: Arrays, product: Callable[[Vectors], NDArray[np.float64]]
) -> NDArray[np.float64]:
    """Return the sum of a product over all blocks of the updates' differences."""
    count, sources, center = len(updates), [flat(each) for each in updates], flat(around)

    def lane(blocks: Sequence[Block]) -> NDArray[Any] | None:
        total: NDArray[Any] | None = None
        room = np.empty((count + 1) * max((block.size for block in blocks), default=0))
        for block in blocks:
            rows = room[: (count + 1) * block.size].reshape(count + 1, block.size)
            load(block, center, rows[count])
            # Warnings are a setting of each thread.
            with np.errstate(over="ignore", invalid="ignore"):
                for source, row in zip(sources, rows, strict=False):
                    load(block, source, row)
                    row -= rows[count]
                found = product(rows[:count])
                total = found if total is None else np.add(total, found, out=total)
        return total

    totals = in_lanes(lanes_of(around, count, wide_type), count, lane)
    with np.errstate(over="ignore", invalid="ignore"):
        made = [each for each in totals if each is not None]
        return reduce(np.add, made) if made else product(np.zeros((count, 1)))
