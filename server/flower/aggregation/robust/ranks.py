"""Rules over the ranks of each element: median, trimmed mean, and the second phase of Bulyan.

The values of an element are sorted, and what a rule keeps of them is added in their order: the
result has the same bits for any order of the updates. float32, float16 and bfloat16 are added
in float64 and rounded once; of integers the exact mean is rounded to the nearest, ties to even; a
boolean is what more than half of the kept values are. A zero is ``+0.0``.

``mix`` is a matrix whose rows make the values that are sorted of the updates' values
(:mod:`server.flower.aggregation.robust.mixing`). These are float64, and a result is rounded once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from server.flower.aggregation.robust.blocks import (
    Arrays,
    Block,
    empty_like,
    flat,
    in_lanes,
    lanes_of,
    load,
    ordered_type,
    store,
    wide_type,
)
from server.flower.aggregation.robust.networks import MOST_ROWS, sort_rows

__all__ = ["mean_around_median", "median", "trimmed_mean"]

Rows = list[NDArray[Any]]
Mix = NDArray[np.float64] | None


def median(updates: Sequence[Arrays], mix: Mix = None) -> dict[str, NDArray[Any]]:
    """Return the median of each element; of an even number, the mean of the two in the middle.

    Yin et al. 2018 (arXiv:1803.01498), definition 1.
    """
    count = _count(updates, mix)
    return _over_ranks(updates, mix, (count - 1) // 2, count // 2 + 1, _mean)


def trimmed_mean(
    updates: Sequence[Arrays], beta: float, mix: Mix = None
) -> dict[str, NDArray[Any]]:
    """Return the mean of each element without the ``int(beta * n)`` smallest and largest values.

    Yin et al. 2018 (arXiv:1803.01498), definition 2.

    :param beta: from 0 up to, not including, 0.5.
    """
    count = _count(updates, mix)
    cut = int(beta * count)
    return _over_ranks(updates, mix, cut, count - cut, _mean)


def mean_around_median(
    updates: Sequence[Arrays], kept: int, mix: Mix = None
) -> dict[str, NDArray[Any]]:
    """Return the mean of the ``kept`` values of each element that are closest to their median.

    The second phase of Bulyan, El Mhamdi et al. 2018 (arXiv:1802.07927), section 4. Of two values
    that are equally far from the median, the smaller one is closer.

    :param kept: from 1 to the number of updates.
    """
    count = _count(updates, mix)

    def closest(rows: Rows) -> NDArray[Any]:
        middle = _mean(rows[(count - 1) // 2 : count // 2 + 1])
        if rows[0].dtype == np.float32:
            middle = middle.astype(np.float32)
        below, above = np.empty_like(middle), np.empty_like(middle)
        # Of sorted values those closest to the median are neighbours. A window of them begins at
        # the smallest ones, and moves up while the next value is closer than the first one.
        for first in range(count - kept):
            np.subtract(middle, rows[first], out=below)
            np.subtract(rows[first + kept], middle, out=above)
            np.copyto(rows[first + kept], rows[first], where=above >= below)
        return _mean(rows[count - kept :])

    return _over_ranks(updates, mix, 0, count, closest)


def _count(updates: Sequence[Arrays], mix: Mix) -> int:
    return len(updates) if mix is None else len(mix)


def _over_ranks(
    updates: Sequence[Arrays],
    mix: Mix,
    first: int,
    last: int,
    rule: Callable[[Rows], NDArray[Any]],
) -> dict[str, NDArray[Any]]:
    """Return what a rule makes of the values of the ranks ``first`` to ``last`` (exclusive)."""
    count, sources = _count(updates, mix), [flat(each) for each in updates]
    found, targets = empty_like(updates[0])

    def lane(blocks: Sequence[Block]) -> None:
        buffers: dict[np.dtype[Any], NDArray[Any]] = {}
        unmixed = np.empty(0)
        for block in blocks:
            rows, spare = _room(buffers, block, count)
            if mix is None:
                into = rows
            else:
                if unmixed.size < len(sources) * block.size:
                    unmixed = np.empty(len(sources) * block.size)
                into = unmixed[: len(sources) * block.size].reshape(len(sources), block.size)
            for source, row in zip(sources, into, strict=True):
                load(block, source, row)
            if mix is not None:
                np.matmul(mix, into, out=rows)
            store(block, rule(sort_rows(rows, spare, first, last)), targets)

    held = count if mix is None else count + len(updates)
    type_of = ordered_type if mix is None else wide_type
    in_lanes(lanes_of(updates[0], held, type_of), len(updates), lane)
    return found


def _room(
    buffers: dict[np.dtype[Any], NDArray[Any]], block: Block, count: int
) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return the rows of a block and spare ones; blocks of a type share their memory."""
    spares = count if count > MOST_ROWS else 1
    needed = (count + spares) * block.size
    room = buffers.get(block.dtype)
    if room is None or len(room) < needed:
        room = buffers[block.dtype] = np.empty(needed, block.dtype)
    rows = room[: count * block.size].reshape(count, block.size)
    return rows, room[count * block.size : needed]


def _mean(rows: Rows) -> NDArray[Any]:
    """Return the mean of rows: of integers as integers, of others as float64."""
    if rows[0].dtype.kind in "iu":
        return _whole_mean(rows)
    total = rows[0].astype(np.float64)
    for row in rows[1:]:
        total += row
    total /= len(rows)
    total += 0.0  # -0.0 becomes 0.0
    return total


def _whole_mean(rows: Rows) -> NDArray[Any]:
    """Return the exact mean of integers, rounded half to even, in their type."""
    dtype, count = rows[0].dtype, len(rows)
    upper = np.zeros(rows[0].shape, np.int64)
    lower = np.zeros(rows[0].shape, np.int64)
    half = dtype.type(0xFFFFFFFF) if dtype.itemsize == 8 else None
    for row in rows:
        if half is None:
            lower += row
        else:
            upper += (row >> dtype.type(32)).astype(np.int64)
            lower += (row & half).astype(np.int64)
    above, rest = np.divmod(upper, count)
    quotient, rest = np.divmod((rest << 32) + lower, count)
    quotient += above << 32
    quotient += 2 * rest + (quotient & 1) > count
    return quotient.astype(dtype)
