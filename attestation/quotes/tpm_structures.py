"""The signed statements and signatures of TPM 2.0 (Library specification, Part 2), with bounds.

``TPMS_ATTEST`` of a quote (10.12.8), ``TPML_PCR_SELECTION`` (10.9.7) and ``TPMT_SIGNATURE``
(11.3.4); keys are in :mod:`attestation.quotes.tpm_keys`. Every parser takes the whole structure
and nothing after it, keeps the bytes in ``raw``, and raises
:class:`~attestation.errors.EvidenceError` with field and offset for anything else. Inputs
longer than the largest legal structure are refused before they are read.

The page is docs/adr/0028-tpm-structures.md.
"""

from __future__ import annotations

import functools
import struct
from dataclasses import dataclass
from typing import Final

from attestation.quotes.cursor import Cursor
from attestation.quotes.tpm_algorithms import (
    ALG_ECDSA,
    DIGEST_SIZES,
    HASH_NAMES,
    MAX_DIGEST_BYTES,
    MAX_RSA_BYTES,
    SIGNATURE_SCHEMES,
)

__all__ = [
    "MAX_ATTEST_BYTES",
    "MAX_SIGNATURE_BYTES",
    "PcrSelection",
    "QuoteStatement",
    "TpmSignature",
]

MAX_ATTEST_BYTES: Final = 1024
MAX_SIGNATURE_BYTES: Final = 1024

_CLOCK: Final = struct.Struct(">QIIBQ")
_USUAL_ATTEST: Final = struct.Struct(">IHH34sH32sQIIBQIHB3sH32s")
"""A quote over one bank, with SHA-256 throughout, as nearly every TPM sends it."""

_USUAL_ECDSA: Final = struct.Struct(">HHH32sH32s")
_GENERATED: Final = 0xFF544347
_ST_ATTEST_QUOTE: Final = 0x8018
_MAX_BANKS: Final = 16
_MAX_SELECT: Final = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class PcrSelection:
    """The PCRs of one bank: a ``hashlib`` name and ascending numbers."""

    bank: str
    pcrs: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class QuoteStatement:
    """A ``TPMS_ATTEST`` of type quote.

    ``signer``          qualified name of the attestation key: u16 hash id, then the digest
    ``extra_data``      the data that the relying party requested to be included
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
        """Parse field by field, so that an error names the field and the offset."""
        read = Cursor(data, "attest", limit=MAX_ATTEST_BYTES)
        if read.integer(4, "magic") != _GENERATED:
            raise read.fail("not a structure that a TPM generated", "magic", offset=0)
        kind = read.integer(2, "type")
        if kind != _ST_ATTEST_QUOTE:
            raise read.fail(f"{kind:#06x} is not a quote (0x8018)", "type", offset=4)
        signer = read.sized("qualifiedSigner", limit=MAX_DIGEST_BYTES + 2)
        extra = read.sized("extraData", limit=MAX_DIGEST_BYTES + 2)
        at = read.offset
        clock, reset, restart, safe, firmware = read.unpack(_CLOCK, "clockInfo")
        if safe > 1:
            raise read.fail(f"must be 0 or 1, not {safe}", "clockInfo.safe", offset=at + 16)
        selection = _selection(read)
        digest = read.sized("pcrDigest", limit=MAX_DIGEST_BYTES)
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
        """Parse field by field, so that an error names the field and the offset."""
        read = Cursor(data, "signature", limit=MAX_SIGNATURE_BYTES)
        scheme = SIGNATURE_SCHEMES.get(read.integer(2, "sigAlg"))
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
        value = read.sized("sig", limit=MAX_RSA_BYTES)
        read.finish()
        return cls(raw=data, scheme=scheme, hash=name, value=value)


def _usual_ecdsa(data: bytes) -> TpmSignature | None:
    """Read an ECDSA signature of P-256 at once; ``None`` for every other, right or wrong."""
    if len(data) != _USUAL_ECDSA.size:
        return None
    scheme, algorithm, n_r, r, n_s, s = _USUAL_ECDSA.unpack(data)
    if scheme != ALG_ECDSA or n_r != 32 or n_s != 32 or algorithm not in HASH_NAMES:
        return None
    return TpmSignature(
        raw=data,
        scheme="ecdsa",
        hash=HASH_NAMES[algorithm],
        numbers=(int.from_bytes(r, "big"), int.from_bytes(s, "big")),
    )
