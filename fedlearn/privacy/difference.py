"""The difference of arrays in float64, and its addition in the types of the model.

Only floating-point arrays are part of a difference. Noise cannot be added to an array of integers
or booleans, such as a counter of batches; it is not changed.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from fedlearn.update.arrays import BF16, Array, to_bfloat16, to_float32

__all__ = ["add_back", "add_back_towards", "difference", "is_floating", "spacing"]


def is_floating(array: Array) -> bool:
    """Return whether the array is of a floating-point type, bfloat16 included."""
    return array.dtype == BF16 or array.dtype.kind == "f"


def difference(
    arrays: Mapping[str, Array], reference: Mapping[str, Array]
) -> dict[str, NDArray[np.float64]]:
    """Return ``arrays - reference`` of the floating-point arrays, freshly allocated."""
    result: dict[str, NDArray[np.float64]] = {}
    with np.errstate(invalid="ignore", over="ignore"):
        for name, base in reference.items():
            if is_floating(base):
                result[name] = np.array(_wide(arrays[name]), np.float64, order="C")
                result[name] -= _wide(base)
    return result


def add_back(
    delta: Mapping[str, NDArray[np.float64]], reference: Mapping[str, Array]
) -> dict[str, Array]:
    """Return ``reference + delta`` in the types of the reference, rounded to nearest."""
    return {
        name: _narrow(_wide(base) + delta[name], base) if name in delta else base.copy()
        for name, base in reference.items()
    }


def add_back_towards(
    delta: Mapping[str, NDArray[np.float64]], reference: Mapping[str, Array]
) -> dict[str, Array]:
    """Return ``reference + delta`` in the types of the reference, rounded towards it.

    No number is farther from the reference than ``delta``, so a bound of the difference's norm
    holds for what is sent as well, for every element type.
    """
    result: dict[str, Array] = {}
    for name, base in reference.items():
        if name not in delta:
            result[name] = base.copy()
            continue
        wide, step = _wide(base), np.abs(delta[name])
        near = _narrow(wide + delta[name], base)
        too_far = np.abs(_wide(near) - wide) > step
        if too_far.any():
            nearer = _next_towards(near, base)
            near = np.where(too_far, nearer, near)
            # One unit in the last place suffices; otherwise an error is raised.
            still = np.abs(_wide(near) - wide) > step
            near = np.where(still, base, near)
        result[name] = near.reshape(base.shape)
    return result


def spacing(size: NDArray[np.float64], dtype: np.dtype[np.generic]) -> NDArray[np.float64]:
    """Return the distance of neighbouring numbers of ``dtype`` at the given magnitudes."""
    if dtype == BF16:
        return np.spacing(size.astype(np.float32)).astype(np.float64) * 2.0**16
    with np.errstate(over="ignore", invalid="ignore"):
        return np.spacing(size.astype(dtype)).astype(np.float64)


def _wide(array: Array) -> NDArray[np.float64]:
    wide = to_float32(array) if array.dtype == BF16 else array
    return wide.astype(np.float64)


def _narrow(values: NDArray[np.float64], like: Array) -> Array:
    with np.errstate(over="ignore"):
        if like.dtype == BF16:
            return to_bfloat16(np.asarray(values, np.float32)).reshape(like.shape)
        return np.asarray(values, dtype=like.dtype)


def _next_towards(values: Array, target: Array) -> Array:
    if values.dtype != BF16:
        return np.asarray(np.nextafter(values, target), dtype=values.dtype)
    # Magnitudes of bfloat16 are ordered like their 15 low bits; -0 and +0 are equal.
    ordinal = _ordinal(values)
    ordinal += np.sign(_ordinal(target) - ordinal)
    bits = np.where(ordinal < 0, 0x8000 | -ordinal, ordinal).astype("<u2")
    return np.asarray(bits, dtype="<u2", order="C").view(BF16)


def _ordinal(array: Array) -> NDArray[np.int64]:
    bits = array["bfloat16"].astype(np.int64)
    return np.where(bits & 0x8000, -(bits & 0x7FFF), bits)
