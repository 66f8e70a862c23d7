"""``fedlearn experiment run, resume, status, report``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from fedlearn.errors import ConfigError
from fedlearn.terminal.console import Commands, json_option, line, print_json
from fedlearn.terminal.table import table_lines

if TYPE_CHECKING:
    from fedlearn.experiment.experiment import Experiment, Status
    from fedlearn.experiment.schedule import Progress

__all__ = ["group"]

_FILE: Final = click.Path(path_type=Path, dir_okay=False)
_FOLDER: Final = click.Path(path_type=Path, file_okay=False)
_SHOWN_CELLS: Final = 40


def _arguments(command: Callable[..., Any]) -> Callable[..., Any]:
    for option in (
        click.argument("experiment", type=_FILE),
        click.option(
            "--results",
            type=_FOLDER,
            default=None,
            help="The folder of the results, instead of the one that the file names.",
        ),
        json_option,
    ):
        command = option(command)
    return command


_jobs = click.option(
    "--jobs",
    type=click.IntRange(1, 1024),
    default=None,
    help="Cells at the same time, a process each; as many as cores by default.",
)
_only = click.option(
    "--only", default="", help="Only cells whose name matches this glob, as 'fedprox/*/seed-1'."
)


@click.group(cls=Commands, name="experiment")
def group() -> None:
    """Run a job over a grid of values and seeds, in simulation, and compare the results.

    Attestation, TLS and sealing are left out of a simulation.
    """


@group.command("run")
@_jobs
@_only
@_arguments
def run(experiment: Path, results: Path | None, jobs: int | None, only: str, as_json: bool) -> int:
    """Run every cell of EXPERIMENT (an experiment.toml) that has no result.

    A cell that has a result does not run again while its job, app, data, seed and code are the
    same. One that failed runs again with `fedlearn experiment resume --failed` only.
    """
    found = _load(experiment, results)
    return _run(found, experiment, jobs, only, retry_failed=False, as_json=as_json)


@group.command("resume")
@click.option("--failed", is_flag=True, help="Run cells again that failed.")
@_jobs
@_only
@_arguments
def resume(
    experiment: Path,
    results: Path | None,
    jobs: int | None,
    only: str,
    failed: bool,
    as_json: bool,
) -> int:
    """Go on with EXPERIMENT after an interruption: what has finished stays.

    A cell that was interrupted goes on from its last checkpoint.
    """
    found = _load(experiment, results)
    if not found.store.exists:
        raise ConfigError(
            "nothing of this experiment has run yet",
            where=str(found.store.folder),
            hint=f"fedlearn experiment run {experiment}",
        )
    return _run(found, experiment, jobs, only, retry_failed=failed, as_json=as_json)


@group.command("status")
@_arguments
def status(experiment: Path, results: Path | None, as_json: bool) -> None:
    """Show which cells of EXPERIMENT have finished, and why others failed."""
    found = _load(experiment, results)
    state = found.status()
    if as_json:
        print_json(_status_json(state))
        return
    _show_status(state)


@group.command("report")
@click.option(
    "--out", type=_FOLDER, default=None, help="The folder of the report; RESULTS/report by default."
)
@_arguments
def report(experiment: Path, results: Path | None, out: Path | None, as_json: bool) -> None:
    """Write the tables, the figures and the page of EXPERIMENT from the results so far.

    Tables are written as Markdown, CSV and LaTeX, figures as PNG and PDF, and report.html has all
    of them in it.
    """
    found = _load(experiment, results)
    folder = out or found.store.folder / "report"
    made = found.report(folder)
    if as_json:
        print_json(
            {
                "out": str(folder),
                "tables": [each.name for each in made.tables],
                "figures": [each.name for each in made.figures.drawn],
                "missing": list(made.missing),
            }
        )
        return
    for text in made.missing:
        line(f"not in the report: {text}", style="yellow")
    line(f"the report is in {folder / 'report.html'}", style="green")


def _load(path: Path, results: Path | None) -> Experiment:
    from fedlearn.experiment.experiment import Experiment

    return Experiment.load(path, results=results)


def _run(
    found: Experiment,
    path: Path,
    jobs: int | None,
    only: str,
    *,
    retry_failed: bool,
    as_json: bool,
) -> int:
    from fedlearn.local.children import terminate_as_interrupt

    if not as_json:
        line("simulated: attestation, TLS and sealing are left out", style="yellow")
    with terminate_as_interrupt():
        state = found.run(
            jobs=jobs,
            only=only,
            retry_failed=retry_failed,
            show=_show_json if as_json else _show_line,
        )
    if as_json:
        print_json(_status_json(state))
    else:
        _show_status(state)
        failed = state.count("failed")
        if failed:
            line(f"run {failed} again: fedlearn experiment resume --failed {path}")
        line(f"next: fedlearn experiment report {path}")
    return 1 if state.count("failed") else 0


def _show_line(progress: Progress) -> None:
    from fedlearn.experiment.schedule import duration_text

    parts = [f"[{progress.done}/{progress.total}]"]
    match progress.kind:
        case "started":
            parts.append(f"{progress.cell} starts")
        case "finished":
            parts.append(f"{progress.cell} has finished in {duration_text(progress.seconds)}")
        case "failed":
            parts.append(f"{progress.cell} has failed: {progress.error}")
        case _:
            parts.append(f"{progress.rounds} of {progress.planned_rounds} rounds")
    if progress.left_seconds is not None and progress.kind != "started":
        parts.append(f"(about {duration_text(progress.left_seconds)} left)")
    line(" ".join(parts), style="red" if progress.kind == "failed" else "")


def _show_json(progress: Progress) -> None:
    print_json(
        {
            "kind": progress.kind,
            "cell": progress.cell,
            "done": progress.done,
            "total": progress.total,
            "failed": progress.failed,
            "rounds": progress.rounds,
            "planned_rounds": progress.planned_rounds,
            "left_s": progress.left_seconds,
            "error": progress.error,
        },
        schema="fedlearn experiment progress/1",
    )


def _status_json(state: Status) -> dict[str, Any]:
    return {
        "complete": state.complete,
        "cells": [
            {
                "name": each.name,
                "key": each.key,
                "state": each.state,
                "rounds": each.rounds,
                "planned": each.planned,
                "seconds": round(each.seconds, 3),
                "error": each.failure.error if each.failure else "",
            }
            for each in state.cells
        ],
        "faults": list(state.faults),
    }


def _show_status(state: Status) -> None:
    for fault in state.faults:
        line(fault, style="red")
    shown = [each for each in state.cells if each.state != "finished"] or list(state.cells)
    rows = [
        [each.name, each.state, f"{each.rounds}/{each.planned}", f"{each.seconds:.1f}"]
        for each in shown[:_SHOWN_CELLS]
    ]
    if rows:
        head = ["CELL", "STATE", "ROUNDS", "SECONDS"]
        for text in table_lines(head, rows, numbers=["ROUNDS", "SECONDS"]):
            line(text)
    if len(shown) > _SHOWN_CELLS:
        line(f"and {len(shown) - _SHOWN_CELLS} more; --json shows all")
    for each in state.cells:
        if each.failure is not None:
            line(f"{each.name} failed: {each.failure.error}", style="red")
            if each.failure.hint:
                line(f"  hint: {each.failure.hint}")
    counts = [
        f"{count} {name}"
        for name in ("finished", "failed", "interrupted", "waiting")
        if (count := state.count(name))
    ]
    line(f"{len(state.cells)} cells: {', '.join(counts) or 'none drawn yet'}", bold=True)
