"""The rules over single updates by the names of their strategies.

A rule takes the strategy with its options, and the updates of a round in the order of the job. It
returns the next model in the types of the present one, or None where the round makes none, and
the indices of the updates whose metrics count.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from logging import WARN
from types import MappingProxyType
from typing import Any, Final

from flwr.common import log
from flwr.serverapp.strategy import FedAvg

from fedlearn.update.arrays import Array
from server.flower.aggregation.mean import ExactMean
from server.flower.aggregation.robust import ranks
from server.flower.aggregation.robust.blocks import Arrays
from server.flower.aggregation.robust.distances import gram, squared_norms
from server.flower.aggregation.robust.selection import multi_krum
from server.flower.aggregation.robust.weighing import (
    fair_coefficients,
    geometric_median_coefficients,
    weighed,
)

__all__ = ["RULES", "GeometricMedian", "RoundInput", "Rule"]

Made = tuple[dict[str, Array] | None, Sequence[int]]


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundInput:
    """What a rule gets: at least one update.

    ``model``    the arrays that the sites trained
    ``updates``  theirs, like those of the model and finite
    ``weights``  the number of examples of each, whole numbers from 0
    ``losses``   the training loss of each, finite and from 0 on; only q-FedAvg's are read
    """

    model: Arrays
    updates: Sequence[Arrays]
    weights: Sequence[int]
    losses: Sequence[float] = ()


Rule = Callable[[Any, RoundInput], Made]


class GeometricMedian(FedAvg):  # type: ignore[misc]
    """FedAvg with the geometric median of the updates in place of their mean.

    RFA, Pillutla et al. 2022 (arXiv:1912.13445). The result stays within bounds while less than
    half of the updates are malicious, wherever these are.

    ``iterations``  the most of Weiszfeld's algorithm; each costs ``n^2`` operations
    ``smoothing``   the distance below which an update's weight does not grow further
    ``tolerance``   the iterations end when the updates' shares, which sum to 1, move by less
    """

    def __init__(
        self,
        *,
        iterations: int = 100,
        smoothing: float = 1e-6,
        tolerance: float = 1e-9,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self.iterations = iterations
        self.smoothing = smoothing
        self.tolerance = tolerance


def _median(strategy: Any, given: RoundInput) -> Made:
    return ranks.median(given.updates), range(len(given.updates))


def _trimmed_mean(strategy: Any, given: RoundInput) -> Made:
    return ranks.trimmed_mean(given.updates, strategy.beta), range(len(given.updates))


def _krum(strategy: Any, given: RoundInput) -> Made:
    """Return the selected update, or the mean of several; it is exact, in any order of them."""
    chosen = multi_krum(
        gram(given.updates, given.model),
        strategy.num_malicious_nodes,
        strategy.num_nodes_to_select,
    )
    if len(chosen) == 1:
        return {name: array.copy() for name, array in given.updates[chosen[0]].items()}, chosen
    # Where every selected site states no example at all, each counts the same.
    states_none = not any(given.weights[index] for index in chosen)
    mean = ExactMean(given.model)
    for index in chosen:
        mean.add(given.updates[index], 1 if states_none else given.weights[index])
    return mean.result(), chosen


def _bulyan(strategy: Any, given: RoundInput) -> Made:
    count, malicious = len(given.updates), strategy.num_malicious_nodes
    if count < 4 * malicious + 3:
        log(
            WARN,
            "Bulyan makes no model: %s updates arrived, and num_malicious_nodes = %s needs %s",
            count,
            malicious,
            4 * malicious + 3,
        )
        return None, ()
    chosen = multi_krum(gram(given.updates, given.model), malicious, count - 2 * malicious)
    kept = count - 4 * malicious
    return ranks.mean_around_median([given.updates[index] for index in chosen], kept), chosen


def _geometric_median(strategy: GeometricMedian, given: RoundInput) -> Made:
    shares = geometric_median_coefficients(
        gram(given.updates, given.model),
        iterations=strategy.iterations,
        smoothing=strategy.smoothing,
        tolerance=strategy.tolerance,
    )
    return weighed(given.updates, shares, given.model), range(len(given.updates))


def _q_fedavg(strategy: Any, given: RoundInput) -> Made:
    coefficients = fair_coefficients(
        squared_norms(given.updates, given.model),
        given.losses,
        rate=strategy.client_learning_rate,
        q=strategy.q,
    )
    return weighed(given.updates, coefficients, given.model), range(len(given.updates))


RULES: Final[Mapping[str, Rule]] = MappingProxyType(
    {
        "bulyan": _bulyan,
        "fedmedian": _median,
        "fedtrimmedavg": _trimmed_mean,
        "geomedian": _geometric_median,
        "krum": _krum,
        "multikrum": _krum,
        "qfedavg": _q_fedavg,
    }
)
"""Rules by strategy: all that a job may name and that look at single updates."""
