"""``fedlearn simulate``: runs a job with simulated clients, and keeps the run in a folder."""

from __future__ import annotations

from pathlib import Path

import click

from fedlearn.terminal.console import json_option, line, print_json

__all__ = ["command"]


@click.command("simulate")
@click.argument("file", type=click.Path(path_type=Path), default=Path("job.toml"))
@click.option(
    "--data",
    type=click.Path(path_type=Path, file_okay=False),
    default=None,
    help="Folder with one folder of data for each site; 'data' next to FILE if it is there.",
)
@click.option(
    "--setup",
    type=click.Path(path_type=Path, dir_okay=False),
    default=None,
    help="simulation.toml: how many clients, of which data, with which virtual time.",
)
@click.option(
    "--clients",
    type=click.IntRange(min=1),
    default=None,
    help="So many clients take the place of the job's sites.",
)
@click.option(
    "--workers",
    type=click.IntRange(min=0, max=1024),
    default=0,
    show_default=True,
    help="Processes for the clients; 0: they run in this one. The bits are the same.",
)
@click.option(
    "--backend",
    type=click.Choice(["process"]),
    default="process",
    show_default=True,
    help="Where workers run: as processes on this machine.",
)
@click.option("--seed", type=click.IntRange(min=0), default=None, help="In place of the job's.")
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
    help="Continue a run from its last checkpoint: that of --run, or the newest.",
)
@json_option
def command(
    file: Path,
    data: Path | None,
    setup: Path | None,
    clients: int | None,
    workers: int,
    backend: str,
    seed: int | None,
    folder: Path | None,
    resume: bool,
    as_json: bool,
) -> None:
    """Run the job in FILE with simulated clients, without attestation, TLS and sealing.

    The model is that of a deployed run with the same data and seed, to the bit. No app has a
    sandbox: simulate only apps that you trust. Ctrl-C stops the run; --resume continues it.
    """
    from fedlearn.api.simulation import INSECURE, simulate_in_folder
    from fedlearn.local.children import terminate_as_interrupt
    from fedlearn.simulation.jobs import metric_of
    from fedlearn.terminal.progress import show_for

    if not as_json:
        line(f"insecure: {INSECURE}", style="yellow")
    with terminate_as_interrupt():
        result = simulate_in_folder(
            file,
            folder=folder,
            resume=resume,
            again=f"`fedlearn simulate {file} --resume --run {{folder}}`",
            data=data,
            setup=setup,
            clients=clients,
            workers=workers,
            backend=backend,
            seed=seed,
            show=show_for(as_json=as_json, metric=metric_of(file)),
            thin=not as_json,
        )
    weights = result.weights
    if as_json:
        print_json(
            {
                "job": result.history.job,
                "insecure": result.insecure,
                "rounds": len(result.history.finished),
                "model": None if weights is None else str(weights),
                "run": str(result.folder),
                "metrics": dict(result.history.metrics),
            }
        )
        return
    line(f"the run is kept in {result.folder}")
    line(f"insecure: {result.insecure}", style="yellow")
    if weights is None:
        line("the job finished, and its app made no model", style="green")
    else:
        line(f"the weights are in {weights}", style="green")
