"""A job on this machine: read it, check it, try it, simulate it."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Self

from fedlearn.api.result import Result
from fedlearn.api.sources import FolderSource
from fedlearn.job.spec import JobFiles
from fedlearn.results.run_folder import RunFolder

if TYPE_CHECKING:
    from fedlearn.api.validation import Report
    from fedlearn.local.machines import TeeChoice
    from fedlearn.simulation.hooks import Hook
    from fedlearn.terminal.progress import Show

__all__ = ["Job"]


class Job:
    """A job's file with its policy and its app. Read one with :meth:`load`.

    ``path`` is the file and ``spec`` its content; what is in the file later is not seen.
    """

    def __init__(self, path: Path, files: JobFiles) -> None:
        self.path = path
        self.spec = files.spec
        self._files = files

    def __repr__(self) -> str:
        """Return name and file."""
        return f"Job({self.name!r}, {str(self.path)!r})"

    @classmethod
    def load(cls, path: str | os.PathLike[str] = "job.toml") -> Self:
        """Read a job, its policy and the owner's key.

        :param path: the job's file, or the folder with a ``job.toml``.
        :raises ConfigError: naming file, line and key of everything that is wrong.

        >>> Job.load("no-such-job/job.toml")
        Traceback (most recent call last):
            ...
        fedlearn.errors.ConfigError: no-such-job/job.toml: the job does not exist
        """
        file = Path(path)
        if file.is_dir():
            file /= "job.toml"
        return cls(file, JobFiles.load(file))

    @property
    def name(self) -> str:
        """The job's name."""
        return self.spec.name

    def validate(self) -> Report:
        """Check the job with its policy and its app, without a coordinator.

        :returns: its facts (``found``), and what should be reviewed (``warnings``).
        :raises ConfigError: naming file, line and key of what is wrong.
        :raises JobError: when the app cannot run here.
        :raises PolicyError: when the policy is not one, or pins no launch identity of a TEE that
            it accepts.
        :raises PrivacyError: when the rounds would spend more than the privacy budget.
        """
        from fedlearn.api.validation import examine

        return examine(self.path, self._files)

    def try_(
        self,
        *,
        folder: str | os.PathLike[str] | None = None,
        data: str | os.PathLike[str] | None = None,
        tee: TeeChoice = "auto",
        resume: bool = False,
        show: Show | None = None,
    ) -> Result:
        """Run the job on this machine, with a temporary coordinator and temporary sites.

        The run is kept in a folder: its events, weights, report, logs and ledger, in plaintext
        (:mod:`fedlearn.results.run_folder`).

        :param folder: of the run; without one ``runs/NAME-N`` with the next N, or with ``resume``
            the newest.
        :param data: a folder with one folder of data for each site; ``data`` next to the job's
            file by default.
        :param tee: the evidence of the simulated machines: ``tpm`` for software TPMs, ``sample``
            for development keys, ``auto`` for TPMs where they are available.
        :param resume: continue a run that was interrupted, from its last sealed checkpoint.
        :param show: another output than the progress display.
        :raises ConfigError: when something is wrong with the job, its data or the folder.
        :raises JobError: when the job fails.
        :raises Interrupted: on Ctrl-C, or when the cell of a notebook is interrupted: the run is
            kept, and ``resume`` continues it.
        """
        from fedlearn.api import trial
        from fedlearn.terminal.notebook import show_here

        report = self.validate()
        shown = show or show_here(metric=self.spec.evaluate.metric)
        path = None if folder is None else Path(folder)
        if resume:
            kept = RunFolder.newest(trial.RUNS, self.name) if path is None else RunFolder.load(path)
            return Result(FolderSource(trial.resume(report, self.path, kept, show=shown)))
        place = Path(data) if data is not None else self.path.parent / "data"
        made = trial.begin(report, self.path, path=path, data=place, tee=tee, show=shown)
        return Result(FolderSource(made))

    def simulate(
        self,
        *,
        folder: str | os.PathLike[str] | None = None,
        data: str | os.PathLike[str] | None = None,
        setup: str | os.PathLike[str] | None = None,
        clients: int | None = None,
        workers: int = 0,
        backend: str = "process",
        seed: int | None = None,
        overrides: Mapping[str, Any] = MappingProxyType({}),
        resume: bool = False,
        hooks: Sequence[Hook] = (),
        show: Show | None = None,
    ) -> Result:
        """Run the job with simulated clients, without attestation, TLS, sealing and sandboxes.

        The run is kept in a folder, as that of :meth:`try_`, which states that it was simulated.
        See :func:`fedlearn.simulation.simulate` for the other parameters and what is raised.

        :param folder: of the run; without one ``runs/NAME-N`` with the next N, or with ``resume``
            the newest.
        :param setup: the file of the simulation, ``simulation.toml``.
        """
        from fedlearn.api.simulation import simulate_in_folder
        from fedlearn.terminal.notebook import show_here

        return simulate_in_folder(
            self.path,
            folder=None if folder is None else Path(folder),
            data=None if data is None else Path(data),
            setup=None if setup is None else Path(setup),
            clients=clients,
            workers=workers,
            backend=backend,
            seed=seed,
            overrides=overrides,
            resume=resume,
            hooks=hooks,
            show=show or show_here(metric=self.spec.evaluate.metric),
            again="`job.simulate(folder={folder!r}, resume=True)`",
        )
