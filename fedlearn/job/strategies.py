"""The aggregation strategies that a job may name, the options of each, and what each needs.

The names are those of ``flwr.serverapp.strategy`` in lower case; the options are keyword
arguments of its classes. ``geomedian`` (the geometric median), ``normclip`` (norm clipping),
``fltrust``, ``scaffold``, ``fednova`` and ``feddyn`` are our own, and so are the asynchronous ones
(:mod:`fedlearn.job.asynchronous`). ``app`` leaves the choice to the application's own ServerApp.

What a robust rule needs is in :mod:`fedlearn.job.constraints.robust_rules`.

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
    choice,
    number,
    shown,
    text,
    toml,
    whole,
)
from fedlearn.app.algorithm_names import FEDDYN_ALPHA, FEDNOVA_NORM, PROXIMAL_MU, SCAFFOLD_STEP_SUM
from fedlearn.job.asynchronous.options import ASYNCHRONOUS, OPTIONS, REQUIRED_OPTIONS
from fedlearn.job.placement import MAX_SITES

__all__ = [
    "AGGREGATED",
    "APP",
    "BY_MALICIOUS",
    "MASKED",
    "MEAN_FAMILY",
    "OVER_SELECT",
    "REQUIRED",
    "STRATEGIES",
    "STREAMING",
    "UPDATES",
    "VISIBLE_TO_APP",
    "ClientPart",
    "client_parts",
    "ineffective_options",
    "option_fault",
    "over_selection_fault",
    "privacy_fault",
]

APP: Final = "app"
"""The application's ServerApp makes its strategy itself."""

AGGREGATED: Final = "aggregated"
"""The application's ServerApp receives the aggregate of a round only."""

VISIBLE_TO_APP: Final = "visible-to-app"
"""The application's ServerApp receives the update of each site."""

UPDATES: Final = (AGGREGATED, VISIBLE_TO_APP)
"""What a job may let its ServerApp receive."""

OVER_SELECT: Final = "over_select"
"""The option of how many times as many sites are asked as a round needs."""

_MOST_TIMES: Final = 10
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
_OF_THE_MEAN: Final[Mapping[str, FieldType[Any]]] = {
    **_SAMPLING,
    OVER_SELECT: number(1, _MOST_TIMES),
}
_ADAPTIVE: Final[Mapping[str, FieldType[Any]]] = {
    **_OF_THE_MEAN,
    "eta": _positive(),
    "eta_l": _positive(),
    "tau": _positive(),
}
_MOMENTS: Final[Mapping[str, FieldType[Any]]] = {
    **_ADAPTIVE,
    "beta_1": _below(1),
    "beta_2": _below(1),
}
_EXACT_MEANS: Final[Mapping[str, FieldType[Any]]] = {
    **_SAMPLING,
    "averaged": text(least=0, most=512),
}
_MIXED: Final[Mapping[str, FieldType[Any]]] = {
    **_SAMPLING,
    "num_malicious_nodes": whole(0, MAX_SITES),
    "pre_aggregation": choice("none", "nnm"),
}
"""Options of the rules that can follow nearest-neighbor mixing."""

STRATEGIES: Final[Mapping[str, Mapping[str, FieldType[Any]]]] = MappingProxyType(
    {
        APP: {},
        **OPTIONS,
        "bulyan": _MIXED,
        "fedadagrad": _ADAPTIVE,
        "fedadam": _MOMENTS,
        "fedavg": _OF_THE_MEAN,
        "fedavgm": {
            **_OF_THE_MEAN,
            "server_learning_rate": _positive(),
            "server_momentum": _below(1),
        },
        "feddyn": {**_EXACT_MEANS, "alpha": _positive()},
        "fedmedian": _MIXED,
        "fednova": {**_EXACT_MEANS, "server_learning_rate": _positive()},
        "fedprox": {**_OF_THE_MEAN, "proximal_mu": number(0, _LARGEST)},
        "fedtrimmedavg": {**_MIXED, "beta": _below(0.5)},
        "fedyogi": _MOMENTS,
        "fltrust": {
            "weighted_by_key": _SAMPLING["weighted_by_key"],
            "root_site": text(most=63),
            "server_learning_rate": _positive(),
        },
        "geomedian": {
            **_MIXED,
            "iterations": whole(1, _MOST_ITERATIONS),
            "smoothing": number(_FINEST, _LARGEST),
            "tolerance": _below(1),
        },
        "krum": _MIXED,
        "multikrum": {**_MIXED, "num_nodes_to_select": whole(1, MAX_SITES)},
        "normclip": {**_SAMPLING, "clip_norm": _positive()},
        "qfedavg": {
            **_SAMPLING,
            "client_learning_rate": _positive(),
            "q": number(0, _LARGEST),
            "train_loss_key": text(most=64),
        },
        "scaffold": {**_EXACT_MEANS, "server_learning_rate": _positive()},
    }
)
"""Options by strategy, with their types. Numbers of nodes are not options: a job states its sites
and its quorum."""

REQUIRED: Final[Mapping[str, tuple[str, ...]]] = MappingProxyType(
    {
        "fltrust": ("root_site",),
        "qfedavg": ("client_learning_rate",),
        **REQUIRED_OPTIONS,
    }
)
"""Options without a default."""

MEAN_FAMILY: Final = frozenset(
    {
        "fedadagrad",
        "fedadam",
        "fedavg",
        "fedavgm",
        "feddyn",
        "fedprox",
        "fedyogi",
    }
)
"""The strategies that use only the mean of the updates, to which noise can be added."""

MASKED: Final = MEAN_FAMILY - {"feddyn"}
"""The strategies that use the weighted mean only, which secure aggregation makes."""

BY_MALICIOUS: Final = frozenset({"bulyan", "krum", "multikrum"})
"""The rules that need to know how many of the updates may be malicious, mixed or not."""
STREAMING: Final = MEAN_FAMILY | {"fednova", "scaffold"}
"""The strategies that keep no single update: they add each to exact means when it arrives."""


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


def privacy_fault(name: str, *, updates: bool = False) -> str:
    """Return why ``[privacy]`` excludes a strategy; empty where it does not.

    :param updates: whether the update of each site is private by itself, so that whatever is
        made of all of them is post-processing (Dwork and Roth 2014, proposition 2.1). Otherwise
        only the noised mean of a round is private.

    >>> privacy_fault("scaffold")
    'needs a number of each site beside the mean, which [privacy] does not let out'
    >>> privacy_fault("krum"), privacy_fault("krum", updates=True)
    ('needs the updates of single sites', '')
    """
    if name in MEAN_FAMILY:
        return ""
    if name in STREAMING:
        return "needs a number of each site beside the mean, which [privacy] does not let out"
    if name in ASYNCHRONOUS:
        return (
            "makes a version of differences to several models, and the accounting is that of "
            "rounds, in which all sites train the same one"
        )
    if not updates:
        return "needs the updates of single sites"
    return "" if name != "qfedavg" else "needs the loss of each site, which [privacy] keeps there"


def over_selection_fault(options: Mapping[str, Any]) -> str:
    """Return why a round cannot ask more sites than it needs; empty where it can.

    >>> over_selection_fault({"over_select": 1.5})
    'is 1.5, and fraction_train is 1: their product must be at most 1, for no more sites than all \
can be asked'
    """
    times, fraction = options.get(OVER_SELECT, 1.0), options.get("fraction_train", 1.0)
    if times == 1 or times * fraction <= 1:
        return ""
    return (
        f"is {times:g}, and fraction_train is {fraction:g}: their product must be at most 1, for "
        "no more sites than all can be asked"
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
    if (
        "pre_aggregation" in STRATEGIES[name]
        and "num_malicious_nodes" in options
        and name not in BY_MALICIOUS
        and options.get("pre_aggregation") != "nnm"
    ):
        found.append(f'num_malicious_nodes of {name} is used with pre_aggregation = "nnm" only')
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
    ``aid``     the class of :mod:`fedlearn.training` that uses the word for the app
    """

    key: str
    reads: bool
    option: str
    aid: str = ""


def client_parts(name: str, options: Mapping[str, Any]) -> tuple[ClientPart, ...]:
    """Return what a strategy needs of the ClientApp.

    >>> [part.key for part in client_parts("fedprox", {})]
    ['num-examples', 'proximal-mu']
    """
    weight = str(options.get("weighted_by_key", "num-examples"))
    found = [ClientPart(key=weight, reads=False, option="weighted_by_key")]
    if name == "fedprox" or (name == "fedasync" and options.get("proximal_mu")):
        part = ClientPart(key=PROXIMAL_MU, reads=True, option="proximal_mu", aid="Proximal")
        found.append(part)
    if name == "scaffold":
        part = ClientPart(key=SCAFFOLD_STEP_SUM, reads=False, option="name", aid="Scaffold")
        found.append(part)
    if name == "fednova":
        found.append(ClientPart(key=FEDNOVA_NORM, reads=False, option="name", aid="FedNova"))
    if name == "feddyn":
        found.append(ClientPart(key=FEDDYN_ALPHA, reads=True, option="alpha", aid="FedDyn"))
    if name == "qfedavg":
        loss = str(options.get("train_loss_key", "train_loss"))
        found.append(ClientPart(key=loss, reads=False, option="train_loss_key"))
    return tuple(found)
