"""Noise that clients add, and its exact sum: every number is a multiple of one public grid.

A client of a job with ``distributed-gaussian`` noise rounds its clipped difference and its share
of the noise to multiples of a grid, and sends the model plus this difference. The grid is twice
as coarse as the numbers of the model's type are there, so that the receiver finds each multiple
again, whatever the type rounds (:class:`GridSum`). Sums are those of integers: exact, and the same
in any order.

Why a grid: the sum of floating-point numbers that were each rounded discloses more than the sum
of the numbers. A rounded Gaussian is a Gaussian plus independent uniform noise, seen at the
points of the grid, and so is a sum of them; with a standard deviation of many steps nothing
measurable differs from the continuous sum (Kairouz et al. 2021, arXiv:2102.06387, bound the same
effect for discrete Gaussians).

The page is docs/adr/0048-privacy-units-and-places.md.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from fedlearn.errors import PrivacyError, UpdateRejected
from fedlearn.privacy.chain import GRID_SLACK, GridNoise
from fedlearn.privacy.difference import difference, is_floating, spacing
from fedlearn.privacy.spec import PrivacySpec
from fedlearn.update.arrays import Array, check_like

__all__ = ["ClientNoise", "GridSum", "norm_of_noise"]

_LARGEST: Final = 10.0
"""Deviates are below 9.2 standard deviations: :mod:`fedlearn.privacy.noise`."""

_MOST: Final = 2.0**49
"""Multiples of the grid in one number: 8,191 updates of them fit 64 bits."""


def norm_of_noise(deviation: float, count: int) -> float:
    """Return the norm that ``count`` deviates exceed with probability 2^-64 (Laurent and Massart).

    >>> round(norm_of_noise(1.0, 10_000), 1)
    109.4
    """
    return deviation * (math.sqrt(count) + math.sqrt(2 * 64 * math.log(2)))


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientNoise:
    """The noise of one client for one model; computed from public values only.

    ``grid``       every number of the noised difference is a multiple of it
    ``deviation``  standard deviation of the noise on each number
    ``bound``      norm of a noised difference, but for one in 2^64
    """

    grid: float
    deviation: float
    bound: float

    @classmethod
    def of(cls, spec: PrivacySpec, reference: Mapping[str, Array]) -> ClientNoise:
        """Return the noise for updates of the model ``reference``.

        :raises PrivacyError: when the steps between the numbers of the model are too large for
            noise of this clip.
        """
        floats = [base for base in reference.values() if is_floating(base) and base.size]
        count = sum(base.size for base in floats)
        if count == 0:
            raise PrivacyError("the model has no floating-point number to add noise to")
        root = math.sqrt(count)
        grid = 2.0 ** math.floor(math.log2(spec.sensitivity * GRID_SLACK / root))
        reach = spec.clip + _LARGEST * spec.client_multiplier * spec.sensitivity * 2
        widest = max(_widest(base, reach) for base in floats)
        grid = max(grid, 2 * widest)
        # An app that makes the mean over users rounds it to the type of the model before.
        slack = grid * root * (1.5 if spec.unit == "user" else 1.0)
        if not slack <= spec.sensitivity:
            raise PrivacyError(
                f"the numbers of the model are {widest:g} apart, too coarse for noise of clients "
                f"with a sensitivity of {spec.sensitivity:g}",
                hint="use float32 for the model, or a larger clip",
            )
        deviation = spec.client_multiplier * (spec.sensitivity + slack)
        bound = spec.clip + slack + norm_of_noise(deviation, count)
        if not bound < _MOST * grid:
            raise PrivacyError(
                f"a clip of {spec.clip:g} is too far from a sensitivity of {spec.sensitivity:g}"
            )
        return cls(grid=grid, deviation=deviation, bound=bound)

    def step(self, secret: bytes, purpose: bytes) -> GridNoise:
        """Return the step that adds the noise to a clipped difference."""
        return GridNoise(
            multiplier=self.deviation,
            sensitivity=1.0,
            secret=secret,
            purpose=purpose,
            grid=self.grid,
        )


class GridSum:
    """The sum of noised differences, as whole multiples of the grid. Not thread-safe.

    ``updates``  how many were added
    """

    def __init__(self, spec: PrivacySpec, reference: Mapping[str, Array]) -> None:
        self._noise = ClientNoise.of(spec, reference)
        self._reference = reference
        self._sum = {
            name: np.zeros(base.shape, np.int64)
            for name, base in reference.items()
            if is_floating(base)
        }
        self.updates = 0

    def add(self, update: Mapping[str, Array], weight: int = 1) -> None:
        """Add one update.

        :raises UpdateRejected: when it weighs more than others, does not match the model, or has
            a number that no clipped difference with noise has. The sum is not changed then.
        """
        check_like(update, self._reference)
        if weight != 1:
            raise UpdateRejected("an update with noise of its client weighs 1")
        delta = difference(update, self._reference)
        for name, array in delta.items():
            # The norm was checked by ServerPrivacy.check; this keeps the integers in their range.
            if array.size and not float(np.max(np.abs(array))) <= self._noise.bound:
                raise UpdateRejected(
                    f"{name}: contains NaN, or numbers beyond clip and noise of the job",
                    hint="the client did not apply the privacy of its job",
                )
        for name, array in delta.items():
            array /= self._noise.grid
            self._sum[name] += np.rint(array).astype(np.int64)
        self.updates += 1

    def total(self) -> dict[str, NDArray[np.float64]]:
        """Return the sum of the differences."""
        return {
            name: np.asarray(steps * self._noise.grid, np.float64)
            for name, steps in self._sum.items()
        }


def _widest(base: Array, reach: float) -> float:
    size = np.abs(difference({"": base}, {"": np.zeros_like(base)})[""])
    found = float(np.max(spacing(np.array([float(np.max(size)) + reach]), base.dtype)))
    if not math.isfinite(found):
        raise PrivacyError("the global model has numbers beyond the range of its own type")
    return found
