"""An aggregation rule of our own: the geometric median of the updates.

One site of four that sends nonsense moves a mean as far as it likes, and a geometric median only
a little: RFA, Pillutla, Kakade and Harchaoui 2022 (arXiv:1912.13445), with the smoothed Weiszfeld
algorithm of its section 3.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from flwr.app import ArrayRecord, Message, MetricRecord
from flwr.serverapp.strategy import FedAvg

_STEPS = 50
_SMALLEST = 1e-6


class GeometricMedian(FedAvg):
    """FedAvg whose model is the geometric median of the updates, each counted once."""

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Return the median of the models, and the mean of the metrics."""
        usable = [reply for reply in replies if not reply.has_error()]
        models = [reply.content["arrays"].to_numpy_ndarrays() for reply in usable]
        _, metrics = super().aggregate_train(server_round, usable)
        if len(models) < 3:
            return None, metrics
        flat = np.stack([np.concatenate([array.ravel() for array in model]) for model in models])
        median = geometric_median(flat)
        sizes = np.cumsum([array.size for array in models[0]])[:-1]
        parts = zip(np.split(median, sizes), models[0], strict=True)
        return ArrayRecord([part.reshape(like.shape) for part, like in parts]), metrics


def geometric_median(points: np.ndarray) -> np.ndarray:
    """Return the point with the least sum of distances to ``points`` (n, d)."""
    found = np.median(points, axis=0)
    for _ in range(_STEPS):
        weights = 1 / np.maximum(np.linalg.norm(points - found, axis=1), _SMALLEST)
        found = weights @ points / weights.sum()
    return found
