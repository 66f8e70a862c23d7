"""The result of a run: what its events report, its metrics as a table and a plot."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, Self, overload

from attestation.durable import write_durably
from fedlearn.api.sources import FolderSource, Source
from fedlearn.errors import ConfigError
from fedlearn.extras import load, require
from fedlearn.job.events import Event
from fedlearn.results.history import RunHistory
from fedlearn.results.run_folder import RunFolder
from fedlearn.results.tables import round_table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from fedlearn.tracking.record import Recorded, TrackerName
    from fedlearn.update.arrays import Array
    from server.ledger import VerifiedLedger

__all__ = ["Result"]

_MOST_PLOTS: Final = 8


class Result:
    """The result of a run so far; the run need not have finished.

    ``history`` is what its events report: rounds, sites, refusals, privacy and times
    (:class:`fedlearn.results.history.RunHistory`).
    """

    def __init__(self, source: Source) -> None:
        self._source = source
        self.history = RunHistory.of(source.events())

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> Self:
        """Return the result of a run that is kept in a folder, as ``fedlearn job try`` leaves it.

        :raises ConfigError: when it is not the folder of a run.

        >>> import tempfile
        >>> from fedlearn.job.events import JobStarted
        >>> from fedlearn.results.run_folder import About
        >>> about = About(job="ecg", tee="sample", digest=bytes(32), bundle=bytes(32))
        >>> with tempfile.TemporaryDirectory() as base:
        ...     folder = RunFolder.create_below(Path(base), about)
        ...     with folder.record() as recorder:
        ...         started = JobStarted(job="ecg", rounds=3, sites=("north",))
        ...         recorder.add(started, unix_ms=1_700_000_000_000, sequence=1)
        ...     Result.load(folder.path)
        Result('ecg-1', 'running', round 0/3)
        """
        return cls(FolderSource(RunFolder.load(Path(folder))))

    def __repr__(self) -> str:
        """Return name, status and number of finished rounds."""
        rounds = f"{len(self.history.finished)}/{self.history.planned}"
        return f"Result({self.name!r}, {self.status!r}, round {rounds})"

    @property
    def name(self) -> str:
        """What names the run."""
        return self._source.name

    @property
    def status(self) -> str:
        """``waiting``, ``running``, ``finished``, ``failed``, ``cancelled`` or ``interrupted``."""
        return self.history.status

    @property
    def insecure(self) -> str:
        """What a run that was simulated has left out, in words; empty for another one."""
        source = self._source
        if not isinstance(source, FolderSource) or not source.folder.about.simulated:
            return ""
        return " ".join([source.facts().insecure, *source.facts().notes])

    @property
    def folder(self) -> Path | None:
        """The folder that keeps a run of this machine; None for one at a coordinator."""
        return self._source.folder.path if isinstance(self._source, FolderSource) else None

    @property
    def weights(self) -> Path | None:
        """The file with the weights in :attr:`folder`; None where there is none."""
        if isinstance(self._source, FolderSource) and self._source.folder.model.exists():
            return self._source.folder.model
        return None

    def events(self) -> Iterator[tuple[Event, int]]:
        """Yield the events so far, each with its time in milliseconds since 1970."""
        return self._source.events()

    @property
    def rows(self) -> list[dict[str, Any]]:
        """The finished rounds, one mapping each, in the columns of ``fedlearn job metrics``.

        ``round``, ``sites``, ``seconds``, ``bytes``, ``epsilon`` and others
        (:func:`fedlearn.results.tables.round_table`), and each metric by its name. None stands for
        what is not known, and for a metric that the round lacks.
        """
        every = round_table(self.history).rows
        return [dict(row) for row in every if row["state"] != "running"]

    @property
    def metrics(self) -> Any:
        """The finished rounds: a pandas DataFrame, or :attr:`rows` where pandas is not installed.

        The index of the frame is the number of the round.
        """
        try:
            import pandas as pd
        except ModuleNotFoundError:
            return self.rows
        frame = pd.DataFrame(self.rows, columns=None if self.rows else ["round"])
        return frame.set_index("round")

    def plot(self, *metrics: str) -> Figure:
        """Return a matplotlib figure: each metric by round.

        :param metrics: their names; without any, all that a round has, the first eight of them.
        :raises ConfigError: when matplotlib is not installed.
        :raises ValueError: for a name that no round has.
        """
        require("plot", needed_for="a plot")
        # Not pyplot: that would keep every figure, and choose a window system.
        from matplotlib.figure import Figure

        from fedlearn.terminal.notebook import picture_figures

        picture_figures()
        rounds = self.history.finished
        known = list(dict.fromkeys(name for each in rounds for name in each.metrics))
        if unknown := [name for name in metrics if name not in known]:
            raise ValueError(
                f"no round has the metric {unknown[0]!r}; there are {', '.join(known) or 'none'}"
            )
        shown = list(metrics) or known[:_MOST_PLOTS]
        figure = Figure(figsize=(6.4, 1.0 + 2.2 * max(1, len(shown))), layout="constrained")
        axes = figure.subplots(max(1, len(shown)), squeeze=False, sharex=True)[:, 0]
        for axis, name in zip(axes, shown, strict=False):
            points = [(each.number, each.metrics[name]) for each in rounds if name in each.metrics]
            axis.plot(*zip(*points, strict=True), marker="o", markersize=3)
            axis.set_ylabel(name)
            axis.grid(alpha=0.3)
        axes[0].set_title(self.name)
        axes[-1].set_xlabel("round")
        axes[-1].xaxis.get_major_locator().set_params(integer=True)
        return figure

    @overload
    def model(
        self,
        *,
        key: str | os.PathLike[str] | None = None,
        ask: Callable[[], str] | None = None,
        as_: Literal["arrays"] = "arrays",
    ) -> dict[str, Array]: ...

    @overload
    def model(
        self,
        *,
        key: str | os.PathLike[str] | None = None,
        ask: Callable[[], str] | None = None,
        as_: Literal["torch"],
    ) -> dict[str, Any]: ...

    def model(
        self,
        *,
        key: str | os.PathLike[str] | None = None,
        ask: Callable[[], str] | None = None,
        as_: str = "arrays",
    ) -> Any:
        """Return the weights: arrays by name, or a torch ``state_dict``.

        They are in plaintext from then on, in the memory of this process.

        :param key: the file of the owner's private key (X25519, PEM), for a run at a coordinator.
            The model of a run here is in plaintext in its folder.
        :param ask: returns the passphrase of the key; called only when its file is encrypted.
        :param as_: ``"arrays"`` for numpy, or ``"torch"``.
        :raises ConfigError: when a key is needed, or torch is not installed.
        :raises JobError: when the run has made no model.
        :raises KeyReleaseDenied: when the model is not sealed for the key.
        :raises ModelNotAuthentic: when the coordinator did not seal it.
        """
        if as_ not in ("arrays", "torch"):
            raise ValueError(f'as_ must be "arrays" or "torch", not {as_!r}')
        arrays = self._source.arrays(None if key is None else Path(key), ask)
        if as_ == "arrays":
            return arrays
        return load("fedlearn.update.torch", needed_for="a state_dict").to_state_dict(arrays)

    def download(self, path: str | os.PathLike[str], *, replace: bool = False) -> Path:
        """Write the model to a file: sealed from a coordinator, as safetensors from a folder.

        :param replace: replace an existing file.
        :raises ConfigError: when the file exists.
        :raises JobError: when the run has made no model.
        """
        self._source.download(Path(path), replace=replace)
        return Path(path)

    def verify_ledger(self) -> VerifiedLedger:
        """Verify the record of every decision.

        :raises LedgerError: naming the first entry that is wrong or missing.
        """
        return self._source.verify_ledger()

    def report(
        self, path: str | os.PathLike[str], *, replace: bool = False, metric: str = ""
    ) -> Path:
        """Write the report as one HTML page that loads nothing from the network.

        :param replace: replace an existing file.
        :param metric: the metric to show first; by default the one that the job names.
        :raises ConfigError: when the file exists.
        """
        from fedlearn.results.report import report_page

        out = Path(path)
        if not replace and os.path.lexists(out):
            raise ConfigError("exists", where=str(out), hint="name another file, or replace it")
        facts = self._source.facts()
        if metric:
            facts = dataclasses.replace(facts, metric=metric)
        write_durably(out, report_page(self.history, facts).encode(), mode=0o644)
        return out

    def track(self, to: TrackerName, *, project: str = "fedlearn", at: str = "") -> Recorded:
        """Record what the run has so far with an experiment tracker; see ``Run.track``.

        :param to: ``mlflow``, ``tensorboard``, ``wandb`` or ``trackio``.
        :raises ConfigError: when the package of the tracker is not installed.
        :raises TrackingError: when the tracker does not record something.
        """
        return track(self._source, self.events(), to=to, project=project, at=at)


def track(
    source: Source,
    events: Iterable[tuple[Event, int]],
    *,
    to: TrackerName,
    project: str,
    at: str,
    show: Callable[[Event, int], object] = lambda event, unix_ms: None,
) -> Recorded:
    """Record the run of ``source``, as ``events`` come; see :func:`fedlearn.tracking.record`."""
    from fedlearn.results.report import report_page
    from fedlearn.tracking.record import record
    from fedlearn.tracking.tracker import flat

    require(to, needed_for=f"tracking with {to}")
    spec, facts = source.spec(), source.facts()
    table = {key: value for key, value in spec.to_table().items() if key not in ("app", "policy")}
    return record(
        events,
        to=to,
        name=source.name,
        project=project,
        at=at,
        parameters={**flat(table), "digest": spec.digest().hex()},
        page=lambda history: report_page(history, facts),
        show=show,
    )
