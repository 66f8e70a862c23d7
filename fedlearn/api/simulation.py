"""Simulations that are kept in a folder, for the command and for :class:`fedlearn.api.job.Job`."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from fedlearn.api.result import Result
from fedlearn.api.sources import FolderSource
from fedlearn.errors import ConfigError, Interrupted
from fedlearn.results.run_folder import RunFolder
from fedlearn.terminal.progress import Show

__all__ = ["INSECURE", "RUNS", "simulate_in_folder"]

INSECURE: Final = "simulated: attestation, TLS, sealing and the sandboxes of apps are left out"
RUNS: Final = Path("runs")
"""Where runs are kept if no folder is named."""


def simulate_in_folder(
    job: Path,
    *,
    folder: Path | None,
    resume: bool,
    show: Show,
    again: str,
    thin: bool = True,
    **more: Any,
) -> Result:
    """Simulate a job, write the report into the folder of the run, and return the result.

    :param job: its file.
    :param folder: of the run; without one ``runs/NAME-N`` with the next N, or with ``resume`` the
        newest.
    :param again: how an interrupted run is continued, with ``{folder}`` in it.
    :param thin: show one line in some seconds in place of one for each of many clients.
    :raises ConfigError: see :func:`fedlearn.simulation.simulate`, also for what else is raised.
    """
    from fedlearn.simulation import simulate
    from fedlearn.simulation.jobs import name_of
    from fedlearn.simulation.progress import Thinned

    if folder is None:
        name = name_of(job)
        newest = resume and RunFolder.newest(RUNS, name)
        folder = newest.path if newest else RunFolder.next_below(RUNS, name)
    elif resume and not folder.exists():
        raise ConfigError(
            "does not exist", where=str(folder), hint="begin the run without --resume"
        )
    try:
        simulate(job, folder=folder, resume=resume, show=Thinned(show) if thin else show, **more)
    except Interrupted as interrupted:
        raise Interrupted(
            interrupted.message, hint=f"{again.format(folder=folder)} continues it"
        ) from None
    finally:
        # Also of a run that did not finish well.
        if RunFolder.is_one(folder):
            kept = RunFolder.load(folder)
            result = Result(FolderSource(kept))
            result.report(kept.report, replace=True)
    return result
