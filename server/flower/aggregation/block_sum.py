"""The exact sum of one block of single-precision values times weights.

A value of at most 24 significant bits times a weight below 2^29 is a 64-bit float without
rounding. A block adds such products as 64-bit integers, in units of a step: a power of two, so
large that a product takes at most 51 bits. Then ``product + 1.5 * 2^52`` holds it in the lower bits
of a float, where it is read as an integer without a conversion, and 2,048 such products fit 63
bits. The step is chosen for the first update, and grows when a larger product comes or the sum
needs more bits.

A product that may not be a multiple of the step, and what lies below a step that grows, goes to
the remainders, which are exact too (:mod:`server.flower.aggregation.digits`). They are few: of the
51 bits a value takes 24 and a weight of 1,000 takes 10, so only values 2^17 times smaller than the
largest of the block have one.

The steps and the remainders depend on the order of arrival; the sum, and what is made of it, do
not, because nothing is rounded before the end.

Pure: no input or output. The page is docs/adr/0003-exact-mean.md.
"""

from __future__ import annotations

import math
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from fedlearn.update.arrays import BF16, Array
from server.flower.aggregation.digits import SHIFT, SHIFT_BITS, Digits, whole_mean

__all__ = ["BLOCK", "NARROW", "BlockSum", "Scratch"]

BLOCK: Final = 1 << 16
"""Elements of a block: what is needed to add one fits the second-level cache of a core, and a
position fits 16 bits."""

NARROW: Final[dict[np.dtype[Any], tuple[int, int]]] = {
    np.dtype(np.float32): (23, -149),
    np.dtype(np.float16): (10, -24),
    BF16: (7, -133),
    np.dtype(np.int16): (15, 0),
    np.dtype(np.uint16): (15, 0),
    np.dtype(np.int8): (7, 0),
    np.dtype(np.uint8): (7, 0),
    np.dtype(np.bool_): (0, 0),
}
"""The types that a float32 holds: significant bits after the first, and the exponent of the
smallest positive value."""

_SUM_BITS: Final = 62
_PRODUCT_BITS: Final = 51
_LARGEST: Final = float(np.finfo(np.float32).max)
_FEW: Final = 32
"""Up to one of so many positions are looked at one by one."""
_NONE: Final = np.empty(0, np.intp)


class Scratch:
    """The memory in which one thread adds a block, and the block that is loaded into it."""

    def __init__(self) -> None:
        self._converted = np.empty(BLOCK, np.float32)
        self._magnitudes = np.empty(BLOCK, np.float32)
        self._products = np.empty(BLOCK)
        self._small = np.empty(BLOCK, np.bool_)
        self.values = self._converted[:0]

    def load(self, block: Array) -> float:
        """Load a block of one of the types of :data:`NARROW`.

        The block must not change until it is added.

        :returns: its largest magnitude; NaN or infinity where one is in it.
        """
        self.values = block
        if block.dtype != np.float32:
            self.values = self._converted[: len(block)]
            if block.dtype == BF16:
                bits = self.values.view(np.uint32)
                np.left_shift(block["bfloat16"], 16, out=bits, dtype=np.uint32)
            else:
                np.copyto(self.values, block, casting="unsafe")
        # np.max, unlike max(), lets NaN through.
        return float(np.max(np.abs(self.values, out=self.magnitudes)))

    def forget(self) -> None:
        """Let the memory of the loaded block be freed, which is that of a whole update."""
        self.values = self._converted[:0]

    @property
    def magnitudes(self) -> NDArray[np.float32]:
        """The magnitudes of the values."""
        return self._magnitudes[: len(self.values)]

    def products(self, factor: float) -> NDArray[np.float64]:
        """Return the values times a factor."""
        products = self._products[: len(self.values)]
        np.copyto(products, self.values)
        products *= factor
        return products

    def small(self, limit: float) -> NDArray[np.intp] | None:
        """Return the positions of the magnitudes up to ``limit``; None where they are many."""
        small = np.less_equal(self.magnitudes, limit, out=self._small[: len(self.values)])
        count = np.count_nonzero(small)
        if count > len(small) // _FEW:
            small &= self.magnitudes != 0
            if np.count_nonzero(small) > len(small) // _FEW:
                return None
        return np.flatnonzero(small) if count else _NONE


class BlockSum:
    """The running sum of one block. Not thread-safe.

    :param sums: zeros, which hold the sum from now on.
    :param dtype: one of :data:`NARROW`.
    """

    __slots__ = (
        "_before",
        "_bits",
        "_bound",
        "_finest",
        "_remainders",
        "_shifts",
        "_step",
        "_sums",
    )

    def __init__(self, sums: NDArray[np.int64], dtype: np.dtype[Any]) -> None:
        self._sums = sums
        self._bits, self._finest = NARROW[dtype]
        self._step = self._finest
        self._bound = 0
        self._before = (self._bound, self._step)
        self._shifts = 0
        self._remainders: _Remainders | None = None

    @property
    def nbytes(self) -> int:
        """Bytes that the sum takes."""
        return self._sums.nbytes + (self._remainders.nbytes if self._remainders else 0)

    def load(self, block: Array, scratch: Scratch) -> float:
        """Load a block; return its largest magnitude, or NaN or infinity where one is in it."""
        return scratch.load(block)

    def add(self, largest: float, weight: int, scratch: Scratch) -> None:
        """Add the loaded block times ``weight``.

        :param largest: the largest magnitude in the block, which is finite.
        """
        self._before = (self._bound, self._step)
        self._add(largest, weight, scratch)

    def take_back(self, largest: float, weight: int, scratch: Scratch) -> None:
        """Subtract the loaded block, which was the last that was added, with the same weight."""
        bound, step = self._before
        self._add(largest, -weight, scratch)
        if bound:
            self._bound = -(-bound >> (self._step - step))
        else:
            self._settle()
            self._bound, self._step, self._remainders = 0, self._finest, None

    def _add(self, largest: float, weight: int, scratch: Scratch) -> None:
        if not largest or not weight:
            return
        self._make_room(largest * abs(weight))
        products = scratch.products(math.ldexp(weight, -self._step))
        # The last bit of a value times a weight is at least that of a power of two in both.
        even = (weight & -weight).bit_length() - 1
        if self._step > self._finest + even:
            # Values from this one on have whole products.
            limit = math.ldexp(1.0, self._step - even + self._bits)
            at = scratch.small(min(limit, _LARGEST))
            if at is None:
                self._part_all(products)
            else:
                self._part(products, at)
        products += SHIFT
        self._shifts += 1
        self._sums += products.view(np.int64)

    def rounded(self) -> NDArray[np.float64]:
        """Return each sum as the nearest float64, ties to even."""
        self._settle()
        found = self._sums.astype(np.float64)
        found *= math.ldexp(1.0, self._step)
        if self._remainders is not None:
            at, digits = self._remainders.summed()
            digits.add_whole(self._sums[at], self._step)
            found[at] = digits.rounded()
        return found

    def mean(self, weight: int) -> NDArray[Any]:
        """Return the sums of whole numbers by ``weight``, rounded to whole ones, ties to even.

        Their step is 1, for 16 bits of a value, 29 of a weight and 13 of a count fit.
        """
        self._settle()
        return whole_mean(self._sums, weight)

    def most(self, weight: int) -> NDArray[np.bool_]:
        """Return whether the sums of booleans are more than half of ``weight``."""
        self._settle()
        found: NDArray[np.bool_] = 2 * self._sums > weight
        return found

    def _settle(self) -> None:
        """Take the shifts out of the sum. Both wrap around at 64 bits, and cancel out."""
        shifts = self._shifts * SHIFT_BITS % 2**64
        self._sums -= np.uint64(shifts).astype(np.int64)
        self._shifts = 0

    def _make_room(self, product: float) -> None:
        """Make the step so large that products up to ``product`` can be added."""
        needed = math.ceil(math.ldexp(product, -self._step))
        total = self._bound + needed
        if needed.bit_length() > _PRODUCT_BITS or total.bit_length() > _SUM_BITS:
            self._grow(total.bit_length() - _PRODUCT_BITS)
            total = self._bound + math.ceil(math.ldexp(product, -self._step))
        self._bound = total

    def _grow(self, bits: int) -> None:
        """Make the step ``2^bits`` times larger; what is below it goes to the remainders."""
        if self._bound:
            self._settle()
            kept = self._sums >> bits if bits < _SUM_BITS else np.zeros_like(self._sums)
            low = self._sums - (kept << bits)
            at = np.flatnonzero(low)
            if len(at):
                self._remains().add_whole(at, low[at], self._step)
            self._sums[:] = kept
            self._bound = (self._bound >> bits) + 1
        self._step += bits

    def _part(self, products: NDArray[np.float64], at: NDArray[np.intp]) -> None:
        """Move the products at these positions to the remainders."""
        found = products[at]
        if np.count_nonzero(found) < len(found):
            at, found = at[found != 0], found[found != 0]
        if len(at):
            products[at] = 0
            found *= math.ldexp(1.0, self._step)
            self._remains().add(at, found)

    def _part_all(self, products: NDArray[np.float64]) -> None:
        """Round the products; the rest goes to the remainders."""
        rest = products.copy()
        products += SHIFT
        products -= SHIFT
        rest -= products
        rest *= math.ldexp(1.0, self._step)
        self._remains().add_all(rest, math.ldexp(1.0, self._step))

    def _remains(self) -> _Remainders:
        if self._remainders is None:
            self._remainders = _Remainders(len(self._sums))
        return self._remainders


class _Remainders:
    """The exact sums of values at few positions of a block, or at all when they become many."""

    __slots__ = ("_at", "_count", "_digits", "_size", "_waiting")

    _MOST_WAITING: Final = 32

    def __init__(self, size: int) -> None:
        self._size = size
        self._at: NDArray[np.uint16] = np.empty(0, np.uint16)
        self._digits = Digits(0)
        self._waiting: list[tuple[NDArray[np.uint16], NDArray[np.float64]]] = []
        self._count = 0

    @property
    def nbytes(self) -> int:
        """Bytes that the sums take."""
        waiting = sum(at.nbytes + values.nbytes for at, values in self._waiting)
        return self._at.nbytes + self._digits.nbytes + waiting

    def add(self, at: NDArray[np.intp], values: NDArray[np.float64]) -> None:
        """Add a value to each of the positions ``at``, which differ."""
        self._waiting.append((at.astype(np.uint16), values))
        self._count += len(at)
        if self._count > self._size // 16 or len(self._waiting) >= self._MOST_WAITING:
            self._fold()

    def add_all(self, values: NDArray[np.float64], largest: float) -> None:
        """Add a value to each position; ``values`` is used up."""
        self._fold()
        self._extend(np.arange(self._size, dtype=np.uint16))
        self._digits.add(values, largest)

    def add_whole(self, at: NDArray[np.intp], values: NDArray[np.int64], exponent: int) -> None:
        """Add integers of at most 2^62, in units of ``2^exponent``, to positions that differ."""
        self._extend(at.astype(np.uint16))
        self._digits.add_whole(values, exponent, self._places(at))

    def summed(self) -> tuple[NDArray[np.uint16], Digits]:
        """Return the positions, and a copy of their sums."""
        self._fold()
        return self._at, self._digits.placed(len(self._at), np.arange(len(self._at)))

    def _fold(self) -> None:
        if not self._waiting:
            return
        at = np.concatenate([at for at, _ in self._waiting])
        values = np.concatenate([values for _, values in self._waiting])
        self._extend(at)
        largest = float(np.max(np.abs(values)))
        places = self._places(at)
        self._digits.add(values, largest, places, times=len(self._waiting))
        self._waiting.clear()
        self._count = 0

    def _places(self, at: NDArray[np.integer[Any]]) -> NDArray[np.intp]:
        """Return where the sums of these positions are."""
        whole = len(self._at) == self._size
        return at.astype(np.intp) if whole else np.searchsorted(self._at, at)

    def _extend(self, at: NDArray[np.uint16]) -> None:
        """Give the positions ``at`` a place; past the half of a block, give all one."""
        if len(self._at) == self._size:
            return
        held = np.zeros(self._size, np.bool_)
        held[self._at] = held[at] = True
        if 2 * np.count_nonzero(held) > self._size:
            held[:] = True
        known = np.flatnonzero(held).astype(np.uint16)
        if len(known) > len(self._at):
            self._digits = self._digits.placed(len(known), np.searchsorted(known, self._at))
            self._at = known
