"""Structures of TPM 2.0 (Library specification, Part 2), parsed with bounds.

``TPMS_ATTEST`` of a quote (10.12.8), ``TPML_PCR_SELECTION`` (10.9.7), ``TPMT_SIGNATURE``
(11.3.4) and ``TPMT_PUBLIC`` (12.2.4). Every parser takes the whole structure and nothing
behind it, keeps the bytes that it read in ``raw``, and raises
:class:`~attestation.errors.EvidenceError` with field and offset for anything else. Inputs
longer than the largest legal structure are refused before they are read.
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

__all__ = [
    "DIGEST_SIZES",
    "HASH_NAMES",
    "MAX_ATTEST_BYTES",
    "MAX_PUBLIC_BYTES",
    "MAX_SIGNATURE_BYTES",
    "PUBLIC_KEY_TYPES",
    "ObjectAttribute",
    "PcrSelection",
    "PublicArea",
    "PublicKey",
    "QuoteStatement",
    "TpmSignature",
    "load_public_key",
    "qualify",
    "spki",
]

MAX_ATTEST_BYTES: Final = 1024
MAX_SIGNATURE_BYTES: Final = 1024
MAX_PUBLIC_BYTES: Final = 1024

HASH_NAMES: Final[dict[int, str]] = {
    0x0004: "sha1",
    0x000B: "sha256",
    0x000C: "sha384",
    0x000D: "sha512",
}
"""``TPM_ALG_ID`` of the hashes that are understood (Part 2, 6.3), as ``hashlib`` names."""

DIGEST_SIZES: Final = {name: hashlib.new(name).digest_size for name in HASH_NAMES.values()}
"""Bytes of a digest, by ``hashlib`` name."""

_HASH_IDS: Final = {name: number for number, name in HASH_NAMES.items()}
_CLOCK: Final = struct.Struct(">QIIBQ")
_USUAL_ATTEST: Final = struct.Struct(">IHH34sH32sQIIBQIHB3sH32s")
"""A quote over one bank, with SHA-256 throughout: what nearly every TPM sends."""

_USUAL_ECDSA: Final = struct.Struct(">HHH32sH32s")

PublicKey = ec.EllipticCurvePublicKey | rsa.RSAPublicKey
PUBLIC_KEY_TYPES: Final = (ec.EllipticCurvePublicKey, rsa.RSAPublicKey)

_GENERATED: Final = 0xFF544347
_ST_ATTEST_QUOTE: Final = 0x8018
_ALG_RSA: Final = 0x0001
_ALG_NULL: Final = 0x0010
_ALG_RSASSA: Final = 0x0014
_ALG_RSAES: Final = 0x0015
_ALG_RSAPSS: Final = 0x0016
_ALG_ECDSA: Final = 0x0018
_ALG_ECDAA: Final = 0x001A
_ALG_ECC: Final = 0x0023
_SCHEMES: Final = {_ALG_RSASSA: "rsassa", _ALG_RSAPSS: "rsapss", _ALG_ECDSA: "ecdsa"}
_CURVES: Final[dict[int, type[ec.EllipticCurve]]] = {
    0x0003: ec.SECP256R1,
    0x0004: ec.SECP384R1,
    0x0005: ec.SECP521R1,
}
_MAX_DIGEST: Final = 64
_MAX_BANKS: Final = 16
_MAX_SELECT: Final = 4
_MAX_RSA_BYTES: Final = 512
_MIN_RSA_BITS: Final = 2048
_MAX_RSA_BITS: Final = 4096
_DEFAULT_EXPONENT: Final = 65537


@dataclass(frozen=True, slots=True, kw_only=True)
class PcrSelection:
    """The PCRs of one bank: a ``hashlib`` name and ascending numbers."""

    bank: str
    pcrs: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class QuoteStatement:
    """A ``TPMS_ATTEST`` of type quote.

    ``signer``          qualified name of the attestation key: u16 hash id, then the digest
    ``extra_data``      what the relying party asked to be included
    ``clock``           milliseconds for which this TPM has been powered
    ``reset_count``     how often it was reset; ``restart_count`` how often resumed since
    ``safe``            no higher ``clock`` was ever reported before a sudden power loss
    ``firmware``        firmware version, 64 bits whose meaning is the vendor's
    ``selection``       the quoted PCRs, in the order in which they were hashed
    ``pcr_digest``      hash of their concatenated values, by the signature's hash
    """

    raw: bytes
    signer: bytes
    extra_data: bytes
    clock: int
    reset_count: int
    restart_count: int
    safe: bool
    firmware: int
    selection: tuple[PcrSelection, ...]
    pcr_digest: bytes

    @classmethod
    def parse(cls, data: bytes) -> QuoteStatement:
        """Parse one structure of at most 1024 bytes.

        :raises EvidenceError: naming field and offset.
        """
        return _usual_attest(data) or cls._walk(data)

    @classmethod
    def _walk(cls, data: bytes) -> QuoteStatement:
        """Parse field by field, which says what is wrong and where."""
        read = Cursor(data, "attest", limit=MAX_ATTEST_BYTES)
        if read.integer(4, "magic") != _GENERATED:
            raise read.fail("not a structure that a TPM generated", "magic", offset=0)
        kind = read.integer(2, "type")
        if kind != _ST_ATTEST_QUOTE:
            raise read.fail(f"{kind:#06x} is not a quote (0x8018)", "type", offset=4)
        signer = read.sized("qualifiedSigner", limit=_MAX_DIGEST + 2)
        extra = read.sized("extraData", limit=_MAX_DIGEST + 2)
        at = read.offset
        clock, reset, restart, safe, firmware = read.unpack(_CLOCK, "clockInfo")
        if safe > 1:
            raise read.fail(f"must be 0 or 1, not {safe}", "clockInfo.safe", offset=at + 16)
        selection = _selection(read)
        digest = read.sized("pcrDigest", limit=_MAX_DIGEST)
        read.finish()
        return cls(
            raw=data,
            signer=signer,
            extra_data=extra,
            clock=clock,
            reset_count=reset,
            restart_count=restart,
            safe=bool(safe),
            firmware=firmware,
            selection=selection,
            pcr_digest=digest,
        )

    @property
    def pcr_bytes(self) -> int:
        """The length of the quoted PCR values, concatenated."""
        return sum(len(s.pcrs) * DIGEST_SIZES[s.bank] for s in self.selection)


def _usual_attest(data: bytes) -> QuoteStatement | None:
    """Read the usual layout at once; ``None`` for every other, right or wrong."""
    if len(data) != _USUAL_ATTEST.size:
        return None
    magic, kind, n_signer, signer, n_extra, extra, *clock, banks, bank, n_bits, bits, n, digest = (
        _USUAL_ATTEST.unpack(data)
    )
    lengths = (n_signer, n_extra, banks, n_bits, n)
    if (magic, kind, lengths) != (_GENERATED, _ST_ATTEST_QUOTE, (34, 32, 1, 3, 32)):
        return None
    if bank not in HASH_NAMES or clock[3] > 1:
        return None
    return QuoteStatement(
        raw=data,
        signer=signer,
        extra_data=extra,
        clock=clock[0],
        reset_count=clock[1],
        restart_count=clock[2],
        safe=bool(clock[3]),
        firmware=clock[4],
        selection=_one_bank(bank, bits),
        pcr_digest=digest,
    )


@functools.lru_cache(maxsize=64)
def _one_bank(bank: int, bits: bytes) -> tuple[PcrSelection, ...]:
    return (PcrSelection(bank=HASH_NAMES[bank], pcrs=_numbers(bits)),)


def _selection(read: Cursor) -> tuple[PcrSelection, ...]:
    start = read.offset
    count = read.integer(4, "pcrSelect.count")
    if count > _MAX_BANKS:
        raise read.fail(
            f"{count} banks, at most {_MAX_BANKS} are read", "pcrSelect.count", offset=start
        )
    found: list[PcrSelection] = []
    for number in range(count):
        field = f"pcrSelect[{number}]"
        at = read.offset
        bank = HASH_NAMES.get(read.integer(2, f"{field}.hash"))
        if bank is None:
            raise read.fail("unknown hash algorithm", f"{field}.hash", offset=at)
        if any(bank == other.bank for other in found):
            raise read.fail(f"{bank} is selected twice", f"{field}.hash", offset=at)
        bits = read.sized(field, limit=_MAX_SELECT, prefix=1)
        found.append(PcrSelection(bank=bank, pcrs=_numbers(bits)))
    return tuple(found)


@functools.lru_cache(maxsize=64)
def _numbers(bits: bytes) -> tuple[int, ...]:
    return tuple(
        8 * byte + bit for byte, value in enumerate(bits) for bit in range(8) if value >> bit & 1
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class TpmSignature:
    """A ``TPMT_SIGNATURE``: ``scheme`` is ``ecdsa``, ``rsassa`` or ``rsapss``.

    ``hash`` is a ``hashlib`` name. ``value`` is the RSA signature, or r and s of ECDSA in
    ``numbers``.
    """

    raw: bytes
    scheme: str
    hash: str
    value: bytes = b""
    numbers: tuple[int, int] = (0, 0)

    @classmethod
    def parse(cls, data: bytes) -> TpmSignature:
        """Parse one structure of at most 1024 bytes.

        :raises EvidenceError: naming field and offset.
        """
        return _usual_ecdsa(data) or cls._walk(data)

    @classmethod
    def _walk(cls, data: bytes) -> TpmSignature:
        """Parse field by field, which says what is wrong and where."""
        read = Cursor(data, "signature", limit=MAX_SIGNATURE_BYTES)
        scheme = _SCHEMES.get(read.integer(2, "sigAlg"))
        if scheme is None:
            raise read.fail("not ECDSA, RSASSA or RSAPSS", "sigAlg", offset=0)
        name = HASH_NAMES.get(read.integer(2, "hash"))
        if name is None:
            raise read.fail("unknown hash algorithm", "hash", offset=2)
        if scheme == "ecdsa":
            numbers = (
                int.from_bytes(read.sized("signatureR", limit=66), "big"),
                int.from_bytes(read.sized("signatureS", limit=66), "big"),
            )
            read.finish()
            return cls(raw=data, scheme=scheme, hash=name, numbers=numbers)
        value = read.sized("sig", limit=_MAX_RSA_BYTES)
        read.finish()
        return cls(raw=data, scheme=scheme, hash=name, value=value)


def _usual_ecdsa(data: bytes) -> TpmSignature | None:
    """Read an ECDSA signature of P-256 at once; ``None`` for every other, right or wrong."""
    if len(data) != _USUAL_ECDSA.size:
        return None
    scheme, algorithm, n_r, r, n_s, s = _USUAL_ECDSA.unpack(data)
    if scheme != _ALG_ECDSA or n_r != 32 or n_s != 32 or algorithm not in HASH_NAMES:
        return None
    return TpmSignature(
        raw=data,
        scheme="ecdsa",
        hash=HASH_NAMES[algorithm],
        numbers=(int.from_bytes(r, "big"), int.from_bytes(s, "big")),
    )


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
        """Parse a ``TPM2B_PUBLIC``: the same behind a u16 length, as tools write it."""
        read = Cursor(data, "public", limit=MAX_PUBLIC_BYTES + 2)
        inner = read.sized("size", limit=MAX_PUBLIC_BYTES)
        read.finish()
        return cls.parse(inner)


@functools.lru_cache(maxsize=256)
def _public_area(data: bytes) -> PublicArea:
    """Parse a key that was not among the last 256: one site sends one key, again and again."""
    read = Cursor(data, "public", limit=MAX_PUBLIC_BYTES)
    kind = read.integer(2, "type")
    if kind not in (_ALG_RSA, _ALG_ECC):
        raise read.fail("not an RSA or ECC key", "type", offset=0)
    name_hash = HASH_NAMES.get(read.integer(2, "nameAlg"))
    if name_hash is None:
        raise read.fail("unknown hash algorithm", "nameAlg", offset=2)
    attributes = ObjectAttribute(read.integer(4, "objectAttributes"))
    policy = read.sized("authPolicy", limit=_MAX_DIGEST)
    symmetric = (read.integer(2, "symmetric"), 0, 0)
    if symmetric[0] != _ALG_NULL:
        symmetric = (
            symmetric[0],
            read.integer(2, "symmetric.keyBits"),
            read.integer(2, "symmetric.mode"),
        )
    scheme, scheme_hash = _scheme(read)
    key = _rsa_key(read) if kind == _ALG_RSA else _ecc_key(read)
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
    if scheme in (_ALG_NULL, _ALG_RSAES):
        return "", ""
    known = {**_SCHEMES, 0x0017: "oaep", 0x0019: "ecdh", 0x001B: "sm2", 0x001C: "ecschnorr"}
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
    modulus = int.from_bytes(read.sized("unique", limit=_MAX_RSA_BYTES), "big")
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
    if read.integer(2, "kdf") != _ALG_NULL:
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
    return struct.pack(">H", _HASH_IDS[hash_name]) + hashlib.new(hash_name, data).digest()


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
