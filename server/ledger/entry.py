"""One entry of the ledger: its canonical bytes, its hash, its signature; and the head.

::

    hash      = SHA-256("fedlearn-ledger/1\\0" | LP(u64be sequence) | LP(u64be time)
                        | LP(kind) | LP(body) | LP(previous))      LP(x) = u32be(len x) | x
    previous  = the hash of the entry before; for entry 1
                SHA-256("fedlearn-ledger/1\\0" | LP("genesis") | LP(DER SPKI of the key))
    signature = ECDSA P-256 over the hash as a digest, r | s, 32 bytes each, s in the lower
                half of the group order, so that no second signature can be made from a first

The body is JSON in one canonical form: UTF-8, keys sorted, no spaces, finite numbers only.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias, cast

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from attestation import ecdsa
from attestation.ecdsa import SIGNATURE_BYTES
from attestation.length_prefixed import pack
from fedlearn.errors import LedgerError

__all__ = [
    "HASH_BYTES",
    "KINDS",
    "KIND_BYTES",
    "MAX_BODY_BYTES",
    "MAX_SEQUENCE",
    "Entry",
    "Json",
    "LedgerHead",
    "canonical_body",
    "check_columns",
    "entry_hash",
    "entry_of_row",
    "genesis",
    "key_fingerprint",
    "parse_body",
    "require_p256",
    "sign_hash",
    "valid_kind",
    "verify_signature",
]

Json: TypeAlias = bool | int | float | str | Sequence["Json"] | Mapping[str, "Json"] | None

KINDS: Final = frozenset(
    {
        "admission",
        "challenge",
        "checkpoint",
        "commitment",
        "enrollment",
        "exclusion",
        "expiry",
        "export",
        "files",
        "job",
        "key-release",
        "model",
        "operator",
        "policy",
        "privacy",
        "quarantine",
        "refusal",
        "renewal",
        "revocation",
        "round",
        "site",
        "state",
        "update",
    }
)
MAX_BODY_BYTES: Final = 256 * 1024
MAX_SEQUENCE: Final = 2**63 - 1
HASH_BYTES: Final = 32
KIND_BYTES: Final = 32
_MAX_DEPTH: Final = 16
_DOMAIN: Final = b"fedlearn-ledger/1\0"
_HEAD_FORMAT: Final = "fedlearn-ledger-head/1"
_MAX_HEAD_BYTES: Final = 4096
_KIND: Final = re.compile(r"[a-z][a-z-]{0,31}", re.ASCII)
_SHORT_HEAD: Final = re.compile(r"([0-9]{1,19}):([0-9a-f]{64})", re.ASCII)


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One entry of the ledger.

    ``sequence`` counts from 1 without a gap; ``time`` is in Unix milliseconds, by the clock
    of the coordinator; ``body`` is the JSON object.
    """

    sequence: int
    time: int
    kind: str
    body: Mapping[str, Json]
    previous: bytes
    hash: bytes
    signature: bytes

    def to_json(self) -> dict[str, Json]:
        """Return the entry JSON-ready, binary fields in hexadecimal."""
        return {
            "sequence": self.sequence,
            "time": self.time,
            "kind": self.kind,
            "body": self.body,
            "previous": self.previous.hex(),
            "hash": self.hash.hex(),
            "signature": self.signature.hex(),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class LedgerHead:
    """The end of a ledger at some moment. A copy kept elsewhere shows when entries were cut off.

    The hash covers every entry up to ``sequence``, and the signature is the coordinator's
    own over that hash. ``signature`` is empty for a head that a person wrote down in the
    short form ``sequence:hash``.
    """

    sequence: int
    hash: bytes
    signature: bytes = b""
    time: int = 0

    def __post_init__(self) -> None:
        if not 1 <= self.sequence <= MAX_SEQUENCE or len(self.hash) != HASH_BYTES:
            raise LedgerError("a ledger head needs a sequence from 1 and a hash of 32 bytes")

    @classmethod
    def of(cls, entry: Entry) -> LedgerHead:
        """Return the head of a ledger that ends with this entry."""
        return cls(
            sequence=entry.sequence, hash=entry.hash, signature=entry.signature, time=entry.time
        )

    def __str__(self) -> str:
        return f"{self.sequence}:{self.hash.hex()}"

    def to_bytes(self) -> bytes:
        """Return the head as a small JSON file."""
        fields = {
            "format": _HEAD_FORMAT,
            "sequence": self.sequence,
            "time": self.time,
            "hash": self.hash.hex(),
            "signature": self.signature.hex(),
        }
        return (json.dumps(fields, indent=2) + "\n").encode()

    @classmethod
    def parse(cls, data: bytes) -> LedgerHead:
        """Read a head file, or the short form ``sequence:hash``.

        Raises :class:`fedlearn.errors.LedgerError` when it is neither.
        """
        if len(data) > _MAX_HEAD_BYTES:
            raise LedgerError(f"a ledger head has at most {_MAX_HEAD_BYTES} bytes")
        hint = "write one with: fedlearn ledger head --state DIR --out FILE"
        try:
            text = data.decode("ascii").strip()
            if short := _SHORT_HEAD.fullmatch(text):
                return cls(sequence=int(short[1]), hash=bytes.fromhex(short[2]))
            fields = json.loads(text)
            if not isinstance(fields, dict) or fields.get("format") != _HEAD_FORMAT:
                raise LedgerError(f'not a ledger head: "format" is not "{_HEAD_FORMAT}"', hint=hint)
            sequence, time = fields["sequence"], fields["time"]
            if type(sequence) is not int or type(time) is not int:
                raise LedgerError(
                    "not a ledger head: sequence and time must be whole numbers", hint=hint
                )
            return cls(
                sequence=sequence,
                time=time,
                hash=bytes.fromhex(fields["hash"]),
                signature=bytes.fromhex(fields["signature"]),
            )
        except (UnicodeDecodeError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise LedgerError(f"not a ledger head: {error}", hint=hint) from None


def entry_of_row(row: tuple[object, ...], *, expected: int) -> Entry:
    """Turn a row into an entry, checking the type and size of every column.

    Raises :class:`fedlearn.errors.LedgerError` naming the entry; ``expected`` names it where
    the row does not contain its own sequence.
    """
    check_columns(row, expected=expected)
    sequence, time, kind, body, previous, digest, signature = cast(
        "tuple[int, int, str, bytes, bytes, bytes, bytes]", row
    )
    try:
        parsed = parse_body(body)
    except LedgerError as error:
        raise LedgerError(f"entry {sequence}: {error}", entry=sequence) from None
    return Entry(
        sequence=sequence,
        time=time,
        kind=kind,
        body=parsed,
        previous=previous,
        hash=digest,
        signature=signature,
    )


def check_columns(row: tuple[object, ...], *, expected: int) -> None:
    """Check the type and size of every column of a row; the body is not read.

    Raises :class:`fedlearn.errors.LedgerError` as :func:`entry_of_row`.
    """
    sequence, time, kind, body, previous, digest, signature = row
    if type(sequence) is not int or not 1 <= sequence <= MAX_SEQUENCE:
        raise LedgerError(f"entry {expected}: its sequence is {sequence!r}", entry=expected)

    def damaged(what: str) -> LedgerError:
        return LedgerError(f"entry {sequence}: {what}", entry=sequence)

    if type(time) is not int or not 0 <= time <= MAX_SEQUENCE:
        raise damaged("its time is not a number of milliseconds")
    if not isinstance(kind, str) or not valid_kind(kind):
        raise damaged(f"its kind is not a short lower-case name of up to {KIND_BYTES} letters")
    if not isinstance(body, bytes) or len(body) > MAX_BODY_BYTES:
        raise damaged(f"its body is not a blob of up to {MAX_BODY_BYTES} bytes")
    if not isinstance(previous, bytes) or len(previous) != HASH_BYTES:
        raise damaged("its previous hash does not have 32 bytes")
    if not isinstance(digest, bytes) or len(digest) != HASH_BYTES:
        raise damaged("its hash does not have 32 bytes")
    if not isinstance(signature, bytes) or len(signature) != SIGNATURE_BYTES:
        raise damaged("its signature does not have 64 bytes")


def valid_kind(kind: object) -> bool:
    """Return whether this can be the kind of an entry, known to this version or not."""
    return isinstance(kind, str) and _KIND.fullmatch(kind) is not None


def canonical_body(body: Mapping[str, Json]) -> bytes:
    """Return the canonical JSON of a body.

    Raises :class:`fedlearn.errors.LedgerError` naming the path of a value that JSON cannot
    hold faithfully (NaN, bytes, integers beyond 64 bits, keys that are not strings), or when
    the body exceeds 256 KiB.
    """
    plain = body if _is_plain(body, 0) else _plain(body, "body", 0)
    try:
        text = json.dumps(
            plain, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
        )
        data = text.encode("utf-8")
    except (UnicodeEncodeError, ValueError) as error:
        raise LedgerError(f"the body of an entry is not JSON: {error}") from None
    if len(data) > MAX_BODY_BYTES:
        raise LedgerError(
            f"the body of an entry has {len(data)} bytes; at most {MAX_BODY_BYTES} are kept",
            hint="put the digest of a large object into the ledger, not the object",
        )
    return data


def _is_plain(value: object, depth: int) -> bool:
    """Return whether :func:`_plain` would change and refuse nothing, which it takes longer to see.

    Values of derived types are left to it.
    """
    kind = type(value)
    if kind is str or kind is bool or value is None:
        return True
    if depth > _MAX_DEPTH:
        return False
    if type(value) is dict:
        for key, item in value.items():
            if type(key) is not str or not _is_plain(item, depth + 1):
                return False
        return True
    if type(value) is list or type(value) is tuple:
        return all(_is_plain(item, depth + 1) for item in value)
    if type(value) is int:
        return -(2**63) <= value < 2**63
    return type(value) is float and math.isfinite(value)


def _plain(value: object, path: str, depth: int) -> object:
    if depth > _MAX_DEPTH:
        raise LedgerError(f"{path}: nested deeper than {_MAX_DEPTH}")
    match value:
        case None | bool() | str():
            return value
        case int():
            if not -(2**63) <= value < 2**63:
                raise LedgerError(f"{path}: an integer beyond 64 bits")
            return value
        case float():
            if not math.isfinite(value):
                raise LedgerError(f"{path}: {value} is not a JSON number")
            return value
        case Mapping():
            for key in value:
                if not isinstance(key, str):
                    raise LedgerError(f"{path}: the key {key!r} is not a string")
            return {key: _plain(item, f"{path}.{key}", depth + 1) for key, item in value.items()}
        case list() | tuple():
            return [_plain(item, f"{path}[{i}]", depth + 1) for i, item in enumerate(value)]
        case _:
            kind = type(value).__name__
            raise LedgerError(
                f"{path}: a {kind} is not JSON", hint="bytes must be written as .hex()"
            )


def parse_body(data: bytes) -> dict[str, Json]:
    """Read a body that must be canonical JSON; raises LedgerError with the reason."""
    if len(data) > MAX_BODY_BYTES:
        raise LedgerError(f"the body has {len(data)} bytes, more than {MAX_BODY_BYTES}")
    try:
        body = json.loads(data.decode("utf-8"))
    except (UnicodeDecodeError, ValueError, RecursionError) as error:
        raise LedgerError(f"the body is not JSON: {error}") from None
    if not isinstance(body, dict):
        raise LedgerError("the body is not a JSON object")
    if canonical_body(body) != data:
        raise LedgerError("the body is not in the canonical form")
    return body


def genesis(public_key: ec.EllipticCurvePublicKey) -> bytes:
    """Return what entry 1 has as its previous hash: it names the key of the ledger."""
    return hashlib.sha256(_DOMAIN + pack(b"genesis", _spki(public_key))).digest()


def entry_hash(*, sequence: int, time: int, kind: str, body: bytes, previous: bytes) -> bytes:
    """Return the hash of an entry; ``body`` are its canonical bytes."""
    fields = (struct.pack(">Q", sequence), struct.pack(">Q", time), kind.encode(), body, previous)
    return hashlib.sha256(_DOMAIN + pack(*fields)).digest()


def require_p256(key: object) -> ec.EllipticCurvePublicKey:
    """Return the key if it is an ECDSA P-256 public key; raises LedgerError otherwise."""
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise LedgerError("the key of a ledger is an ECDSA key on P-256")
    return key


def key_fingerprint(public_key: ec.EllipticCurvePublicKey) -> str:
    """Return the SHA-256 of the key's DER SubjectPublicKeyInfo in hexadecimal."""
    return hashlib.sha256(_spki(public_key)).hexdigest()


def _spki(public_key: ec.EllipticCurvePublicKey) -> bytes:
    return public_key.public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )


def sign_hash(signer: ec.EllipticCurvePrivateKey, digest: bytes) -> bytes:
    """Return the 64-byte low-s signature over an entry's hash."""
    return ecdsa.sign(signer, digest, digested=True)


def verify_signature(
    public_key: ec.EllipticCurvePublicKey, digest: bytes, signature: bytes
) -> None:
    """Check a signature over an entry's hash.

    :raises LedgerError: with the reason why it fails.
    """
    try:
        ecdsa.verify(public_key, signature, digest, digested=True)
    except ValueError as error:
        raise LedgerError(f"the signature is malformed: {error}") from error
    except InvalidSignature:
        raise LedgerError("the signature does not verify under the key of the ledger") from None
