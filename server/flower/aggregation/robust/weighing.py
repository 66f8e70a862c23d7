"""Rules whose result is the model and weighed differences from it.

The result is ``w + sum_k c_k * (w_k - w)`` for the model ``w`` and the updates ``w_k``. The
coefficients ``c`` follow from the losses, the norms or the Gram matrix of the updates, so the
arrays are read twice whatever the number of iterations is.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from fedlearn.errors import JobError
from server.flower.aggregation.robust.blocks import (
    Arrays,
    Block,
    empty_like,
    flat,
    in_lanes,
    lanes_of,
    load,
    store,
    wide_type,
)
from server.flower.aggregation.robust.distances import squared_distances

__all__ = [
    "clipped_coefficients",
    "fair_coefficients",
    "geometric_median_coefficients",
    "trusted_coefficients",
    "weighed",
]

Coefficients = NDArray[np.float64]

_FARTHEST: Final = 1e300
"""Squared norms from here on are beyond all others: sums of them would overflow."""
_LEAST_LOSS: Final = 1e-10
"""What Flower adds to a loss."""


def geometric_median_coefficients(
    products: NDArray[np.float64], *, iterations: int, smoothing: float, tolerance: float
) -> Coefficients:
    """Return the coefficients of the smoothed geometric median of the updates; their sum is 1.

    Weiszfeld's algorithm in the form of Pillutla et al. 2022 (arXiv:1912.13445, algorithm 2):
    the next point is the mean of the updates, each divided by its distance from the present
    point, or by ``smoothing`` where it is closer. Every point is a mean of updates, so that its
    distances follow from the Gram matrix (``|z - w_i|^2 = (c - e_i)' G (c - e_i)``), and an
    iteration costs ``n^2`` operations. Each update counts the same, whatever number of examples
    it states. The first point is close to the update with the least sum of distances, where
    updates that are far away weigh little.

    :param products: the Gram matrix of the updates.
    :param tolerance: the iterations end when the coefficients move by less than this, in all.
    :raises JobError: when the values of every update are beyond float64.
    """
    found = np.zeros(len(products))
    usable = np.flatnonzero(np.diagonal(products) < _FARTHEST)
    if not len(usable):
        raise JobError("no update can be used: the squares of their values are beyond float64")
    products = products[np.ix_(usable, usable)]
    norms, apart = np.diagonal(products), np.sqrt(squared_distances(products))
    center = apart[np.argmin(apart.sum(axis=1))]
    present = _shares(center, max(float(np.median(center)), smoothing))
    for _ in range(iterations):
        inner = products @ present
        far = np.sqrt(np.maximum(present @ inner - 2 * inner + norms, 0))
        before, present = present, _shares(far, smoothing)
        if float(np.abs(present - before).sum()) <= tolerance:
            break
    found[usable] = present
    return found


def _shares(distances: NDArray[np.float64], least: float) -> Coefficients:
    shares = 1 / np.maximum(distances, least)
    found: Coefficients = shares / shares.sum()
    return found


def fair_coefficients(
    norms: NDArray[np.float64], losses: Sequence[float], *, rate: float, q: float
) -> Coefficients:
    """Return the coefficients of q-FedAvg.

    Li et al. 2020 (arXiv:1905.10497), algorithm 2: with ``L = 1 / rate`` and the loss ``F_k`` of
    a site, ``c_k = L F_k^q / sum_j (q F_j^(q - 1) L^2 |w_j - w|^2 + L F_j^q)``. Powers are
    taken relative to the largest loss, so that no ``q`` makes them overflow.

    :param norms: squared norms of the updates' differences from the model.
    :param losses: of the sites, from 0 on and finite.
    :param rate: the learning rate of the clients, above 0.
    """
    loss = np.asarray(losses, np.float64) + _LEAST_LOSS
    lipschitz = min(1 / rate, _FARTHEST)
    with np.errstate(over="ignore", under="ignore"):
        power = np.power(loss / loss.max(), q)
        # In this order a product may become infinite, but not NaN.
        bound = q * power / loss * np.minimum(norms, _FARTHEST) * lipschitz + power
        found: Coefficients = power / bound.sum()
    return found


def clipped_coefficients(norms: NDArray[np.float64], clip_norm: float | None) -> Coefficients:
    """Return the coefficients of the mean of clipped updates: ``min(1, clip_norm / |d_k|) / n``.

    Sun et al. 2019 (arXiv:1911.07963), section 4. An update whose norm float64 cannot hold gets 0.

    :param norms: squared norms of the updates' differences from the model.
    :param clip_norm: above 0; None for the median of the norms.
    """
    length = np.sqrt(norms)
    length[np.isnan(length)] = np.inf
    # Of an even number the mean of the two in the middle, of which one may be infinite.
    most = float(np.median(length)) if clip_norm is None else clip_norm
    factors = np.ones(len(length))
    longer = length > most
    factors[longer] = most / length[longer]
    if not np.isfinite(most):
        factors[~np.isfinite(length)] = 0
    return factors / len(norms)


def trusted_coefficients(products: NDArray[np.float64], root: int, *, rate: float) -> Coefficients:
    """Return the coefficients of FLTrust; all are 0 where no update is like the root's.

    Cao et al. 2021 (arXiv:2012.13995), equations 2 to 4: with the root's difference ``d_0`` and
    the trust ``t_k = max(0, cos(d_k, d_0))`` of another site,
    ``c_k = rate * t_k / sum_j t_j * |d_0| / |d_k|``. The root's own update is not in the sum.

    :param products: the Gram matrix of the updates.
    :param root: the place of the trusted site's update.
    :param rate: the learning rate of the server, above 0.
    """
    norms = np.sqrt(np.diagonal(products))
    found = np.zeros(len(norms))
    usable = np.isfinite(norms) & (norms > 0)
    if not usable[root]:
        return found
    usable[root] = False
    along = products[root, usable] / norms[root] / norms[usable]
    # A norm that overflows makes its products infinite or NaN, and is not usable.
    trust = np.clip(along, 0, 1)
    total = float(trust.sum())
    if total > 0:
        found[usable] = rate * (trust / total) * (norms[root] / norms[usable])
    return found


def weighed(
    updates: Sequence[Arrays], coefficients: Coefficients, around: Arrays
) -> dict[str, NDArray[np.float64]]:
    """Return ``around`` plus the weighed differences of the updates from it, in its types.

    Computed in float64, in the order of the updates, and rounded once. An update with the
    coefficient 0 is not read.
    """
    used = [(flat(each), c) for each, c in zip(updates, coefficients, strict=True) if c]
    center = flat(around)
    found, targets = empty_like(around)

    def lane(blocks: Sequence[Block]) -> None:
        room = np.empty((3, max((block.size for block in blocks), default=0)))
        for block in blocks:
            start, total, row = room[:, : block.size]
            load(block, center, start)
            total[:] = start
            for source, coefficient in used:
                load(block, source, row)
                row -= start
                row *= coefficient
                total += row
            total += 0.0  # -0.0 becomes 0.0
            store(block, total, targets)

    in_lanes(lanes_of(around, 3, wide_type), len(used), lane)
    return found
