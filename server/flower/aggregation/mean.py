"""The weighted mean of updates: exact, streaming, the same bits in any order.

An update is added block by block to integers, and integer addition is associative, so the sum
does not depend on the order of arrival. Two modules hold the sums:

* :mod:`server.flower.aggregation.block_sum` those of float32, float16, bfloat16, integers of at
  most 16 bits and booleans, in 8 bytes for each parameter and what few remainders need;
* :mod:`server.flower.aggregation.digits` those of float64 and wider integers, each value in two to
  four parts, so that a part times its weight (below 2^29) is a 64-bit float without rounding. A
  parameter takes 8 bytes for each 50 bits that the sums of its block span.

The sum is exact for float32, float16, bfloat16, integers and booleans, over their whole range.
float64 values are added exactly as far as they are multiples of 2^-210; what is finer is rounded
there, and values beyond 2^190 are refused.

The mean of floating-point arrays is the sum, rounded to the nearest float64, divided by the sum of
the weights in float64, and then rounded to the type of the array: a mean of float32 is wrong by
less than one unit in the last place, and one update of float32 is its own mean. A mean of zeros is
``+0.0``: the sign of a zero is not kept. Integer arrays get the exact mean, rounded to the nearest
integer, ties to even. Boolean arrays get the weighted majority, ``False`` for a tie.

Large models are added by as many threads as the process has cores.

An update that is refused leaves the sum as it was. The page is docs/adr/0003-exact-mean.md.
"""

from __future__ import annotations

import math
import mmap
import os
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from fedlearn.errors import UpdateRejected
from fedlearn.update.arrays import BF16, Array, check_like, to_bfloat16
from server.flower.aggregation.block_sum import BLOCK, NARROW, BlockSum, Scratch
from server.flower.aggregation.digits import MAX_MAGNITUDE, WideSum

__all__ = ["MAX_MAGNITUDE", "MAX_UPDATES", "MAX_WEIGHT", "ExactMean", "whole_weight"]

MAX_UPDATES: Final = 8191
MAX_WEIGHT: Final = 2**29 - 1

_THREADED: Final = 1 << 20
"""Elements from which on threads pay."""
_MOST_THREADS: Final = 16
"""More do not have more of the memory's bandwidth."""


def whole_weight(value: object) -> int:
    """Return a weight as a whole number.

    :raises UpdateRejected: unless it is a whole number from 0 to :data:`MAX_WEIGHT`.
    """
    if isinstance(value, bool) or not isinstance(value, int | float | np.integer | np.floating):
        raise UpdateRejected("the weight of an update must be a number")
    if not math.isfinite(value) or value != math.floor(value) or not 0 <= value <= MAX_WEIGHT:
        raise UpdateRejected(
            f"the weight of an update must be a whole number from 0 to {MAX_WEIGHT}",
            hint="weight updates by their number of examples",
        )
    return int(value)


@dataclass(slots=True)
class _Block:
    """A part of an array, and its sum."""

    name: str
    start: int
    end: int
    sum: BlockSum | WideSum
    place: int
    """How many integers lie before its own in the memory of the sums."""
    added: bool = False
    """Whether it holds the update that is being added."""

    def of(self, flat: Mapping[str, Array]) -> Array:
        """Return the same part of another array of that name."""
        return flat[self.name][self.start : self.end]


class ExactMean:
    """A running weighted mean. Not thread-safe.

    :param like: the arrays that every update must match in name, order, type and shape; only
        these are kept of it.
    """

    def __init__(self, like: Mapping[str, Array]) -> None:
        self._like = {name: _empty_like(array) for name, array in like.items()}
        self._size = sum(array.size for array in like.values())
        self._scratch = [Scratch() for _ in range(_threads(self._size))]
        self._updates = 0
        self._weight = 0
        self._clear()

    def _clear(self) -> None:
        self._memory = _Memory(
            sum(_padded(like.size) for like in self._like.values() if like.dtype in NARROW)
        )
        self._blocks = list(self._new_blocks())

    def _new_blocks(self) -> Iterator[_Block]:
        place = 0
        for name, like in self._like.items():
            for start in range(0, like.size, BLOCK):
                end = min(start + BLOCK, like.size)
                if like.dtype in NARROW:
                    total: BlockSum | WideSum = BlockSum(
                        self._memory.integers(place, end - start), like.dtype
                    )
                else:
                    total = WideSum(end - start)
                yield _Block(name, start, end, total, place)
                place += _padded(end - start) if like.dtype in NARROW else 0

    @property
    def updates(self) -> int:
        """How many updates are in the sum."""
        return self._updates

    @property
    def weight(self) -> int:
        """The sum of their weights."""
        return self._weight

    @property
    def nbytes(self) -> int:
        """Bytes that the sums take."""
        return sum(block.sum.nbytes for block in self._blocks)

    def add(self, arrays: Mapping[str, Array], weight: int) -> None:
        """Add one update.

        Every value is looked at once, while it is added. What was added of an update that turns out
        to be wrong is subtracted again, which leaves every bit of the sum as it was. The arrays
        must not change meanwhile.

        :param weight: a whole number from 0 to :data:`MAX_WEIGHT`.
        :raises UpdateRejected: when the update does not match, holds a value that is not
            finite or out of range, or when there are too many updates. The sum is as before then.
        """
        weight = whole_weight(weight)
        if self._updates >= MAX_UPDATES:
            raise UpdateRejected(f"at most {MAX_UPDATES} updates can be added")
        check_like(arrays, self._like)
        flat = {
            name: np.ascontiguousarray(arrays[name], like.dtype).reshape(-1)
            for name, like in self._like.items()
        }

        refused: list[_Block] = []

        def add(block: _Block, scratch: Scratch) -> None:
            block.added = False
            if refused:
                return
            largest = block.sum.load(block.of(flat), scratch)
            if _refusal(block, largest, weight):
                refused.append(block)
                return
            block.sum.add(largest, weight, scratch)
            block.added = True

        def take_back(block: _Block, scratch: Scratch) -> None:
            if block.added:
                largest = block.sum.load(block.of(flat), scratch)
                block.sum.take_back(largest, weight, scratch)

        self._each(add)
        if refused:
            self._each(take_back)
            raise self._first_refusal(flat, weight)
        self._updates += 1
        self._weight += weight

    def _first_refusal(self, flat: Mapping[str, Array], weight: int) -> UpdateRejected:
        """Return the refusal of the first wrong block, whichever thread found one first."""
        for block in self._blocks:
            largest = block.sum.load(block.of(flat), self._scratch[0])
            refusal = _refusal(block, largest, weight)
            if refusal is not None:
                return refusal
        return UpdateRejected("the update changed while it was added")

    def result(self, *, wide: bool = False, release: bool = False) -> dict[str, Array]:
        """Return the mean of what was added, in the element types of the model.

        :param wide: leave the mean of floating-point arrays as float64, for a step that goes
            on calculating with it.
        :param release: give back the memory of each block of the sum as soon as its mean is
            written, so that both together take no more than the sum. The sum is empty
            afterwards; without it, the sum is not changed, and more may be added.

        :raises UpdateRejected: when the weights sum to zero.
        """
        if self._weight == 0:
            raise UpdateRejected(
                "no update with a weight above 0 arrived, so there is no mean",
                hint="a client reports how many examples it trained on",
            )
        found: dict[str, Array] = {
            name: np.empty(like.size, np.float64 if wide and _is_float(like) else like.dtype)
            for name, like in self._like.items()
        }

        def write(block: _Block, scratch: Scratch) -> None:
            del scratch
            part = found[block.name][block.start : block.end]
            part[:] = self._mean(block, part.dtype)
            if release and isinstance(block.sum, BlockSum):
                self._memory.release(block.place, len(part))

        self._each(write)
        if release:
            self._updates = self._weight = 0
            self._clear()
        return {name: found[name].reshape(like.shape) for name, like in self._like.items()}

    def _mean(self, block: _Block, dtype: np.dtype[Any]) -> Array:
        if dtype.kind == "b" and isinstance(block.sum, BlockSum):
            return block.sum.most(self._weight)
        if dtype.kind in "iu":
            return block.sum.mean(self._weight)
        mean = block.sum.rounded()
        mean /= float(self._weight)
        return to_bfloat16(mean.astype(np.float32)) if dtype == BF16 else mean

    def _each(self, work: Callable[[_Block, Scratch], None]) -> None:
        """Do something to every block, in as many threads as there is scratch memory for."""

        def some(first: int) -> None:
            for block in self._blocks[first :: len(self._scratch)]:
                work(block, self._scratch[first])
            self._scratch[first].forget()

        if len(self._scratch) == 1:
            some(0)
            return
        with ThreadPoolExecutor(len(self._scratch)) as pool:
            for _ in pool.map(some, range(len(self._scratch))):
                pass


class _Memory:
    """Zeros for the sums. What is released goes back to the system at once."""

    def __init__(self, elements: int) -> None:
        size = max(elements * 8, mmap.PAGESIZE)
        self._map = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        if hasattr(mmap, "MADV_HUGEPAGE"):
            self._map.madvise(mmap.MADV_HUGEPAGE)

    def integers(self, place: int, count: int) -> NDArray[np.int64]:
        """Return the ``count`` integers that begin after ``place`` others."""
        return np.frombuffer(self._map, np.int64, count, 8 * place)

    def release(self, place: int, count: int) -> None:
        """Give back the pages of these integers."""
        self._map.madvise(mmap.MADV_DONTNEED, 8 * place, 8 * _padded(count))


def _refusal(block: _Block, largest: float, weight: int) -> UpdateRejected | None:
    """Return why a block with this largest magnitude cannot be added; None where it can."""
    if not math.isfinite(largest):
        return UpdateRejected(f"{block.name}: contains NaN or infinity")
    if largest * weight > MAX_MAGNITUDE:
        return UpdateRejected(
            f"{block.name}: {largest:.3g} with weight {weight} is beyond 2^190",
            hint="the update has diverged, or weights are not numbers of examples",
        )
    return None


def _padded(elements: int) -> int:
    """Return how many integers the pages have that take so many."""
    page = mmap.PAGESIZE // 8
    return -(-elements // page) * page


def _threads(size: int) -> int:
    if size < _THREADED:
        return 1
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return min(cores or 1, size // (_THREADED // 2), _MOST_THREADS)


def _empty_like(array: Array) -> Array:
    """Return an array of that type and shape which takes no memory."""
    return np.broadcast_to(np.zeros((), array.dtype.newbyteorder("<")), array.shape)


def _is_float(array: Array) -> bool:
    return array.dtype == BF16 or array.dtype.kind == "f"
