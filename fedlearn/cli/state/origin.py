"""The options for the sealer of a file, and the check, for commands that open one.

A key that opens a sealed file does not identify its maker: the recipients' public keys are in every
header. The maker is identified by the signature of a coordinator whose CA was pinned, or by the
file's digest in a ledger.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import click

from attestation.errors import UnsealError
from fedlearn.cli.appraisal.inputs import unhex
from fedlearn.errors import ConfigError, ModelNotAuthentic
from fedlearn.identity.login import OperatorLogin, ca_pin, default_folder
from fedlearn.sealing import SealedReader
from server.ledger import PUBLIC_KEY_FILE, LedgerReader, load_public_key

__all__ = ["Origin", "Sealer", "origin_options", "parse_pin"]

_DIGEST_BYTES = 32
_HINT = (
    "name it with --ca-pin HEX, --operator DIR or --ledger FILE; --insecure-unknown-origin opens "
    "a file that anybody may have made"
)

Command = TypeVar("Command", bound=Callable[..., Any])


@dataclass(frozen=True, slots=True, kw_only=True)
class Sealer:
    """What was found: ``by`` is ``signature``, ``ledger``, ``catalogue`` or ``nothing``.

    ``text`` is the same for people.
    """

    by: str
    text: str

    @property
    def known(self) -> bool:
        """Whether a trusted source identifies who sealed the file."""
        return self.by != "nothing"

    def to_json(self) -> dict[str, Any]:
        """Return JSON-ready values."""
        return {"authenticated": self.known, "origin": self.by}


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """The options on the command line that identify the sealer of a file."""

    pin: bytes = b""
    operator: Path | None = None
    ledger: Path | None = None
    ledger_key: Path | None = None
    insecure: bool = False

    @property
    def given(self) -> bool:
        """True when any of the options was used."""
        return self != Origin()

    def check(self, reader: SealedReader, target: str) -> Sealer:
        """Identify who sealed the open file ``target``, which is read completely.

        :raises ConfigError: when no option was given.
        :raises ModelNotAuthentic: when another party sealed it.
        :raises LedgerError: when the ledger that was named is damaged, or cannot be read.
        """
        if self.insecure:
            return Sealer(
                by="nothing",
                text="NOT AUTHENTICATED: anybody with the owner's public key may have made it",
            )
        if self.ledger is not None:
            return self._by_ledger(reader, target, self.ledger)
        pin = self._pin()
        try:
            reader.check_signer({pin})
        except UnsealError as error:
            raise ModelNotAuthentic(
                f"{target} was not sealed by the coordinator whose CA is {pin.hex()}: {error}",
                hint="ask the sender; for a file that an older release sealed, compare it "
                "with the ledger (--ledger FILE)"
                if not reader.header.signer
                else "ask the sender",
            ) from error
        return Sealer(by="signature", text=f"signed by the coordinator whose CA is {pin.hex()}")

    def _pin(self) -> bytes:
        if self.pin:
            return self.pin
        folder = self.operator or default_folder()
        if self.operator is None and not folder.is_dir():
            raise ConfigError("no option states who must have sealed the file", hint=_HINT)
        return bytes.fromhex(ca_pin(OperatorLogin.load(folder).ca))

    def _by_ledger(self, reader: SealedReader, target: str, path: Path) -> Sealer:
        ledger = LedgerReader(path)
        ledger.verify(load_public_key(self.ledger_key or path.with_name(PUBLIC_KEY_FILE)))
        digest = reader.digest().hex()
        header = reader.header
        for kind in ("checkpoint", "files", "model"):
            for entry in ledger.entries(kind=kind):
                listed = entry.body.get("digests")
                named = (
                    listed
                    if isinstance(listed, dict)
                    else {str(entry.body.get("version")): entry.body.get("digest")}
                )
                if (
                    entry.body.get("model") == header.model
                    and named.get(str(header.version)) == digest
                ):
                    return Sealer(
                        by="ledger", text=f"entry {entry.sequence} of the ledger has its digest"
                    )
        raise ModelNotAuthentic(
            f"{target}: the ledger {path} has no {header.model}, version {header.version}, with "
            f"the digest {digest}",
            hint="ask the sender, or name the ledger of the coordinator that sealed it",
        )


def parse_pin(text: str) -> bytes:
    """Return the pin of a CA (32 bytes) that was given with ``--ca-pin``.

    :raises ConfigError: when it is not a SHA-256 in hexadecimal.
    """
    pin = unhex(text, "--ca-pin", _DIGEST_BYTES)
    if len(pin) != _DIGEST_BYTES:
        raise ConfigError(f"is a SHA-256 of {_DIGEST_BYTES} bytes", where="--ca-pin")
    return pin


def origin_options(command: Command) -> Command:
    """Add the options that state who must have sealed a file, as one argument ``origin``."""

    @functools.wraps(command)
    def run(
        *args: Any,
        ca_pin_text: str | None,
        operator: Path | None,
        ledger: Path | None,
        ledger_key: Path | None,
        insecure_unknown_origin: bool,
        **rest: Any,
    ) -> Any:
        ways = (ca_pin_text, operator, ledger, insecure_unknown_origin or None)
        if sum(way is not None for way in ways) > 1:
            raise ConfigError(
                "one of --ca-pin, --operator, --ledger and --insecure-unknown-origin is enough"
            )
        if ledger_key is not None and ledger is None:
            raise ConfigError("is the key of a --ledger", where="--ledger-key")
        pin = parse_pin(ca_pin_text) if ca_pin_text else b""
        origin = Origin(
            pin=pin,
            operator=operator,
            ledger=ledger,
            ledger_key=ledger_key,
            insecure=insecure_unknown_origin,
        )
        return command(*args, origin=origin, **rest)

    path = click.Path(path_type=Path)
    options = [
        click.option(
            "--ca-pin",
            "ca_pin_text",
            metavar="HEX",
            help="A FILE must be signed by the coordinator whose CA key has this SHA-256.",
        ),
        click.option(
            "--operator",
            type=path,
            metavar="DIR",
            help="The same, with the CA of an operator's login (by default yours).",
        ),
        click.option(
            "--ledger",
            type=path,
            metavar="FILE",
            help=f"A FILE's digest must be in this ledger, with {PUBLIC_KEY_FILE} beside it.",
        ),
        click.option("--ledger-key", type=path, metavar="FILE", help="Public key of --ledger."),
        click.option(
            "--insecure-unknown-origin",
            is_flag=True,
            help="Open a FILE without knowing who made it.",
        ),
    ]
    wrapped: Any = run
    for option in reversed(options):
        wrapped = option(wrapped)
    return wrapped  # type: ignore[no-any-return]
