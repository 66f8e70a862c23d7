"""The steps that are applied to a difference of weights before it leaves.

A step takes a :data:`Delta`, the difference to the reference in float64, and returns one. It
may change the arrays in place. Steps are frozen and have no state, so a chain that is run again
returns the same bits; the exception is correlated noise, which counts its rounds.
"""

from __future__ import annotations

import hashlib
import math
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from fedlearn.errors import PrivacyError
from fedlearn.privacy.noise import GaussianStream

__all__ = ["GRID_SLACK", "Chain", "Clip", "Delta", "GridNoise", "Step", "l2_norm"]

Delta: TypeAlias = Mapping[str, NDArray[np.float64]]
Deviates: TypeAlias = Callable[[bytes, int], NDArray[np.float64]]

GRID_SLACK: Final = 2.0**-10
"""The relative increase of the sensitivity because sums are rounded to a grid."""

# The computed norm is off by less than 2^-46 of itself: squares and quotients are rounded to
# 53 bits, and numpy adds pairwise within blocks. The scale of a clip allows for more.
_MARGIN: Final = 1 - 2.0**-44
_BLOCK: Final = 1 << 16
_EXACT: Final = 2.0**52


class Step(Protocol):
    """One operation on a difference."""

    def apply(self, delta: dict[str, NDArray[np.float64]]) -> dict[str, NDArray[np.float64]]:
        """Return the difference after this step."""
        ...


@dataclass(frozen=True, slots=True)
class Chain:
    """Steps that are applied in order."""

    steps: tuple[Step, ...]

    def apply(self, delta: dict[str, NDArray[np.float64]]) -> dict[str, NDArray[np.float64]]:
        """Return the difference after all steps."""
        for step in self.steps:
            delta = step.apply(delta)
        return delta


@dataclass(frozen=True, slots=True)
class Clip:
    """Scale the whole difference, all arrays together, to an L2 norm of ``norm`` at most.

    The norm of the result is at most ``norm`` exactly, not only up to rounding. A difference
    that is within the bound is not changed. Raises :class:`fedlearn.errors.PrivacyError` when the
    difference contains NaN or infinity.
    """

    norm: float

    def __post_init__(self) -> None:
        if not (math.isfinite(self.norm) and self.norm > 0):
            raise PrivacyError(f"a clipping norm is a positive number, not {self.norm!r}")

    def apply(self, delta: dict[str, NDArray[np.float64]]) -> dict[str, NDArray[np.float64]]:
        """Return the clipped difference."""
        bound = self.norm * _MARGIN
        scale, size = _scaled_norm(delta)
        if scale * size <= bound:
            return delta
        # Divide by the largest value first: the norm itself may be beyond float64.
        for array in delta.values():
            array /= scale
            array *= bound / size
        return delta


@dataclass(frozen=True, slots=True, kw_only=True)
class GridNoise:
    """Add Gaussian noise to a sum, both on one grid.

    The set of floating-point numbers that a sum plus noise can be depends on the sum, and
    discloses more than the accountant assumes (Mironov 2012, "On significance of the least
    significant bits for differential privacy"). So the sum and the noise are each rounded to
    multiples of one power of two and added as integers. The grid is so fine that rounding
    moves a sum by at most ``GRID_SLACK / 2`` of the sensitivity, and the noise is increased by
    ``GRID_SLACK`` to compensate.

    ``multiplier``   standard deviation over sensitivity
    ``sensitivity``  L2 distance of two neighbouring sums
    ``secret``       at least 32 bytes, used for this job only
    ``purpose``      separates the rounds of the job
    ``grid``         the grid, where several parties need the same one; ``sensitivity`` includes
                     then what rounding to it adds
    ``deviates``     makes the deviates from the digest of the sum and their number; by default
                     they are independent, from secret and purpose

    The noise depends on the sum as well as on secret and purpose, like the nonce of a
    deterministic signature (RFC 6979): the same sum gets the same noise, so running a round again
    discloses nothing new; another sum gets independent noise, so that the difference of two
    outputs still contains noise.
    """

    multiplier: float
    sensitivity: float
    secret: bytes = field(repr=False)
    purpose: bytes
    grid: float | None = None
    deviates: Deviates | None = None

    def __post_init__(self) -> None:
        for name in ("multiplier", "sensitivity"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value > 0):
                raise PrivacyError(f"the {name} of noise is a positive number, not {value!r}")

    @property
    def standard_deviation(self) -> float:
        """Standard deviation of the noise on each number of the sum."""
        slack = GRID_SLACK if self.grid is None else 0.0
        return self.multiplier * self.sensitivity * (1 + slack)

    def apply(self, delta: dict[str, NDArray[np.float64]]) -> dict[str, NDArray[np.float64]]:
        """Return the sum with noise, every number a multiple of the grid."""
        count = sum(array.size for array in delta.values())
        if count == 0:
            raise PrivacyError("there is nothing to add noise to")
        grid = self.grid
        if grid is None:
            grid = 2.0 ** math.floor(math.log2(self.sensitivity * GRID_SLACK / math.sqrt(count)))
        largest = max((float(np.max(np.abs(a))) for a in delta.values() if a.size), default=0.0)
        if not largest + 10 * self.standard_deviation < grid * _EXACT:
            raise PrivacyError(
                f"the sum has the value {largest:g}, too large to be rounded to a grid of {grid:g}",
                hint="clip is far too small for this model, or the sum was not clipped",
            )
        digest = hashlib.sha256()
        for name, array in delta.items():
            array /= grid
            np.rint(array, out=array)
            array += 0.0  # one zero, not two: -0 would be hashed as another sum
            encoded = name.encode()
            digest.update(struct.pack(">IQ", len(encoded), array.size) + encoded)
            digest.update(np.ascontiguousarray(array, "<f8").tobytes())
        made = self._deviates(digest.digest(), count)
        step = self.standard_deviation / grid
        for array in delta.values():
            array += np.rint(made(array.size) * step).reshape(array.shape)
            array *= grid
        return delta

    def _deviates(self, digest: bytes, count: int) -> Callable[[int], NDArray[np.float64]]:
        """Return a function that returns the next so many deviates."""
        if self.deviates is None:
            return GaussianStream(self.secret, self.purpose, digest).standard_normal
        flat, start = self.deviates(digest, count), 0

        def following(size: int) -> NDArray[np.float64]:
            nonlocal start
            start += size
            return flat[start - size : start]

        return following


def l2_norm(delta: Delta) -> float:
    """Return the L2 norm over all arrays, within 2^-46 of itself; infinity beyond float64.

    Raises :class:`fedlearn.errors.PrivacyError` naming the array with NaN or infinity.
    """
    scale, size = _scaled_norm(delta)
    return scale * size


def _scaled_norm(delta: Delta) -> tuple[float, float]:
    """Return the norm as two factors: a power of two near the largest value, and the rest."""
    largest = 0.0
    for name, array in delta.items():
        found = float(np.max(np.abs(array))) if array.size else 0.0
        if not math.isfinite(found):
            raise PrivacyError(
                f"{name}: contains NaN or infinity",
                hint="training diverged; lower the learning rate",
            )
        largest = max(largest, found)
    if largest == 0.0:
        return 1.0, 0.0
    scale = 2.0 ** min(max(math.frexp(largest)[1], -1000), 1000)
    parts = [
        float(np.sum(np.square(flat[start : start + _BLOCK] / scale)))
        for flat in (array.reshape(-1) for array in delta.values())
        for start in range(0, flat.size, _BLOCK)
    ]
    return scale, math.sqrt(math.fsum(parts))
