"""``fedlearn evidence``: show evidence, and collect it on this machine."""

from __future__ import annotations

from pathlib import Path

import click

from attestation.attesters.kinds import KINDS
from attestation.binding import ReportData
from attestation.config import InconsistentValues
from attestation.decoded import EVENT_LOG, Field, decode_file
from attestation.documents.formats import FORMATS, MAX_INPUT_BYTES
from attestation.errors import EvidenceError
from attestation.evidence import Evidence, Tee
from fedlearn.cli.appraisal.inputs import unhex, write_new
from fedlearn.config import file_bytes
from fedlearn.config.attester import device, open_attester
from fedlearn.config.attesterfile import ATTESTER_KINDS, AttesterSettings
from fedlearn.config.development_key import key_digest, make_key_file
from fedlearn.errors import ConfigError
from fedlearn.terminal.console import Commands, json_option, line, print_json, printable

__all__ = ["group"]

_PATH = click.Path(path_type=Path)
_REPORT_DATA_BYTES = 64
_QUALIFYING_BYTES = 32


def _for(key: str, what: str) -> str:
    kinds = ", ".join(kind.name for kind in KINDS if key in kind.uses)
    return f"{kinds}: {what}"


@click.group(cls=Commands)
def group() -> None:
    """Evidence: what a TEE proves about itself.

    To appraise evidence, see `fedlearn policy verify`.
    """


@group.command()
@click.argument("file", type=_PATH)
@click.option(
    "--format",
    "format_name",
    type=click.Choice((*FORMATS, EVENT_LOG)),
    default=None,
    help="Format of the file; detected when it is left out.",
)
@json_option
def show(file: Path, format_name: str | None, as_json: bool) -> None:
    """Decode every field of a quote, report or log. Nothing is verified.

    A field that becomes a claim is shown with its origin: the signed quote, the host that started
    the environment, a measured log, or software that reports about itself.
    """
    data = file_bytes(file, limit=MAX_INPUT_BYTES)
    try:
        kind, fields = decode_file(data, format_name)
    except EvidenceError as error:
        raise ConfigError(str(error), where=str(file), hint=error.hint) from None
    if as_json:
        print_json({"kind": kind, "fields": [field.to_json() for field in fields]})
        return
    line(f"{kind}, {len(data)} bytes; decoded, not verified", bold=True)
    _print(fields)


@group.command()
@click.option(
    "--attester",
    "kind",
    type=click.Choice(ATTESTER_KINDS),
    default="auto",
    show_default=True,
    help="What makes the evidence.",
)
@click.option(
    "--report-data",
    default=None,
    metavar="HEX",
    help="What to bind: 64 bytes, up to 64 for a TPM; zeros when left out.",
)
@click.option("--tcti", default="", metavar="TEXT", help=_for("tcti", "how tpm2-tools reach it."))
@click.option(
    "--socket", type=_PATH, default=None, metavar="FILE", help=_for("socket", "its socket.")
)
@click.option(
    "--address", default="", metavar="HOST:PORT", help=_for("address", "the local agent.")
)
@click.option("--key", type=_PATH, default=None, metavar="FILE", help="insecure-sample: its key.")
@click.option(
    "--state",
    type=_PATH,
    default=Path(".fedlearn-attester"),
    show_default=True,
    metavar="DIR",
    help="Private folder of the attester.",
)
@click.option("--output", type=_PATH, required=True, metavar="FILE", help="Where to write it.")
@click.option("--force", is_flag=True, help="Replace an existing file.")
@json_option
def collect(
    kind: str,
    report_data: str | None,
    tcti: str,
    socket: Path | None,
    address: str,
    key: Path | None,
    state: Path,
    output: Path,
    force: bool,
    as_json: bool,
) -> None:
    """Run an attester on this machine and write its evidence."""
    value = None if report_data is None else unhex(report_data, "--report-data")
    if output.exists() and not force:
        raise ConfigError("exists already", where=str(output), hint="name another, or --force")
    settings = _settings(kind, tcti, socket, address, key)
    state.mkdir(mode=0o700, parents=True, exist_ok=True)
    with device(settings, state=state) as ready:
        if kind != "auto":
            line(f"attesting with {kind}: asked for by name")
        attester = open_attester(ready, state=state, report=line)
        bound = ReportData(value=_sized(value, attester.tee))
        evidence = attester.collect(bound)
    write_new(output, evidence.to_bytes(), force=force)
    if as_json:
        print_json({"file": str(output), "tee": evidence.tee.value, "about": _about(evidence)})
        return
    line(f"wrote {output}: {_about(evidence)}")


@group.command("development-key")
@click.argument("file", type=_PATH)
@click.option("--new", is_flag=True, help="Make the key first, where FILE does not exist.")
@json_option
def development_key(file: Path, new: bool, as_json: bool) -> None:
    """Print the digest by which others name the development key in FILE to trust it.

    FILE is either half of a key of sample evidence, which proves nothing about hardware.
    """
    digest = (make_key_file if new else key_digest)(file).hex()
    if as_json:
        print_json({"file": str(file), "sha256": digest})
        return
    line(digest)


def _sized(value: bytes | None, tee: Tee) -> bytes:
    """Return the report data in the size that ``tee`` binds."""
    if tee in (Tee.TPM, Tee.AZURE_VTPM):
        least, most, default = 1, _REPORT_DATA_BYTES, _QUALIFYING_BYTES
    else:
        least, most, default = (_REPORT_DATA_BYTES,) * 3
    if value is None:
        return bytes(default)
    if not least <= len(value) <= most:
        size = f"{most}" if least == most else f"{least} to {most}"
        raise ConfigError(
            f"has {len(value)} bytes; {tee.value} evidence binds {size}",
            where="--report-data",
            hint="a SHA-512 has the right size",
        )
    return value


def _settings(
    kind: str, tcti: str, socket: Path | None, address: str, key: Path | None
) -> AttesterSettings:
    try:
        return AttesterSettings(kind=kind, tcti=tcti, socket=socket, address=address, key=key)
    except InconsistentValues as error:
        [(path, reason), *_] = error.faults
        raise ConfigError(reason, where=f"--{path[0]}") from None


def _about(evidence: Evidence) -> str:
    log = f", event log of {len(evidence.event_log)} bytes" if evidence.event_log else ""
    return f"{evidence.tee.value} evidence, {len(evidence.quote)} bytes{log}"


def _print(fields: tuple[Field, ...]) -> None:
    width = max((len(field.name) for field in fields), default=0)
    section = ""
    for field in fields:
        if field.section != section:
            section = field.section
            line(printable(section), bold=True)
        origin = f"  ({field.origin.value})" if field.origin is not None else ""
        line(f"  {printable(field.name):<{width}}  {printable(field.value)}{origin}")
