"""The weighted mean of updates: exact, streaming, the same bits in any order.

A value times its weight is a 64-bit float; for values of at most 24 significant bits (float32,
float16, bfloat16) and weights below 2^29 that product is exact. Each product ``v`` is then
split over two integer grids::

    hi = round(v * 2^10)                 lo = round((v - hi * 2^-10) * 2^60)

and both are added as 64-bit integers. Integer addition is associative, so the sum does not
depend on the order of arrival, and its error is at most 2^-61 for each update: what is finer
than the lower grid. Bounds make overflow impossible: ``|v| <= 2^40`` and fewer than 8192
updates. The memory is 16 bytes for each parameter, however many updates there are.

Element types: floating-point arrays get the mean, rounded once to their type. Integer arrays
get the mean, rounded to the nearest integer, ties to even. Boolean arrays get the weighted
majority, ``False`` for a tie.

Pure: no input or output, and an update that is refused leaves the sum as it was.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from fedlearn.errors import UpdateRejected
from fedlearn.update import BF16, Array, check_like, to_bfloat16, to_float32

__all__ = ["MAX_MAGNITUDE", "MAX_UPDATES", "MAX_WEIGHT", "ExactMean", "whole_weight"]

MAX_UPDATES: Final = 8191
MAX_WEIGHT: Final = 2**29 - 1
MAX_MAGNITUDE: Final = 2.0**40

_COARSE: Final = 2.0**10
_FINE: Final = 2.0**60
_CARRY: Final = 50
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
        self._coarse = {name: np.zeros(array.size, np.int64) for name, array in like.items()}
        self._fine = {name: np.zeros(array.size, np.int64) for name, array in like.items()}
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
        for name, array in arrays.items():
            for _, values in _blocks(array):
                largest = float(np.max(np.abs(values))) if len(values) else 0.0
                if not math.isfinite(largest):
                    raise UpdateRejected(f"{name}: holds NaN or infinity")
                if largest * weight > MAX_MAGNITUDE:
                    raise UpdateRejected(
                        f"{name}: {largest:.3g} with weight {weight} is beyond 2^40",
                        hint="the update has diverged, or weights are not numbers of examples",
                    )
        for name, array in arrays.items():
            coarse, fine = self._coarse[name], self._fine[name]
            for start, values in _blocks(array):
                product = values * float(weight)
                upper = np.rint(product * _COARSE)
                product -= upper / _COARSE
                end = start + len(values)
                coarse[start:end] += upper.astype(np.int64)
                fine[start:end] += np.rint(product * _FINE).astype(np.int64)
        self._updates += 1
        self._weight += weight

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
            part = slice(start, start + _BLOCK)
            fine = self._fine[name][part]
            # Carry what the fine grid holds above one coarse step, so both parts are small.
            carry = (fine + (1 << (_CARRY - 1))) >> _CARRY
            coarse = self._coarse[name][part] + carry
            fine = fine - (carry << _CARRY)
            # 64-bit integers do not fit a float: split, and add the small parts first.
            head = coarse.astype(np.float64)
            tail = (coarse - head.astype(np.int64)).astype(np.float64)
            small = tail / _COARSE + fine.astype(np.float64) / _FINE
            mean = (head / _COARSE + small) / float(self._weight)
            found[part] = mean if keep else _as_type(mean, like.dtype)
        return found.reshape(like.shape)


def _empty_like(array: Array) -> Array:
    """Return an array of that type and shape which takes no memory."""
    return np.broadcast_to(np.zeros((), array.dtype), array.shape)


def _blocks(array: Array) -> Iterator[tuple[int, NDArray[np.float64]]]:
    flat = np.ascontiguousarray(array).reshape(-1)
    for start in range(0, flat.size, _BLOCK):
        block = flat[start : start + _BLOCK]
        yield start, (to_float32(block) if block.dtype == BF16 else block).astype(np.float64)


def _as_type(mean: NDArray[np.float64], dtype: np.dtype[Any]) -> Array:
    if dtype == BF16:
        return to_bfloat16(mean.astype(np.float32))
    if dtype.kind == "b":
        return mean > 0.5
    if dtype.kind in "iu":
        bounds = np.iinfo(dtype)
        rounded: Array = np.clip(np.rint(mean), bounds.min, bounds.max).astype(dtype)
        return rounded
    return mean.astype(dtype)
