"""The cells of an experiment: one run of the job each, for one point of the grid and one seed."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from fedlearn.experiment.spec import HOOK, SIMULATION, ExperimentSpec, Point
from fedlearn.job.tables import Scalar

__all__ = ["Cell", "grid_cells", "matching", "trial_cells"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One run.

    ``arm``     the name of its point: the labels of its axes, joined by ``/``
    ``labels``  the label of each axis
    ``values``  every key that the point sets, with its value
    ``trial``   the number of its trial in a search, from 0; None in a grid
    """

    seed: int
    arm: str = "base"
    labels: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    values: Mapping[str, Scalar] = field(default_factory=lambda: MappingProxyType({}))
    trial: int | None = None

    @property
    def name(self) -> str:
        """What commands and reports call it, as ``fedprox/0.5/seed-1``."""
        return f"{self.arm}/seed-{self.seed}"

    @property
    def job_keys(self) -> dict[str, Scalar]:
        """The keys of job.toml that it sets."""
        return {k: v for k, v in self.values.items() if not k.startswith((SIMULATION, HOOK))}

    @property
    def setup_keys(self) -> dict[str, Scalar]:
        """The keys of simulation.toml that it sets, without ``simulation.``."""
        return self._below(SIMULATION)

    @property
    def hook_keys(self) -> dict[str, Scalar]:
        """The keys that its hooks get, without ``hook.``."""
        return self._below(HOOK)

    def _below(self, prefix: str) -> dict[str, Scalar]:
        return {k[len(prefix) :]: v for k, v in self.values.items() if k.startswith(prefix)}


def grid_cells(spec: ExperimentSpec) -> list[Cell]:
    """Return the cells of a grid: the seeds of a point one after the other, points as listed.

    >>> spec = ExperimentSpec.from_toml('''
    ... name = "rates"
    ... job = "job.toml"
    ... setup = "simulation.toml"
    ... metric = "accuracy"
    ... seeds = [1, 2]
    ... [[grid]]
    ... zip = { "config.rate" = [0.1, 0.01] }
    ... [[grid]]
    ... zip = { "simulation.data.alpha" = [0.5] }
    ... ''')
    >>> [cell.name for cell in grid_cells(spec)]
    ['0.1/0.5/seed-1', '0.1/0.5/seed-2', '0.01/0.5/seed-1', '0.01/0.5/seed-2']
    """
    return [_cell(spec, points, seed) for points in spec.points() for seed in spec.seeds]


def trial_cells(spec: ExperimentSpec, number: int, values: Mapping[str, Scalar]) -> list[Cell]:
    """Return the cells of one trial of a search, one for each seed."""
    labels = MappingProxyType({"trial": str(number)})
    arm = f"trial-{number}"
    every = MappingProxyType({**spec.set, **values})
    return [
        Cell(seed=seed, arm=arm, labels=labels, values=every, trial=number) for seed in spec.seeds
    ]


def matching(cells: Iterable[Cell], glob: str) -> list[Cell]:
    """Return the cells whose name matches ``glob`` (fnmatch; ``*`` matches ``/`` as well)."""
    return [cell for cell in cells if not glob or fnmatch.fnmatchcase(cell.name, glob)]


def _cell(spec: ExperimentSpec, points: tuple[Point, ...], seed: int) -> Cell:
    values = dict(spec.set)
    for point in points:
        values |= point.set
    labels = {axis.name: point.label for axis, point in zip(spec.grid, points, strict=True)}
    return Cell(
        seed=seed,
        arm="/".join(labels.values()) or "base",
        labels=MappingProxyType(labels),
        values=MappingProxyType(values),
    )
