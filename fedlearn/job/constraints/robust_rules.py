"""What a robust rule needs of a job: enough updates in each round, and options that fit together.

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
norm clipping     ``n >= 3``                     Sun et al. 2019 (arXiv:1911.07963); with the
                                                 median of the norms ``f < n / 2``. A fixed norm
                                                 needs none
FLTrust           ``n >= 2``                     Cao et al. 2021 (arXiv:2012.13995): the root's
                                                 update and another one; any ``f``
nearest-neighbor  ``n >= 2f + 1``                Allouah et al. 2023 (arXiv:2302.01772), beside
mixing                                           what the rule itself needs
================= ============================== ================================================

The page is docs/how-to/choose-a-strategy.md.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from types import MappingProxyType
from typing import Any, Final

from fedlearn.job.strategies import BY_MALICIOUS, STRATEGIES

__all__ = [
    "PRE_AGGREGATION",
    "least_updates",
    "mixing_fault",
    "outliers",
    "root_fault",
    "too_few_updates",
]

PRE_AGGREGATION: Final[Mapping[str, frozenset[str]]] = MappingProxyType(
    {
        name: frozenset({"pre_aggregation"})
        | (frozenset() if name in BY_MALICIOUS else frozenset({"num_malicious_nodes"}))
        for name, options in STRATEGIES.items()
        if "pre_aggregation" in options
    }
)
"""Options by strategy that are of the mixing before its rule only, not of its class."""


def outliers(name: str, options: Mapping[str, Any]) -> int | None:
    """Return how many updates nearest-neighbor mixing leaves out; None where a job has none of it.

    >>> outliers("krum", {"num_malicious_nodes": 2, "pre_aggregation": "nnm"})
    2
    """
    mixes = name in PRE_AGGREGATION and options.get("pre_aggregation") == "nnm"
    return int(options.get("num_malicious_nodes", 0)) if mixes else None


def mixing_fault(name: str, options: Mapping[str, Any]) -> str:
    """Return what is wrong with the options of nearest-neighbor mixing; empty for nothing.

    >>> mixing_fault("fedmedian", {"pre_aggregation": "nnm"})
    '"nnm" needs num_malicious_nodes from 1 on: with 0 every mixed update is the mean of all'
    """
    if outliers(name, options) == 0:
        return (
            '"nnm" needs num_malicious_nodes from 1 on: with 0 every mixed update is the mean of '
            "all"
        )
    return ""


def least_updates(options: Mapping[str, Any], quorum: int) -> int:
    """Return how many updates a round of a job may have.

    >>> least_updates({"fraction_train": 0.5}, 6)
    3
    """
    return min(quorum, max(1, int(options.get("fraction_train", 1.0) * quorum)))


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
    updates = least_updates(options, quorum)
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
        case "normclip" if "clip_norm" not in options:
            needed, rule = 3, "the median of two norms is their mean"
        case "fltrust":
            needed, rule = 2, "the root's and another one, Cao et al. 2021"
        case "fedtrimmedavg":
            if fault := _trims_nothing(float(options.get("beta", 0.2)), updates):
                return fault
            needed, rule = 1, ""
        case _:
            return ""
    if outliers(name, options) is not None and needed < 2 * malicious + 1:
        needed, rule = 2 * malicious + 1, "nnm: n >= 2f + 1, Allouah et al. 2023"
    if updates < needed:
        counts = name in BY_MALICIOUS or outliers(name, options) is not None
        given = f" with num_malicious_nodes = {malicious}" if counts else ""
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


def _trims_nothing(beta: float, updates: int) -> str:
    if int(beta * updates) >= 1:
        return ""
    needs = f"needs {math.ceil(1 / beta)} updates in each round" if beta else "trims nothing"
    return (
        f'"fedtrimmedavg" with beta = {beta:g} {needs}: it trims int(beta * n) updates at each '
        f"end, which is 0 of the {updates} that a round of this job may have (Yin et al. 2018)"
    )


def root_fault(name: str, options: Mapping[str, Any], sites: Collection[str], choose: int) -> str:
    """Return what is wrong with FLTrust's trusted site in a job; empty for nothing.

    :param choose: how many of the sites take part; 0 for all.

    >>> root_fault("fltrust", {"root_site": "hub"}, ["north", "south"], 0)
    "'hub' is not a site of this job; name one of `sites`"
    """
    if name != "fltrust":
        return ""
    root = options["root_site"]
    if root not in sites:
        return f"{root!r} is not a site of this job; name one of `sites`"
    if choose:
        return f"{root!r} may not be among the sites that [placement] chooses; remove `choose`"
    return ""
