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

import numpy as np
from flwr.common import log
from numpy.typing import NDArray

from fedlearn.update.arrays import Array
from server.flower.aggregation.mean import ExactMean
from server.flower.aggregation.robust import ranks
from server.flower.aggregation.robust.blocks import Arrays
from server.flower.aggregation.robust.classes import FLTrust, GeometricMedian, NormClipping
from server.flower.aggregation.robust.distances import gram, squared_norms
from server.flower.aggregation.robust.mixing import mixed_gram, nearest_neighbor_means
from server.flower.aggregation.robust.selection import multi_krum
from server.flower.aggregation.robust.weighing import (
    clipped_coefficients,
    fair_coefficients,
    geometric_median_coefficients,
    trusted_coefficients,
    weighed,
)

__all__ = ["RULES", "RoundInput", "Rule"]

Made = tuple[dict[str, Array] | None, Sequence[int]]


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundInput:
    """What a rule gets: at least one update.

    ``model``    the arrays that the sites trained
    ``updates``  theirs, like those of the model and finite
    ``weights``  the number of examples of each, whole numbers from 0
    ``losses``   the training loss of each, finite and from 0 on; only q-FedAvg's are read
    ``sites``    whose they are; only FLTrust reads it
    ``outliers`` how many of the updates nearest-neighbor mixing leaves out for each of them; None
                 for updates as they are
    """

    model: Arrays
    updates: Sequence[Arrays]
    weights: Sequence[int]
    losses: Sequence[float] = ()
    sites: Sequence[str] = ()
    outliers: int | None = None

    def compared(self) -> tuple[NDArray[np.float64], NDArray[np.float64] | None]:
        """Return the Gram matrix of what a rule compares, and how it is mixed of the updates."""
        products = gram(self.updates, self.model)
        if self.outliers is None:
            return products, None
        mix = nearest_neighbor_means(products, self.outliers)
        return mixed_gram(products, mix), mix

    def mix(self) -> NDArray[np.float64] | None:
        """Return how updates are mixed of their nearest neighbors; None for as they are."""
        return None if self.outliers is None else self.compared()[1]


Rule = Callable[[Any, RoundInput], Made]


def _median(strategy: Any, given: RoundInput) -> Made:
    return ranks.median(given.updates, given.mix()), range(len(given.updates))


def _trimmed_mean(strategy: Any, given: RoundInput) -> Made:
    found = ranks.trimmed_mean(given.updates, strategy.beta, given.mix())
    return found, range(len(given.updates))


def _krum(strategy: Any, given: RoundInput) -> Made:
    """Return the selected update, or the mean of several; it is exact, in any order of them.

    Mixed updates count the same, because none of them is one site's.
    """
    products, mix = given.compared()
    chosen = multi_krum(products, strategy.num_malicious_nodes, strategy.num_nodes_to_select)
    if mix is not None:
        return weighed(given.updates, mix[chosen].mean(axis=0), given.model), chosen
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
    products, mix = given.compared()
    chosen = multi_krum(products, malicious, count - 2 * malicious)
    kept = count - 4 * malicious
    if mix is not None:
        return ranks.mean_around_median(given.updates, kept, mix[chosen]), chosen
    return ranks.mean_around_median([given.updates[index] for index in chosen], kept), chosen


def _geometric_median(strategy: GeometricMedian, given: RoundInput) -> Made:
    products, mix = given.compared()
    shares = geometric_median_coefficients(
        products,
        iterations=strategy.iterations,
        smoothing=strategy.smoothing,
        tolerance=strategy.tolerance,
    )
    shares = shares if mix is None else shares @ mix
    return weighed(given.updates, shares, given.model), range(len(given.updates))


def _norm_clipping(strategy: NormClipping, given: RoundInput) -> Made:
    """Return the mean of the clipped updates; where none is clipped, it is exact."""
    everyone = range(len(given.updates))
    coefficients = clipped_coefficients(
        squared_norms(given.updates, given.model), strategy.clip_norm
    )
    if (coefficients == 1 / len(given.updates)).all():
        mean = ExactMean(given.model)
        for update in given.updates:
            mean.add(update, 1)
        return mean.result(), everyone
    return weighed(given.updates, coefficients, given.model), everyone


def _fltrust(strategy: FLTrust, given: RoundInput) -> Made:
    if strategy.root_site not in given.sites:
        log(WARN, "FLTrust makes no model: no update of root_site %s arrived", strategy.root_site)
        return None, ()
    root = given.sites.index(strategy.root_site)
    coefficients = trusted_coefficients(
        gram(given.updates, given.model), root, rate=strategy.server_learning_rate
    )
    used = [int(index) for index in np.flatnonzero(coefficients)]
    if not used:
        log(WARN, "FLTrust makes no model: no update points where that of the root site does")
        return None, ()
    return weighed(given.updates, coefficients, given.model), used


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
        "fltrust": _fltrust,
        "geomedian": _geometric_median,
        "krum": _krum,
        "multikrum": _krum,
        "normclip": _norm_clipping,
        "qfedavg": _q_fedavg,
    }
)
"""Rules by strategy: all that a job may name and that look at single updates."""
