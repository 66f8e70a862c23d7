"""FedDyn: dynamic regularisation (Acar et al. 2021, arXiv:2111.04263, algorithm 1).

Site ``k`` minimises ``L_k(y) - <g_k, y> + alpha / 2 |y - x|^2``, where ``g_k`` starts at zero and
becomes ``g_k - alpha (y_k - x)`` after each of its rounds; :class:`fedlearn.training.FedDyn` does
that. The server, with the sites ``P`` of ``m`` in the round:

    h+ = h - alpha / m sum_P (y_k - x)          x+ = mean_P(y_k) - h+ / alpha

``h`` is always the mean of all ``g_k``. In a fixed point every ``y_k`` is ``x``, ``g_k`` is the
gradient of ``L_k`` there, and ``h`` is zero: ``x`` minimises the sum of the losses, however far the
sites train in a round.

Each update counts once, as in the paper. The state of the server follows from the mean alone, so
under ``[privacy]`` it is computed from the noised mean.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message
from flwr.serverapp.grid import Grid
from numpy.typing import NDArray

from fedlearn.app.algorithm_names import FEDDYN_ALPHA
from fedlearn.privacy.difference import add_back, difference
from fedlearn.update.arrays import Array
from server.flower.aggregation.strategies.mean_strategy import MeanStrategy

__all__ = ["FedDyn"]


class FedDyn(MeanStrategy):
    """FedDyn's server. Its state is one array of float64 for each of the model's.

    :param alpha: above 0; sent to the sites as ``feddyn-alpha``.
    """

    uniform: ClassVar[bool] = True

    def __init__(self, *, alpha: float = 0.01, **options: Any) -> None:
        super().__init__(**options)
        self.alpha = alpha
        self.drift: dict[str, NDArray[np.float64]] = {}

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Choose nodes and make their messages, which have ``alpha`` in their configuration."""
        config[FEDDYN_ALPHA] = self.alpha
        return super().configure_train(server_round, arrays, config, grid)

    def next_model(self, mean: Mapping[str, Array], updates: float) -> dict[str, Array]:
        """Return ``x+``, and keep ``h+``, here divided by ``alpha``."""
        share = self.share(updates)
        trained = self.trained(self._model)
        moved = difference(mean, trained)
        # h / alpha, in which the paper's recursion has no alpha.
        self.drift = {
            name: self.drift.get(name, np.zeros(each.shape)) - share * each
            for name, each in moved.items()
        }
        after = {name: each - self.drift[name] for name, each in moved.items()}
        return dict(mean) | add_back(after, trained)
