"""Evidence and logs decoded field by field, each with its name in the specification.

The result is for people to read: nothing is verified, and verifiers do not use it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator

from attestation.decoded.azure import decode_azure, decode_hcl
from attestation.decoded.dcap import decode_quote
from attestation.decoded.fields import Field
from attestation.decoded.log import decode_log, is_log, is_old_log
from attestation.decoded.nvidia import decode_nvidia
from attestation.decoded.origins import with_origins
from attestation.decoded.snp import decode_report
from attestation.decoded.tpm import decode_tpm
from attestation.documents.formats import to_evidence
from attestation.encodings import unwrap_text
from attestation.endorsements.collateral import describe
from attestation.errors import AttestationError, EvidenceError
from attestation.evidence import Evidence, Tee
from attestation.quotes.sample import SampleQuote

__all__ = ["EVENT_LOG", "HCL_REPORT", "Field", "decode_file"]

EVENT_LOG = "event-log"
"""The format of a file that holds an event log and no quote."""

HCL_REPORT = "hcl-report"
"""The format of the report of Azure's paravisor, alone."""

_NVIDIA = b"\x11\xe0"
_HCL = b"HCLA"


def decode_file(data: bytes, format: str | None = None) -> tuple[str, tuple[Field, ...]]:  # noqa: A002
    """Return the format of a file and all of its fields.

    :raises EvidenceError: when it is of no known format, or malformed.
    """
    kind, fields = _decoded(data, format)
    return kind, tuple(with_origins(fields))


def _decoded(data: bytes, format: str | None) -> tuple[str, Iterable[Field]]:  # noqa: A002
    raw = unwrap_text(data)
    if format == EVENT_LOG or (format is None and is_log(raw)):
        return EVENT_LOG, decode_log(raw)
    if format is None and raw.startswith(_NVIDIA):
        return Tee.NVIDIA.value, decode_nvidia(raw)
    if format is None and raw.startswith(_HCL):
        return HCL_REPORT, decode_hcl(raw)
    try:
        evidence = to_evidence(data, format)
    except EvidenceError:
        if format is None and is_old_log(raw):
            return EVENT_LOG, decode_log(raw)
        raise
    return evidence.tee.value, _evidence(evidence)


def _evidence(evidence: Evidence) -> Iterator[Field]:
    if evidence.tee in (Tee.TDX, Tee.SGX):
        yield from decode_quote(evidence.quote)
    elif evidence.tee is Tee.SNP:
        yield from decode_report(evidence.quote)
    elif evidence.tee is Tee.TPM:
        yield from decode_tpm(evidence)
    elif evidence.tee is Tee.AZURE_VTPM:
        yield from decode_azure(evidence.quote)
    elif evidence.tee is Tee.SAMPLE:
        yield from _sample(evidence.quote)
    else:
        yield from decode_nvidia(evidence.quote)
    if evidence.event_log:
        yield from _log(evidence.event_log)
    for number, item in enumerate(evidence.endorsements):
        yield Field(section="evidence", name=f"endorsements[{number}]", value=_endorsement(item))
    for number, component in enumerate(evidence.components):
        for field in _evidence(component):
            yield Field(
                section=f"component {number}: {field.section}", name=field.name, value=field.value
            )


def _endorsement(data: bytes) -> str:
    """Describe an endorsement: its kind, and until when it is valid if it is collateral."""
    try:
        item = describe(data, path="endorsement")
    except AttestationError:
        return f"{len(data)} bytes"
    return f"{len(data)} bytes: {item.kind} ({item.name}), until {item.not_after.isoformat()}"


def _log(data: bytes) -> Iterator[Field]:
    if is_log(data):
        yield from decode_log(data)
    else:
        yield Field(section="evidence", name="event_log", value=f"{len(data)} bytes")


def _sample(data: bytes) -> Iterator[Field]:
    quote = SampleQuote.from_bytes(data)
    for name, value in quote.statement.to_json().items():
        shown = value if isinstance(value, str) else json.dumps(value, sort_keys=True)
        yield Field(section="sample statement (insecure)", name=name, value=shown)
    yield Field(section="sample signature", name="key", value=quote.key.hex())
    yield Field(section="sample signature", name="r|s", value=quote.signature.hex())
