"""Sorting networks over rows: whole arrays are compared, element by element.

A network is a fixed list of comparators, so it sorts every column of a block by the same calls of
``numpy.minimum`` and ``numpy.maximum``. It is Batcher's odd-even merge sort (Batcher 1968; Knuth,
The Art of Computer Programming 3, section 5.2.2, algorithm M), from which comparators whose
outputs no needed rank depends on are left out, and of the others the half that is not needed.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

__all__ = ["Comparator", "pruned", "sort_rows"]

MOST_ROWS: Final = 64
"""The most rows that a network sorts. For more, numpy's sort of a transposed block is faster:
the cost of an element grows as the logarithm of the number of rows, not as its square."""


class Comparator(NamedTuple):
    """The smaller of two rows goes to ``low``, the larger one to ``high``, where it is needed."""

    low: int
    high: int
    smaller: bool
    larger: bool


@lru_cache(maxsize=128)
def pruned(count: int, first: int, last: int) -> tuple[Comparator, ...]:
    """Return a network that leaves the ranks ``first`` to ``last`` (exclusive) in their rows.

    >>> [tuple(each)[:2] for each in pruned(3, 1, 2)]
    [(0, 2), (0, 1), (1, 2)]
    """
    needed = set(range(first, last))
    found: list[Comparator] = []
    for low, high in reversed(list(_merge_sort(count))):
        comparator = Comparator(low, high, low in needed, high in needed)
        if comparator.smaller or comparator.larger:
            found.append(comparator)
            needed |= {low, high}
    return tuple(reversed(found))


def _merge_sort(count: int) -> Iterator[tuple[int, int]]:
    """Yield the pairs of rows that Batcher's network compares, in order."""
    top = 1 << max(0, (count - 1).bit_length() - 1)
    width = top if count > 1 else 0
    while width:
        step, rest, distance = top, 0, width
        while True:
            for row in range(count - distance):
                if row & width == rest:
                    yield row, row + distance
            if step == width:
                break
            distance, rest, step = step - width, width, step >> 1
        width >>= 1


def sort_rows(rows: NDArray[Any], spare: NDArray[Any], first: int, last: int) -> list[NDArray[Any]]:
    """Sort each column of ``rows``; return the rows of the ranks ``first`` to ``last``.

    ``rows`` and ``spare`` are used up, and hold what is returned.

    :param spare: room for one row; for more than :data:`MOST_ROWS` rows, for all of them.
    """
    if len(rows) > MOST_ROWS:
        columns = spare.reshape(rows.shape[::-1])
        np.copyto(columns, rows.T)
        columns.sort(axis=1)
        np.copyto(rows, columns.T)
        return list(rows[first:last])
    found, free = list(rows), spare
    for low, high, smaller, larger in pruned(len(rows), first, last):
        one, other = found[low], found[high]
        if smaller and larger:
            np.minimum(one, other, out=free)
            np.maximum(one, other, out=other)
            found[low], free = free, one
        elif smaller:
            np.minimum(one, other, out=one)
        else:
            np.maximum(one, other, out=other)
    return found[first:last]
