"""``fedlearn operator``: an operator's key and login, and the other operators.

The page is docs/how-to/operators.md.
"""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fedlearn.cli.operator import connect, operator_option
from fedlearn.config import NAME
from fedlearn.errors import ConfigError
from fedlearn.identity.login import (
    LoginGrant,
    OperatorLogin,
    accept_grant,
    ca_pin,
    csr_der,
    default_folder,
    new_request,
    request_login,
)
from fedlearn.terminal.console import Commands, json_option, line, print_json, printable

if TYPE_CHECKING:
    from fedlearn.wire.operator import OperatorState

__all__ = ["group"]


@click.group(cls=Commands, name="operator")
def group() -> None:
    """Log in, and add or revoke operators of the coordinator.

    All operators may do the same.
    """


def _checked_name(ctx: click.Context, param: click.Parameter, value: str) -> str:
    if not NAME.fullmatch(value):
        raise click.BadParameter(
            f"{value[:80]!r} is not a name of an operator: use 1 to 63 of a-z, 0-9 and '-'"
        )
    return value


def _pin(ctx: click.Context, param: click.Parameter, value: str) -> str:
    if value and (len(value) != 64 or set(value) - set("0123456789abcdef")):
        raise click.BadParameter("must be a SHA-256: 64 digits in hexadecimal, lower case")
    return value


_name = click.argument("name", callback=_checked_name)
_file = click.Path(path_type=Path, dir_okay=False)


@group.command("request")
@_name
@operator_option
@json_option
def request(name: str, operator: Path | None, as_json: bool) -> None:
    """Make a key for operator NAME here, and a request that the coordinator signs.

    The key stays in the new folder of the login. The request contains no secret.
    """
    folder = operator or default_folder()
    csr = request_login(folder, name)
    digest = hashlib.sha256(csr_der(csr)).hexdigest()
    if as_json:
        print_json({"name": name, "login": str(folder), "csr": str(csr), "sha256": digest})
        return
    line(str(csr))
    line("Send it to the administrator of the coordinator, or to another operator:")
    line("  fedlearn-server init --operator-csr operator.csr   (a new coordinator)")
    line(f"  fedlearn operator add {name} operator.csr        (a running coordinator)")
    line(f"Compare its digest with them: {digest}")
    line("Next, with the file that they return, and the pin of the CA by another channel:")
    line("  fedlearn operator login FILE --ca-pin SHA256", bold=True)


@group.command("login")
@click.argument("file", type=_file)
@click.option(
    "--ca-pin",
    "pin",
    default="",
    callback=_pin,
    metavar="SHA256",
    help="The pin of the coordinator's CA, received by another channel than FILE. Required.",
)
@click.option(
    "--address", default="", metavar="HOST:PORT", help="The address of the coordinator from here."
)
@operator_option
@json_option
def login(file: Path, pin: str, address: str, operator: Path | None, as_json: bool) -> None:
    """Install the answer to the request that was made here, and trust the CA in it.

    It is refused unless it is for this key and this name, signed by that CA, and valid now.
    """
    folder = operator or default_folder()
    if address:
        from fedlearn.identity.join import checked_address

        checked_address(address)
    made = accept_grant(folder, file, now=datetime.now(UTC), pin=pin, control=address)
    if as_json:
        print_json({"login": str(folder), "address": made.address, "ca_pin": ca_pin(made.ca)})
        return
    line(f"logged in to {made.address}; the login is in {folder}", style="green")


@group.command("renew")
@operator_option
@json_option
def renew(operator: Path | None, as_json: bool) -> None:
    """Get a certificate for a new key, with the current login, before that expires.

    The former certificate is revoked after the new one was used.
    """
    from cryptography import x509
    from cryptography.hazmat.primitives.serialization import Encoding

    from fedlearn.identity.spiffe import OperatorId, parse
    from fedlearn.wire.operator import OperatorClient

    folder = operator or default_folder()
    former = OperatorLogin.load(folder)
    leaf = x509.load_pem_x509_certificates(former.chain)[0]
    names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    identity = parse(names.get_values_for_type(x509.UniformResourceIdentifier)[0])
    if not isinstance(identity, OperatorId):
        raise ConfigError("is not an operator's", where=str(folder / "operator.pem"))
    key, csr = new_request(identity.name)
    with connect(folder) as client:
        grant = client.add_operator(
            identity.name, x509.load_pem_x509_csr(csr).public_bytes(Encoding.DER)
        )
    renewed = OperatorLogin(address=former.address, ca=former.ca, chain=grant.chain, key=key)
    renewed.replace_folder(folder)
    with OperatorClient(
        address=renewed.address, ca=renewed.ca, chain=renewed.chain, key=renewed.key
    ) as client:
        client.revoke_operator(serial=f"{leaf.serial_number:x}", reason="renewed")
    if as_json:
        print_json(_json(grant.operator))
        return
    line(f"operator {identity.name} has a new key until {_day(grant.operator)}", style="green")


@group.command("list")
@operator_option
@json_option
def list_(operator: Path | None, as_json: bool) -> None:
    """Show all operators, also revoked ones."""
    with connect(operator) as client:
        found = client.list_operators()
    if as_json:
        print_json({"operators": [_json(one) for one in found]})
        return
    width = max((len(one.name) for one in found), default=0)
    for one in found:
        status = f"until {_day(one)}"
        if one.revoked:
            status = f"revoked{f': {one.reason}' if one.reason else ''}"
        elif one.expires <= datetime.now(UTC):
            status = f"expired {_day(one)}"
        line(
            f"{printable(one.name):<{width}}  {printable(status)}  "
            f"serial {printable(one.serial)}  added by {printable(one.by)}"
        )


@group.command("add")
@_name
@click.argument("csr", type=_file)
@click.option(
    "--out", type=_file, default=None, help="Where to write the answer; NAME.toml by default."
)
@operator_option
@json_option
def add(name: str, csr: Path, out: Path | None, operator: Path | None, as_json: bool) -> None:
    """Add operator NAME, by the request in CSR. NAME then has the same permissions as you.

    The answer that is written contains no secret; NAME installs it with `fedlearn operator login`.
    """
    target = out or Path(f"{name}.toml")
    if target.exists():
        raise ConfigError("exists", where=str(target), hint="name another file with --out")
    data = csr_der(csr)
    folder = operator or default_folder()
    own = OperatorLogin.load(folder)
    with connect(folder) as client:
        grant = client.add_operator(name, data)
    answer = LoginGrant(address=grant.address or own.address, certificates=grant.chain.decode())
    target.write_text(answer.to_toml())
    if as_json:
        print_json({**_json(grant.operator), "file": str(target), "ca_pin": ca_pin(own.ca)})
        return
    line(f"{name} is an operator until {_day(grant.operator)}; send {target} there:", style="green")
    line(f"  fedlearn operator login {target.name} --ca-pin {ca_pin(own.ca)}")


@group.command("revoke")
@click.argument("name", required=False, default="")
@click.option("--serial", default="", help="One certificate instead of all of an operator.")
@click.option(
    "--reason", default="", help="The reason, for the ledger and for the revoked operator."
)
@operator_option
@json_option
def revoke(name: str, serial: str, reason: str, operator: Path | None, as_json: bool) -> None:
    """Revoke operator NAME at once, on open connections too.

    What NAME did before stays in force: jobs, approved sites, other operators.
    """
    if bool(name) == bool(serial):
        raise click.UsageError("give a NAME, or --serial")
    with connect(operator) as client:
        ended = client.revoke_operator(name=name, serial=serial, reason=reason)
    if as_json:
        print_json({"revoked": [_json(one) for one in ended]})
        return
    for one in ended:
        line(f"operator {printable(one.name)} is revoked (serial {printable(one.serial)})")


def _day(one: OperatorState) -> str:
    return one.expires.strftime("%Y-%m-%d %H:%M UTC")


def _json(one: OperatorState) -> dict[str, Any]:
    return {
        "name": one.name,
        "serial": one.serial,
        "key_thumbprint": one.key_thumbprint.hex(),
        "expires": one.expires.isoformat(),
        "by": one.by,
        "revoked": one.revoked,
        "reason": one.reason,
    }
