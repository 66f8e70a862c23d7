"""Bytes written as text: hex and base64, in files and in JSON documents; and the documents.

Only one form of each encoding is accepted, so that different files do not encode the same bytes:
hex of one case, canonical base64, and nothing between the characters but line ends.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from typing import Any, Final

from attestation.errors import EvidenceError

__all__ = ["MAX_UNIX_SECONDS", "json_bytes", "json_object", "sniffed_object", "unwrap_text"]

MAX_UNIX_SECONDS: Final = 253402300799
"""The last second of the year 9999, after which no ``datetime`` is."""

_MIN_CHARACTERS: Final = 128
_HEX_FILE: Final = re.compile(
    rb"(?:0x)?(?:(?:[0-9a-f]{2})+(?:\r?\n|$))+|(?:0x)?(?:(?:[0-9A-F]{2})+(?:\r?\n|$))+"
)
_BASE64_FILE: Final = re.compile(rb"(?:[A-Za-z0-9+/]+(?:\r?\n))*[A-Za-z0-9+/]+={0,2}(?:\r?\n)?")
_LINE_END: Final = re.compile(rb"\r?\n")
_STANDARD: Final = str.maketrans("-_", "+/")


def unwrap_text(data: bytes) -> bytes:
    """Return the bytes of a file in hex or base64; ``data`` itself where it is neither.

    Hex may start with ``0x``. A file of fewer than 128 characters is taken as it is.
    """
    if len(data) < _MIN_CHARACTERS:
        return data
    if _HEX_FILE.fullmatch(data):
        return bytes.fromhex(_LINE_END.sub(b"", data).removeprefix(b"0x").decode("ascii"))
    if _BASE64_FILE.fullmatch(data):
        text = _LINE_END.sub(b"", data)
        try:
            found = base64.b64decode(text, validate=True)
        except binascii.Error:
            return data
        return found if base64.b64encode(found) == text else data
    return data


def json_object(data: bytes | str, where: str) -> dict[str, Any]:
    """Return a JSON object. Its size is to be bounded by the caller.

    A key that stands twice is refused, at any depth: two readers would see two documents.

    :raises EvidenceError: when it is none, naming ``where``.
    """
    try:
        document = json.loads(data, object_pairs_hook=_once)
    except _Twice as error:
        raise EvidenceError(str(error), field=where) from None
    except (ValueError, RecursionError) as error:
        raise EvidenceError("not a JSON document", field=where) from error
    if not isinstance(document, dict):
        raise EvidenceError("must be an object", field=where)
    return document


def sniffed_object(data: bytes) -> dict[str, Any] | None:
    """Return the JSON object that ``data`` is; ``None`` where it is something else."""
    if data.lstrip()[:1] != b"{":
        return None
    try:
        document = json.loads(data)
    except (ValueError, RecursionError):
        return None
    return document if isinstance(document, dict) else None


class _Twice(ValueError):
    """A key stands twice in one object."""


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    document = dict(pairs)
    if len(document) != len(pairs):
        keys = [key for key, _ in pairs]
        repeated = next(key for key in keys if keys.count(key) > 1)
        raise _Twice(f"has the key {repeated[:64]!r} twice")
    return document


def json_bytes(value: object, where: str) -> bytes:
    """Return bytes as documents of other tools have them: hex, base64, base64url, numbers.

    A text that is hex throughout is hex. The value's size is bounded by its document's.

    :raises EvidenceError: when it is none of them, naming ``where``.
    """
    try:
        if isinstance(value, list):
            return bytes(value)
        if isinstance(value, str):
            return _hex(value) or _base64(value)
    except (ValueError, TypeError, binascii.Error):
        pass
    raise EvidenceError("must be bytes in base64, base64url or hex", field=where)


def _hex(value: str) -> bytes:
    """Return the bytes, or none where it is not hex of one case."""
    try:
        data = bytes.fromhex(value)
    except ValueError:
        return b""
    return data if value in (data.hex(), data.hex().upper()) else b""


def _base64(value: str) -> bytes:
    text = value.rstrip("=")
    padding = len(value) - len(text)
    if padding and (padding > 2 or len(value) % 4):
        raise ValueError("not canonical")
    if "-" in text or "_" in text:
        text = text.translate(_STANDARD)
    data = base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
    # Strict decoding leaves one freedom: the bits of the last character that no byte needs.
    rest = len(data) % 3
    if rest and base64.b64encode(data[-rest:]).decode().rstrip("=") != text[-rest - 1 :]:
        raise ValueError("not canonical")
    return data
