"""Fields of the evidence of an Azure confidential VM: an HCL report and a TPM quote.

The HCL report is a 32-byte header, the hardware report, a 20-byte request block and the
runtime data (JSON), whose digest is in the hardware report.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, Final

from attestation.decoded.dcap import decode_quote
from attestation.decoded.fields import Field, Layout, integer, read_layout
from attestation.decoded.snp import decode_report
from attestation.decoded.tpm import decode_statement
from attestation.encodings import json_bytes, json_object
from attestation.errors import EvidenceError
from attestation.quotes.azure import azure_document
from attestation.quotes.snp import REPORT_BYTES

__all__ = ["decode_azure", "decode_hcl"]

_HEADER: Final[Layout] = (
    ("signature", 0, 4),
    ("#version", 4, 4),
    ("#report_size", 8, 4),
    ("#request_type", 12, 4),
)
_REQUEST: Final[Layout] = (
    ("#data_size", 0, 4),
    ("#version", 4, 4),
    ("#report_type", 8, 4),
    ("#report_data_hash_type", 12, 4),
    ("#variable_data_size", 16, 4),
)
_REPORT_AT: Final = 32
_SNP: Final = 2
_MAX_VALUE: Final = 256


def decode_azure(data: bytes) -> Iterator[Field]:
    """Yield every field.

    :raises EvidenceError: naming the field that is malformed.
    """
    document = azure_document(data)
    yield from decode_hcl(json_bytes(document.get("hcl_report"), "hcl_report"))
    yield from _rest(document)


def decode_hcl(report: bytes) -> Iterator[Field]:
    """Yield every field of an HCL report alone.

    :raises EvidenceError: naming the field that is malformed.
    """
    yield from read_layout("HCL report header", _HEADER, report)
    request = report[_REPORT_AT + REPORT_BYTES :]
    yield from read_layout("HCL request data", _REQUEST, request)
    if integer(request[8:12]) == _SNP:
        yield from decode_report(report[_REPORT_AT : _REPORT_AT + REPORT_BYTES])
    size = integer(request[16:20])
    runtime = json_object(request[20 : 20 + size].rstrip(b"\0"), "HCL runtime data")
    for key in runtime.get("keys", []) if isinstance(runtime.get("keys"), list) else []:
        name = key.get("kid") if isinstance(key, dict) else None
        yield Field(section="HCL runtime data", name=f"keys.{name}", value=_short(key))
    for name, value in runtime.items():
        if name != "keys":
            yield Field(section="HCL runtime data", name=name, value=_short(value))


def _rest(document: dict[str, Any]) -> Iterator[Field]:
    if document.get("td_quote"):
        yield from decode_quote(json_bytes(document["td_quote"], "td_quote"))
    if document.get("vcek"):
        yield Field(section="document", name="vcek", value="a certificate")
    quote = document.get("tpm_quote")
    if not isinstance(quote, dict):
        raise EvidenceError("must be an object", field="tpm_quote")
    yield from decode_statement(json_bytes(quote.get("message"), "tpm_quote.message"))
    pcrs = quote.get("pcrs")
    for index, value in enumerate(pcrs if isinstance(pcrs, list) else []):
        yield Field(
            section="PCR (sha256)", name=str(index), value=json_bytes(value, f"pcrs[{index}]").hex()
        )


def _short(value: object) -> str:
    text = json.dumps(value, sort_keys=True)
    return text if len(text) <= _MAX_VALUE else f"{text[:_MAX_VALUE]}…"
