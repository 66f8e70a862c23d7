"""Public keys of TPM 2.0: ``TPMT_PUBLIC`` (Part 2, 12.2.4), Names, and keys in PEM or DER.

The parser takes the whole structure and nothing after it, keeps the bytes in ``raw``, and raises
:class:`~attestation.errors.EvidenceError` with field and offset for anything else. Inputs longer
than the largest legal structure are refused before they are read.
"""

from __future__ import annotations

import enum
import functools
import hashlib
import struct
from dataclasses import dataclass, field
from typing import Final

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from attestation.errors import EvidenceError
from attestation.quotes.cursor import Cursor
from attestation.quotes.tpm_algorithms import (
    ALG_ECC,
    ALG_NULL,
    ALG_RSA,
    ALG_RSAES,
    HASH_IDS,
    HASH_NAMES,
    MAX_DIGEST_BYTES,
    MAX_RSA_BYTES,
    SIGNATURE_SCHEMES,
)

__all__ = [
    "MAX_PUBLIC_BYTES",
    "PUBLIC_KEY_TYPES",
    "ObjectAttribute",
    "PublicArea",
    "PublicKey",
    "load_public_key",
    "qualify",
    "spki",
]

MAX_PUBLIC_BYTES: Final = 1024
PublicKey = ec.EllipticCurvePublicKey | rsa.RSAPublicKey
PUBLIC_KEY_TYPES: Final = (ec.EllipticCurvePublicKey, rsa.RSAPublicKey)

_CURVES: Final[dict[int, type[ec.EllipticCurve]]] = {
    0x0003: ec.SECP256R1,
    0x0004: ec.SECP384R1,
    0x0005: ec.SECP521R1,
}
_MIN_RSA_BITS: Final = 2048
_MAX_RSA_BITS: Final = 4096
_DEFAULT_EXPONENT: Final = 65537


class ObjectAttribute(enum.IntFlag):
    """``TPMA_OBJECT`` (Part 2, 8.3)."""

    FIXED_TPM = 1 << 1
    ST_CLEAR = 1 << 2
    FIXED_PARENT = 1 << 4
    SENSITIVE_DATA_ORIGIN = 1 << 5
    USER_WITH_AUTH = 1 << 6
    ADMIN_WITH_POLICY = 1 << 7
    NO_DA = 1 << 10
    ENCRYPTED_DUPLICATION = 1 << 11
    RESTRICTED = 1 << 16
    DECRYPT = 1 << 17
    SIGN = 1 << 18
    X509_SIGN = 1 << 19


@dataclass(frozen=True, slots=True, kw_only=True)
class PublicArea:
    """A ``TPMT_PUBLIC`` of an RSA or ECC key.

    ``symmetric`` is the algorithm, key bits and mode that protect children of a storage
    key, or ``(ALG_NULL, 0, 0)``. ``scheme`` is empty where the key leaves it open. ``name``
    is the object's Name: u16 hash id, then the hash of ``raw`` (Part 1, section 16).
    ``spki`` is the key as DER SubjectPublicKeyInfo, and ``digest`` its SHA-256.
    """

    raw: bytes
    name_hash: str
    attributes: ObjectAttribute
    auth_policy: bytes
    symmetric: tuple[int, int, int]
    scheme: str
    scheme_hash: str
    key: PublicKey

    name: bytes = field(init=False, repr=False)
    spki: bytes = field(init=False, repr=False)
    digest: bytes = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "name", qualify(self.name_hash, self.raw))
        object.__setattr__(self, "spki", spki(self.key))
        object.__setattr__(self, "digest", hashlib.sha256(self.spki).digest())

    @classmethod
    def parse(cls, data: bytes) -> PublicArea:
        """Parse one ``TPMT_PUBLIC`` of at most 1024 bytes.

        :raises EvidenceError: naming field and offset; also for RSA keys below 2048 bits,
            and for points that are not on their curve.
        """
        if len(data) > MAX_PUBLIC_BYTES:
            raise EvidenceError(
                f"{len(data)} bytes, at most {MAX_PUBLIC_BYTES} are read", field="public"
            )
        return _public_area(data)

    @classmethod
    def parse_sized(cls, data: bytes) -> PublicArea:
        """Parse a ``TPM2B_PUBLIC``: the same after a u16 length, as tools write it."""
        read = Cursor(data, "public", limit=MAX_PUBLIC_BYTES + 2)
        inner = read.sized("size", limit=MAX_PUBLIC_BYTES)
        read.finish()
        return cls.parse(inner)


@functools.lru_cache(maxsize=256)
def _public_area(data: bytes) -> PublicArea:
    """Parse a key. The last 256 are cached, because a site sends the same key each time."""
    read = Cursor(data, "public", limit=MAX_PUBLIC_BYTES)
    kind = read.integer(2, "type")
    if kind not in (ALG_RSA, ALG_ECC):
        raise read.fail("not an RSA or ECC key", "type", offset=0)
    name_hash = HASH_NAMES.get(read.integer(2, "nameAlg"))
    if name_hash is None:
        raise read.fail("unknown hash algorithm", "nameAlg", offset=2)
    attributes = ObjectAttribute(read.integer(4, "objectAttributes"))
    policy = read.sized("authPolicy", limit=MAX_DIGEST_BYTES)
    symmetric = (read.integer(2, "symmetric"), 0, 0)
    if symmetric[0] != ALG_NULL:
        symmetric = (
            symmetric[0],
            read.integer(2, "symmetric.keyBits"),
            read.integer(2, "symmetric.mode"),
        )
    scheme, scheme_hash = _scheme(read)
    key = _rsa_key(read) if kind == ALG_RSA else _ecc_key(read)
    read.finish()
    return PublicArea(
        raw=data,
        name_hash=name_hash,
        attributes=attributes,
        auth_policy=policy,
        symmetric=symmetric,
        scheme=scheme,
        scheme_hash=scheme_hash,
        key=key,
    )


def _scheme(read: Cursor) -> tuple[str, str]:
    at = read.offset
    scheme = read.integer(2, "scheme")
    if scheme in (ALG_NULL, ALG_RSAES):
        return "", ""
    known = {
        **SIGNATURE_SCHEMES,
        0x0017: "oaep",
        0x0019: "ecdh",
        0x001B: "sm2",
        0x001C: "ecschnorr",
    }
    name = known.get(scheme)
    if name is None:
        raise read.fail(f"{scheme:#06x} is not supported", "scheme", offset=at)
    at = read.offset
    hash_name = HASH_NAMES.get(read.integer(2, "scheme.hash"))
    if hash_name is None:
        raise read.fail("unknown hash algorithm", "scheme.hash", offset=at)
    return name, hash_name


def _rsa_key(read: Cursor) -> rsa.RSAPublicKey:
    at = read.offset
    bits = read.integer(2, "keyBits")
    if not _MIN_RSA_BITS <= bits <= _MAX_RSA_BITS or bits % 8:
        raise read.fail(f"{bits} bits, 2048 to 4096 are accepted", "keyBits", offset=at)
    exponent = read.integer(4, "exponent") or _DEFAULT_EXPONENT
    at = read.offset
    modulus = int.from_bytes(read.sized("unique", limit=MAX_RSA_BYTES), "big")
    if modulus.bit_length() != bits:
        raise read.fail(f"a modulus of {modulus.bit_length()} bits", "unique", offset=at)
    try:
        return rsa.RSAPublicNumbers(exponent, modulus).public_key()
    except ValueError:
        raise read.fail("not an RSA public key", "unique", offset=at) from None


def _ecc_key(read: Cursor) -> ec.EllipticCurvePublicKey:
    at = read.offset
    curve = _CURVES.get(read.integer(2, "curveID"))
    if curve is None:
        raise read.fail("not NIST P-256, P-384 or P-521", "curveID", offset=at)
    if read.integer(2, "kdf") != ALG_NULL:
        read.integer(2, "kdf.hash")
    at = read.offset
    size = (curve().key_size + 7) // 8
    x = int.from_bytes(read.sized("unique.x", limit=size), "big")
    y = int.from_bytes(read.sized("unique.y", limit=size), "big")
    try:
        return ec.EllipticCurvePublicNumbers(x, y, curve()).public_key()
    except ValueError:
        raise read.fail(f"not a point on {curve.name}", "unique", offset=at) from None


def qualify(hash_name: str, data: bytes) -> bytes:
    """Return u16 id of the hash, then the hash of ``data``: a Name or a qualified name."""
    return struct.pack(">H", HASH_IDS[hash_name]) + hashlib.new(hash_name, data).digest()


def spki(key: PublicKey) -> bytes:
    """Return ``key`` as DER SubjectPublicKeyInfo."""
    return key.public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )


def load_public_key(data: bytes, field: str) -> PublicKey:
    """Load an RSA or EC public key from PEM or DER SubjectPublicKeyInfo.

    :raises EvidenceError: when it is neither, another kind of key, or a weak RSA key.
    """
    if len(data) > 4 * MAX_PUBLIC_BYTES:
        raise EvidenceError("too long for a public key", field=field)
    try:
        if data.lstrip().startswith(b"-----BEGIN"):
            key = serialization.load_pem_public_key(data)
        else:
            key = serialization.load_der_public_key(data)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise EvidenceError("not a public key in PEM or DER", field=field) from error
    if not isinstance(key, PUBLIC_KEY_TYPES):
        raise EvidenceError("not an RSA or EC key", field=field)
    if isinstance(key, rsa.RSAPublicKey) and not _MIN_RSA_BITS <= key.key_size <= _MAX_RSA_BITS:
        raise EvidenceError(f"an RSA key of {key.key_size} bits", field=field)
    return key
