"""``fedlearn job logs``: the events of a job, and what its app wrote at a site."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fedlearn.cli.operator import job_argument, operator_option
from fedlearn.cli.state.origin import parse_pin
from fedlearn.cli.state.unlock import ask_passphrase
from fedlearn.terminal.console import REFUSED, json_option, line, print_json, printable

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

    from fedlearn.api.app_logs import AppLog, AppLogs
    from fedlearn.sealing.app_log import AppLogLine

__all__ = ["logs"]


@click.command("logs")
@job_argument()
@click.option("--follow", is_flag=True, help="Continue until the job ends.")
@click.option("--site", default=None, help="Show what the app wrote at this site, with --key.")
@click.option(
    "--key",
    type=click.Path(path_type=Path),
    default=None,
    help="The owner's private key (PEM), whose public half is owner_key in job.toml.",
)
@click.option(
    "--round", "round_", type=click.IntRange(0), default=None, help="Of --site: this round only."
)
@click.option("--coordinator", metavar="HOST:PORT", help="As the owner, without a login: its gate.")
@click.option(
    "--ca-pin",
    "ca_pin",
    metavar="HEX",
    help="With --coordinator: SHA-256 of the key of its CA.",
)
@operator_option
@json_option
def logs(
    name: str,
    follow: bool,
    site: str | None,
    key: Path | None,
    round_: int | None,
    coordinator: str | None,
    ca_pin: str | None,
    operator: Path | None,
    as_json: bool,
) -> int:
    """Show the events of a job, or with --site and --key what its app wrote at a site.

    The app's logs are opened here, with the private key of the job's owner. They are there for a
    job with app_logs = "sealed", from the sites that allow it. Round 0 is before the first round.
    An owner who is not an operator names the --coordinator and its --ca-pin in place of a login.
    The exit status is 2 when a log is missing, was altered, or does not open with the key.
    """
    if site is None:
        if (key, round_, coordinator, ca_pin) != (None, None, None, None):
            raise click.UsageError(
                "--key, --round, --coordinator and --ca-pin are for what an app wrote: name its "
                "--site"
            )
        _events(name, follow=follow, operator=operator, as_json=as_json)
        return 0
    if key is None:
        raise click.UsageError(f"the logs of site {site} are sealed: give the owner's --key")
    if follow:
        raise click.UsageError("--follow shows events: leave it out with --site")
    from fedlearn.identity.keyfile import read_private_key

    ask = functools.partial(ask_passphrase, "Passphrase of the owner's key")
    private = read_private_key(key, what="the owner's key", ask=ask)
    if coordinator is None:
        if ca_pin is not None:
            raise click.UsageError("--ca-pin pins the --coordinator: name both, or none")
        found = _over_login(name, site, private, operator)
    else:
        if ca_pin is None or operator is not None:
            raise click.UsageError(
                "--coordinator asks as the owner: give its --ca-pin, and no --operator"
            )
        found = _as_owner(name, site, private, coordinator, parse_pin(ca_pin))
    chosen = [log for log in found.logs if round_ is None or log.round == round_]
    if as_json:
        print_json({"job": name, "site": site, **_json(found, chosen)})
    else:
        for log in chosen:
            for text in _texts(log):
                line(text)
        if not chosen:
            click.echo(f"there are no logs of site {printable(site)} in job {name}", err=True)
    for fault in found.faults:
        click.echo(f"warning: {printable(fault)}", err=True)
    return REFUSED if found.faults else 0


def _over_login(name: str, site: str, key: X25519PrivateKey, operator: Path | None) -> AppLogs:
    from fedlearn.api.connection import connect

    with connect(operator) as connection:
        return connection.job(name).app_logs(site, key)


def _as_owner(name: str, site: str, key: X25519PrivateKey, coordinator: str, pin: bytes) -> AppLogs:
    from fedlearn.api.app_logs import fetch_app_logs_as_owner
    from fedlearn.wire.owner import OwnerClient

    now = datetime.now(UTC)
    with OwnerClient.connect(coordinator, ca_pin=pin, key=key, now=now) as owner:
        return fetch_app_logs_as_owner(owner, name, site, key)


def _events(name: str, *, follow: bool, operator: Path | None, as_json: bool) -> None:
    from fedlearn.api.connection import connect
    from fedlearn.terminal.progress import lines_show, show_for

    with connect(operator) as connection:
        run = connection.job(name)
        if follow:
            run.follow(show=show_for(as_json=as_json))
            return
        with lines_show(as_json=as_json) as show:
            for event, unix_ms in run.events():
                show.show(event, unix_ms=unix_ms)


def _texts(log: AppLog) -> Iterator[str]:
    for each in log.lines:
        # A traceback has its places in its lines.
        place = f"  [{each.file}:{each.line}]" if each.file and each.logger else ""
        logger = f"{each.logger}: " if each.logger else ""
        text = printable(f"{logger}{each.text}{place}")
        yield f"round {log.round}  {printable(log.client)}  {each.level:<8}  {text}".rstrip()


def _json(found: AppLogs, chosen: list[AppLog]) -> dict[str, Any]:
    return {
        "logs": [
            {
                "client": log.client,
                "round": log.round,
                "left_out": log.left_out,
                "lines": [_line(each) for each in log.lines],
            }
            for log in chosen
        ],
        "faults": list(found.faults),
    }


def _line(each: AppLogLine) -> dict[str, Any]:
    return {
        "level": each.level,
        "text": each.text,
        "logger": each.logger,
        "file": each.file,
        "line": each.line,
    }
