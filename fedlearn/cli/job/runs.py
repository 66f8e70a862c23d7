"""``fedlearn job delete`` and ``clone``: what to do with the runs of a job that are over.

The page is docs/how-to/run-a-job-again.md.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from fedlearn.cli.operator import connect, job_argument, operator_option
from fedlearn.errors import ConfigError, JobError
from fedlearn.terminal.console import json_option, line, print_json, printable

if TYPE_CHECKING:
    from fedlearn.wire.operator import OperatorClient

__all__ = ["clone", "delete"]


@click.command("delete")
@job_argument()
@click.option("--keep-model", is_flag=True, help="Keep the sealed model and the sealed files.")
@click.option("--yes", is_flag=True, help="Delete without a question.")
@operator_option
@json_option
def delete(name: str, keep_model: bool, yes: bool, operator: Path | None, as_json: bool) -> None:
    """Delete a run that is over: its record, its checkpoints and its sealed model.

    NAME is the newest run of a job, NAME@2 its second one. The ledger keeps its entries, and
    the entry of the deletion. Of a run that was deleted, the model is deleted that was kept.

    Example: fedlearn job delete heart@2 --keep-model
    """
    with connect(operator) as client:
        reference, what = _named(client, name, keep_model=keep_model)
        if not yes:
            if as_json or not sys.stdin.isatty():
                raise ConfigError(
                    f"deletes {what}, and nobody can be asked",
                    where=f"fedlearn job delete {name}",
                    hint="add --yes",
                )
            click.confirm(f"Delete {what}? It cannot be restored", abort=True, err=True)
        # By its number: meanwhile the name may stand for a later run.
        state = client.delete_job(reference, keep_model=keep_model)
    if as_json:
        kept = state.model if keep_model else ""
        print_json({"job": state.name, "run": state.run, "run_id": state.run_id, "model": kept})
        return
    line(f"run {printable(state.label)} is deleted")
    if keep_model and state.model:
        line(f"its model {printable(state.model)} stays, sealed")


def _named(client: OperatorClient, name: str, *, keep_model: bool) -> tuple[str, str]:
    """Return what names exactly the run that is to be deleted, and what is deleted, in words.

    :raises JobError: when there is no such run.
    """
    try:
        state = client.get_job(name)
    except JobError:
        if keep_model:
            raise
        # It may have been deleted before, and its model kept: the coordinator knows.
        return name, f"the sealed model that was kept of {name}"
    model = " and its sealed model" if state.model and not keep_model else ""
    return state.reference, f"run {state.label} ({state.status}){model}"


@click.command("clone")
@job_argument()
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=None,
    help="The folder to write; it must be new or empty. NAME by default.",
)
@operator_option
@json_option
def clone(name: str, out: Path | None, operator: Path | None, as_json: bool) -> None:
    """Write what was submitted as a job into a folder: job.toml, policy.toml and the app.

    It is ready to be edited, and submitted as the next run of the job. NAME is the newest run
    of a job, NAME@2 its second one.

    Example: fedlearn job clone heart@2 --out heart-again
    """
    from fedlearn.job.run import RunName
    from fedlearn.job.submission import write_clone

    with connect(operator) as client:
        submission = client.get_submission(name)
    run = RunName.of_id(submission.spec.name)
    folder = out if out is not None else Path(run.name)
    files = write_clone(submission, folder)
    if as_json:
        paths = [str(path) for path in files]
        print_json({"job": run.name, "run": run.number, "files": paths})
        return
    for path in files:
        line(f"  {path}")
    line("")
    line(f"Next:  fedlearn job validate {folder / 'job.toml'}", bold=True)
