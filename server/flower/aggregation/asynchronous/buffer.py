"""The updates of one version of the model, weighed by their staleness and summed exactly.

The formulas are in :mod:`fedlearn.job.asynchronous`. An update enters as its difference to a model,
times the weight of its staleness, rounded once to float32 (to float64 for arrays of float64 and of
integers), and the differences are summed exactly (:mod:`server.flower.aggregation.mean`). So a
version depends on which updates are in it and on the staleness of each, and not on the order in
which they arrived.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import numpy as np

from fedlearn.update.arrays import BF16, Array, to_float32
from server.flower.aggregation.mean import ExactMean
from server.flower.aggregation.robust.blocks import as_type

__all__ = ["VersionBuffer"]

_FLOAT32: Final = frozenset(map(np.dtype, ("f4", "f2", "?")))


class VersionBuffer:
    """The sum of the updates of one version. Not thread-safe.

    :param model: the arrays of the newest version that travel in updates.
    """

    def __init__(self, model: Mapping[str, Array]) -> None:
        self._model = model
        self._mean = ExactMean(
            {
                name: np.broadcast_to(np.zeros((), _type_of_difference(array)), array.shape)
                for name, array in model.items()
            }
        )

    @property
    def updates(self) -> int:
        """How many updates are in the sum."""
        return self._mean.updates

    def add(
        self,
        update: Mapping[str, Array],
        reference: Mapping[str, Array],
        *,
        scale: float,
        weight: int,
    ) -> None:
        """Add one update; the sum is as before when this raises.

        :param update: arrays with the names, types and shapes of the model, in its order.
        :param reference: arrays with the same names, to which the update is a difference.
        :param scale: the weight of its staleness, which makes the step smaller.
        :param weight: what it weighs beside the other updates; a whole number.
        :raises UpdateRejected: for NaN and infinity, or too many updates.
        """
        differences = {}
        # What is not finite is found by the sum.
        with np.errstate(invalid="ignore", over="ignore"):
            for name, array in self._model.items():
                found = _wide(update[name]) - _wide(reference[name])
                found *= scale
                differences[name] = np.asarray(found).astype(_type_of_difference(array))
        self._mean.add(differences, weight)

    def result(self, rate: float) -> dict[str, Array] | None:
        """Return the next version; None where the updates weigh nothing. The sum is empty then.

        :param rate: what the mean of the differences is multiplied by.
        """
        if not self._mean.weight:
            return None
        steps = self._mean.result(wide=True, release=True)
        return {
            name: as_type(np.asarray(_wide(array) + rate * steps[name]), array.dtype)
            for name, array in self._model.items()
        }


def _type_of_difference(array: Array) -> np.dtype[np.float32] | np.dtype[np.float64]:
    narrow = array.dtype == BF16 or array.dtype in _FLOAT32
    return np.dtype(np.float32) if narrow else np.dtype(np.float64)


def _wide(array: Array) -> Array:
    return (to_float32(array) if array.dtype == BF16 else array).astype(np.float64)
