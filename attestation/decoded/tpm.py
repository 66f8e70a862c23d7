"""Fields of TPM quotes. Names: TPM 2.0 Library, Part 2, ``TPMS_ATTEST`` and what it holds."""

from __future__ import annotations

from collections.abc import Iterator

from attestation.decoded.fields import Field
from attestation.documents.formats import is_bare_tpm_quote
from attestation.evidence import Evidence
from attestation.quotes.tpm import TpmQuote
from attestation.quotes.tpm_structures import QuoteStatement

__all__ = ["decode_statement", "decode_tpm"]


def decode_tpm(evidence: Evidence) -> Iterator[Field]:
    """Yield every field of a quote, in a container or bare.

    :raises EvidenceError: naming field and offset.
    """
    if is_bare_tpm_quote(evidence) and not evidence.endorsements:
        yield from decode_statement(evidence.quote)
        return
    quote = TpmQuote.from_evidence(evidence)
    yield from decode_statement(quote.statement.raw)
    signature = quote.signature
    value = signature.value.hex() or ", ".join(f"{number:#x}" for number in signature.numbers)
    for name, shown in (("sigAlg", signature.scheme), ("hash", signature.hash), ("value", value)):
        yield Field(section="TPMT_SIGNATURE", name=name, value=shown)
    yield Field(section="AK", name="SHA-256 of SubjectPublicKeyInfo", value=quote.ak_digest.hex())
    if quote.ak_area is not None:
        attributes = str(quote.ak_area.attributes)
        yield Field(section="TPMT_PUBLIC", name="objectAttributes", value=attributes)
    if quote.scope:
        yield Field(section="container", name="scope", value=quote.scope)
    for bank, values in quote.pcrs.items():
        for index, digest in values.items():
            yield Field(section=f"PCR ({bank})", name=str(index), value=digest.hex())


def decode_statement(data: bytes) -> Iterator[Field]:
    """Yield the fields of a ``TPMS_ATTEST`` of type quote."""
    statement = QuoteStatement.parse(data)
    section = "TPMS_ATTEST"
    for name, value in (
        ("magic", data[:4].hex()),
        ("type", "TPM_ST_ATTEST_QUOTE"),
        ("qualifiedSigner", statement.signer.hex()),
        ("extraData", statement.extra_data.hex()),
        ("clockInfo.clock", f"{statement.clock} ms"),
        ("clockInfo.resetCount", str(statement.reset_count)),
        ("clockInfo.restartCount", str(statement.restart_count)),
        ("clockInfo.safe", "YES" if statement.safe else "NO"),
        ("firmwareVersion", f"{statement.firmware:#018x}"),
    ):
        yield Field(section=section, name=name, value=value)
    for selected in statement.selection:
        numbers = ", ".join(map(str, selected.pcrs))
        yield Field(section="TPMS_QUOTE_INFO", name=f"pcrSelect.{selected.bank}", value=numbers)
    yield Field(section="TPMS_QUOTE_INFO", name="pcrDigest", value=statement.pcr_digest.hex())
