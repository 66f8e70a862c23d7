"""A TPM quote in the JSON of the Confidential Containers attestation agent.

::

    {"ak_public": ..., "tpm_quote": {"message", "signature", "pcrs": [...]}}

``ak_public`` is DER SubjectPublicKeyInfo, ``message`` a ``TPMS_ATTEST``, ``signature`` a
``TPMT_SIGNATURE``, each in base64; ``pcrs`` are the values of one bank in hex, those that were
quoted or all 24. The document contains the key, so the key is not trusted yet.
"""

from __future__ import annotations

from typing import Any, Final

from attestation.encodings import json_bytes, sniffed_object
from attestation.errors import EvidenceError
from attestation.quotes.tpm import MAX_TPM_QUOTE_BYTES, TpmQuote
from attestation.quotes.tpm_algorithms import DIGEST_SIZES
from attestation.quotes.tpm_structures import QuoteStatement

__all__ = ["is_tpm_document", "parse_tpm_document"]

_KEYS: Final = {"ak_public", "tpm_quote"}
_QUOTE_KEYS: Final = {"message", "signature", "pcrs"}
_MAX_PCRS: Final = 24


def is_tpm_document(data: bytes) -> bool:
    """Return whether this is a JSON object with an ``ak_public``."""
    document = _document(data)
    return document is not None and "ak_public" in document


def parse_tpm_document(data: bytes) -> TpmQuote:
    """Return the quote of a document.

    :raises EvidenceError: naming the field that is malformed.
    """
    document = _document(data)
    quote = document.get("tpm_quote") if document else None
    if document is None or document.keys() != _KEYS:
        raise EvidenceError(f"must have exactly {', '.join(sorted(_KEYS))}", field="tpm")
    if not isinstance(quote, dict) or quote.keys() != _QUOTE_KEYS:
        raise EvidenceError(
            f"must have exactly {', '.join(sorted(_QUOTE_KEYS))}", field="tpm_quote"
        )
    message = json_bytes(quote["message"], "tpm_quote.message")
    return TpmQuote.assemble(
        attest=message,
        signature=json_bytes(quote["signature"], "tpm_quote.signature"),
        ak=json_bytes(document["ak_public"], "ak_public"),
        pcr_values=_values(quote["pcrs"], message),
    )


def _values(pcrs: object, message: bytes) -> bytes:
    if not isinstance(pcrs, list) or len(pcrs) > _MAX_PCRS:
        raise EvidenceError(f"must be a list of at most {_MAX_PCRS}", field="tpm_quote.pcrs")
    values = [json_bytes(item, f"tpm_quote.pcrs[{number}]") for number, item in enumerate(pcrs)]
    selected = [item for item in QuoteStatement.parse(message).selection if item.pcrs]
    if len(selected) != 1:
        raise EvidenceError("must select PCRs of one bank", field="tpm_quote.message")
    if len(values) == _MAX_PCRS:
        values = [values[index] for index in selected[0].pcrs]
    for number, value in enumerate(values):
        if len(value) != DIGEST_SIZES[selected[0].bank]:
            raise EvidenceError(f"has {len(value)} bytes", field=f"tpm_quote.pcrs[{number}]")
    return b"".join(values)


def _document(data: bytes) -> dict[str, Any] | None:
    return sniffed_object(data) if len(data) <= MAX_TPM_QUOTE_BYTES else None
