"""``fedlearn site``: invite, show, approve, drain and remove sites; and enroll one here.

The page is docs/tutorials/enroll-a-site.md.
"""

from __future__ import annotations

import ipaddress
import os
import re
import stat
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from attestation.durable import write_durably
from fedlearn.cli.operator import connect, duration, operator_option
from fedlearn.config import NAME
from fedlearn.errors import ConfigError
from fedlearn.identity.join import JoinToken
from fedlearn.terminal.console import Commands, json_option, line, print_json, printable
from fedlearn.terminal.options import sample_key_option

if TYPE_CHECKING:
    from fedlearn.wire.operator import OperatorClient, SiteState, SiteTpm

__all__ = ["group"]

_SHA256: Final = re.compile(r"[0-9a-f]{64}")


@click.group(cls=Commands, name="site")
def group() -> None:
    """Invite, show, approve, drain and remove sites."""


def _checked_name(ctx: click.Context, param: click.Parameter, value: str) -> str:
    if not NAME.fullmatch(value):
        raise click.BadParameter(
            f"{value[:80]!r} is not a name of a site: use 1 to 63 of a-z, 0-9 and '-'"
        )
    return value


def _lifetime(ctx: click.Context, param: click.Parameter, value: str) -> timedelta | None:
    if not value:
        return None
    span = duration(value)
    if span is None:
        raise click.BadParameter(f"{value[:40]!r} is not a duration; write 90s, 15m, 24h or 7d")
    return span


def _digest(ctx: click.Context, param: click.Parameter, value: str) -> bytes:
    if value and not _SHA256.fullmatch(value):
        raise click.BadParameter("must be a SHA-256: 64 digits in hexadecimal, lower case")
    return bytes.fromhex(value)


_name = click.argument("name", callback=_checked_name)


@group.command("token")
@_name
@click.option(
    "--lifetime",
    default="",
    callback=_lifetime,
    help="How long it may be redeemed: 90s, 15m, 24h, 7d; by default as in server.toml.",
)
@click.option(
    "--no-approval", is_flag=True, help="Approve the site as soon as it redeems the token."
)
@click.option(
    "--ek",
    default="",
    callback=_digest,
    metavar="SHA256",
    help="Endorsement key that the site's TPM must have, as `fedlearn-edge check` prints it there.",
)
@sample_key_option("the site's")
@click.option(
    "--out",
    type=click.Path(path_type=Path, dir_okay=False),
    default=None,
    metavar="FILE",
    help="Write the token to a new file that only you may read, and not to the terminal.",
)
@operator_option
@json_option
def token(
    name: str,
    lifetime: timedelta | None,
    no_approval: bool,
    ek: bytes,
    sample_key: bytes,
    out: Path | None,
    operator: Path | None,
    as_json: bool,
) -> None:
    """Invite a site: print a join token, which is valid for one key.

    The token is a secret; give it to the site's owner only.
    """
    if out is not None and out.exists():
        raise ConfigError("exists", where=str(out), hint="name another file with --out")
    with connect(operator) as client:
        invitation = client.create_token(
            name,
            lifetime=lifetime,
            needs_approval=not no_approval,
            ek=ek,
            sample_key=sample_key,
        )
    if out is not None:
        write_durably(out, f"{invitation.token}\n".encode())
    file = "token.txt" if out is None else out.name
    install = _install(name, JoinToken.parse(invitation.token).address, file)
    enroll = f"fedlearn-edge init --token-file {file} --data NAME=PATH"
    if as_json:
        print_json(
            {
                "site": name,
                **({"token": invitation.token} if out is None else {"file": str(out)}),
                "expires": invitation.expires.isoformat(),
                "needs_approval": not no_approval,
                "helm": install,
                "enroll": enroll,
            }
        )
        return
    # If stdout is not a terminal, it gets the token only, so that it can be redirected to a file.
    click.echo(invitation.token if out is None else f"the token of {name} is in {out}")
    click.echo(
        f"\nValid once, until {_when(invitation.expires)}. Send it to the site; there:\n"
        f"  {enroll}\nor, on Kubernetes, with the addresses that clients reach "
        f"in capital letters replaced:\n  {install}"
        + ("" if no_approval else f"\nthen here:\n  fedlearn site approve {name}"),
        err=True,
    )
    if out is None and (mode := _open_to_others()) is not None:
        click.echo(
            f"\nwarning: other users of this machine may read the file that holds the token now "
            f"(mode {mode:03o}); --out FILE writes one that only you may read",
            err=True,
        )


def _open_to_others() -> int | None:
    """Return the mode of the regular file that is stdout, where others may read it."""
    try:
        status = os.fstat(sys.stdout.fileno())
    except (OSError, ValueError):  # not a file of the system
        return None
    mode = stat.S_IMODE(status.st_mode)
    return mode if stat.S_ISREG(status.st_mode) and mode & 0o077 else None


def _install(name: str, gate: str, file: str) -> str:
    """Return the command that installs a site's chart.

    A NetworkPolicy needs addresses: those that are not known here are placeholders in capitals.
    """
    host = gate.rpartition(":")[0].strip("[]")
    try:
        coordinator = str(ipaddress.ip_network(host))
    except ValueError:
        coordinator = "COORDINATOR/32"
    peers = {"coordinator": coordinator, "registry": "REGISTRY/32"}
    return " ".join(
        (
            f"helm install fedlearn-edge helm/fedlearn-edge --set site.name={name}",
            f"--set-file enrollment.token={file}",
            *(
                f"--set 'networkPolicy.{peer}.to[0].ipBlock.cidr={cidr}'"
                for peer, cidr in peers.items()
            ),
        )
    )


@group.command("list")
@operator_option
@json_option
def list_(operator: Path | None, as_json: bool) -> None:
    """Show all sites."""
    with connect(operator) as client:
        sites = client.list_sites()
    if as_json:
        print_json({"sites": [_json(site) for site in sites]})
        return
    if not sites:
        line("there are no sites yet; `fedlearn site token NAME` invites one")
        return
    width = max(len(site.name) for site in sites)
    for site in sites:
        line(f"{printable(site.name):<{width}}  {printable(site.status):<9}  {_contact(site)}")


@group.command("show")
@_name
@operator_option
@json_option
def show(name: str, operator: Path | None, as_json: bool) -> None:
    """Show one site: its status, its key and its capabilities."""
    with connect(operator) as client:
        site = client.get_site(name)
    if as_json:
        print_json(_json(site, whole=True))
        return
    line(f"{printable(site.name)}: {printable(site.status)}", bold=True)
    line(f"  contact      {_contact(site)}")
    line(f"  key          {site.key_thumbprint.hex() or '-'}")
    for key, value in _tpm_lines(site.tpm):
        line(f"  {key:<11}  {printable(value)}")
    if site.sample_key:
        line(f"  INSECURE     sample evidence of the development key {site.sample_key.hex()}")
    line(f"  assignments  {', '.join(map(printable, site.assignments)) or '-'}")
    for key, value in sorted(_capabilities(site).items()):
        line(f"  {printable(str(key)):<11}  {printable(_words(value))}")


def _changing(verb: str, summary: str, call: Callable[[OperatorClient, str], SiteState]) -> None:
    """Add a command that changes one site."""

    @group.command(verb, help=summary)
    @_name
    @operator_option
    @json_option
    def change(name: str, operator: Path | None, as_json: bool) -> None:
        with connect(operator) as client:
            site = call(client, name)
        if as_json:
            print_json(_json(site))
        else:
            line(f"site {printable(site.name)}: {printable(site.status)}")


@group.command("approve")
@_name
@click.option(
    "--ek",
    default="",
    callback=_digest,
    metavar="SHA256",
    help="The endorsement key to bind; required if the site was bound to another one before.",
)
@sample_key_option("the site's")
@operator_option
@json_option
def approve(name: str, ek: bytes, sample_key: bytes, operator: Path | None, as_json: bool) -> None:
    """Approve a pending site, or activate a draining one again.

    This binds the site to the TPM that `fedlearn site show` prints. Compare it first with the
    output of `fedlearn-edge check` at the site.
    """
    with connect(operator) as client:
        site = client.approve_site(name, ek=ek, sample_key=sample_key)
    if as_json:
        print_json(_json(site))
        return
    line(f"site {printable(site.name)}: {printable(site.status)}")
    if site.tpm.ek:
        line(f"  bound to the endorsement key {site.tpm.ek.hex()}")
    if site.sample_key:
        line(f"  INSECURE: its development key is {site.sample_key.hex()}", style="yellow")


_changing("reject", "Reject a pending site.", lambda client, name: client.reject_site(name))
_changing(
    "drain",
    "Give a site no new clients; its running clients continue.",
    lambda client, name: client.drain_site(name),
)
_changing(
    "remove",
    "Remove a site at once, with all its clients.",
    lambda client, name: client.remove_site(name),
)


@group.command("enroll")
@click.option(
    "--token-file",
    type=click.Path(path_type=Path, allow_dash=True),
    required=True,
    help="File with the join token, or - for standard input.",
)
@click.option(
    "--state",
    type=click.Path(path_type=Path, file_okay=False),
    required=True,
    metavar="DIR",
    help="Folder for the site's key and certificate.",
)
@json_option
def enroll(token_file: Path, state: Path, as_json: bool) -> None:
    """Enroll this machine as a site.

    The key is made here and stays here. Run it again after the operator's approval, with
    the same folder, to fetch the certificate.
    """
    from edge.protocol.enrollment import read_token, redeem

    identity = redeem(read_token(token_file), state)
    if as_json:
        print_json(
            {
                "site": identity.site,
                "status": "pending" if identity.pending else "active",
                "state": str(state),
                "control_address": identity.control_address,
                "expires": identity.expires.isoformat() if identity.expires else None,
            }
        )
    elif identity.pending:
        line(f"site {identity.site} waits for approval: `fedlearn site approve {identity.site}`")
        line("Then run this command again.", bold=True)
    else:
        line(f"site {identity.site} is enrolled; its identity is in {state}")
        line("Next:  fedlearn-edge run", bold=True)


def _tpm_lines(tpm: SiteTpm) -> Iterator[tuple[str, str]]:
    """Yield the lines about a site's TPM."""
    if tpm.ek:
        yield "TPM", f"{tpm.ek.hex()} ({tpm.endorsement})"
        yield "proven", tpm.ak.hex() if tpm.ak else "no: its evidence is not accepted yet"
    if tpm.shown_ek:
        yield "TPM shown", f"{tpm.shown_ek.hex()}, which waits for approval"
    if tpm.certificate:
        yield "certificate", tpm.certificate


def _contact(site: SiteState) -> str:
    if site.connected:
        return "connected"
    return (
        f"last seen {_when(site.last_seen)}"
        if site.last_seen
        else "not seen since the coordinator started"
    )


def _when(moment: datetime) -> str:
    return moment.astimezone(UTC).strftime("%Y-%m-%d %H:%M UTC")


def _words(value: object) -> str:
    """Return what a site reports, for people."""
    match value:
        case dict():
            return ", ".join(f"{key} {_words(each)}" for key, each in sorted(value.items())) or "-"
        case list():
            return ", ".join(map(_words, value)) or "-"
        case bool():
            return "yes" if value else "no"
        case float():
            return f"{value:g}"
        case _:
            return str(value)


def _capabilities(site: SiteState) -> dict[str, Any]:
    import json

    try:
        document = json.loads(site.capabilities) if site.capabilities else {}
    except (ValueError, RecursionError):
        return {"report": "cannot be read"}
    return document if isinstance(document, dict) else {"report": "cannot be read"}


def _json(site: SiteState, *, whole: bool = False) -> dict[str, Any]:
    body: dict[str, Any] = {
        "name": site.name,
        "status": site.status,
        "connected": site.connected,
        "last_seen": site.last_seen.isoformat() if site.last_seen else None,
        "assignments": list(site.assignments),
        "key_thumbprint": site.key_thumbprint.hex(),
        "insecure_sample_key": site.sample_key.hex(),
        "tpm": {
            "ek": site.tpm.ek.hex(),
            "endorsement": site.tpm.endorsement,
            "ak": site.tpm.ak.hex(),
            "shown_ek": site.tpm.shown_ek.hex(),
            "certificate": site.tpm.certificate,
        },
    }
    if whole:
        body["capabilities"] = _capabilities(site)
    return body
