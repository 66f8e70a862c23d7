"""What the parts of a job must not be together: what one table allows and another one excludes."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterator, Sequence
from typing import Final

from attestation.config import toml
from fedlearn.compression.spec import CompressionSpec
from fedlearn.job.asynchronous.options import (
    ASYNCHRONOUS,
    asynchronous_faults,
    updates_of_a_version,
)
from fedlearn.job.constraints.robust_rules import least_updates, root_fault
from fedlearn.job.placement import Placement
from fedlearn.job.strategies import (
    APP,
    MASKED,
    MEAN_FAMILY,
    OVER_SELECT,
    over_selection_fault,
    privacy_fault,
)
from fedlearn.job.tables import AggregationSpec, StrategySpec
from fedlearn.privacy.spec import PrivacySpec
from fedlearn.secure_aggregation.spec import LEAST_CLIENTS, SECAGG_PLUS

__all__ = [
    "MAX_NAMES_BYTES",
    "Fault",
    "default_quorum",
    "faults_of_cohort",
    "faults_of_logs",
    "faults_of_masks",
    "faults_of_privacy",
    "faults_of_root",
    "faults_of_selection",
    "faults_of_sites",
    "faults_of_versions",
]

MAX_NAMES_BYTES: Final = 192 * 1024
"""Upper bound of the names of a job's sites, as JSON."""

Fault = tuple[toml.Path, str]
"""The key in a job's file, and what is wrong there."""


def faults_of_sites(
    sites: Sequence[str], data: Collection[str], placement: Placement, quorum: int
) -> Iterator[Fault]:
    """Yield what contradicts the number and the names of a job's sites."""
    most = placement.choose or len(sites)
    for key, count, limit in (
        (("placement", "choose"), placement.choose, len(sites)),
        (("quorum",), quorum, most),
    ):
        if count > limit:
            yield key, f"must be at most the {limit} sites, not {count}"
    names = sum(map(len, sites)) + 3 * len(sites)
    if names > MAX_NAMES_BYTES:
        yield (
            ("sites",),
            f"their names have {names} bytes with quotes and commas, and one entry of the "
            f"ledger names them all: at most {MAX_NAMES_BYTES}; use shorter names",
        )
    for site in data:
        if site not in sites:
            near = difflib.get_close_matches(site, sites, n=1)
            wish = f"did you mean {near[0]!r}?" if near else "add it to `sites`"
            yield ("data", site), f"is not a site of this job; {wish}"


def faults_of_root(
    strategy: StrategySpec, sites: Sequence[str], placement: Placement
) -> Iterator[Fault]:
    """Yield what is wrong with the trusted site of a job's strategy."""
    if fault := root_fault(strategy.name, strategy.options, sites, placement.choose):
        yield ("strategy", "options", "root_site"), fault


def faults_of_selection(strategy: StrategySpec, *, private: bool) -> Iterator[Fault]:
    """Yield what is wrong with asking more sites than a round needs."""
    key = ("strategy", "options", OVER_SELECT)
    if fault := over_selection_fault(strategy.options):
        yield key, fault
    if private and strategy.options.get(OVER_SELECT, 1) != 1:
        yield (
            key,
            "goes without [privacy]: who answers first is no secret draw, and the accounting "
            "takes every site that is asked for one that is in the mean; remove it",
        )


def faults_of_versions(
    strategy: StrategySpec, sites: Sequence[str], placement: Placement, quorum: int
) -> Iterator[Fault]:
    """Yield what is wrong with an asynchronous strategy in a job of these sites."""
    if strategy.name in ASYNCHRONOUS:
        most = placement.choose or len(sites)
        yield from asynchronous_faults(strategy.name, strategy.options, sites=most, quorum=quorum)


def default_quorum(strategy: StrategySpec, sites: Sequence[str], placement: Placement) -> int:
    """Return how many updates a round, or a version, needs where the job does not state it."""
    if strategy.name in ASYNCHRONOUS:
        return updates_of_a_version(strategy.name, strategy.options)
    return placement.choose or len(sites)


def faults_of_privacy(
    privacy: PrivacySpec,
    strategy: StrategySpec,
    aggregation: AggregationSpec,
    compression: CompressionSpec,
) -> Iterator[Fault]:
    """Yield what a job with ``[privacy]`` must not have."""
    private = privacy.updates_are_private
    fault = "" if strategy.name == APP else privacy_fault(strategy.name, updates=private)
    if fault:
        yield (
            ("strategy", "name"),
            f'"{strategy.name}" {fault}; use {", ".join(sorted(MEAN_FAMILY))}, or remove [privacy]',
        )
    if aggregation.visible:
        yield (
            ("aggregation", "updates"),
            '"visible-to-app" shows the app what [privacy] protects: the update of each '
            'site; use "aggregated", or remove [privacy]',
        )
    for key, fault in compression.private_faults():
        yield ("compression", key), fault
    if compression.active and not (
        privacy.mechanism == "central-gaussian" and privacy.clip_quantile is None
    ):
        yield (
            ("compression", "update"),
            "cannot be together with noise of the clients or an adaptive clip: an encoded update "
            "would not be the one that they bound; remove [compression], or use mechanism = "
            '"central-gaussian" with a fixed clip',
        )


def faults_of_cohort(
    privacy: PrivacySpec, sites: Sequence[str], placement: Placement, quorum: int
) -> Iterator[Fault]:
    """Yield what contradicts the number of sites that a round of a private job has."""
    most = placement.choose or len(sites)
    if privacy.groups is not None and privacy.groups > most:
        yield ("privacy", "groups"), f"must be at most the {most} sites, not {privacy.groups}"
        return
    smallest = most // (privacy.groups or 1)
    if privacy.shares is not None and privacy.shares > smallest:
        yield (
            ("privacy", "shares"),
            f"must be at most the {smallest} sites of a round, not {privacy.shares}",
        )
    elif privacy.shares is not None and quorum < privacy.shares:
        yield (
            ("quorum",),
            f"is {quorum}, below the {privacy.shares} shares of noise that [privacy] needs: a "
            f"round with fewer updates is not released; set quorum = {privacy.shares} or more",
        )


def faults_of_masks(
    strategy: StrategySpec,
    aggregation: AggregationSpec,
    compression: CompressionSpec,
    *,
    sites: int,
    quorum: int,
    private: bool,
) -> Iterator[Fault]:
    """Yield what a job with secure aggregation must not have: all that needs a single update."""
    if strategy.name not in {APP, *MASKED}:
        yield (
            ("strategy", "name"),
            f'"{strategy.name}" needs more than the sum of the updates, and secure = '
            f'"{SECAGG_PLUS}" discloses nothing else; use {", ".join(sorted(MASKED))}',
        )
    if strategy.options.get(OVER_SELECT, 1) != 1:
        yield (
            ("strategy", "options", OVER_SELECT),
            "excludes secure aggregation: a site whose masked update is left out costs the others "
            "its masks; remove the option",
        )
    if aggregation.visible:
        yield (
            ("aggregation", "updates"),
            '"visible-to-app" shows the app single updates, which secure aggregation hides; use '
            '"aggregated"',
        )
    if compression.active:
        yield (
            ("compression",),
            "excludes secure aggregation: masks fill all bits of a number, so that masked updates "
            "cannot be compressed; remove the table",
        )
    if private:
        yield (
            ("privacy",),
            "excludes secure aggregation: the coordinator checks that each update is clipped, and "
            "would see none; remove one of the two",
        )
    if fault := aggregation.secagg.overflow(sites):
        yield ("aggregation", "secagg", "max_weight"), fault
    least = least_updates(strategy.options, quorum or sites)
    if least < LEAST_CLIENTS:
        yield (
            ("aggregation", "secure"),
            f"needs rounds of {LEAST_CLIENTS} updates, because of two each site knows the other's "
            f"from the sum, and a round of this job may have {least}; raise `quorum`, or name more "
            "sites",
        )


def faults_of_logs(owner_key: str, *, private: bool) -> Iterator[Fault]:
    """Yield what a job with sealed logs lacks, or must not have."""
    if not owner_key:
        wish = 'needs owner_key: logs are sealed to the owner of the job; make a key, or set "off"'
        yield ("app_logs",), wish
    if private:
        yield (
            ("app_logs",),
            "an app can write records of its site into its log, and no budget of [privacy] "
            'counts them; set "off" (`fedlearn job try` shows what the app writes), or remove '
            "[privacy]",
        )
