"""``experiment.toml``: which runs of a job an experiment consists of.

A key of the grid is dotted: one of ``job.toml``, as ``strategy.name`` or ``config.learning-rate``,
one of ``simulation.toml`` after ``simulation.``, as ``simulation.data.alpha``, or one that the
experiment's hooks get, after ``hook.``. Whether a key and
its values are valid is checked by what reads those files, for every cell before the first one runs.

The page is docs/reference/experiment.md.
"""

# ruff: noqa: RUF009 (an option is a field specifier; each makes a new field)

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Final

from attestation.config import (
    InconsistentValues,
    choice,
    each,
    file_path,
    flag,
    line,
    number,
    option,
    scalar,
    seq,
    table,
    tables,
    text,
    toml,
    whole,
)
from fedlearn import config as reading
from fedlearn.job.tables import Scalar

__all__ = [
    "HOOK",
    "KEY",
    "MAX_CELLS",
    "SIMULATION",
    "Axis",
    "ExperimentSpec",
    "Point",
    "ReportSpec",
    "Search",
    "Variable",
]

KEY: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_-]{0,63}(\.[A-Za-z0-9_-]{1,64}){0,7}")
"""What a dotted key may be."""

SIMULATION: Final = "simulation."
"""What a key of simulation.toml begins with."""

HOOK: Final = "hook."
"""What a key begins with whose value the experiment's hooks get."""

MAX_CELLS: Final = 100_000
_MOST: Final = 1000
_HOOKS: Final = re.compile(r"[^:\0]+(\.py)?:[A-Za-z_][A-Za-z0-9_]*")
_RESERVED: Final = ("name", "policy", "policy_digest", "seed", "app", "owner_key", "app_logs")
_DOTTED: Final = 'a dotted key in quotes, as "strategy.name" or "simulation.data.alpha"'


def _key_faults(keys: Sequence[str], *at: str | int) -> list[tuple[toml.Path, str]]:
    return [
        ((*at, key), "cannot be varied; seeds are in `seeds`" if key == "seed" else "is not varied")
        for key in keys
        if key in _RESERVED
    ]


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """One point of an axis, a ``[[grid.points]]``.

    ``label``  its name in tables and figures
    ``set``    the keys that it sets, each with its value
    """

    label: str = option(line(most=60))
    set: Mapping[str, Scalar] = option(
        each(scalar(), key=KEY, what=_DOTTED, most=100), factory=lambda: MappingProxyType({})
    )

    def __post_init__(self) -> None:
        faults = _key_faults(list(self.set), "set")
        if not self.label or "/" in self.label:
            faults.append((("label",), 'must not be empty and not contain "/"'))
        if faults:
            raise InconsistentValues(*faults)


@dataclass(frozen=True, slots=True, kw_only=True)
class Axis:
    """One axis of the grid. The axes are crossed: every point of one with every point of others.

    ``name``    in tables and figures; by default its first key
    ``zip``     keys with lists of equal length: the n-th point sets each to its n-th value
    ``points``  points with labels of their own, which may set different keys; instead of ``zip``
    """

    name: str = option(line(most=60), default="")
    zip: Mapping[str, tuple[Scalar, ...]] = option(
        each(seq(scalar(), least=1, most=_MOST), key=KEY, what=_DOTTED, most=100),
        factory=lambda: MappingProxyType({}),
    )
    points: tuple[Point, ...] = option(tables(Point, most=_MOST), default=())

    def __post_init__(self) -> None:
        faults = _key_faults(list(self.zip), "zip")
        if bool(self.zip) == bool(self.points):
            faults.append(((), "needs either `zip` or `points`"))
        if len({len(values) for values in self.zip.values()}) > 1:
            sizes = ", ".join(f"{key} has {len(values)}" for key, values in self.zip.items())
            faults.append((("zip",), f"needs lists of equal length; {sizes}"))
        labels = [point.label for point in self.expanded()] if not faults else []
        for label in sorted({found for found in labels if labels.count(found) > 1}):
            faults.append(((), f"has two points that are called {label!r}"))
        if faults:
            raise InconsistentValues(*faults)
        if not self.name:
            first = next(iter(self.zip), "") or next(iter(self.points[0].set), "point")
            object.__setattr__(self, "name", first.removeprefix(SIMULATION))

    def expanded(self) -> tuple[Point, ...]:
        """Return the points, those of ``zip`` with their values as labels."""
        if self.points:
            return self.points
        return tuple(
            Point(label=" ".join(map(_label, values)), set=dict(zip(self.zip, values, strict=True)))
            for values in zip(*self.zip.values(), strict=True)
        )

    @property
    def keys(self) -> frozenset[str]:
        """Every key that a point of it sets."""
        return frozenset(self.zip) | {key for point in self.points for key in point.set}


@dataclass(frozen=True, slots=True, kw_only=True)
class Variable:
    """The range of one key of a search: either ``low`` and ``high``, or ``choices``.

    ``low``, ``high``  bounds, both included
    ``whole``          whether its values are whole numbers
    ``log``            whether it is drawn on a logarithmic scale
    ``choices``        the values of a categorical one
    """

    low: float | None = option(number(-1e15, 1e15), default=None)
    high: float | None = option(number(-1e15, 1e15), default=None)
    whole: bool = option(flag(), default=False)
    log: bool = option(flag(), default=False)
    choices: tuple[Scalar, ...] = option(seq(scalar(), most=_MOST, unique=True), default=())

    def __post_init__(self) -> None:
        if self.choices:
            if self.low is not None or self.high is not None or self.whole or self.log:
                raise InconsistentValues(((), "has `choices`, so it has no bounds"))
            return
        if self.low is None or self.high is None:
            raise InconsistentValues(((), "needs `low` and `high`, or `choices`"))
        if not self.low < self.high:
            raise InconsistentValues((("high",), f"must be above low, which is {self.low:g}"))
        if self.log and self.low <= 0:
            raise InconsistentValues((("low",), "must be above 0 on a logarithmic scale"))
        if self.whole and not (self.low.is_integer() and self.high.is_integer()):
            raise InconsistentValues((("whole",), "needs bounds that are whole numbers"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Search:
    """A search by Optuna, instead of a grid.

    ``trials``     how many points are tried, each with every seed
    ``batch``      trials that are drawn before the first of them has ended. They can run at the
                   same time. It belongs to the file, as the points that are drawn depend on it
    ``sampler``    ``tpe`` (Bergstra et al. 2011), ``random``, or ``cmaes`` for numbers only
    ``seed``       of the sampler
    ``variables``  the range of each key
    """

    trials: int = option(whole(1, 10_000))
    batch: int = option(whole(1, 1000), default=1)
    sampler: str = option(choice("tpe", "random", "cmaes"), default="tpe")
    seed: int = option(whole(0, 2**32 - 1), default=0)
    variables: Mapping[str, Variable] = option(each(table(Variable), key=KEY, what=_DOTTED))

    def __post_init__(self) -> None:
        faults = _key_faults(list(self.variables), "variables")
        if not self.variables:
            faults.append((("variables",), "names no key"))
        categorical = [key for key, found in self.variables.items() if found.choices]
        if self.sampler == "cmaes" and categorical:
            faults.append(
                (("sampler",), f'"cmaes" draws numbers only; {categorical[0]} has choices')
            )
        if faults:
            raise InconsistentValues(*faults)


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportSpec:
    """What the report compares.

    ``title``     of the report; by default the experiment's name
    ``compare``   the axis whose points are compared with each other, all others being equal; by
                  default the first
    ``baseline``  the point of that axis with which the others are compared; by default all pairs
    ``metrics``   metrics with a table and figures of their own, besides the experiment's ``metric``
    """

    title: str = option(line(most=200), default="")
    compare: str = option(line(most=60), default="")
    baseline: str = option(line(most=60), default="")
    metrics: tuple[str, ...] = option(seq(text(most=64), most=10, unique=True), default=())


@dataclass(frozen=True, slots=True, kw_only=True)
class ExperimentSpec:
    """A complete and consistent ``experiment.toml``. Paths start from its folder.

    ``name``       of the experiment
    ``job``        the ``job.toml`` that every cell changes and runs
    ``setup``      the ``simulation.toml`` of every cell: clients, data, virtual time
    ``data``       a folder with one folder of data for each site, instead of ``setup``'s data
    ``results``    folder for the results of the cells, tables and the report; by default
                   ``results`` beside the file
    ``hooks``      ``FILE.py:NAME`` or ``package.module:NAME``: a function that returns the hooks of
                   a cell (:class:`fedlearn.simulation.hooks.Hook`), called with its ``hook.`` keys,
                   the names of the sites and the seed. A deployment has no such hooks
    ``metric``     the one that is compared: with ``server.`` before its name what the ServerApp
                   evaluates, with ``evaluate.`` or ``train.`` what the clients report, and without
                   such a word that of the first of these three that reports it
    ``direction``  whether larger or smaller values of it are better
    ``seeds``      each point runs once with each of them
    ``set``        keys with the same value in every cell, which the job does not have
    ``grid``       the axes, which are crossed
    ``search``     a search instead of a grid
    ``report``     what the report compares

    :raises InconsistentValues: from the constructor, for values that exclude each other.

    >>> spec = ExperimentSpec.from_toml('''
    ... name = "rates"
    ... job = "job.toml"
    ... setup = "simulation.toml"
    ... metric = "accuracy"
    ... seeds = [1, 2]
    ... [[grid]]
    ... zip = { "config.learning-rate" = [0.1, 0.01] }
    ... ''')
    >>> spec.grid[0].name, [point.label for point in spec.grid[0].expanded()]
    ('config.learning-rate', ['0.1', '0.01'])
    """

    name: str = option(reading.name())
    job: Path = option(file_path())
    setup: Path | None = option(file_path(), default=None)
    data: Path | None = option(file_path(), default=None)
    results: Path | None = option(file_path(), default=None)
    hooks: str = option(text(least=0), default="")
    metric: str = option(text(most=64))
    direction: str = option(choice("maximize", "minimize"), default="maximize")
    seeds: tuple[int, ...] = option(
        seq(whole(0, 2**63 - 1), least=1, most=_MOST, unique=True), default=(0,)
    )
    set: Mapping[str, Scalar] = option(
        each(scalar(), key=KEY, what=_DOTTED, most=100), factory=lambda: MappingProxyType({})
    )
    grid: tuple[Axis, ...] = option(tables(Axis, most=20), default=())
    search: Search | None = option(table(Search), default=None)
    report: ReportSpec = option(table(ReportSpec), factory=ReportSpec)

    def __post_init__(self) -> None:
        faults: list[tuple[toml.Path, str]] = []
        if self.grid and self.search is not None:
            faults.append((("search",), "excludes a grid; write two experiments"))
        names = [axis.name for axis in self.grid]
        for index, axis in enumerate(self.grid):
            if axis.name in names[:index]:
                faults.append((("grid", index, "name"), f"{axis.name!r} is another axis, too"))
            if both := sorted(axis.keys & {*self.set}):
                faults.append((("grid", index), f"sets {both[0]}, as `set` does"))
            for other in self.grid[:index]:
                if both := sorted(axis.keys & other.keys):
                    at = ("grid", index)
                    faults.append((at, f"sets {both[0]}, as the axis {other.name!r} does"))
        count = len(self.seeds)
        for axis in self.grid:
            count *= len(axis.expanded())
        if count > MAX_CELLS:
            faults.append((("grid",), f"makes {count} cells; at most {MAX_CELLS}"))
        faults += self._report_faults(names)
        if self.hooks and not _HOOKS.fullmatch(self.hooks):
            faults.append((("hooks",), 'must be "FILE.py:NAME" or "package.module:NAME"'))
        faults += _key_faults(list(self.set), "set")
        varied = {*self.set} | {key for axis in self.grid for key in axis.keys}
        varied |= set(self.search.variables) if self.search else set()
        for prefix, key, there in ((SIMULATION, "setup", self.setup), (HOOK, "hooks", self.hooks)):
            if any(name.startswith(prefix) for name in varied) and not there:
                faults.append(((key,), f"is needed: keys that begin with {prefix!r} are varied"))
        if self.setup is None and self.data is None:
            faults.append((("setup",), "is needed, or `data`: the cells need data"))
        if faults:
            raise InconsistentValues(*faults)

    def _report_faults(self, names: Sequence[str]) -> list[tuple[toml.Path, str]]:
        compare = self.report.compare or (names[0] if names else "")
        if self.report.compare and compare not in names:
            listed = ", ".join(map(repr, names)) or "none"
            return [(("report", "compare"), f"{compare!r} is not an axis; there are {listed}")]
        if self.report.baseline:
            points = [
                p.label for axis in self.grid if axis.name == compare for p in axis.expanded()
            ]
            if self.report.baseline not in points:
                listed = ", ".join(map(repr, points)) or "none"
                at = ("report", "baseline")
                return [(at, f"{self.report.baseline!r} is not a point; there are {listed}")]
        return []

    @classmethod
    def load(cls, path: Path) -> ExperimentSpec:
        """Return the experiment in ``path``.

        :raises ConfigError: naming file, line and key of everything that is wrong.
        """
        data = reading.file_bytes(path, what="the experiment")
        return cls.from_toml(data, str(path), base=path.parent)

    @classmethod
    def from_toml(
        cls, source: bytes | str, where: str = "experiment.toml", *, base: Path | None = None
    ) -> ExperimentSpec:
        """Return the experiment in ``source``; no file is read.

        :raises ConfigError: naming file, line and key of everything that is wrong.
        """
        return reading.read(cls, source, where=where, base=base)

    def points(self) -> list[tuple[Point, ...]]:
        """Return every combination of points, one of each axis; one empty one without a grid."""
        return list(itertools.product(*(axis.expanded() for axis in self.grid)))

    @property
    def compared(self) -> str:
        """The name of the axis whose points are compared; ``trial`` for a search."""
        return self.report.compare or (self.grid[0].name if self.grid else "trial")

    @property
    def report_metrics(self) -> tuple[str, ...]:
        """The metrics with a table and figures of their own, the experiment's first."""
        return tuple(dict.fromkeys((self.metric, *self.report.metrics)))

    @property
    def maximize(self) -> bool:
        """Whether larger values of the metric are better."""
        return self.direction == "maximize"


def _label(value: Scalar) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    text = f"{value:g}" if isinstance(value, float) else str(value)
    return text.replace("/", "-")[:60] or '""'
