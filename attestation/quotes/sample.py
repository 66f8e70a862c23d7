"""The format of ``sample`` evidence: a signed statement of software, for development.

::

    quote     = canonical JSON {"key": SPKI, "signature": r|s, "statement": {...}}
    statement = {"debug", "hardware_id", "measurements", "report_data", "time", "version"}
    signed    = "fedlearn-sample/1\\0" | canonical JSON of the statement   (ECDSA P-256, SHA-256)

Canonical JSON has sorted keys, no spaces, ASCII only; bytes are lower-case hex. Every other form is
refused, so one statement has exactly one encoding.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final

from attestation.ecdsa import SIGNATURE_BYTES
from attestation.encodings import MAX_UNIX_SECONDS, json_object
from attestation.errors import EvidenceError

__all__ = ["MAX_SAMPLE_BYTES", "SampleQuote", "SampleStatement"]

MAX_SAMPLE_BYTES: Final = 64 * 1024
_MAX_MEASUREMENTS: Final = 64
_REPORT_DATA_BYTES: Final = 64
_MAX_DIGEST_BYTES: Final = 64
_MAX_KEY_BYTES: Final = 1024
_NAME: Final = re.compile(r"[a-z][a-z0-9_.-]{0,63}")
_DOMAIN: Final = b"fedlearn-sample/1\0"
_QUOTE_KEYS: Final = frozenset({"key", "signature", "statement"})
_STATEMENT_KEYS: Final = frozenset(
    {"debug", "hardware_id", "measurements", "report_data", "time", "version"}
)
_STATEMENT_MEMBER: Final = b'"statement":'
_ENCODER: Final = json.JSONEncoder(sort_keys=True, separators=(",", ":"))


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleStatement:
    """The statement of a development key about a process.

    ``report_data`` 64 bytes; ``hardware_id`` 1 to 64 bytes; ``time`` seconds since 1970;
    ``measurements`` at most 64 names, each 1 to 64 bytes.
    """

    report_data: bytes
    measurements: Mapping[str, bytes]
    hardware_id: bytes
    time: int
    debug: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "measurements", MappingProxyType(dict(self.measurements)))

    def to_json(self) -> dict[str, Any]:
        """Return the statement as JSON-ready values."""
        return {
            "debug": self.debug,
            "hardware_id": self.hardware_id.hex(),
            "measurements": {name: value.hex() for name, value in self.measurements.items()},
            "report_data": self.report_data.hex(),
            "time": self.time,
            "version": 1,
        }

    def signed_bytes(self) -> bytes:
        """Return the bytes that the signature covers."""
        return _DOMAIN + _canonical(self.to_json())


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleQuote:
    """A statement, the key that signed it (DER SPKI), and the signature (r | s, 64 bytes).

    ``signed`` are the received bytes that the signature covers.
    """

    statement: SampleStatement
    key: bytes
    signature: bytes
    signed: bytes

    def to_bytes(self) -> bytes:
        """Return the canonical encoding."""
        return _canonical(
            {
                "key": self.key.hex(),
                "signature": self.signature.hex(),
                "statement": self.statement.to_json(),
            }
        )

    @classmethod
    def from_bytes(cls, data: bytes) -> SampleQuote:
        """Parse a quote of at most :data:`MAX_SAMPLE_BYTES`.

        :raises EvidenceError: naming the field, for anything that is not canonical.
        """
        if len(data) > MAX_SAMPLE_BYTES:
            raise EvidenceError(
                f"{len(data)} bytes, at most {MAX_SAMPLE_BYTES} are read", field="sample"
            )
        try:
            text = data.decode("ascii")
        except UnicodeDecodeError as error:
            raise EvidenceError("is not ASCII", field="sample", offset=error.start) from None
        outer = _object(json_object(text, "sample"), _QUOTE_KEYS, "sample")
        quote = cls(
            statement=_statement(outer["statement"]),
            key=_hex(outer["key"], "sample.key", 1, _MAX_KEY_BYTES),
            signature=_hex(
                outer["signature"], "sample.signature", SIGNATURE_BYTES, SIGNATURE_BYTES
            ),
            # The last of three members, and the two before it are hex.
            signed=_DOMAIN + data.partition(_STATEMENT_MEMBER)[2][:-1],
        )
        if _spelled(outer) != text:
            raise EvidenceError("not the canonical encoding of its content", field="sample")
        return quote


def _statement(document: object) -> SampleStatement:
    where = "sample.statement"
    inner = _object(document, _STATEMENT_KEYS, where)
    if type(inner["version"]) is not int or inner["version"] != 1:
        raise EvidenceError("only version 1 is known", field=f"{where}.version")
    time, debug, measurements = inner["time"], inner["debug"], inner["measurements"]
    if not isinstance(time, int) or isinstance(time, bool) or not 0 <= time <= MAX_UNIX_SECONDS:
        raise EvidenceError("must be seconds since 1970", field=f"{where}.time")
    if not isinstance(debug, bool):
        raise EvidenceError("must be true or false", field=f"{where}.debug")
    if not isinstance(measurements, dict) or len(measurements) > _MAX_MEASUREMENTS:
        raise EvidenceError(
            f"must be an object of at most {_MAX_MEASUREMENTS} digests",
            field=f"{where}.measurements",
        )
    for name in measurements:
        if not _NAME.fullmatch(name):
            raise EvidenceError(f"{name[:64]!r} is not a claim name", field=f"{where}.measurements")
    return SampleStatement(
        report_data=_hex(
            inner["report_data"], f"{where}.report_data", _REPORT_DATA_BYTES, _REPORT_DATA_BYTES
        ),
        measurements={
            name: _hex(value, f"{where}.measurements.{name}", 1, _MAX_DIGEST_BYTES)
            for name, value in measurements.items()
        },
        hardware_id=_hex(inner["hardware_id"], f"{where}.hardware_id", 1, 64),
        time=time,
        debug=debug,
    )


def _object(document: object, keys: frozenset[str], where: str) -> dict[str, Any]:
    if not isinstance(document, dict):
        raise EvidenceError("must be an object", field=where)
    if document.keys() != keys:
        raise EvidenceError(f"must have exactly the keys {', '.join(sorted(keys))}", field=where)
    return document


def _hex(value: object, where: str, least: int, most: int) -> bytes:
    try:
        data = bytes.fromhex(value) if isinstance(value, str) else b""
    except ValueError:
        data = b""
    if data.hex() != value:
        raise EvidenceError("must be lower-case hex", field=where)
    if not least <= len(data) <= most:
        size = f"{least}" if least == most else f"{least} to {most}"
        raise EvidenceError(f"must have {size} bytes, not {len(data)}", field=where)
    return data


def _spelled(outer: Mapping[str, Any]) -> str:
    """Return the canonical JSON of a document whose every member was checked.

    The result is that of :func:`_canonical`, because names and hex need no escapes. It takes a
    third of the time, which matters because verification needs only one signature besides.
    """
    inner = outer["statement"]
    measured = inner["measurements"]
    listed = ",".join([f'"{name}":"{measured[name]}"' for name in sorted(measured)])
    return (
        f'{{"key":"{outer["key"]}","signature":"{outer["signature"]}","statement":'
        f'{{"debug":{"true" if inner["debug"] else "false"},'
        f'"hardware_id":"{inner["hardware_id"]}","measurements":{{{listed}}},'
        f'"report_data":"{inner["report_data"]}","time":{inner["time"]},"version":1}}}}'
    )


def _canonical(document: Any) -> bytes:
    return _ENCODER.encode(document).encode("ascii")
