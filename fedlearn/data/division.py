"""A source divided among sites, in memory: which site has which rows, and what the server tests on.

The page is docs/how-to/split-data.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from fedlearn.data import partition as partitions
from fedlearn.data.distinct import Parts, distinct
from fedlearn.data.examples import Examples
from fedlearn.data.groups import check_no_leak, hold_out, parts_of_groups
from fedlearn.data.setup import DataSetup
from fedlearn.errors import ConfigError

__all__ = ["Division", "Rows", "divide", "natural_parts"]


@dataclass(frozen=True, slots=True)
class Rows:
    """The rows of one site in its source, ascending."""

    train: npt.NDArray[np.int64]
    test: npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Division:
    """``sites`` has the rows of each site; ``server`` those that are held out, empty for none."""

    examples: Examples
    sites: tuple[Rows, ...]
    server: npt.NDArray[np.int64]


def divide(examples: Examples, setup: DataSetup, sites: int, *, seed: int) -> Division:
    """Divide examples as ``setup`` states. The result depends on the arguments alone.

    :param seed: where ``setup`` has none.
    :raises ConfigError: when the partition cannot be made, naming what to change.
    """
    seed = seed if setup.seed is None else setup.seed
    groups = examples.column(setup.group, key="group") if setup.group else None
    rows = np.arange(len(examples.y), dtype=np.int64)
    if setup.limit is not None and setup.limit < len(rows):
        drawn = np.random.default_rng([seed, *b"limit"]).choice(
            len(rows), size=setup.limit, replace=False
        )
        rows = np.sort(drawn).astype(np.int64)
    server = np.zeros(0, dtype=np.int64)
    if setup.server_test and examples.test is None:
        kept, held = hold_out(len(rows), setup.server_share, seed=seed, groups=_at(groups, rows))
        rows, server = rows[kept], rows[held]
    parts = tuple(rows[part] for part in _parts(examples, rows, setup, sites, seed=seed))
    found = []
    for number, part in enumerate(parts):
        kept, held = hold_out(
            len(part), setup.test, seed=seed, stream=number + 1, groups=_at(groups, part)
        )
        found.append(Rows(part[kept], part[held]))
    return Division(examples=examples, sites=tuple(found), server=server)


def natural_parts(examples: Examples, setup: DataSetup) -> int:
    """Return how many distinct values the column ``id`` has.

    :raises ConfigError: when there is no such column, or a value is missing.
    """
    return len(distinct(examples.column(setup.id, key="id"), "ids")[0])


def _parts(
    examples: Examples, rows: npt.NDArray[np.int64], setup: DataSetup, sites: int, *, seed: int
) -> Parts:
    """Return which of ``rows`` each site has, by their places in ``rows``."""

    def over(count: int, labels: npt.NDArray[Any] | None) -> Parts:
        if setup.partition == "dirichlet" and labels is not None:
            return partitions.dirichlet(
                labels, sites, alpha=setup.concentration, seed=seed, min_size=setup.least
            )
        if setup.partition == "labels" and labels is not None:
            return partitions.label_count(labels, sites, classes=setup.classes_each, seed=seed)
        if setup.partition == "quantity":
            return partitions.quantity(
                count, sites, alpha=setup.concentration, seed=seed, min_size=setup.least
            )
        return partitions.iid(count, sites, seed=seed)

    labels = examples.y[rows]
    if setup.partition == "natural":
        found = partitions.natural(examples.column(setup.id, key="id")[rows], sites, seed=seed)
        if setup.group:
            check_no_leak(found, examples.column(setup.group, key="group")[rows])
        return found
    if not setup.group:
        return over(len(rows), labels)
    groups = examples.column(setup.group, key="group")[rows]
    by_label = setup.partition in ("dirichlet", "labels")
    try:
        return parts_of_groups(groups, labels if by_label else None, over)
    except ConfigError as error:
        raise ConfigError(
            f"by groups of the column {setup.group!r}, each counted as one example: {error}",
            hint=error.hint,
        ) from None


def _at(groups: npt.NDArray[Any] | None, rows: npt.NDArray[np.int64]) -> npt.NDArray[Any] | None:
    return None if groups is None else groups[rows]
