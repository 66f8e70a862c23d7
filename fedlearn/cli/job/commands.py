"""``fedlearn job``: write, check, submit and watch jobs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fedlearn.cli.job.exclusion import readmit, revoke
from fedlearn.cli.job.runs import clone, delete
from fedlearn.cli.operator import connect, job_argument, operator_option
from fedlearn.terminal.console import Commands, Noun, json_option, line, print_json, printable

if TYPE_CHECKING:
    from fedlearn.api.run import Run

__all__ = ["group"]


@click.group(
    cls=Commands,
    name="job",
    nouns={
        "logs": Noun(
            module="fedlearn.cli.job.logs",
            attribute="logs",
            summary="Show the events of a job, or what its app wrote at a site.",
        ),
        "init": Noun(
            module="fedlearn.cli.job.init",
            attribute="init",
            summary="Write an example job with its policy, app and data.",
        ),
        "try": Noun(
            module="fedlearn.cli.job.trial",
            attribute="try_",
            summary="Run a job on this machine, and keep the run in a folder.",
        ),
        "track": Noun(
            module="fedlearn.cli.job.track",
            attribute="track",
            summary="Record a run with an experiment tracker.",
        ),
        "files": Noun(
            module="fedlearn.cli.job.app_files",
            attribute="files",
            summary="Write the files that a job's ServerApp made into a folder.",
        ),
        **{
            name: Noun(module="fedlearn.cli.job.results", attribute=name, summary=summary)
            for name, summary in (
                ("events", "Write every event of a job as JSON lines, CSV or Parquet."),
                ("metrics", "Show the metrics of a job by round, or write them to a file."),
                ("report", "Write the report of a job as one HTML page."),
                ("compare", "Compare jobs: a table, and a page with their metrics overlaid."),
            )
        },
    },
)
def group() -> None:
    """Write, check, submit and watch jobs."""


@group.command("validate")
@click.argument("file", type=click.Path(path_type=Path), default=Path("job.toml"))
@json_option
def validate(file: Path, as_json: bool) -> None:
    """Check a job with its policy and its app, without a coordinator.

    Names every fault with its file, line and key.
    """
    from fedlearn.api import validation

    report = validation.examine(file)
    if as_json:
        print_json(report.to_json())
        return
    for text in report.found:
        line(f"  ok    {text}", style="green")
    for text in report.warnings:
        line(f"  note  {text}", style="yellow")
    line(f"{file} can run. Its digest is {report.spec.digest().hex()}", bold=True)


@group.command("submit")
@click.argument("file", type=click.Path(path_type=Path), default=Path("job.toml"))
@click.option("--follow", is_flag=True, help="Show progress until the job ends.")
@operator_option
@json_option
def submit(file: Path, follow: bool, operator: Path | None, as_json: bool) -> None:
    """Check a job here and submit it to the coordinator."""
    from fedlearn.api.connection import connect
    from fedlearn.api.job import Job

    job = Job.load(file)
    with connect(operator) as coordinator:
        run = coordinator.submit(job)
        if as_json and not follow:
            print_json(_state_json(run.state))
            return
        if not as_json:
            line(f"job {run.name}: {run.state.status}")
            for note in run.state.notes:
                line(f"  note  {printable(note)}", style="yellow")
        if follow:
            _follow(run, as_json=as_json)
        else:
            line(f"Next:  fedlearn job logs {run.name} --follow", bold=True)


@group.command("status")
@job_argument(required=False)
@operator_option
@json_option
def status(name: str | None, operator: Path | None, as_json: bool) -> None:
    """Show one job, or all of them; NAME@2 is the second run of NAME.

    Example: fedlearn job status heart@2
    """
    from fedlearn.api.connection import connect

    with connect(operator) as coordinator:
        states = [coordinator.job(name).state] if name else list(coordinator.jobs())
    if as_json:
        rows = [_state_json(state) for state in states]
        print_json(rows[0] if name else {"jobs": rows})
        return
    if not states:
        line("there are no jobs yet; `fedlearn job submit job.toml` adds one")
        return
    width = max(len(state.label) for state in states)
    for state in states:
        rounds = f"round {state.round}/{state.rounds}"
        tail = f"  {printable(state.detail)}" if state.detail else ""
        line(f"{printable(state.label):<{width}}  {printable(state.status):<11}  {rounds}{tail}")
        if name:
            line(f"  sites  {', '.join(map(printable, state.sites)) or '-'}")
            line(f"  model  {printable(state.model) or '-'}")
            for out in state.exclusions:
                who = f"client {out.client} of {out.site}" if out.client else out.site
                lasts = f" until {out.until.isoformat(timespec='seconds')}" if out.until else ""
                exclusion = f"{who}{lasts}: {out.reason} (operator {out.operator})"
                line(f"  out    {printable(exclusion)}", style="yellow")


@group.command("cancel")
@job_argument()
@operator_option
@json_option
def cancel(name: str, operator: Path | None, as_json: bool) -> None:
    """Stop a job. Its sealed checkpoints stay; the job can be resumed."""
    from fedlearn.api.connection import connect

    with connect(operator) as coordinator:
        _print_state(coordinator.job(name).cancel(), as_json=as_json)


for _command in (revoke, readmit, delete, clone):
    group.add_command(_command)


@group.command("policy")
@job_argument()
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
@operator_option
@json_option
def policy(name: str, file: Path, operator: Path | None, as_json: bool) -> None:
    """Appraise the clients of a job by the policy in FILE from now on, or once it is resumed.

    FILE.sig is sent with it if it exists. Clients that the policy does not affirm are stopped.
    """
    from attestation.policy.parse import parse_policy
    from fedlearn.api import validation
    from fedlearn.config import file_bytes

    data = file_bytes(file, what="the policy")
    new = parse_policy(data, where=str(file))
    signature = validation.policy_signature(file)
    with connect(operator) as client:
        client.replace_policy(name, data.decode("utf-8"), signature)
    if as_json:
        print_json(
            {
                "job": name,
                "policy": new.digest.hex(),
                "name": new.name,
                "version": new.version,
                "signed": bool(signature),
            }
        )
        return
    signed = "signed" if signature else "not signed"
    line(f"job {name} uses version {new.version} of the policy {new.name!r} ({signed})")


@group.command("resume")
@job_argument()
@click.option("--follow", is_flag=True, help="Show progress until the job ends.")
@operator_option
@json_option
def resume(name: str, follow: bool, operator: Path | None, as_json: bool) -> None:
    """Resume a job from its last sealed checkpoint."""
    from fedlearn.api.connection import connect

    with connect(operator) as coordinator:
        run = coordinator.job(name)
        run.resume()
        if follow:
            _follow(run, as_json=as_json)
        else:
            _print_state(run.state, as_json=as_json)


def _follow(run: Run, *, as_json: bool) -> None:
    """Show events until the job ends.

    :raises JobError: when it does not finish well.
    """
    from fedlearn.terminal.progress import show_for

    run.follow(show=show_for(as_json=as_json, metric=run.metric))


def _print_state(state: Any, *, as_json: bool) -> None:
    if as_json:
        print_json(_state_json(state))
    else:
        line(f"job {printable(state.label)}: {printable(state.status)}")


def _state_json(state: Any) -> dict[str, Any]:
    return {
        "name": state.name,
        "run": state.run,
        "run_id": state.run_id,
        "id": state.id,
        "status": state.status,
        "round": state.round,
        "rounds": state.rounds,
        "detail": state.detail,
        "model": state.model,
        "sites": list(state.sites),
        "notes": list(state.notes),
        "exclusions": [
            {
                "site": out.site,
                "client": out.client,
                "until": out.until.isoformat() if out.until else None,
                "reason": out.reason,
                "operator": out.operator,
            }
            for out in state.exclusions
        ],
    }
