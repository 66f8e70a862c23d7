"""The aggregation strategies that a job may name, and the options of each.

The names are those of ``flwr.serverapp.strategy`` in lower case; the options are keyword
arguments of its classes. ``app`` leaves the choice to the application's own ServerApp.

The page is docs/contributing/add-a-strategy.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

__all__ = ["AGGREGATED", "APP", "MEAN_FAMILY", "STRATEGIES", "UPDATES", "VISIBLE_TO_APP"]

APP: Final = "app"
"""The application's ServerApp makes its strategy itself."""

AGGREGATED: Final = "aggregated"
"""The application's ServerApp receives the aggregate of a round only."""

VISIBLE_TO_APP: Final = "visible-to-app"
"""The application's ServerApp receives the update of each site."""

UPDATES: Final = (AGGREGATED, VISIBLE_TO_APP)
"""What a job may let its ServerApp receive."""

_SAMPLING: Final = ("fraction_train", "fraction_evaluate", "weighted_by_key")
_ADAPTIVE: Final = (*_SAMPLING, "eta", "eta_l", "tau")

STRATEGIES: Final[Mapping[str, tuple[str, ...]]] = MappingProxyType(
    {
        APP: (),
        "bulyan": (*_SAMPLING, "num_malicious_nodes"),
        "fedadagrad": _ADAPTIVE,
        "fedadam": (*_ADAPTIVE, "beta_1", "beta_2"),
        "fedavg": _SAMPLING,
        "fedavgm": (*_SAMPLING, "server_learning_rate", "server_momentum"),
        "fedmedian": _SAMPLING,
        "fedprox": (*_SAMPLING, "proximal_mu"),
        "fedtrimmedavg": (*_SAMPLING, "beta"),
        "fedyogi": (*_ADAPTIVE, "beta_1", "beta_2"),
        "krum": (*_SAMPLING, "num_malicious_nodes"),
        "multikrum": (*_SAMPLING, "num_malicious_nodes", "num_nodes_to_select"),
        "qfedavg": (*_SAMPLING, "client_learning_rate", "q", "train_loss_key"),
    }
)
"""Options by strategy. Numbers of nodes are not options: a job states its sites and quorum."""

MEAN_FAMILY: Final = frozenset({"fedadagrad", "fedadam", "fedavg", "fedavgm", "fedprox", "fedyogi"})
"""The strategies that use only the mean of the updates, to which noise can be added."""
