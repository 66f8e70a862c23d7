"""``fedlearn job track``: records a run with an experiment tracker, from its events."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, cast

import click

from fedlearn.cli.operator import operator_option
from fedlearn.terminal.console import json_option, line, print_json, printable

if TYPE_CHECKING:
    from fedlearn.tracking.record import TrackerName

__all__ = ["track"]


@click.command("track")
@click.argument("run")
@click.option(
    "--to",
    required=True,
    type=click.Choice(["mlflow", "tensorboard", "wandb", "trackio"]),
    help="The tracker; each needs the extra of its name, as fedlearn[mlflow].",
)
@click.option(
    "--at",
    default="",
    metavar="WHERE",
    help="MLflow: its tracking URI. Others: the folder for their files. Each has a default.",
)
@click.option(
    "--project",
    default="fedlearn",
    show_default=True,
    help="The experiment of MLflow, or the project.",
)
@operator_option
@json_option
def track(run: str, to: str, at: str, project: str, operator: Path | None, as_json: bool) -> None:
    """Record a run with an experiment tracker: parameters, metrics by round, privacy, report.

    RUN is a job, NAME or NAME@2, which is followed until it ends, or the folder of a run of
    `fedlearn job try`: an argument with a / in it. What is recorded already is not recorded again.
    """
    tracker = cast("TrackerName", to)
    if "/" in run:
        from fedlearn.api.result import Result

        done = Result.load(run).track(tracker, project=project, at=at)
    else:
        from fedlearn.api.connection import connect
        from fedlearn.terminal.progress import show_for

        with connect(operator) as coordinator:
            found = coordinator.job(run)
            show = show_for(as_json=as_json, metric=found.metric)
            done = found.track(tracker, project=project, at=at, show=show)
    if as_json:
        print_json(dataclasses.asdict(done))
        return
    line(f"{printable(done.run)}: {done.status}, {done.rounds} rounds in {to}")
    line(printable(done.place))
