"""``fedlearn job``: write, check, submit and watch jobs."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

import click

from fedlearn.cli.operator import connect, json_option, operator_option
from fedlearn.config import NAME
from fedlearn.console import Commands, line, print_json, printable
from fedlearn.errors import ConfigError, JobError, TransportError

if TYPE_CHECKING:
    from fedlearn import events
    from fedlearn.wire.operator import OperatorClient

__all__ = ["group"]

_DURATION: Final = re.compile(r"([1-9][0-9]{0,6})([smhd])")
_UNITS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86400}

Command = TypeVar("Command", bound=Callable[..., Any])


@click.group(cls=Commands, name="job")
def group() -> None:
    """Write, check, submit and watch jobs."""


def _name_argument(*, required: bool = True) -> Callable[[Command], Command]:
    def check(ctx: click.Context, param: click.Parameter, value: str | None) -> str | None:
        if value is not None and not NAME.fullmatch(value):
            raise click.BadParameter(
                f"{value[:80]!r} is no name of a job: 1 to 63 of a-z, 0-9 and '-'"
            )
        return value

    return click.argument("name", required=required, callback=check)


@group.command("init")
@click.argument("directory", type=click.Path(path_type=Path), default=Path("my-job"))
@click.option("--name", default=None, help="Name of the job; that of the directory by default.")
@json_option
def init(directory: Path, name: str | None, as_json: bool) -> None:
    """Write a first own job: job.toml, policy.toml, a Flower app in torch and data to try.

    DIRECTORY (my-job) must be new or empty. It is written whole or not at all.
    """
    from fedlearn.cli import template

    chosen = name or directory.resolve().name
    if name is None and not NAME.fullmatch(chosen):
        raise ConfigError(
            f"{chosen!r} cannot name a job",
            where=str(directory),
            hint="name the job with --name: 1 to 63 of a-z, 0-9 and '-'",
        )
    files = template.write(directory, chosen)
    if as_json:
        print_json({"name": chosen, "files": [str(path) for path in files]})
        return
    for path in files:
        line(f"  {path}")
    line("")
    line(f"Next:  fedlearn job validate {directory / 'job.toml'}", bold=True)


@group.command("validate")
@click.argument("file", type=click.Path(path_type=Path), default=Path("job.toml"))
@json_option
def validate(file: Path, as_json: bool) -> None:
    """Check a job with its policy and its app, without a coordinator.

    Names every fault with its file, line and key.
    """
    from fedlearn.cli import validation

    report = validation.examine(file)
    if as_json:
        print_json(report.to_json())
        return
    for text in report.found:
        line(f"  ok    {text}", style="green")
    for text in report.warnings:
        line(f"  note  {text}", style="yellow")
    line(f"{file} can run. Its digest is {report.spec.digest().hex()}", bold=True)


@group.command("try")
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
    "--model",
    type=click.Path(path_type=Path, dir_okay=False),
    default=None,
    help="Where to write the weights; NAME.safetensors by default.",
)
@json_option
def try_(file: Path, data: Path | None, tee: str, model: Path | None, as_json: bool) -> None:
    """Run a job here, with a coordinator and sites made for the occasion."""
    from typing import cast

    from fedlearn.cli import validation
    from fedlearn.cli.machines import TeeChoice
    from fedlearn.cli.progress import show_for
    from fedlearn.cli.trial import attempt

    report = validation.examine(file)
    spec = report.spec
    trial = attempt(
        report,
        data=data or file.parent / "data",
        tee=cast("TeeChoice", tee),
        model=model or Path(f"{spec.name}.safetensors"),
        bundle=_bundle(report.app),
        show=show_for(as_json=as_json, metric=spec.evaluate.metric),
    )
    if as_json:
        print_json({"job": trial.job, "rounds": trial.rounds, "model": str(trial.model)})
        return
    line(f"the weights are in {trial.model}", style="green")


@group.command("submit")
@click.argument("file", type=click.Path(path_type=Path), default=Path("job.toml"))
@click.option("--follow", is_flag=True, help="Show progress until the job ends.")
@operator_option
@json_option
def submit(file: Path, follow: bool, operator: Path | None, as_json: bool) -> None:
    """Check a job here and hand it to the coordinator."""
    from fedlearn.cli import validation

    report = validation.examine(file)
    spec = report.spec
    policy = report.policy_file.read_text(encoding="utf-8")
    with connect(operator) as client:
        bundle = _bundle(report.app)
        # Paths of this machine are nobody else's business.
        told = dataclasses.replace(
            spec, app=report.app.name or "app", policy=report.policy_file.name
        )
        state = client.submit_job(
            job_toml=told.to_toml(),
            bundle=bundle,
            policy_toml=policy,
            policy_signature=validation.policy_signature(report.policy_file),
        )
        if not follow:
            if as_json:
                print_json(_state_json(state))
            else:
                line(f"job {state.name}: {state.status}")
                line(f"Next:  fedlearn job logs {state.name} --follow", bold=True)
            return
        _follow(client, state.name, as_json=as_json, metric=spec.evaluate.metric)


@group.command("status")
@_name_argument(required=False)
@operator_option
@json_option
def status(name: str | None, operator: Path | None, as_json: bool) -> None:
    """Show one job, or all of them."""
    with connect(operator) as client:
        states = [client.get_job(name)] if name else list(client.list_jobs())
    if as_json:
        rows = [_state_json(state) for state in states]
        print_json(rows[0] if name else {"jobs": rows})
        return
    if not states:
        line("there are no jobs yet; `fedlearn job submit job.toml` adds one")
        return
    width = max(len(state.name) for state in states)
    for state in states:
        rounds = f"round {state.round}/{state.rounds}"
        tail = f"  {printable(state.detail)}" if state.detail else ""
        line(f"{printable(state.name):<{width}}  {printable(state.status):<11}  {rounds}{tail}")
        if name:
            line(f"  sites  {', '.join(map(printable, state.sites)) or '-'}")
            line(f"  model  {printable(state.model) or '-'}")
            for out in state.exclusions:
                who = f"client {out.client} of {out.site}" if out.client else out.site
                lasts = f" until {out.until.isoformat(timespec='seconds')}" if out.until else ""
                said = f"{who}{lasts}: {out.reason} (operator {out.operator})"
                line(f"  out    {printable(said)}", style="yellow")


@group.command("logs")
@_name_argument()
@click.option("--follow", is_flag=True, help="Go on until the job ends.")
@operator_option
@json_option
def logs(name: str, follow: bool, operator: Path | None, as_json: bool) -> None:
    """Show what has happened in a job, and with --follow what happens."""
    with connect(operator) as client:
        if follow:
            _follow(client, name, as_json=as_json, metric="")
            return
        from fedlearn.cli.progress import lines_show

        with lines_show(as_json=as_json) as show:
            for event, unix_ms in _events(client, name, past_only=True):
                show.show(event, unix_ms=unix_ms)


@group.command("cancel")
@_name_argument()
@operator_option
@json_option
def cancel(name: str, operator: Path | None, as_json: bool) -> None:
    """Stop a job. What is sealed stays sealed; the job can be resumed."""
    with connect(operator) as client:
        _say(client.cancel_job(name), as_json=as_json)


def _until(ctx: click.Context, param: click.Parameter, value: str) -> datetime | None:
    """A duration from now, or a moment in RFC 3339."""
    if not value:
        return None
    if match := _DURATION.fullmatch(value):
        return datetime.now(UTC) + timedelta(seconds=int(match[1]) * _UNITS[match[2]])
    try:
        moment = datetime.fromisoformat(value)
    except ValueError:
        moment = None
    if moment is None or moment.tzinfo is None:
        raise click.BadParameter(
            f"{value[:40]!r} is no time; write 30m, 12h, 7d or 2030-01-31T12:00Z"
        )
    return moment


_site_option = click.option("--site", required=True, help="The site.")
_client_option = click.option(
    "--client", default="", help="One client of the site, instead of all of them."
)


@group.command("revoke")
@_name_argument()
@_site_option
@_client_option
@click.option(
    "--until",
    default="",
    callback=_until,
    metavar="WHEN",
    help="When it ends by itself: 30m, 12h, 7d, or a time such as 2030-01-31T12:00Z.",
)
@click.option(
    "--once", is_flag=True, help="End the admission only: an honest client attests and is back."
)
@click.option("--reason", default="revoked", show_default=True, help="Why, for the ledger.")
@operator_option
@json_option
def revoke(
    name: str,
    site: str,
    client: str,
    until: datetime | None,
    once: bool,
    reason: str,
    operator: Path | None,
    as_json: bool,
) -> None:
    """Keep a site out of job NAME, and drop its update of this round.

    It lasts until `fedlearn job readmit`, or until the time that --until names.
    """
    _check_names(site, client)
    if once and until is not None:
        raise click.UsageError("--once and --until exclude each other")
    with connect(operator) as coordinator:
        coordinator.revoke_client(name, site, reason, client=client, until=until, once=once)
    if as_json:
        row = {"job": name, "site": site, "client": client, "revoked": True, "once": once}
        print_json({**row, "until": until.isoformat() if until else None})
        return
    who = f"client {client} of {site}" if client else site
    if once:
        line(f"the admission of {who} to {name} has ended; it may attest again")
        return
    lasts = f"until {until.isoformat(timespec='seconds')}" if until else "until you lift it"
    line(f"{who} is out of {name} {lasts}:")
    line(f"  fedlearn job readmit {name} --site {site}{f' --client {client}' if client else ''}")


@group.command("readmit")
@_name_argument()
@_site_option
@_client_option
@operator_option
@json_option
def readmit(name: str, site: str, client: str, operator: Path | None, as_json: bool) -> None:
    """Let a site, or one client of it, attest again for job NAME after `job revoke`."""
    _check_names(site, client)
    with connect(operator) as coordinator:
        coordinator.readmit_client(name, site, client=client)
    if as_json:
        print_json({"job": name, "site": site, "client": client, "revoked": False})
        return
    line(f"{f'client {client} of {site}' if client else site} may take part in {name} again")


def _check_names(site: str, client: str) -> None:
    from fedlearn.spiffe import checked_name

    checked_name(site, "site")
    if client:
        checked_name(client, "client")


@group.command("policy")
@_name_argument()
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
@operator_option
@json_option
def policy(name: str, file: Path, operator: Path | None, as_json: bool) -> None:
    """Judge the clients of a running job by the policy in FILE from now on.

    FILE.sig goes along where there is one. Clients that the policy does not affirm end at once.
    """
    from attestation.policy import AppraisalPolicy
    from fedlearn.cli import validation
    from fedlearn.config import file_bytes

    data = file_bytes(file, what="the policy")
    new = AppraisalPolicy.from_toml(data, where=str(file))
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
    line(f"job {name} goes by version {new.version} of the policy {new.name!r} ({signed})")


@group.command("resume")
@_name_argument()
@click.option("--follow", is_flag=True, help="Show progress until the job ends.")
@operator_option
@json_option
def resume(name: str, follow: bool, operator: Path | None, as_json: bool) -> None:
    """Go on with a job from its last sealed checkpoint."""
    with connect(operator) as client:
        state = client.resume_job(name)
        if follow:
            _follow(client, name, as_json=as_json, metric="")
        else:
            _say(state, as_json=as_json)


def _bundle(app: Path) -> bytes:
    # Building imports Flower, which takes a second: not for a job that is wrong anyway.
    from server.flower.bundle import build

    return build(app)


def _follow(client: OperatorClient, name: str, *, as_json: bool, metric: str) -> None:
    """Show events until the stream ends, as it does when the job has ended.

    A job that was resumed has had an end before; only the last event counts.

    :raises JobError: when the job does not finish well.
    """
    from fedlearn import events
    from fedlearn.cli.progress import show_for

    last: events.Event | None = None
    with show_for(as_json=as_json, metric=metric) as show:
        for event, unix_ms in _events(client, name, past_only=False):
            show.show(event, unix_ms=unix_ms)
            last = event
    match last:
        case events.JobFinished():
            return
        case events.JobFailed():
            raise JobError(f"job {name} failed: {last.detail}", hint=last.hint)
        case events.JobCancelled() | events.JobInterrupted():
            raise JobError(
                f"job {name} was {last.kind.removeprefix('job.')}: {last.detail}".rstrip(": "),
                hint=f"`fedlearn job resume {name}` continues it",
            )
        case _:
            raise TransportError(
                f"the coordinator stopped sending while job {name} was running",
                hint=f"`fedlearn job logs {name} --follow` goes on watching",
            )


def _events(
    client: OperatorClient, name: str, *, past_only: bool
) -> Iterator[tuple[events.Event, int]]:
    """Yield events with the time at which they happened."""
    from fedlearn import events

    for item in client.follow_job(name, after=0, past_only=past_only):
        yield events.Event.decode(item.kind, item.json), item.unix_ms


def _say(state: Any, *, as_json: bool) -> None:
    if as_json:
        print_json(_state_json(state))
    else:
        line(f"job {printable(state.name)}: {printable(state.status)}")


def _state_json(state: Any) -> dict[str, Any]:
    return {
        "name": state.name,
        "id": state.id,
        "status": state.status,
        "round": state.round,
        "rounds": state.rounds,
        "detail": state.detail,
        "model": state.model,
        "sites": list(state.sites),
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
