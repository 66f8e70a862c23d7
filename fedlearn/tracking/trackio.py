"""Records runs with trackio, in its database on this machine: ``trackio show``."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from fedlearn.errors import ConfigError
from fedlearn.tracking.tracker import RunId

__all__ = ["open_tracker"]

_FOLDER: Final = "TRACKIO_DIR"


def open_tracker(run: RunId, *, project: str, at: str) -> TrackioRun:
    """Open the run in the project.

    :param at: the folder of the database; without one that of TRACKIO_DIR, or trackio's default.
    :raises ConfigError: when trackio is used already in this process, with another folder.
    """
    if at:
        folder = str(Path(at).resolve())
        if "trackio" not in sys.modules:
            os.environ[_FOLDER] = folder  # trackio reads it once, when it is imported
        elif os.environ.get(_FOLDER) != folder:
            raise ConfigError(
                "this process uses trackio with another folder already",
                where=f"--at {at}",
                hint=f"set {_FOLDER} before",
            )
    return TrackioRun(run, project)


class TrackioRun:
    """A run of trackio, found again by its name, which ends with the run's id."""

    def __init__(self, run: RunId, project: str) -> None:
        import trackio

        self._project = project
        self._name = f"{run.name}-{run.id[:8]}"
        self._trackio: Any = trackio
        known = trackio.SQLiteStorage.get_max_step_for_run(project, self._name)
        self.recorded = int(known or 0)
        self._known_parameters = trackio.SQLiteStorage.get_run_config(project, self._name) or {}
        self._run: Any = None
        self._config: dict[str, str] = {}

    @property
    def place(self) -> str:
        """The folder of the database, the project and the run."""
        return f"{self._trackio.TRACKIO_DIR}, project {self._project}, run {self._name}"

    def parameters(self, values: Mapping[str, str]) -> None:
        """Record parameters; trackio takes them with the first call only."""
        self._config = dict(values)
        self._begin()

    def round(self, step: int, values: Mapping[str, float], unix_ms: int) -> None:
        """Record one round. trackio has its own time for it."""
        self._run.log({**values, "round/unix_ms": float(unix_ms)}, step=step)
        self.recorded = step

    def artifact(self, file: Path) -> None:
        """Keep a file as an artifact of the type ``report``."""
        self._run.log_artifact(str(file), name=f"report-{self._name}", type="report")

    def end(self, status: str, unix_ms: int) -> None:
        """Do nothing: a run of trackio has no status."""

    def close(self) -> None:
        """Write what is not written yet."""
        with contextlib.redirect_stdout(sys.stderr):
            self._trackio.finish()

    def _begin(self) -> None:
        # trackio prints; stdout belongs to the command.
        with contextlib.redirect_stdout(sys.stderr):
            self._run = self._trackio.init(
                project=self._project,
                name=self._name,
                config=self._config,
                resume="allow",
                embed=False,
                auto_log_gpu=False,
                auto_log_cpu=False,
            )
