"""Updates as integers modulo a power of two, and sums of them as numbers again.

A number ``x`` of the difference from the model becomes
``rint(clip(x, -r, r) / step) * weight``, and the vector ends with the weight itself, so that the
sum of vectors is a weighted sum and the sum of the weights. Negative integers are their
complements. Addition modulo ``2^modulus_bits`` has no rounding: the sum is exact in any order as
long as it fits (:meth:`fedlearn.secure_aggregation.spec.SecAggSpec.overflow`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedlearn.errors import UpdateRejected
from fedlearn.secure_aggregation.spec import SecAggSpec
from fedlearn.update.arrays import (
    BF16,
    Array,
    check_like,
    to_bfloat16,
    to_float32,
)

__all__ = ["Vector", "encoded", "length", "mean", "word", "zeros"]

Vector = NDArray[Any]
"""Integers modulo ``2^modulus_bits``, one for each number of an update, and the weight."""

_BLOCK = 1 << 16


def word(spec: SecAggSpec) -> np.dtype[Any]:
    """Return the type of the integers that travel."""
    return np.dtype(np.uint32 if spec.modulus_bits == 32 else np.uint64)


def length(model: Mapping[str, Array]) -> int:
    """Return how many integers an update of a model has: its floating-point numbers, and one."""
    return 1 + sum(array.size for array in model.values() if _floats(array))


def zeros(spec: SecAggSpec, model: Mapping[str, Array]) -> Vector:
    """Return the sum of no updates."""
    return np.zeros(length(model), word(spec))


def encoded(
    spec: SecAggSpec, update: Mapping[str, Array], model: Mapping[str, Array], weight: int
) -> Vector:
    """Return an update as integers. Arrays that are not floating-point are left out.

    :param update: the weights that a client trained, like those of ``model``.
    :param weight: a whole number from 0 on.
    :raises UpdateRejected: when the update does not match the model, has NaN or infinity, or weighs
        more than ``max_weight``: a weight that was cut would make another mean.
    """
    check_like(update, model)
    if not 0 <= weight <= spec.max_weight:
        raise UpdateRejected(
            f"the update weighs {weight}, and [aggregation.secagg] max_weight is {spec.max_weight}",
            hint="raise max_weight, or report fewer examples",
        )
    # int64 holds every product, because the modulus holds the sum of several.
    found, at = np.empty(length(model), np.int64), 0
    for name, reference in model.items():
        if not _floats(reference):
            continue
        ours, theirs = update[name].reshape(-1), reference.reshape(-1)
        for start in range(0, reference.size, _BLOCK):
            values = _wide(ours[start : start + _BLOCK])
            if not np.isfinite(values).all():
                raise UpdateRejected(
                    f"{name}: contains NaN or infinity",
                    hint="training diverged; lower the learning rate",
                )
            with np.errstate(over="ignore"):
                values -= _wide(theirs[start : start + _BLOCK])
            np.clip(values, -spec.clip_range, spec.clip_range, out=values)
            values /= spec.step
            np.rint(values, out=values)
            found[at : at + values.size] = values
            at += values.size
    found *= weight
    found[at] = weight
    return found.astype(word(spec))


def mean(
    spec: SecAggSpec, total: Vector, model: Mapping[str, Array], updates: int
) -> tuple[dict[str, Array], int]:
    """Return the model that a sum of updates makes, and the sum of their weights.

    Every floating-point array is that of ``model`` plus ``sum * step / weight`` in float64, rounded
    once to its type; the others are those of ``model``.

    :param updates: how many are in the sum.
    :raises UpdateRejected: when the weights sum to zero, or a sum is beyond what so many updates
        can make: then a client has not followed the protocol, and it is not known which.
    """
    signed = total.view(np.dtype(f"i{total.dtype.itemsize}"))
    weight = int(signed[-1])
    if not 0 < weight <= updates * spec.max_weight:
        raise UpdateRejected(
            f"the weights of {updates} updates sum to {weight}, which must be from 1 to "
            f"{updates * spec.max_weight}",
            hint="a client reports how many examples it trained on",
        )
    most = weight * spec.largest
    for part in (signed.max(), signed.min()):
        if abs(int(part)) > max(most, weight):
            raise UpdateRejected(
                f"a number of the sum is {int(part)}, and updates of the weight {weight} make at "
                f"most {most}: a client has sent another vector than its own update"
            )
    found, at = {}, 0
    for name, reference in model.items():
        if not _floats(reference):
            found[name] = reference
            continue
        values = signed[at : at + reference.size].astype(np.float64)
        at += reference.size
        values *= spec.step
        values /= weight
        values += _wide(reference.reshape(-1))
        values += 0.0  # -0.0 becomes 0.0
        found[name] = _typed(values, reference.dtype).reshape(reference.shape)
    return found, weight


def _floats(array: Array) -> bool:
    return array.dtype == BF16 or array.dtype.kind == "f"


def _wide(values: Array) -> NDArray[np.float64]:
    if values.dtype == BF16:
        return to_float32(values).astype(np.float64)
    return values.astype(np.float64)


def _typed(values: NDArray[np.float64], dtype: np.dtype[Any]) -> Array:
    return to_bfloat16(values.astype(np.float32)) if dtype == BF16 else values.astype(dtype)
