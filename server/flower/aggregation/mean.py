"""The weighted mean of updates: exact, streaming, the same bits in any order.

Every value is split into parts of at most 24 significant bits, so that a part times its weight
(below 2^29) is a 64-bit float without rounding. Each product ``v`` is split over integer grids of
the steps ``2^140, 2^90, 2^40, 2^-10, 2^-60, 2^-110, 2^-160, 2^-210``, the coarsest first::

    digit = round(v / step)              v = v - digit * step

and the digits are added as 64-bit integers. Integer addition is associative, so the sum does not
depend on the order of arrival. ``|v| <= 2^190`` and fewer than 8192 updates make overflow
impossible.

The sum is exact for float32, float16, bfloat16, integers and booleans, over their whole range.
float64 values are added exactly as far as they are multiples of 2^-210; what is finer is rounded
there, and values beyond 2^190 are refused. A grid takes 8 bytes for each parameter, and an array
gets those that its values need: 16 bytes for a parameter between 2^-36 and 2^11 with any
weight, and at most 64, however many updates there are.

The mean of floating-point arrays is the sum divided by the sum of the weights, in float64 with an
error of at most 2 units in the last place, and then rounded to the type of the array: a mean of
float32 is wrong by less than one unit in the last place, and one update of float32 is its own
mean. A mean of zeros is ``+0.0``: the sign of a zero is not kept. Integer arrays get the exact
mean, rounded to the nearest integer, ties to even. Boolean arrays get the weighted majority,
``False`` for a tie.

Pure: no input or output, and an update that is refused leaves the sum as it was.

The page is docs/adr/0003-exact-mean.md.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from fedlearn.errors import UpdateRejected
from fedlearn.update.arrays import BF16, Array, check_like, to_bfloat16, to_float32

__all__ = ["MAX_MAGNITUDE", "MAX_UPDATES", "MAX_WEIGHT", "ExactMean", "whole_weight"]

MAX_UPDATES: Final = 8191
MAX_WEIGHT: Final = 2**29 - 1
MAX_MAGNITUDE: Final = 2.0**190

_BASE: Final = 50
"""Bits between two grids: a digit is at most 2^50, and 8191 of them fit 64 bits."""
_EXPONENTS: Final = (140, 90, 40, -10, -60, -110, -160, -210)
"""Of the steps of the grids, in powers of two."""
_USUAL: Final = (3, 4)
"""The grids that every array has."""
_PART_BITS: Final = 22
"""Bits of an integer that are multiplied at a time."""
_SPLITTER: Final = 2.0**29 + 1
"""Leaves the upper 24 of the 53 bits of a float64 (Veltkamp 1968; Dekker 1971, section 5)."""
_BLOCK: Final = 1 << 16
"""Elements that are added at a time, so that intermediate values stay in the cache."""


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


class ExactMean:
    """A running weighted mean.

    :param like: the arrays that every update must match in name, order, type and shape; only
        these are kept of it.
    """

    def __init__(self, like: Mapping[str, Array]) -> None:
        self._like = {name: _empty_like(array) for name, array in like.items()}
        self._grids = {
            name: {grid: np.zeros(array.size, np.int64) for grid in _USUAL}
            for name, array in like.items()
        }
        self._updates = 0
        self._weight = 0

    @property
    def updates(self) -> int:
        """How many updates are in the sum."""
        return self._updates

    @property
    def weight(self) -> int:
        """The sum of their weights."""
        return self._weight

    def add(self, arrays: Mapping[str, Array], weight: int) -> None:
        """Add one update.

        :param weight: a whole number from 0 to :data:`MAX_WEIGHT`.
        :raises UpdateRejected: when the update does not match, holds a value that is not
            finite or out of range, or when there are too many updates. Nothing is added then.
        """
        weight = whole_weight(weight)
        if self._updates >= MAX_UPDATES:
            raise UpdateRejected(f"at most {MAX_UPDATES} updates can be added")
        check_like(arrays, self._like)
        largest: dict[str, float] = {}
        for name, array in arrays.items():
            largest[name] = _largest(array)
            if not math.isfinite(largest[name]):
                raise UpdateRejected(f"{name}: contains NaN or infinity")
            if largest[name] * weight > MAX_MAGNITUDE:
                raise UpdateRejected(
                    f"{name}: {largest[name]:.3g} with weight {weight} is beyond 2^190",
                    hint="the update has diverged, or weights are not numbers of examples",
                )
        for name, array in arrays.items():
            first = _first_grid(max(largest[name], _largest_part(array)) * weight)
            for start, parts in _blocks(array):
                for part in parts:
                    part *= float(weight)
                    self._spread(name, start, part, first)
        self._updates += 1
        self._weight += weight

    def _spread(self, name: str, start: int, rest: NDArray[np.float64], first: int) -> None:
        """Add values to the grids from ``first`` on; ``rest`` is used up."""
        grids, end = self._grids[name], start + len(rest)
        for grid in range(first, len(_EXPONENTS)):
            step = 2.0 ** _EXPONENTS[grid]
            digits = np.rint(rest / step)
            if grid not in grids:
                grids[grid] = np.zeros(self._like[name].size, np.int64)
            grids[grid][start:end] += digits.astype(np.int64)
            digits *= step
            rest -= digits
            if grid >= _USUAL[-1] and not rest.any():
                return

    def result(self, *, wide: bool = False) -> dict[str, Array]:
        """Return the mean of what was added, in the element types of the model.

        The sum itself is not changed: more may be added afterwards.

        :param wide: leave the mean of floating-point arrays as float64, for a step that goes
            on calculating with it.

        :raises UpdateRejected: when the weights sum to zero.
        """
        if self._weight == 0:
            raise UpdateRejected(
                "no update with a weight above 0 arrived, so there is no mean",
                hint="a client reports how many examples it trained on",
            )
        return {name: self._mean(name, wide) for name in self._like}

    def _mean(self, name: str, wide: bool) -> Array:
        like = self._like[name]
        keep = wide and (like.dtype == BF16 or like.dtype.kind == "f")
        found: Array = np.empty(like.size, np.float64 if keep else like.dtype)
        for start in range(0, like.size, _BLOCK):
            digits = self._carried(name, slice(start, start + _BLOCK))
            part = found[start : start + _BLOCK]
            if like.dtype.kind in "iu":
                part[:] = _whole_mean(digits, self._weight)
                continue
            mean = _value(digits) / float(self._weight)
            part[:] = mean if keep else _as_type(mean, like.dtype)
        return found.reshape(like.shape)

    def _carried(self, name: str, part: slice) -> list[tuple[int, NDArray[np.int64]]]:
        """Return exponents and digits, the finest first, each but the last at most 2^49."""
        grids = self._grids[name]
        found: list[tuple[int, NDArray[np.int64]]] = []
        carry: NDArray[np.int64] | int = 0
        for grid in range(max(grids), min(grids) - 1, -1):
            digits = grids[grid][part] + carry if grid in grids else np.asarray(carry)
            if grid > min(grids):
                carry = (digits + (1 << (_BASE - 1))) >> _BASE
                digits = digits - (carry << _BASE)
            found.append((_EXPONENTS[grid], digits))
        return found


def _value(digits: list[tuple[int, NDArray[np.int64]]]) -> NDArray[np.float64]:
    """Return the sum of digits as float64; the small parts are added first."""
    total: NDArray[np.float64] = np.zeros((), np.float64)
    for exponent, digit in digits:
        # 64-bit integers do not fit a float: split.
        head = digit.astype(np.float64)
        tail = (digit - head.astype(np.int64)).astype(np.float64)
        step = 2.0**exponent
        total = head * step + (tail * step + total)
    return total


def _whole_mean(digits: list[tuple[int, NDArray[np.int64]]], weight: int) -> NDArray[Any]:
    """Return the sum of digits of whole numbers by ``weight``, rounded half to even."""
    fits = bool(np.max(np.abs(_value(digits)), initial=0.0) < 2.0**62)
    kind: Any = np.int64 if fits else np.object_
    total: NDArray[Any] = np.zeros(digits[-1][1].shape, kind)
    for exponent, digit in digits:
        # Digits of whole numbers are multiples of one.
        wide: Any = digit.astype(kind)
        total = total + (wide << exponent if exponent >= 0 else wide >> -exponent)
    quotient, rest = total // weight, total % weight
    rounded: NDArray[Any] = quotient + (2 * rest + (quotient & 1) > weight).astype(kind)
    return rounded


def _first_grid(product: float) -> int:
    """Return the finest grid that takes products up to this size, or a usual one."""
    if product <= 2.0 ** (_EXPONENTS[_USUAL[0]] + _BASE):
        return _USUAL[0]
    return max(
        grid for grid, exponent in enumerate(_EXPONENTS) if product <= 2.0 ** (exponent + _BASE)
    )


def _empty_like(array: Array) -> Array:
    """Return an array of that type and shape which takes no memory."""
    return np.broadcast_to(np.zeros((), array.dtype), array.shape)


def _largest(array: Array) -> float:
    """Return the largest magnitude; NaN or infinity where one is in it."""
    flat = np.ascontiguousarray(array).reshape(-1)
    found = 0.0
    for start in range(0, flat.size, _BLOCK):
        block = flat[start : start + _BLOCK]
        wide = (to_float32(block) if block.dtype == BF16 else block).astype(np.float64)
        # np.maximum, unlike max(), lets NaN through.
        found = float(np.maximum(found, np.max(np.abs(wide))))
    return found


def _largest_part(array: Array) -> float:
    """Return what a part may be where it can be larger than its value; 0 where it cannot."""
    signed = array.dtype.kind == "i" and array.dtype.itemsize > 2
    return 2.0 ** (8 * array.dtype.itemsize) if signed else 0.0


def _blocks(array: Array) -> Iterator[tuple[int, tuple[NDArray[np.float64], ...]]]:
    """Yield the position of each block, and its parts of at most 24 significant bits."""
    flat = np.ascontiguousarray(array).reshape(-1)
    for start in range(0, flat.size, _BLOCK):
        block = flat[start : start + _BLOCK]
        if block.dtype == BF16:
            block = to_float32(block)
        if block.dtype.kind in "iu" and block.dtype.itemsize > 2:
            yield start, _whole_parts(block)
        elif block.dtype.kind == "f" and block.dtype.itemsize > 4:
            yield start, _float_parts(block.astype(np.float64))
        else:
            yield start, (block.astype(np.float64),)


def _whole_parts(block: Array) -> tuple[NDArray[np.float64], ...]:
    mask = block.dtype.type((1 << _PART_BITS) - 1)
    last = 8 * block.dtype.itemsize // _PART_BITS
    parts = []
    for index in range(last + 1):
        shifted = block >> block.dtype.type(index * _PART_BITS)
        # The uppermost part keeps the sign.
        digits = shifted if index == last else shifted & mask
        parts.append(np.ldexp(digits.astype(np.float64), index * _PART_BITS))
    return tuple(parts)


def _float_parts(values: NDArray[np.float64]) -> tuple[NDArray[np.float64], ...]:
    upper = _upper(values)
    rest = values - upper
    middle = _upper(rest)
    return upper, middle, rest - middle


def _upper(values: NDArray[np.float64]) -> NDArray[np.float64]:
    scaled = values * _SPLITTER
    found: NDArray[np.float64] = scaled - (scaled - values)
    return found


def _as_type(mean: NDArray[np.float64], dtype: np.dtype[Any]) -> Array:
    if dtype == BF16:
        return to_bfloat16(mean.astype(np.float32))
    if dtype.kind == "b":
        return mean > 0.5
    return mean.astype(dtype)
