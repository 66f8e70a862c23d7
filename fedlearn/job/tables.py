# ruff: noqa: RUF009 (an option is a field specifier; each makes a new field)
"""The tables of a job's file: strategy, aggregation, evaluation, resources and data."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Final

from attestation.config import (
    InconsistentValues,
    choice,
    each,
    number,
    option,
    scalar,
    table,
    text,
    toml,
    whole,
)
from fedlearn import config as reading
from fedlearn.job.constraints.robust_rules import mixing_fault
from fedlearn.job.strategies import (
    AGGREGATED,
    APP,
    REQUIRED,
    STRATEGIES,
    UPDATES,
    VISIBLE_TO_APP,
    option_fault,
)
from fedlearn.secure_aggregation.spec import SECAGG_PLUS, SecAggSpec

__all__ = [
    "MAX_ROUNDS",
    "OPTION",
    "AggregationSpec",
    "DataMount",
    "EvaluateSpec",
    "Resources",
    "Scalar",
    "StrategySpec",
]

MAX_ROUNDS: Final = 10_000
OPTION: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,63}")
"""What an option of a strategy, or of the application's run config, may be called."""

Scalar = str | int | float | bool
"""A value of such an option."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StrategySpec:
    """How updates become one model.

    ``name``     the strategy; ``app``: that of the application's own ServerApp
    ``options``  of the strategy, those of Flower's class of this name, each of its type
    """

    name: str = option(choice(*STRATEGIES), default=APP)
    options: Mapping[str, Scalar] = option(
        each(scalar(), key=OPTION, most=100), factory=lambda: MappingProxyType({})
    )

    def __post_init__(self) -> None:
        known = STRATEGIES.get(self.name, {})
        faults: list[tuple[toml.Path, str]] = []
        for key, value in self.options.items():
            if key in known:
                if fault := option_fault(self.name, key, value):
                    faults.append((("options", key), fault))
            else:
                near = difflib.get_close_matches(key, known, n=1)
                wish = f"did you mean {near[0]!r}?" if near else f"it has {', '.join(known)}"
                if not known:
                    wish = "the application makes its own strategy; use [config] to configure it"
                faults.append((("options", key), f'not an option of "{self.name}"; {wish}'))
        faults += [
            (("options",), f'"{self.name}" needs the option {key!r}')
            for key in REQUIRED.get(self.name, ())
            if key not in self.options
        ]
        if not faults and (fault := mixing_fault(self.name, self.options)):
            faults.append((("options", "pre_aggregation"), fault))
        if faults:
            raise InconsistentValues(*faults)


@dataclass(frozen=True, slots=True, kw_only=True)
class AggregationSpec:
    """What the process of the app's ServerApp receives of the sites' updates.

    ``updates``
        ``aggregated``: only the aggregate of a round. The coordinator's own aggregator receives
        the updates of single sites and applies the strategy.
        ``visible-to-app``: the update of each site, as an app needs that overrides the
        aggregation of its strategy, drives the grid itself or uses Flower's legacy API. It does
        not go together with ``[privacy]``, and a site runs such a job only if its ``site.toml``
        allows it.
    ``site_filters``
        ``accept``: a site may filter its updates before they leave
        (:mod:`fedlearn.config.filters`); the events of the job name the filters. ``refuse``: the
        job does not run at such a site.
    ``secure``
        ``secagg+``: the coordinator learns the sum of the updates and no single one
        (:mod:`fedlearn.secure_aggregation`); with the parameters in ``secagg``. ``off``: the
        coordinator, attested, receives each update.
    """

    updates: str = option(choice(*UPDATES), default=AGGREGATED)
    site_filters: str = option(choice("accept", "refuse"), default="accept")
    secure: str = option(choice("off", SECAGG_PLUS), default="off")
    secagg: SecAggSpec = option(table(SecAggSpec), factory=SecAggSpec)

    @property
    def masked(self) -> bool:
        """Whether the coordinator receives masked updates only."""
        return self.secure == SECAGG_PLUS

    @property
    def visible(self) -> bool:
        """Whether the app's process receives the update of each site."""
        return self.updates == VISIBLE_TO_APP


@dataclass(frozen=True, slots=True, kw_only=True)
class Resources:
    """What one client asks of its site.

    ``cpu``         cores
    ``memory_mib``  memory in MiB
    ``gpu``         number of GPUs
    ``disk_mib``    disk in MiB
    """

    cpu: float = option(number(0.1, 1024), default=1.0)
    memory_mib: int = option(whole(64, 16 * 1024 * 1024), default=2048)
    gpu: int = option(whole(0, 64), default=0)
    disk_mib: int = option(whole(0, 1024 * 1024 * 1024), default=0)


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluateSpec:
    """How the sites evaluate.

    ``every``     rounds from one evaluation to the next
    ``fraction``  of the sites that evaluate
    ``metric``    the one that progress and reports show first; empty means the loss
    """

    every: int = option(whole(1, MAX_ROUNDS), default=1)
    fraction: float = option(number(0, 1), default=1.0)
    metric: str = option(text(least=0, most=64), default="")


@dataclass(frozen=True, slots=True, kw_only=True)
class DataMount:
    """The data of one site, exactly one of:

    ``set``    the name of a data set in the site's ``site.toml``
    ``path``   a path at the site; the site must allow it
    ``claim``  a PersistentVolumeClaim at the site
    """

    set: str = option(reading.name(), default="")
    path: str = option(text(), default="")
    claim: str = option(reading.name(), default="")

    def __post_init__(self) -> None:
        if sum(map(bool, (self.set, self.path, self.claim))) != 1:
            raise InconsistentValues(((), "needs exactly one of set, path and claim"))
        if self.path and (not self.path.startswith("/") or ".." in Path(self.path).parts):
            raise InconsistentValues((("path",), 'must be an absolute path without ".."'))
