"""Fields of Intel SGX and TDX quotes.

Names: Intel SGX ECDSA Quote Library Reference (version 3) and Intel TDX DCAP Quoting Library
API, appendix A.3 (versions 4 and 5). TD attributes: Intel TDX module ABI, ``ATTRIBUTES``.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from cryptography import x509

from attestation.decoded.fields import Field, Layout, integer, read_layout
from attestation.endorsements.offline import load_certificates
from attestation.errors import UNREADABLE, EvidenceError
from attestation.quotes.sgx import ENCLAVE_REPORT_BYTES
from attestation.quotes.tdx import TD_ATTRIBUTES

__all__ = ["decode_quote"]

_HEADER_3: Final[Layout] = (
    ("#Version", 0, 2),
    ("#Attestation Key Type", 2, 2),
    ("Reserved", 4, 4),
    ("#QE SVN", 8, 2),
    ("#PCE SVN", 10, 2),
    ("QE Vendor ID", 12, 16),
    ("User Data", 28, 20),
)
_HEADER_4: Final[Layout] = (
    ("#Version", 0, 2),
    ("#Attestation Key Type", 2, 2),
    ("TEE Type", 4, 4),
    ("Reserved", 8, 4),
    ("QE Vendor ID", 12, 16),
    ("User Data", 28, 20),
)
_ENCLAVE: Final[Layout] = (
    ("CPUSVN", 0, 16),
    ("MISCSELECT", 16, 4),
    ("ATTRIBUTES", 48, 16),
    ("MRENCLAVE", 64, 32),
    ("MRSIGNER", 128, 32),
    ("#ISVPRODID", 256, 2),
    ("#ISVSVN", 258, 2),
    ("REPORTDATA", 320, 64),
)
_TD_10: Final[Layout] = (
    ("TEE_TCB_SVN", 0, 16),
    ("MRSEAM", 16, 48),
    ("MRSIGNERSEAM", 64, 48),
    ("SEAMATTRIBUTES", 112, 8),
    ("TDATTRIBUTES", 120, 8),
    ("XFAM", 128, 8),
    ("MRTD", 136, 48),
    ("MRCONFIGID", 184, 48),
    ("MROWNER", 232, 48),
    ("MROWNERCONFIG", 280, 48),
    ("RTMR0", 328, 48),
    ("RTMR1", 376, 48),
    ("RTMR2", 424, 48),
    ("RTMR3", 472, 48),
    ("REPORTDATA", 520, 64),
)
_TD_15: Final[Layout] = (
    *_TD_10,
    ("TEE_TCB_SVN_2", 584, 16),
    ("MRSERVICETD", 600, 48),
)
_TD_ATTRIBUTES: Final = {bit: name.upper() for name, bit in TD_ATTRIBUTES.items()}
_SGX_ATTRIBUTES: Final = {
    0: "INIT",
    1: "DEBUG",
    2: "MODE64BIT",
    4: "PROVISION_KEY",
    5: "EINITTOKEN_KEY",
    7: "KSS",
}
_BODIES: Final = {
    1: ("SGX Enclave Report", _ENCLAVE, 384),
    2: ("TD Quote Body 1.0", _TD_10, 584),
    3: ("TD Quote Body 1.5", _TD_15, 648),
}
_HEADER_BYTES: Final = 48
_BODY_PREFIX_BYTES: Final = 6
_TDX: Final = 0x81
_VERSION_WITH_BODY_TYPE: Final = 5
_CERTIFIED_QE: Final = 6
_PCK_CHAIN: Final = 5
_MAX_CERTIFICATES: Final = 8


def decode_quote(data: bytes) -> Iterator[Field]:
    """Yield every field of a quote of version 3, 4 or 5.

    :raises EvidenceError: when it is not a quote, naming field and offset.
    """
    version = integer(data[:2])
    if version not in (3, 4, 5):
        raise EvidenceError(f"{version} is not 3, 4 or 5", field="Version", offset=0)
    header = _HEADER_3 if version == 3 else _HEADER_4
    yield from read_layout("Quote Header", header, data)
    tdx = version != 3 and integer(data[4:8]) == _TDX
    kind, start = (2 if tdx else 1), _HEADER_BYTES
    if version == _VERSION_WITH_BODY_TYPE:
        kind, start = integer(data[48:50]), _HEADER_BYTES + _BODY_PREFIX_BYTES
        yield from read_layout("Quote Body Descriptor", (("#Type", 48, 2), ("#Size", 50, 4)), data)
    if kind not in _BODIES:
        raise EvidenceError(f"{kind} is not a known type", field="Quote Body Type", offset=48)
    section, layout, size = _BODIES[kind]
    body = data[start : start + size]
    yield from read_layout(section, layout, body)
    yield _attributes(section, body, tdx=kind != 1)
    yield from _signature(data, start + size, version)


def _attributes(section: str, body: bytes, *, tdx: bool) -> Field:
    bits, names = (
        (integer(body[120:128]), _TD_ATTRIBUTES) if tdx else (integer(body[48:56]), _SGX_ATTRIBUTES)
    )
    name = "TDATTRIBUTES (set)" if tdx else "ATTRIBUTES (set)"
    shown = [names.get(bit, f"bit {bit}") for bit in range(64) if bits >> bit & 1]
    return Field(section=section, name=name, value=", ".join(shown) or "none")


def _signature(data: bytes, at: int, version: int) -> Iterator[Field]:
    section = "Quote Signature Data"
    length = integer(_take(data, at, 4, "Quote Signature Data Len"))
    yield Field(section=section, name="Quote Signature Data Len", value=str(length))
    part = _take(data, at + 4, length, "Quote Signature Data")
    yield from read_layout(
        section, (("ISV Enclave Report Signature", 0, 64), ("ECDSA Attestation Key", 64, 64)), part
    )
    at = 128
    if version >= 4:
        kind = integer(_take(part, at, 2, "Certification Data Type"))
        yield Field(section=section, name="Certification Data Type", value=str(kind))
        if kind != _CERTIFIED_QE:
            return
        at += 6
    report = _take(part, at, ENCLAVE_REPORT_BYTES, "QE Report")
    yield from read_layout("QE Report", _ENCLAVE, report)
    at += ENCLAVE_REPORT_BYTES
    signature = _take(part, at, 64, "QE Report Signature")
    yield Field(section=section, name="QE Report Signature", value=signature.hex())
    size = integer(_take(part, at + 64, 2, "QE Authentication Data Size"))
    auth = _take(part, at + 66, size, "QE Authentication Data")
    yield Field(section=section, name="QE Authentication Data", value=auth.hex())
    yield from _certification(part, at + 66 + size)


def _certification(part: bytes, at: int) -> Iterator[Field]:
    section = "QE Certification Data"
    kind = integer(_take(part, at, 2, "Certification Data Type"))
    size = integer(_take(part, at + 2, 4, "Certification Data Size"))
    content = _take(part, at + 6, size, "Certification Data")
    yield Field(section=section, name="Certification Data Type", value=str(kind))
    if kind != _PCK_CHAIN:
        yield Field(section=section, name="Certification Data", value=content.hex())
        return
    try:
        chain = load_certificates(content.rstrip(b"\0"))
        names = [_subject(certificate) for certificate in chain[:_MAX_CERTIFICATES]]
    except UNREADABLE:
        raise EvidenceError("is not a chain in PEM", field="PCK Certificate Chain") from None
    for number, name in enumerate(names):
        yield Field(section=section, name=f"PCK Certificate Chain [{number}]", value=name)


def _subject(certificate: x509.Certificate) -> str:
    until = certificate.not_valid_after_utc.date().isoformat()
    return f"{certificate.subject.rfc4514_string()} (until {until})"


def _take(data: bytes, at: int, size: int, name: str) -> bytes:
    part = data[at : at + size]
    if len(part) != size:
        raise EvidenceError(f"needs {size} bytes, {len(part)} are left", field=name, offset=at)
    return part
