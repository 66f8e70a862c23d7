"""The aggregation strategies that a job may name, the options of each, and what each needs.

The names are those of ``flwr.serverapp.strategy`` in lower case; the options are keyword
arguments of its classes. ``geomedian``, the geometric median, is our own. ``app`` leaves the
choice to the application's own ServerApp.

A robust rule gives its guarantee only for enough updates in each round. With ``n`` updates, ``f``
of them malicious:

================= ============================== ================================================
rule              needs                          source
================= ============================== ================================================
Krum, Multi-Krum  ``n >= 2f + 3``                Blanchard et al. 2017 (arXiv:1703.02757),
                                                 proposition 4.2
Bulyan            ``n >= 4f + 3``                El Mhamdi et al. 2018 (arXiv:1802.07927)
trimmed mean      ``beta * n >= 1``              Yin et al. 2018 (arXiv:1803.01498): with less,
                                                 no update is trimmed, and it is the mean
median            ``n >= 3``                     Yin et al. 2018: ``f < n / 2``; the median of
                                                 two updates is their mean
geometric median  ``n >= 3``                     Pillutla et al. 2022 (arXiv:1912.13445):
                                                 ``f < n / 2``; between two updates every point
                                                 is one
================= ============================== ================================================

The page is docs/contributing/add-a-strategy.md.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

from attestation.config import (
    FieldType,
    InvalidValue,
    ReadContext,
    number,
    shown,
    text,
    toml,
    whole,
)
from fedlearn.job.placement import MAX_SITES

__all__ = [
    "AGGREGATED",
    "APP",
    "MEAN_FAMILY",
    "REQUIRED",
    "STRATEGIES",
    "UPDATES",
    "VISIBLE_TO_APP",
    "ClientPart",
    "client_parts",
    "ineffective_options",
    "option_fault",
    "too_few_updates",
]

APP: Final = "app"
"""The application's ServerApp makes its strategy itself."""

AGGREGATED: Final = "aggregated"
"""The application's ServerApp receives the aggregate of a round only."""

VISIBLE_TO_APP: Final = "visible-to-app"
"""The application's ServerApp receives the update of each site."""

UPDATES: Final = (AGGREGATED, VISIBLE_TO_APP)
"""What a job may let its ServerApp receive."""

_LARGEST: Final = 1e9
_MOST_ITERATIONS: Final = 1_000
_FINEST: Final = 1e-12


def _positive() -> FieldType[float]:
    return number(math.ulp(0), _LARGEST, expected=f"a number above 0, up to {_LARGEST:g}")


def _below(limit: float) -> FieldType[float]:
    return number(
        0, math.nextafter(limit, 0), expected=f"a number from 0 up to, not including, {limit:g}"
    )


_SAMPLING: Final[Mapping[str, FieldType[Any]]] = {
    "fraction_train": number(math.ulp(0), 1, expected="a number above 0, up to 1"),
    "fraction_evaluate": number(0, 1),
    "weighted_by_key": text(most=64),
}
_ADAPTIVE: Final[Mapping[str, FieldType[Any]]] = {
    **_SAMPLING,
    "eta": _positive(),
    "eta_l": _positive(),
    "tau": _positive(),
}
_MOMENTS: Final[Mapping[str, FieldType[Any]]] = {
    **_ADAPTIVE,
    "beta_1": _below(1),
    "beta_2": _below(1),
}
_ROBUST: Final[Mapping[str, FieldType[Any]]] = {
    **_SAMPLING,
    "num_malicious_nodes": whole(0, MAX_SITES),
}

STRATEGIES: Final[Mapping[str, Mapping[str, FieldType[Any]]]] = MappingProxyType(
    {
        APP: {},
        "bulyan": _ROBUST,
        "fedadagrad": _ADAPTIVE,
        "fedadam": _MOMENTS,
        "fedavg": _SAMPLING,
        "fedavgm": {
            **_SAMPLING,
            "server_learning_rate": _positive(),
            "server_momentum": _below(1),
        },
        "fedmedian": _SAMPLING,
        "fedprox": {**_SAMPLING, "proximal_mu": number(0, _LARGEST)},
        "fedtrimmedavg": {**_SAMPLING, "beta": _below(0.5)},
        "fedyogi": _MOMENTS,
        "geomedian": {
            **_SAMPLING,
            "iterations": whole(1, _MOST_ITERATIONS),
            "smoothing": number(_FINEST, _LARGEST),
            "tolerance": _below(1),
        },
        "krum": _ROBUST,
        "multikrum": {**_ROBUST, "num_nodes_to_select": whole(1, MAX_SITES)},
        "qfedavg": {
            **_SAMPLING,
            "client_learning_rate": _positive(),
            "q": number(0, _LARGEST),
            "train_loss_key": text(most=64),
        },
    }
)
"""Options by strategy, with their types. Numbers of nodes are not options: a job states its sites
and its quorum."""

REQUIRED: Final[Mapping[str, tuple[str, ...]]] = MappingProxyType(
    {"qfedavg": ("client_learning_rate",)}
)
"""Options without a default."""

MEAN_FAMILY: Final = frozenset(
    {
        "fedadagrad",
        "fedadam",
        "fedavg",
        "fedavgm",
        "fedprox",
        "fedyogi",
    }
)
"""The strategies that use only the mean of the updates, to which noise can be added."""

_NOWHERE: Final = ReadContext(toml.Source(table={}, lines={}), "", Path())


def option_fault(name: str, option: str, value: object) -> str:
    """Return what is wrong with the value of an option of a strategy; empty for nothing.

    >>> option_fault("fedadam", "eta", "x")
    'must be a number above 0, up to 1e+09, not "x"'
    """
    kind = STRATEGIES[name][option]
    try:
        kind.convert(value, (), _NOWHERE)
    except InvalidValue as error:
        return str(error) or f"must be {kind.expected}, not {shown(value)}"
    return ""


def too_few_updates(name: str, options: Mapping[str, Any], quorum: int) -> str:
    """Return why a round may have too few updates for a strategy; empty where none may.

    A round counts with ``quorum`` updates, or with as many as ``fraction_train`` of that many
    sites. The options are of the types in :data:`STRATEGIES`.

    >>> too_few_updates("bulyan", {"num_malicious_nodes": 1}, 7)
    ''
    >>> too_few_updates("krum", {"num_malicious_nodes": 1}, 2)
    '"krum" with num_malicious_nodes = 1 needs 5 updates in each round (n >= 2f + 3, Blanchard et \
al. 2017), and a round of this job may have 2'
    """
    updates = min(quorum, max(1, int(options.get("fraction_train", 1.0) * quorum)))
    malicious = int(options.get("num_malicious_nodes", 0))
    match name:
        case "krum" | "multikrum":
            needed, rule = 2 * malicious + 3, "n >= 2f + 3, Blanchard et al. 2017"
        case "bulyan":
            needed, rule = 4 * malicious + 3, "n >= 4f + 3, El Mhamdi et al. 2018"
        case "fedmedian":
            needed, rule = 3, "the median of two is their mean"
        case "geomedian":
            needed, rule = 3, "between two, every point is one, Pillutla et al. 2022"
        case "fedtrimmedavg":
            return _trims_nothing(float(options.get("beta", 0.2)), updates)
        case _:
            return ""
    if updates < needed:
        given = f" with num_malicious_nodes = {malicious}" if name in _BY_MALICIOUS else ""
        return (
            f'"{name}"{given} needs {needed} updates in each round ({rule}), and a round of this '
            f"job may have {updates}"
        )
    selected = int(options.get("num_nodes_to_select", 1))
    if selected > updates - malicious:
        return (
            f'"{name}" averages num_nodes_to_select = {selected} updates, and of the {updates} of '
            f"a round only {updates - malicious} are not malicious"
        )
    return ""


_BY_MALICIOUS: Final = frozenset({"bulyan", "krum", "multikrum"})


def _trims_nothing(beta: float, updates: int) -> str:
    if int(beta * updates) >= 1:
        return ""
    needs = f"needs {math.ceil(1 / beta)} updates in each round" if beta else "trims nothing"
    return (
        f'"fedtrimmedavg" with beta = {beta:g} {needs}: it trims int(beta * n) updates at each '
        f"end, which is 0 of the {updates} that a round of this job may have (Yin et al. 2018)"
    )


def ineffective_options(name: str, options: Mapping[str, Any]) -> tuple[str, ...]:
    """Return what the options leave without an effect, one sentence each.

    >>> ineffective_options("fedprox", {})
    ('fedprox without a proximal_mu above 0 is fedavg',)
    """
    found = []
    if name == "fedprox" and not options.get("proximal_mu"):
        found.append("fedprox without a proximal_mu above 0 is fedavg")
    if (
        name == "fedavgm"
        and not options.get("server_momentum")
        and options.get("server_learning_rate", 1.0) == 1.0
    ):
        found.append("fedavgm without server_momentum and server_learning_rate is fedavg")
    if "eta_l" in options:
        found.append(
            "eta_l is not sent to the clients, and the server does not use it: set the learning "
            "rate of the app instead, in [config]"
        )
    return tuple(found)


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientPart:
    """What a strategy needs of the ClientApp: that it uses a word of their messages.

    ``key``     the word
    ``reads``   whether the app reads it, in the ``config`` record of a message to train; else it
                reports it, in the metrics of its reply
    ``option``  the option that has no effect, or no strategy, without it
    """

    key: str
    reads: bool
    option: str


def client_parts(name: str, options: Mapping[str, Any]) -> tuple[ClientPart, ...]:
    """Return what a strategy needs of the ClientApp.

    >>> [part.key for part in client_parts("fedprox", {})]
    ['num-examples', 'proximal-mu']
    """
    weight = str(options.get("weighted_by_key", "num-examples"))
    found = [ClientPart(key=weight, reads=False, option="weighted_by_key")]
    if name == "fedprox":
        found.append(ClientPart(key="proximal-mu", reads=True, option="proximal_mu"))
    if name == "qfedavg":
        loss = str(options.get("train_loss_key", "train_loss"))
        found.append(ClientPart(key=loss, reads=False, option="train_loss_key"))
    return tuple(found)
