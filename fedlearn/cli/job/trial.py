"""``fedlearn job try``: runs a job on this machine, and keeps the run in a folder."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, cast

import click

from fedlearn.errors import ConfigError
from fedlearn.terminal.console import json_option, line, print_json

if TYPE_CHECKING:
    from fedlearn.local.machines import TeeChoice

__all__ = ["try_"]


@click.command("try")
@click.argument("file", type=click.Path(path_type=Path), default=Path("job.toml"))
@click.option(
    "--data",
    type=click.Path(path_type=Path, file_okay=False),
    default=None,
    help="Folder with one folder of data for each site; 'data' next to FILE by default.",
)
@click.option(
    "--tee",
    type=click.Choice(["auto", "tpm", "sample"]),
    default="auto",
    show_default=True,
    help="tpm: software TPMs; sample: development keys; auto: tpm where swtpm is installed.",
)
@click.option(
    "--run",
    "folder",
    type=click.Path(path_type=Path, file_okay=False),
    default=None,
    help="Folder that keeps the run; runs/NAME-N by default, with the next N.",
)
@click.option(
    "--resume",
    is_flag=True,
    help="Continue a run from its last sealed checkpoint: that of --run, or the newest.",
)
@click.option(
    "--model",
    type=click.Path(path_type=Path, dir_okay=False),
    default=None,
    help="Where to write the weights as well.",
)
@json_option
def try_(
    file: Path,
    data: Path | None,
    tee: str,
    folder: Path | None,
    resume: bool,
    model: Path | None,
    as_json: bool,
) -> None:
    """Run a job on this machine, with a temporary coordinator and temporary sites.

    The run is kept in a folder: its events, weights, report, logs and ledger. Ctrl-C stops it;
    --resume continues it.
    """
    from fedlearn.api.job import Job
    from fedlearn.terminal.progress import show_for

    if model is not None and model.exists():
        raise ConfigError("exists", where=str(model), hint="name another file with --model")
    job = Job.load(file)
    result = job.try_(
        folder=folder,
        data=data,
        tee=cast("TeeChoice", tee),
        resume=resume,
        show=show_for(as_json=as_json, metric=job.spec.evaluate.metric),
    )
    weights = result.weights
    if model is not None and weights is not None:
        weights = result.download(model)
    if as_json:
        print_json(
            {
                "job": job.name,
                "rounds": job.spec.rounds,
                "model": None if weights is None else str(weights),
                "run": str(result.folder),
            }
        )
        return
    line(f"the run is kept in {result.folder}")
    if weights is None:
        line("the job finished, and its app made no model", style="green")
    else:
        line(f"the weights are in {weights}", style="green")
