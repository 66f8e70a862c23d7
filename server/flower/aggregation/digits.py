"""Exact sums of 64-bit floats over fixed grids of integers.

A value ``v`` is split over the steps ``2^140, 2^90, 2^40, 2^-10, 2^-60, 2^-110, 2^-160, 2^-210``,
the coarsest first::

    digit = round(v / step)              v = v - digit * step

and the digits are added as 64-bit integers. Integer addition is associative, so the sum does not
depend on the order of the values. It is exact as far as values are multiples of 2^-210; what is
finer is rounded there. A grid takes 8 bytes for each position, and exists from the first digit on
that is not zero. One grid above these takes what is carried out of 64 bits.

Pure: no input or output. The page is docs/adr/0003-exact-mean.md.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

__all__ = ["MAX_MAGNITUDE", "SHIFT", "SHIFT_BITS", "Digits", "WideSum", "whole_mean"]

MAX_MAGNITUDE: Final = 2.0**190

_BASE: Final = 50
"""Bits between two grids: a digit is at most 2^50."""
_EXPONENTS: Final = (190, 140, 90, 40, -10, -60, -110, -160, -210)
"""Of the steps of the grids, in powers of two; the first one takes only what is carried."""
SHIFT: Final = 1.5 * 2.0**52
"""A float that, added to one of at most 2^51, rounds it to a whole number, ties to even, and has it
in the lower bits."""
SHIFT_BITS: Final = int(np.float64(SHIFT).view(np.int64))
"""What these bits are for zero."""
_MAX_LOAD: Final = 4096
"""Digits of 2^50 that are added up before they are carried: 2^62."""
_LEADING: Final = 16
"""A digit from here on, with the next one, holds the 53 bits of a float and the bit behind them."""

_PART_BITS: Final = 22
"""Bits of an integer that are multiplied at a time."""
_SPLITTER: Final = 2.0**29 + 1
"""Leaves the upper 24 of the 53 bits of a float64 (Veltkamp 1968; Dekker 1971, section 5)."""


class Digits:
    """The exact sums of values at ``size`` positions. Not thread-safe."""

    __slots__ = ("_grids", "_load", "_size")

    def __init__(self, size: int) -> None:
        self._size = size
        self._grids: dict[int, NDArray[np.int64]] = {}
        self._load = 0

    @property
    def nbytes(self) -> int:
        """Bytes of the grids."""
        return sum(grid.nbytes for grid in self._grids.values())

    def add(
        self,
        rest: NDArray[np.float64],
        largest: float,
        at: NDArray[np.intp] | None = None,
        times: int = 1,
    ) -> None:
        """Add one value to each position, or to those of ``at``; ``rest`` is used up.

        :param largest: what no magnitude exceeds; at most :data:`MAX_MAGNITUDE`.
        :param times: how often ``at`` may hold the same position; below :data:`_MAX_LOAD`.
        """
        if self._load + times > _MAX_LOAD:
            self._carry()
        self._load += times
        for grid in range(_first_grid(largest), len(_EXPONENTS)):
            shifted = rest * 2.0 ** -_EXPONENTS[grid]
            shifted += SHIFT
            digits = shifted - SHIFT
            if grid in self._grids or digits.any():
                if grid not in self._grids:
                    self._grids[grid] = np.zeros(self._size, np.int64)
                whole = shifted.view(np.int64)
                whole -= SHIFT_BITS
                if at is None:
                    self._grids[grid] += whole
                else:
                    np.add.at(self._grids[grid], at, whole)
                digits *= 2.0 ** _EXPONENTS[grid]
                rest -= digits
            if not rest.any():
                return

    def add_whole(
        self, values: NDArray[np.int64], exponent: int, at: NDArray[np.intp] | None = None
    ) -> None:
        """Add integers of at most 2^62, in units of ``2^exponent``."""
        high = values >> 31
        for part, unit in ((high, exponent + 31), (values - (high << 31), exponent)):
            scaled = np.ldexp(part.astype(np.float64), unit)
            self.add(scaled, float(np.max(np.abs(scaled), initial=0.0)), at)

    def placed(self, size: int, at: NDArray[np.intp]) -> Digits:
        """Return the same sums at the positions ``at`` of ``size``; the others are zero."""
        found = Digits(size)
        found._load = self._load
        for grid, digits in self._grids.items():
            found._grids[grid] = np.zeros(size, np.int64)
            found._grids[grid][at] = digits
        return found

    def rounded(self) -> NDArray[np.float64]:
        """Return each sum as the nearest float64, ties to even."""
        head = np.zeros(self._size, np.int64)
        unit = np.zeros(self._size, np.intc)
        after = np.zeros(self._size)
        sticky = np.zeros(self._size)
        follows = np.zeros(self._size, np.bool_)
        for exponent, digit in self._carried():
            small = np.abs(head) < _LEADING
            # Of what is behind the second digit only the sign matters.
            sticky = np.where(follows & (sticky == 0), np.sign(digit) * 0.25, sticky)
            after = np.where(small | follows, after, digit)
            follows = ~small
            head = np.where(small, (head << _BASE) + digit, head)
            unit = np.where(small, exponent, unit)
        found = head.astype(np.float64)
        tail = head - found.astype(np.int64)
        found += tail + np.ldexp(after + sticky, -_BASE)
        return np.ldexp(found, unit)

    def mean(self, weight: int) -> NDArray[Any]:
        """Return the sums of whole numbers by ``weight``, rounded to whole ones, ties to even."""
        fits = bool(np.max(np.abs(self.rounded()), initial=0.0) < 2.0**62)
        kind: Any = np.int64 if fits else np.object_
        total: NDArray[Any] = np.zeros(self._size, kind)
        for exponent, digit in self._carried():
            # Digits of whole numbers are multiples of one.
            wide: Any = digit.astype(kind)
            total = total + (wide << exponent if exponent >= 0 else wide >> -exponent)
        return whole_mean(total, weight)

    def _carry(self) -> None:
        """Leave each digit at most 2^49, so that more can be added."""
        self._grids = {
            grid: digits.copy()
            for grid, (_, digits) in zip(self._range(), self._carried(), strict=True)
            if digits.any()
        }
        self._load = 1

    def _range(self) -> range:
        """Return the grids from the one above the coarsest, which may need it, to the finest."""
        return range(max(0, min(self._grids, default=0) - 1), max(self._grids, default=-1) + 1)

    def _carried(self) -> Iterator[tuple[int, NDArray[np.int64]]]:
        """Yield exponents and digits, the coarsest first, each at most 2^49 and unique."""
        found = []
        carry = np.zeros(self._size, np.int64)
        for grid in reversed(self._range()):
            digits = self._grids[grid] + carry if grid in self._grids else carry
            carry = (digits + (1 << (_BASE - 1))) >> _BASE
            found.append((_EXPONENTS[grid], digits - (carry << _BASE)))
        yield from reversed(found)


def whole_mean(total: NDArray[Any], weight: int) -> NDArray[Any]:
    """Return whole numbers by ``weight``, rounded to whole ones, ties to even."""
    quotient, rest = total // weight, total % weight
    found: NDArray[Any] = quotient + (2 * rest + (quotient & 1) > weight).astype(total.dtype)
    return found


def _first_grid(largest: float) -> int:
    """Return the finest grid whose digits take values up to this size."""
    return max(
        grid for grid, exponent in enumerate(_EXPONENTS) if largest <= 2.0 ** (exponent + _BASE)
    )


_NOTHING: Final = np.empty(0)
"""In place of the values of an update, which must not stay in memory after it is added."""


class WideSum:
    """The running sum of a block of float64, or of integers of 32 or 64 bits. Not thread-safe."""

    __slots__ = ("_digits", "_values")

    def __init__(self, size: int) -> None:
        self._digits = Digits(size)
        self._values: NDArray[Any] = _NOTHING

    @property
    def nbytes(self) -> int:
        """Bytes that the sum takes."""
        return self._digits.nbytes

    def load(self, block: NDArray[Any], scratch: object) -> float:
        """Load a block; return its largest magnitude, or NaN or infinity where one is in it."""
        del scratch
        self._values = block
        return float(np.max(np.abs(block.astype(np.float64))))

    def add(self, largest: float, weight: int, scratch: object) -> None:
        """Add the loaded block times ``weight``; its largest magnitude is finite."""
        del scratch
        values, self._values = self._values, _NOTHING
        if not largest or not weight:
            return
        largest = max(largest, _largest_part(values)) * abs(weight)
        for part in _parts(values, abs(weight)):
            part *= float(weight)
            self._digits.add(part, largest)

    def take_back(self, largest: float, weight: int, scratch: object) -> None:
        """Subtract the loaded block, which was the last that was added, with the same weight."""
        self.add(largest, -weight, scratch)

    def rounded(self) -> NDArray[np.float64]:
        """Return each sum as the nearest float64, ties to even."""
        return self._digits.rounded()

    def mean(self, weight: int) -> NDArray[Any]:
        """Return the sums of whole numbers by ``weight``, rounded to whole ones, ties to even."""
        return self._digits.mean(weight)


def _largest_part(values: NDArray[Any]) -> float:
    """Return what a part may be where it can be larger than its value; 0 where it cannot."""
    return 2.0 ** (8 * values.dtype.itemsize) if values.dtype.kind == "i" else 0.0


def _parts(values: NDArray[Any], weight: int) -> tuple[NDArray[np.float64], ...]:
    """Return parts that sum up to the values, and times ``weight`` are floats without rounding.

    They have at most 24 significant bits, or 28 where that is enough.
    """
    if values.dtype.kind == "f":
        wide = values.astype(np.float64)
        upper = _upper(wide)
        wide -= upper
        if weight < 2**24:
            return upper, wide
        middle = _upper(wide)
        wide -= middle
        return upper, middle, wide
    mask = values.dtype.type((1 << _PART_BITS) - 1)
    last = 8 * values.dtype.itemsize // _PART_BITS
    parts = []
    for index in range(last + 1):
        shifted = values >> values.dtype.type(index * _PART_BITS)
        # The uppermost part keeps the sign.
        digits = shifted if index == last else shifted & mask
        parts.append(np.ldexp(digits.astype(np.float64), index * _PART_BITS))
    return tuple(parts)


def _upper(values: NDArray[np.float64]) -> NDArray[np.float64]:
    scaled = values * _SPLITTER
    found: NDArray[np.float64] = scaled - (scaled - values)
    return found
