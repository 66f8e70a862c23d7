"""An experiment and what has been done of it: run, resume, status, report.

The page is docs/reference/api/experiment.md.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from fedlearn import extras
from fedlearn.errors import ConfigError, StoreError
from fedlearn.experiment.cells import Cell, grid_cells, matching, trial_cells
from fedlearn.experiment.orders import Order, Orders
from fedlearn.experiment.parquet import damaged_files, write_parquet
from fedlearn.experiment.report import Report, make_report
from fedlearn.experiment.schedule import ShowProgress, cores, run_orders
from fedlearn.experiment.search import Trial, run_search
from fedlearn.experiment.spec import ExperimentSpec, Search
from fedlearn.experiment.statistics import Arm, summarize
from fedlearn.experiment.store import CellResult, Failure, Store

__all__ = ["CellStatus", "Experiment", "Status"]


@dataclass(frozen=True, slots=True, kw_only=True)
class CellStatus:
    """The state of one cell.

    ``state``    ``finished``; ``failed``, for ``failure``; ``interrupted``, which goes on from a
                 checkpoint; ``waiting``
    ``rounds``   done, of ``planned``
    """

    name: str
    key: str
    state: str
    rounds: int = 0
    planned: int = 0
    seconds: float = 0.0
    failure: Failure | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """The state of an experiment: its cells in their order, and what cannot be used."""

    cells: tuple[CellStatus, ...]
    faults: tuple[str, ...] = ()

    def count(self, state: str) -> int:
        """Return how many cells are in a state."""
        return sum(cell.state == state for cell in self.cells)

    @property
    def complete(self) -> bool:
        """Whether every cell has finished."""
        return self.count("finished") == len(self.cells)


class Experiment:
    """An ``experiment.toml`` with its results.

    :param results: folder for the results, instead of that of the file.

    ::

        experiment = Experiment.load(Path("experiment.toml"))
        experiment.run(jobs=4)
        experiment.report()
    """

    def __init__(self, spec: ExperimentSpec, results: Path) -> None:
        self.spec = spec
        self.store = Store(results)
        self._orders: Orders | None = None

    @classmethod
    def load(cls, path: Path, *, results: Path | None = None) -> Self:
        """Return the experiment in ``path``.

        :raises ConfigError: naming file, line and key of everything that is wrong.
        """
        spec = ExperimentSpec.load(path)
        return cls(spec, results or spec.results or path.absolute().parent / "results")

    def run(
        self,
        *,
        jobs: int | None = None,
        only: str = "",
        retry_failed: bool = False,
        show: ShowProgress = lambda _: None,
    ) -> Status:
        """Run every cell that has neither a result nor a failure, and write the Parquet files.

        :param jobs: cells at the same time; by default as many as there are cores.
        :param only: a glob over the names of cells; the others are left as they are.
        :param retry_failed: run cells again that failed.
        :raises ConfigError: before any cell runs, when the experiment or one of its cells is wrong.
        :raises Interrupted: at Ctrl-C; results are kept.
        """
        if jobs is not None and jobs < 1:
            raise ConfigError(f"must be at least 1, not {jobs}", where="--jobs")
        extras.load("pyarrow", needed_for="results in Parquet")
        jobs = jobs or cores()
        with self.store.locked(), self._parquet():
            if self.spec.search is not None:
                if only:
                    raise ConfigError(
                        "a search has no cells before it draws them",
                        where="--only",
                        hint="leave it out",
                    )
                self._search(self.spec.search, jobs, show, retry_failed=retry_failed)
            else:
                cells = matching(grid_cells(self.spec), only)
                if not cells:
                    names = ", ".join(cell.name for cell in grid_cells(self.spec)[:3])
                    raise ConfigError(
                        f"{only!r} matches no cell; the first are {names}", where="--only"
                    )
                self._run(cells, jobs, show, retry_failed=retry_failed)
        return self.status()

    def status(self) -> Status:
        """Return the state of every cell; of a search, of the trials that were drawn."""
        found, faults = [], []
        for order in self._planned():
            try:
                found.append(self._status(order))
            except StoreError as error:
                faults.append(str(error))
                found.append(
                    CellStatus(
                        name=order.cell.name,
                        key=order.key,
                        state="interrupted",
                        planned=order.rounds,
                    )
                )
        if self.store.exists:
            with contextlib.suppress(ConfigError):  # without pyarrow nobody reads them here
                faults += damaged_files(self.store.folder)
        return Status(cells=tuple(found), faults=tuple(faults))

    def results(self) -> tuple[list[CellResult], list[str], list[str]]:
        """Return the results in the order of the grid, cells without one, and unusable files.

        A cell whose result was computed by other code or with other values than it would have now
        has that result when there is no newer one; :func:`make_report` reports different versions.
        """
        stored, faults = self.store.results()
        newest: dict[str, CellResult] = {}
        for each in sorted(stored, key=lambda result: result.finished_unix_ms):
            newest[each.cell.name] = each
        if self.spec.search is not None:
            found = [each for each in newest.values() if each.cell.trial is not None]
            found.sort(key=lambda each: (each.cell.trial or 0, each.cell.seed))
            return found, [], faults
        found, missing = [], []
        for cell in grid_cells(self.spec):
            result = newest.get(cell.name)
            if result is not None and dict(result.cell.values) == dict(cell.values):
                found.append(result)
            else:
                missing.append(cell.name)
        return found, missing, faults

    def report(self, folder: Path | None = None) -> Report:
        """Write the report and return it; by default below ``report`` in the results.

        The Parquet files are written, too.

        :raises ConfigError: when no cell has a result, or matplotlib or pyarrow is not installed.
        """
        found, missing, faults = self.results()
        if not found:
            raise ConfigError(
                "no cell has a result",
                where=str(self.store.folder),
                hint="`fedlearn experiment run` runs the cells",
            )
        write_parquet(self.store.folder, found)
        report = make_report(self.spec, found, missing=missing, faults=faults)
        report.write(folder or self.store.folder / "report")
        return report

    # --- running ----------------------------------------------------------------------

    def _run(
        self, cells: Sequence[Cell], jobs: int, show: ShowProgress, *, retry_failed: bool
    ) -> list[Order]:
        """Run what is left of these cells, and return the orders of all of them."""
        orders = [self._order(cell) for cell in cells]
        left = []
        for order in orders:
            with contextlib.suppress(StoreError):  # it was cut short: it runs again
                if self.store.result(order.key) is not None:
                    continue
            if self.store.failure(order.key) is None or retry_failed:
                left.append(order)
        if left:
            run_orders(self.store, left, jobs=jobs, show=show)
        return orders

    def _search(
        self, search: Search, jobs: int, show: ShowProgress, *, retry_failed: bool
    ) -> list[Trial]:
        def values(batch: Sequence[Trial]) -> list[float]:
            cells = [
                cell for number, drawn in batch for cell in trial_cells(self.spec, number, drawn)
            ]
            self._run(cells, jobs, show, retry_failed=retry_failed)
            return [self._objective(trial) for trial in batch]

        return run_search(self.spec, search, values)

    def _objective(self, trial: Trial) -> float:
        """Return the mean over the seeds of the metric in the last round; NaN if one failed."""
        number, drawn = trial
        found = []
        for cell in trial_cells(self.spec, number, drawn):
            result = self.store.result(self._order(cell).key)
            if result is None:
                return math.nan
            found.append(result)
        arm = Arm(name=str(number), labels={}, cells=tuple(found))
        numbers = arm.values(self.spec.metric, "last", maximize=self.spec.maximize)
        return summarize(list(numbers.values())).mean if len(numbers) == len(found) else math.nan

    def _order(self, cell: Cell) -> Order:
        if self._orders is None:
            self._orders = Orders(self.spec)
        return self._orders.order(cell)

    @contextlib.contextmanager
    def _parquet(self) -> Iterator[None]:
        """A context after which the Parquet files have every result, however it is left."""
        try:
            yield
        finally:
            if self.store.exists:
                found, _, _ = self.results()
                write_parquet(self.store.folder, found)

    # --- status -----------------------------------------------------------------------

    def _planned(self) -> list[Order]:
        if self.spec.search is None:
            return [self._order(cell) for cell in grid_cells(self.spec)]
        found: dict[str, Order] = {}
        if self.store.exists:
            for folder in sorted((self.store.folder / "cells").iterdir()):
                with contextlib.suppress(StoreError, OSError):
                    order = Order.read(folder)
                    if order.cell.trial is not None:
                        found[order.key] = order
        return sorted(found.values(), key=lambda order: (order.cell.trial or 0, order.cell.seed))

    def _status(self, order: Order) -> CellStatus:
        result = self.store.result(order.key)
        done, _ = self.store.progress(order.key)
        failure = None if result else self.store.failure(order.key)
        if result is not None:
            state, done = "finished", result.last_round
        elif failure is not None:
            state = "failed"
        else:
            state = "interrupted" if self.store.cell_folder(order.key).is_dir() else "waiting"
        return CellStatus(
            name=order.cell.name,
            key=order.key,
            state=state,
            rounds=done,
            planned=order.rounds,
            seconds=result.seconds if result else 0.0,
            failure=failure,
        )
