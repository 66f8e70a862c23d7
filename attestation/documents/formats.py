"""Evidence in files: detects the format, and returns what a verifier takes.

======================  ==================================================================
``tdx-quote``           a DCAP quote, versions 3 to 5; its header names TDX or SGX
``sgx-quote``           the same, of SGX only
``snp-report``          an AMD ATTESTATION_REPORT of 1184 bytes, with the certificate table
                        of an extended report behind it where there is one, or inside of
                        the ``SNP_REPORT_RESP`` that firmware answers with
``tpm``                 a TPM quote in the container of :mod:`attestation.quotes.tpm`, the
                        JSON of :mod:`attestation.quotes.tpm_document`, or a bare
                        ``TPMS_ATTEST`` with its pieces as endorsements
``azure-vtpm``          the JSON of an Azure confidential VM: report, runtime data, TPM quote
``evidence``            the canonical JSON of :class:`attestation.evidence.Evidence`
======================  ==================================================================

Quotes and reports may also be written in hex or base64, or be part of the JSON of another agent
(:mod:`attestation.documents.agent_documents`).

The page is docs/reference/evidence.md.
"""

from __future__ import annotations

import struct
from dataclasses import replace
from typing import Final

from attestation.documents.agent_documents import (
    AgentDocument,
    is_agent_document,
    parse_agent_document,
)
from attestation.encodings import sniffed_object, unwrap_text
from attestation.errors import EvidenceError
from attestation.evidence import MAX_EVIDENCE_BYTES, Evidence, Tee
from attestation.quotes.snp import REPORT_BYTES, parse_certificate_table
from attestation.quotes.tpm_document import is_tpm_document, parse_tpm_document

__all__ = ["FORMATS", "MAX_INPUT_BYTES", "detect_format", "is_bare_tpm_quote", "to_evidence"]

FORMATS: Final = ("tdx-quote", "sgx-quote", "snp-report", "tpm", "azure-vtpm", "evidence")
MAX_INPUT_BYTES: Final = MAX_EVIDENCE_BYTES
"""Upper bound of a file with evidence, checked before it is read."""

_DCAP_VERSIONS: Final = (3, 4, 5)
_DCAP_HEADER: Final = struct.Struct("<HHI")
_KEY_TYPES: Final = (2, 3)  # ECDSA-256 with P-256, ECDSA-384 with P-384
_TEE_TYPES: Final = {0x00: Tee.SGX, 0x81: Tee.TDX}
_MIN_QUOTE_BYTES: Final = 48 + 384
_REPORT_VERSIONS: Final = range(2, 17)
_TPM_MAGICS: Final = (b"FLTQ", b"\xffTCG")
_RESPONSE_HEADER: Final = struct.pack("<II", 0, REPORT_BYTES) + bytes(24)
"""``SNP_REPORT_RESP``: status, size of the report, reserved (AMD publication 56860)."""

_AZURE_OLD: Final = frozenset({"report", "quote"})
_TDREPORT_TYPE: Final = b"\x81\0"
"""``REPORTTYPE``: type TDX, subtype 0; version and a reserved byte follow (TDX module ABI)."""

_OTHERS: Final = {
    b"\x11\xe0": "a report of an NVIDIA GPU, which counts as a component of evidence",
    b"CCEL": "the ACPI table that points at a CCEL; the log is /sys/firmware/acpi/tables/data/CCEL",
    b"HCLA": "an HCL report, which counts inside of the JSON of an Azure confidential VM",
    b"0\x82": "a certificate or revocation list, which goes to --endorsement",
    b"----": "a certificate or key in PEM, which goes to --endorsement",
}


def detect_format(data: bytes) -> str:
    """Return the format of ``data``, one of :data:`FORMATS`.

    :raises EvidenceError: when it is none of them.
    """
    data = unwrap_text(data)
    if data.startswith(_TPM_MAGICS):
        return "tpm"
    if _dcap_tee(data) is not None:
        return "tdx-quote"
    if _is_report(data):
        return "snp-report"
    if data.lstrip()[:1] == b"{":
        return _json_format(data)
    other = next((text for start, text in _OTHERS.items() if data.startswith(start)), "")
    if data[:2] == _TDREPORT_TYPE and data[3:4] == b"\0":
        other = (
            f"a TDREPORT (type 0x81, version {data[2]}), which only its own machine can check; "
            "ask for a quote"
        )
    if data[2:6] == _TPM_MAGICS[1] and int.from_bytes(data[:2], "big") == len(data) - 2:
        other = "a TPM2B_ATTEST; cut its size off, which makes it a TPMS_ATTEST: tail -c +3"
    raise EvidenceError(
        f"{_look(data)} is not evidence of any kind that is known here",
        field="evidence",
        hint=f"it looks like {other}" if other else f"known formats: {', '.join(FORMATS)}",
    )


def to_evidence(
    data: bytes,
    format: str | None = None,  # noqa: A002 (the word that the command line uses)
    *,
    endorsements: tuple[bytes, ...] = (),
    event_log: bytes = b"",
) -> Evidence:
    """Return the evidence in ``data``, whose format is detected where none is given.

    ``endorsements`` and ``event_log`` are those of separate files.

    :raises EvidenceError: when ``data`` is of another format, or too large.
    """
    if len(data) > MAX_INPUT_BYTES:
        raise EvidenceError(
            f"{len(data)} bytes, at most {MAX_INPUT_BYTES} are read", field="evidence"
        )
    chosen = format or detect_format(data)
    if chosen == "evidence":
        return _with_files(Evidence.from_bytes(data), endorsements, event_log)
    around = _around(data)
    tee, quote, beside = _quote(around.quote, chosen)
    evidence = Evidence(
        tee=tee,
        quote=quote,
        event_log=around.event_log,
        endorsements=(*around.endorsements, *beside),
    )
    return _with_files(evidence, endorsements, event_log)


def is_bare_tpm_quote(evidence: Evidence) -> bool:
    """Return whether this is a ``TPMS_ATTEST`` with its signature and key in other files."""
    return evidence.tee is Tee.TPM and evidence.quote.startswith(_TPM_MAGICS[1])


def _around(data: bytes) -> AgentDocument:
    """Return the quote or report in the document of another agent; other data unchanged."""
    document = sniffed_object(data)
    if document is not None and is_agent_document(document):
        return parse_agent_document(data)
    return AgentDocument(quote=data)


def _with_files(evidence: Evidence, endorsements: tuple[bytes, ...], event_log: bytes) -> Evidence:
    if event_log and evidence.event_log:
        raise EvidenceError(
            "the evidence has an event log of its own; leave --event-log out", field="event_log"
        )
    return replace(
        evidence,
        endorsements=(*evidence.endorsements, *endorsements),
        event_log=evidence.event_log or event_log,
    )


def _quote(data: bytes, chosen: str) -> tuple[Tee, bytes, tuple[bytes, ...]]:
    """Return the kind, the quote itself, and the endorsements in the same file."""
    raw = unwrap_text(data)
    if chosen in ("tdx-quote", "sgx-quote"):
        tee = _dcap_tee(raw)
        if tee is None:
            raise _not(data, "a DCAP quote of version 3, 4 or 5")
        if chosen == "sgx-quote" and tee is not Tee.SGX:
            raise _not(data, "an SGX quote")
        return tee, raw, ()
    if chosen == "snp-report":
        if not _is_report(raw):
            raise _not(data, f"an SNP report of {REPORT_BYTES} bytes")
        return (Tee.SNP, *_report(raw))
    if chosen == "tpm":
        if is_tpm_document(raw):
            return Tee.TPM, parse_tpm_document(raw).to_bytes(), ()
        if not raw.startswith(_TPM_MAGICS):
            raise _not(data, "a TPM quote")
        return Tee.TPM, raw, ()
    if chosen == "azure-vtpm":
        if data.lstrip()[:1] != b"{":
            raise _not(data, "the JSON evidence of an Azure confidential VM")
        return Tee.AZURE_VTPM, data, ()
    raise EvidenceError(f"must be one of {', '.join(FORMATS)}, not {chosen!r}", field="format")


def _is_report(data: bytes) -> bool:
    start = len(_RESPONSE_HEADER) if data.startswith(_RESPONSE_HEADER) else 0
    version = int.from_bytes(data[start : start + 4], "little")
    return len(data) - start >= REPORT_BYTES and version in _REPORT_VERSIONS


def _report(data: bytes) -> tuple[bytes, tuple[bytes, ...]]:
    """Return the report inside of a larger structure, whose unused bytes must be zero."""
    if data.startswith(_RESPONSE_HEADER):
        start, table = len(_RESPONSE_HEADER), b""
        rest = data[start + REPORT_BYTES :]
    else:
        start, rest, table = 0, b"", data[REPORT_BYTES:]
    end = start + REPORT_BYTES
    if any(rest) or (table and not any(table)):
        raise _no_table(data, end, "")
    try:
        certificates = parse_certificate_table(table) if table else ()
    except EvidenceError as error:
        raise _no_table(data, end, f" ({error})") from error
    return data[start:end], certificates


def _no_table(data: bytes, end: int, why: str) -> EvidenceError:
    return EvidenceError(
        f"{len(data) - end} bytes behind the report are no certificate table{why}",
        field="report.end",
        offset=end,
        hint=f"if they belong to something else, cut the file there: head -c {end}",
    )


def _not(data: bytes, wanted: str) -> EvidenceError:
    try:
        found = f"; it looks like {detect_format(data)}"
    except EvidenceError:
        found = ""
    return EvidenceError(f"{_look(data)} is not {wanted}{found}", field="evidence")


def _dcap_tee(data: bytes) -> Tee | None:
    if len(data) < _MIN_QUOTE_BYTES:
        return None
    version, key_type, tee_type = _DCAP_HEADER.unpack_from(data)
    if version not in _DCAP_VERSIONS or key_type not in _KEY_TYPES:
        return None
    # Version 3 has reserved bytes where later versions name the TEE.
    return Tee.SGX if version == _DCAP_VERSIONS[0] else _TEE_TYPES.get(tee_type)


def _json_format(data: bytes) -> str:
    document = sniffed_object(data)
    if document is None:
        raise EvidenceError("starts like JSON and is not", field="evidence")
    if is_agent_document(document):
        return detect_format(parse_agent_document(data).quote)
    if "tee" in document:
        return "evidence"
    if is_tpm_document(data):
        return "tpm"
    if document.keys() & {"hcl_report", "tpm_quote", "td_quote"} or document.keys() >= _AZURE_OLD:
        return "azure-vtpm"
    raise EvidenceError(
        "is JSON without the keys of evidence that is known here",
        field="evidence",
        hint="it has a quote among other things; take that out: jq -r .quote FILE > quote.txt"
        if isinstance(document.get("quote"), str)
        else "fedlearn's own evidence has a key tee; Azure's has hcl_report and tpm_quote",
    )


def _look(data: bytes) -> str:
    return f"{len(data)} bytes starting {data[:8].hex()}" if data else "an empty file"
