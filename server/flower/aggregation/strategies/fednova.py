"""FedNova: normalised averaging (Wang et al. 2020, arXiv:2007.07481).

Sites that make different numbers of steps pull the mean of FedAvg towards those that make more.
With ``p_i`` the share of the examples of site ``i``, its update ``y_i`` and ``|a_i|`` the norm of
the weights that its optimiser gives to its gradients, the next model is (equations 8 and 9)

    x+ = x + tau_eff sum_i p_i (y_i - x) / |a_i|          tau_eff = sum_i p_i |a_i|

``|a_i|`` is the number of steps for SGD. :class:`fedlearn.training.FedNova` computes it for
momentum and a proximal term too, and the site reports it as a metric. Where all are equal this is
FedAvg.

Arrays that are no floating-point numbers, such as counters of batches, are averaged as they are.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Final

import numpy as np

from fedlearn.app.algorithm_names import FEDNOVA_NORM
from fedlearn.privacy.difference import add_back, difference
from fedlearn.update.arrays import Array
from server.flower.aggregation.mean import ExactMean
from server.flower.aggregation.strategies.mean_strategy import (
    MeanStrategy,
    narrow_type,
    scaled,
)

__all__ = ["FedNova"]

_NORM: Final = "norm"


class FedNova(MeanStrategy):
    """FedNova's server; it keeps nothing between rounds.

    :param server_learning_rate: a factor of the step from ``x`` to ``x+``; 1 in the paper.
    """

    reads: ClassVar[tuple[str, ...]] = (FEDNOVA_NORM,)
    transient: ClassVar[frozenset[str]] = MeanStrategy.transient | {"_norms"}

    def __init__(self, *, server_learning_rate: float = 1.0, **options: Any) -> None:
        super().__init__(**options)
        self.server_learning_rate = server_learning_rate
        self._norms: ExactMean | None = None

    def begin(self, model: Mapping[str, Array], sites: int) -> None:
        """Begin a round."""
        super().begin(model, sites)
        self._norms = ExactMean({_NORM: np.zeros(())})

    def layout(self) -> Mapping[str, Array]:
        """Return the types of the normalised changes, and of what is averaged as it is."""
        normalised = {
            name: np.broadcast_to(np.zeros((), narrow_type(array)), array.shape)
            for name, array in self.trained(self._model).items()
        }
        return dict(self._model) | normalised

    def add(
        self,
        mean: ExactMean,
        arrays: Mapping[str, Array],
        weight: int,
        reported: Mapping[str, float],
    ) -> None:
        """Add the normalised change of an update, and its norm."""
        assert self._norms is not None
        norm = reported[FEDNOVA_NORM]
        normalised = scaled(difference(arrays, self.trained(self._model)), norm, self._model)
        mean.add(dict(arrays) | normalised, weight)
        self._norms.add({_NORM: np.asarray(norm)}, weight)

    def next_model(self, mean: Mapping[str, Array], updates: float) -> dict[str, Array]:
        """Return ``x+``."""
        assert self._norms is not None
        effective = float(self._norms.result()[_NORM]) * self.server_learning_rate
        self._norms = None
        trained = self.trained(self._model)
        moved = {name: effective * np.asarray(mean[name], np.float64) for name in trained}
        return dict(mean) | add_back(moved, trained)
