"""``fedlearn job revoke`` and ``readmit``: exclude a site from a job, and readmit it.

The page is docs/how-to/keep-a-site-out.md.
"""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import click

from fedlearn.cli.operator import connect, duration, job_argument, operator_option
from fedlearn.terminal.console import json_option, line, print_json

__all__ = ["readmit", "revoke"]


def _until(ctx: click.Context, param: click.Parameter, value: str) -> datetime | None:
    """A duration from now, or a time in RFC 3339."""
    if not value:
        return None
    if (span := duration(value)) is not None:
        return datetime.now(UTC) + span
    try:
        moment = datetime.fromisoformat(value)
    except ValueError:
        moment = None
    if moment is None or moment.tzinfo is None:
        raise click.BadParameter(
            f"{value[:40]!r} is not a time; write 30m, 12h, 7d or 2030-01-31T12:00Z"
        )
    return moment


_site_option = click.option("--site", required=True, help="The site.")
_client_option = click.option(
    "--client", default="", help="One client of the site, instead of all of them."
)


@click.command("revoke")
@job_argument()
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
    "--once", is_flag=True, help="End the admission only: the client may attest again at once."
)
@click.option("--reason", default="revoked", show_default=True, help="The reason, for the ledger.")
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
    """Exclude a site from job NAME, and drop its update of this round.

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
    lasts = f"until {until.isoformat(timespec='seconds')}" if until else "until it is readmitted"
    line(f"{who} is excluded from {name} {lasts}; to readmit it:")
    line(f"  fedlearn job readmit {name} --site {site}{f' --client {client}' if client else ''}")


@click.command("readmit")
@job_argument()
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
    from fedlearn.identity.spiffe import checked_name

    checked_name(site, "site")
    if client:
        checked_name(client, "client")
