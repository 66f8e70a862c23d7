"""The inputs of `policy` and `evidence`: flags, files within bounds, times and hex."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click

from attestation.binding import ReportData
from attestation.documents.formats import FORMATS, MAX_INPUT_BYTES
from attestation.durable import write_durably
from attestation.endorsements.offline import (
    MAX_COLLATERAL_BYTES,
    MAX_ENDORSEMENT_BYTES,
    Input,
    gather,
    unread_pieces,
)
from attestation.errors import EndorsementError, EvidenceError
from attestation.evidence import Claims, Evidence
from attestation.logs.eventlog import MAX_LOG_BYTES
from attestation.policy.model import MAX_POLICY_BYTES, AppraisalPolicy
from attestation.policy.parse import parse_policy
from attestation.trust import TrustAnchors
from attestation.verifiers import verify
from fedlearn.config import file_bytes
from fedlearn.errors import ConfigError

__all__ = [
    "Request",
    "evidence_options",
    "moment",
    "pick",
    "read_policy",
    "unhex",
    "write_new",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """The evidence that was named on the command line, and what belongs to it."""

    evidence: Evidence
    trust: TrustAnchors
    report_data: ReportData | None
    now: datetime
    source: str
    warnings: tuple[str, ...]

    def verify(self, policy: AppraisalPolicy | None = None) -> Claims:
        """Return the claims, with the reference values of ``policy`` for event logs.

        :raises EvidenceError: when the input is malformed.
        :raises VerificationError: when it is not genuine.
        """
        trust = self.trust
        if policy is not None:
            trust = policy.anchors_for(trust, tee=self.evidence.tee, now=self.now)
        return verify(self.evidence, binding=self.report_data, trust=trust, now=self.now)


def evidence_options(flag: str = "--evidence") -> Callable[[Callable[..., Any]], Any]:
    """Add the flags that name evidence; the command gets a :class:`Request` as ``request``."""

    def decorate(command: Callable[..., Any]) -> Any:
        @functools.wraps(command)
        def wrapped(
            evidence: Path,
            format_name: str | None,
            collateral: Path | None,
            endorsements: tuple[Path, ...],
            event_log: Path | None,
            report_data: str | None,
            at: str | None,
            **rest: Any,
        ) -> Any:
            request = _request(
                evidence, format_name, collateral, endorsements, event_log, report_data, at
            )
            return command(request=request, **rest)

        options = (
            _file(
                flag,
                "The quote, report or evidence document.",
                name="evidence",
                required=True,
            ),
            click.option(
                "--format",
                "format_name",
                type=click.Choice(FORMATS),
                default=None,
                help="Format of the evidence; detected when it is left out.",
            ),
            _file(
                "--collateral",
                "Intel collateral as JSON, or a folder of collateral.",
                metavar="FILE_OR_DIR",
            ),
            _file(
                "--endorsement",
                "A certificate, chain, revocation list or pinned public key; repeatable.",
                name="endorsements",
                multiple=True,
            ),
            _file("--event-log", "The event log that replays to the quoted registers."),
            click.option(
                "--report-data",
                default=None,
                metavar="HEX",
                help="The report data to which the evidence must be bound.",
            ),
            click.option(
                "--at",
                default=None,
                metavar="RFC3339",
                help="Judge validity at this time instead of now.",
            ),
        )
        result: Any = wrapped
        for option in reversed(options):
            result = option(result)
        return result

    return decorate


def _file(
    flag: str,
    text: str,
    *,
    name: str = "",
    metavar: str = "FILE",
    required: bool = False,
    multiple: bool = False,
) -> Callable[[Callable[..., Any]], Any]:
    """Return an option that names a file."""
    return click.option(
        *((flag, name) if name else (flag,)),
        type=click.Path(path_type=Path),
        metavar=metavar,
        required=required,
        multiple=multiple,
        help=text,
    )


def read_policy(path: Path) -> AppraisalPolicy:
    """Read a policy file.

    :raises ConfigError: when the file cannot be read.
    :raises PolicyError: naming key and line, when it is not a policy.
    """
    data = file_bytes(path, limit=MAX_POLICY_BYTES, what="policy")
    return parse_policy(data, str(path))


def pick(argument: Path | None, option: Path | None, name: str) -> Path:
    """Return the path that was given, as an argument or as an option, but not twice."""
    if (argument is None) == (option is None):
        raise click.UsageError(f"name one {name}, such as {name}.toml", click.get_current_context())
    return argument or option or Path()


def moment(text: str | None) -> datetime:
    """Return the time in ``text`` (RFC 3339, with its zone), or now.

    :raises ConfigError: when it is not one.
    """
    if text is None:
        return datetime.now(UTC)
    hint = "write it like 2026-07-01T00:00:00Z"
    if not re.match(r"\d{4}-\d{2}-\d{2}[Tt ]\d{2}:\d{2}:\d{2}", text):
        raise ConfigError("is not a time in RFC 3339", where="--at", hint=hint)
    try:
        value = datetime.fromisoformat(text.upper())
    except ValueError:
        raise ConfigError("is not a time in RFC 3339", where="--at", hint=hint) from None
    if value.tzinfo is None:
        raise ConfigError("is a time without its zone", where="--at", hint=hint)
    try:
        return value.astimezone(UTC)
    except OverflowError:
        raise ConfigError("is outside of the years 1 to 9999", where="--at", hint=hint) from None


def unhex(text: str, flag: str, most: int = 1024) -> bytes:
    """Return the bytes of ``text``, which is hexadecimal.

    :raises ConfigError: when it is not hex, or longer than ``most`` bytes.
    """
    if not re.fullmatch(r"(?:[0-9A-Fa-f]{2})+", text):
        raise ConfigError("is not hex of whole bytes", where=flag, hint="two digits for each byte")
    if len(text) > 2 * most:
        raise ConfigError(f"has {len(text) // 2} bytes, at most {most} are read", where=flag)
    return bytes.fromhex(text)


def write_new(path: Path, data: bytes, *, force: bool, mode: int = 0o644) -> None:
    """Write a file atomically; replace an existing one only with ``force``.

    :raises ConfigError: when the file exists or cannot be written.
    """
    if path.exists() and not force:
        raise ConfigError("exists already", where=str(path), hint="name another file, or --force")
    try:
        write_durably(path, data, mode=mode)
    except OSError as error:
        reason = (error.strerror or "unknown reason").lower()
        raise ConfigError(f"cannot be written: {reason}", where=str(path)) from None


def _request(
    evidence: Path,
    format_name: str | None,
    collateral: Path | None,
    endorsements: tuple[Path, ...],
    event_log: Path | None,
    report_data: str | None,
    at: str | None,
) -> Request:
    now = moment(at)
    bound = ReportData(value=unhex(report_data, "--report-data")) if report_data else None
    documents, certificates, warnings = _collateral(collateral, now)
    given = tuple(
        Input(name=str(path), data=file_bytes(path, limit=MAX_ENDORSEMENT_BYTES))
        for path in endorsements
    )
    log = file_bytes(event_log, limit=MAX_LOG_BYTES) if event_log else b""
    if event_log and not log:
        raise ConfigError("is empty", where=str(event_log), hint="leave --event-log out")
    source = Input(name=str(evidence), data=file_bytes(evidence, limit=MAX_INPUT_BYTES))
    try:
        parsed, trust = gather(
            source,
            format=format_name,
            endorsements=(*given, *certificates),
            event_log=log,
            collateral=documents,
        )
    except EvidenceError as error:
        raise ConfigError(str(error), where=str(evidence), hint=error.hint) from None
    except EndorsementError as error:
        raise ConfigError(str(error), hint=error.hint) from None
    unread = tuple(
        f"{item.name}: {problem}"
        for item in given
        if b"-----BEGIN " in item.data
        for problem in unread_pieces(item.data)
    )
    return Request(
        evidence=parsed,
        trust=trust,
        report_data=bound,
        now=now,
        source=str(evidence),
        warnings=(*warnings, *unread),
    )


def _collateral(
    path: Path | None, now: datetime
) -> tuple[tuple[bytes, ...], tuple[Input, ...], tuple[str, ...]]:
    if path is None:
        return (), (), ()
    if not path.is_dir():
        data = file_bytes(path, limit=MAX_COLLATERAL_BYTES, what="collateral")
        # AMD's chains and lists are collateral too; the reader detects the kind.
        return (), (Input(name=str(path), data=data),), ()
    from attestation.endorsements.collateral import load_folder

    loaded = load_folder(path, now=now)
    return loaded.collateral, loaded.endorsements, loaded.warnings
