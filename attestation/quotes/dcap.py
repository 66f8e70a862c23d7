"""A DCAP quote around an SGX or TDX report: header, body, signature data, PCK chain.

Layout: Intel SGX ECDSA Quote Library Reference, appendix A (version 3), and Intel TDX DCAP
Quoting Library API, appendix A.3 (versions 4 and 5)::

    header 48 | [v5: u16 body type | u32 body size] | body | u32 size | signature data | zeros
    signature data    signature 64 | attestation key 64 | [v4, v5: u16 6 | u32 size]
                      QE report 384 | its signature 64 | u16 size | authentication data
                      u16 type | u32 size | certification data

The parser is strict: sizes must add up to the last byte, the certificate chain must be PEM and
nothing else, and only zeros (the rest of a driver's buffer) may follow. So a change of any byte of
a quote is detected here or by a signature.

Other verifiers (Intel's library, ``go-tdx-guest``, ``dcap-qvl``) ignore bytes that follow. This
parser refuses them, because the ledger would otherwise contain unsigned bytes beside verified ones,
and one quote would have many digests. Linux's ``configfs-tsm`` returns exactly the quote, and the
known drivers that return a whole buffer fill it with zeros. The error states where the quote ends,
so that a person can cut the file there.
"""

from __future__ import annotations

import base64
import binascii
import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

from attestation.errors import EvidenceError
from attestation.evidence import Tee
from attestation.quotes.cursor import Cursor
from attestation.quotes.sgx import ENCLAVE_REPORT_BYTES, EnclaveReport
from attestation.quotes.tdx import TD_BODY_BYTES, TdReport

__all__ = ["INTEL_QE_VENDOR", "MAX_QUOTE_BYTES", "PCK_CHAIN", "DcapQuote"]

MAX_QUOTE_BYTES: Final = 64 * 1024
INTEL_QE_VENDOR: Final = bytes.fromhex("939a7233f79c4ca9940a0db3957f0607")
"""Vendor of the only Quoting Enclaves that are supported."""

PCK_CHAIN: Final = 5
"""Certification data that is a PEM chain: PCK certificate, its CA, Intel's root."""

_TYPES: Final = range(1, 8)
_QE_REPORT: Final = 6
_ECDSA_P256: Final = 2
_TEES: Final = {0x00: Tee.SGX, 0x81: Tee.TDX}
_SGX_BODY: Final = 1
_MAX_CERTIFICATES: Final = 4
_MAX_AUTH_BYTES: Final = 1024
_PEM: Final = re.compile(
    rb"-----BEGIN CERTIFICATE-----\r?\n((?:[A-Za-z0-9+/=]{1,76}\r?\n)+)-----END CERTIFICATE-----"
)
_PEM_END: Final = re.compile(rb"(?:\r?\n)?\0?")
_NEWLINE: Final = re.compile(rb"\r?\n")


@dataclass(frozen=True, slots=True, kw_only=True)
class DcapQuote:
    """A parsed quote. Nothing is verified.

    ``signed``               header and body: what ``signature`` (r | s) covers
    ``attestation_key``      x | y of a point on P-256, made by the Quoting Enclave
    ``qe_report``            the Quoting Enclave's report, whose data is the digest of the
                             attestation key and of ``qe_auth_data``
    ``certification_type``   5 is a chain; other types name a platform and do not certify it
    ``chain``                certificates in DER, PCK first; empty for other types
    ``chain_pem``            the same as in the quote
    """

    raw: bytes
    version: int
    tee: Tee
    qe_vendor_id: bytes
    user_data: bytes
    body: TdReport | EnclaveReport
    signed: bytes
    signature: bytes
    attestation_key: bytes
    qe_report: EnclaveReport
    qe_report_signature: bytes
    qe_auth_data: bytes
    certification_type: int
    chain: tuple[bytes, ...]
    chain_pem: bytes

    @classmethod
    def parse(cls, data: bytes) -> DcapQuote:
        """Parse a quote of at most :data:`MAX_QUOTE_BYTES`.

        :raises EvidenceError: naming field and offset.
        """
        read = Cursor(data, "quote", limit=MAX_QUOTE_BYTES, little=True)
        version, tee, vendor, user_data = _header(read)
        body = _body(read, version, tee)
        signed = data[: read.offset]
        at = read.offset
        size = read.integer(4, "signature_data.size")
        if size > read.remaining:
            raise read.fail(
                f"{size} bytes, {read.remaining} are left", "signature_data.size", offset=at
            )
        end = read.offset + size
        signature = read.take(64, "signature")
        key = read.take(64, "attestation_key")
        if version > 3:
            _expect(read, 2, _QE_REPORT, "certification_data.type")
            _expect(read, 4, end - read.offset - 4, "certification_data.size")
        qe_report = EnclaveReport.parse(read.take(ENCLAVE_REPORT_BYTES, "qe_report"), "qe_report")
        qe_signature = read.take(64, "qe_report_signature")
        auth = read.sized("qe_auth_data", limit=_MAX_AUTH_BYTES)
        at = read.offset
        kind = read.integer(2, "qe_certification_data.type")
        if kind not in _TYPES:
            raise read.fail(f"{kind} is not known", "qe_certification_data.type", offset=at)
        _expect(read, 4, end - read.offset - 4, "qe_certification_data.size")
        at = read.offset
        certification = read.take(end - at, "qe_certification_data")
        chain = _chain(read, certification, at) if kind == PCK_CHAIN else ()
        at = read.offset
        if any(read.take(read.remaining, "padding")):
            raise EvidenceError(
                "bytes behind the signature data are not zero",
                field="quote.padding",
                offset=at,
                hint=f"the quote ends there; cut off the unsigned bytes that follow: head -c {at}",
            )
        return cls(
            raw=data,
            version=version,
            tee=tee,
            qe_vendor_id=vendor,
            user_data=user_data,
            body=body,
            signed=signed,
            signature=signature,
            attestation_key=key,
            qe_report=qe_report,
            qe_report_signature=qe_signature,
            qe_auth_data=auth,
            certification_type=kind,
            chain=chain,
            chain_pem=certification if chain else b"",
        )


def _header(read: Cursor) -> tuple[int, Tee, bytes, bytes]:
    version = read.integer(2, "header.version")
    if version not in (3, 4, 5):
        raise read.fail(f"{version} is not 3, 4 or 5", "header.version", offset=0)
    key_type = read.integer(2, "header.attestation_key_type")
    if key_type != _ECDSA_P256:
        raise read.fail(
            f"{key_type} is not ECDSA with P-256 (2)", "header.attestation_key_type", offset=2
        )
    kind = read.integer(4, "header.tee_type")
    tee = _TEES.get(kind)
    if tee is None or (tee is Tee.TDX) != (version > 3):
        raise read.fail(
            f"{kind:#x} is not the type of a version {version} quote", "header.tee_type", offset=4
        )
    read.take(4, "header.svn")
    return version, tee, read.take(16, "header.qe_vendor_id"), read.take(20, "header.user_data")


def _body(read: Cursor, version: int, tee: Tee) -> TdReport | EnclaveReport:
    kind = 2 if tee is Tee.TDX else _SGX_BODY
    if version == 5:
        at = read.offset
        kind = read.integer(2, "body.type")
        if kind not in TD_BODY_BYTES:
            raise read.fail(f"{kind} is not the type of a TD report", "body.type", offset=at)
        _expect(read, 4, TD_BODY_BYTES[kind], "body.size")
    if kind == _SGX_BODY:
        return EnclaveReport.parse(read.take(ENCLAVE_REPORT_BYTES, "body"))
    return TdReport.parse(read.take(TD_BODY_BYTES[kind], "body"))


def _expect(read: Cursor, size: int, wanted: int, field: str) -> None:
    at = read.offset
    value = read.integer(size, field)
    if value != wanted:
        raise read.fail(f"is {value}, must be {wanted}", field, offset=at)


def _chain(read: Cursor, data: bytes, at: int) -> tuple[bytes, ...]:
    """Decode a PEM chain that has nothing between, before or after its certificates."""
    found, problem, offset = _decode_chain(data)
    if problem:
        raise read.fail(problem, "qe_certification_data.chain", offset=at + offset)
    return found


@lru_cache(maxsize=256)
def _decode_chain(data: bytes) -> tuple[tuple[bytes, ...], str, int]:
    """Return the certificates, or the fault and its place. Cached: a platform sends one chain."""
    found: list[bytes] = []
    offset = 0
    while match := _PEM.match(data, offset):
        if len(found) == _MAX_CERTIFICATES:
            return (), f"more than {_MAX_CERTIFICATES} certificates", offset
        text = _NEWLINE.sub(b"", match[1])
        try:
            der = base64.b64decode(text, validate=True)
        except (binascii.Error, ValueError):
            return (), "is not base64", match.start(1)
        if base64.b64encode(der) != text:
            return (), "is not canonical base64", match.start(1)
        found.append(der)
        offset = match.end()
        newline = _NEWLINE.match(data, offset)
        if newline and newline.end() < len(data) and data[newline.end()] != 0:
            offset = newline.end()
    if not found or not _PEM_END.fullmatch(data, offset):
        return (), "is not a chain of certificates in PEM", offset
    return tuple(found), "", offset
