"""SCAFFOLD: control variates against client drift (Karimireddy et al. 2020, arXiv:1910.06378).

Algorithm 1, option II. With the model ``x``, the control variate ``c`` of the server and ``c_i`` of
site ``i``, a site makes ``K_i`` steps ``y <- y - eta_l (g_i(y) - c_i + c)`` from ``y = x``, and
then

    c_i+ = c_i - c + (x - y_i) / (K_i eta_l)

The server, with ``S`` of ``N`` sites in the round:

    x+ = x + eta_g mean_S(y_i - x)          c+ = c + |S| / N mean_S(c_i+ - c_i)

The change ``c_i+ - c_i = (x - y_i) / (K_i eta_l) - c`` follows from the update and from
``K_i eta_l``, so a site reports that sum of its learning rates as a metric and sends no control
variate: an update is one model, not two, and cannot contradict the control variate.

The mean of the models is weighted by the examples that the sites report, as in NIID-Bench (Li et
al. 2022, arXiv:2102.02079); that of the control variates counts each site once. With equal weights
both are the paper's.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
from flwr.app import ArrayRecord
from numpy.typing import NDArray

from fedlearn.app.algorithm_names import SCAFFOLD_CONTROL, SCAFFOLD_STEP_SUM
from fedlearn.app.array_records import record_of
from fedlearn.privacy.difference import add_back, difference
from fedlearn.update.arrays import Array
from server.flower.aggregation.mean import ExactMean
from server.flower.aggregation.strategies.mean_strategy import (
    MeanStrategy,
    narrow_type,
    scaled,
)

__all__ = ["Scaffold"]


class Scaffold(MeanStrategy):
    """SCAFFOLD's server. Its state is one control variate, of the size of the model.

    :param server_learning_rate: ``eta_g``.
    """

    reads: ClassVar[tuple[str, ...]] = (SCAFFOLD_STEP_SUM,)
    transient: ClassVar[frozenset[str]] = MeanStrategy.transient | {"_gradients"}

    def __init__(self, *, server_learning_rate: float = 1.0, **options: Any) -> None:
        super().__init__(**options)
        self.server_learning_rate = server_learning_rate
        self.control: dict[str, NDArray[Any]] = {}
        self._gradients: ExactMean | None = None

    def begin(self, model: Mapping[str, Array], sites: int) -> None:
        """Begin a round; the first control variate is zero."""
        super().begin(model, sites)
        like = {
            name: np.zeros(array.shape, narrow_type(array))
            for name, array in self.trained(model).items()
        }
        self.control = {name: self.control.get(name, zeros) for name, zeros in like.items()}
        self._gradients = ExactMean(like)

    def sent(self) -> Mapping[str, ArrayRecord]:
        """Return the control variate."""
        return {SCAFFOLD_CONTROL: record_of(self.control)}

    def add(
        self,
        mean: ExactMean,
        arrays: Mapping[str, Array],
        weight: int,
        reported: Mapping[str, float],
    ) -> None:
        """Add an update to the mean, and its mean gradient ``(x - y) / (K eta_l)`` to another."""
        assert self._gradients is not None
        change = difference(arrays, self.trained(self._model))
        gradient = scaled(change, -reported[SCAFFOLD_STEP_SUM], self._model)
        mean.add(arrays, weight)
        self._gradients.add(gradient, 1)  # what could be refused was refused above

    def next_model(self, mean: Mapping[str, Array], updates: float) -> dict[str, Array]:
        """Return ``x+``, and keep ``c+``."""
        assert self._gradients is not None
        gradients = self._gradients.result(wide=True, release=True)
        self._gradients = None
        share = self.share(updates)
        self.control = {
            name: np.asarray(c + share * (gradients[name] - c)).astype(c.dtype)
            for name, c in self.control.items()
        }
        rate = self.server_learning_rate
        if rate == 1.0:
            return dict(mean)
        trained = self.trained(self._model)
        moved = {name: rate * each for name, each in difference(mean, trained).items()}
        return dict(mean) | add_back(moved, trained)
