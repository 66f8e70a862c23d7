"""The container of a TPM quote: the signed statement, and what else a verifier needs.

::

    "FLTQ" | u8 version = 1 | { u8 tag | u32be length | value }     tags ascend, each once

    1  TPMS_ATTEST          what the attestation key (AK) signed
    2  TPMT_SIGNATURE
    3  TPMT_PUBLIC          of the AK; or
    4  SubjectPublicKeyInfo of the AK, DER, where only the bare key is known
    5  PCR values           concatenated in the order of the quoted selection
    6  scope                the job whose measurements are this client's own, UTF-8
    7  EK certificate       DER, optional

Other tools write a quote in pieces (``tpm2_quote`` writes four files). :meth:`TpmQuote.assemble`
takes these, and :meth:`TpmQuote.from_evidence` accepts them as a bare ``TPMS_ATTEST`` with the
other pieces as endorsements, in any order.
"""

from __future__ import annotations

import hashlib
import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from types import MappingProxyType
from typing import Final

from attestation.errors import EvidenceError
from attestation.evidence import Evidence
from attestation.length_prefixed import pack
from attestation.quotes.tpm_algorithms import DIGEST_SIZES
from attestation.quotes.tpm_keys import PublicArea, PublicKey, load_public_key, spki
from attestation.quotes.tpm_pieces import sort_pieces
from attestation.quotes.tpm_structures import PcrSelection, QuoteStatement, TpmSignature

__all__ = ["MAX_TPM_QUOTE_BYTES", "TpmQuote", "split_values"]

MAX_TPM_QUOTE_BYTES: Final = 64 * 1024
_MAGIC: Final = b"FLTQ\x01"
_FIELD: Final = struct.Struct(">BI")
_ATTEST_MAGIC: Final = b"\xffTCG"
_MAX_FIELD_BYTES: Final = 16 * 1024
_MAX_SCOPE_BYTES: Final = 64
_SCOPE: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_ATTEST, _SIGNATURE, _AK_PUBLIC, _AK_SPKI, _PCRS, _SCOPE_TAG, _EK = range(1, 8)
_NAMES: Final = {
    _ATTEST: "attest",
    _SIGNATURE: "signature",
    _AK_PUBLIC: "ak_public",
    _AK_SPKI: "ak_spki",
    _PCRS: "pcr_values",
    _SCOPE_TAG: "scope",
    _EK: "ek_certificate",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class TpmQuote:
    """A parsed quote. Nothing is verified yet.

    ``ak_area`` is the AK as the TPM describes it, or ``None`` where only ``ak`` is known.
    ``pcr_values`` are concatenated in the order of ``statement.selection``; ``pcrs`` are the
    same by bank and number. ``ak_digest`` is the SHA-256 of the AK's SubjectPublicKeyInfo,
    by which trust anchors name it.
    """

    statement: QuoteStatement
    signature: TpmSignature
    ak: PublicKey
    ak_area: PublicArea | None
    pcr_values: bytes
    scope: str = ""
    ek_certificate: bytes = b""

    ak_digest: bytes = field(init=False, repr=False)
    pcrs: Mapping[str, Mapping[int, bytes]] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        area = self.ak_area
        digest = area.digest if area is not None else hashlib.sha256(spki(self.ak)).digest()
        object.__setattr__(self, "ak_digest", digest)
        object.__setattr__(self, "pcrs", split_values(self.statement.selection, self.pcr_values))

    def to_bytes(self) -> bytes:
        """Return the container."""
        fields = [(_ATTEST, self.statement.raw), (_SIGNATURE, self.signature.raw)]
        if self.ak_area is not None:
            fields.append((_AK_PUBLIC, self.ak_area.raw))
        else:
            fields.append((_AK_SPKI, spki(self.ak)))
        fields.append((_PCRS, self.pcr_values))
        if self.scope:
            fields.append((_SCOPE_TAG, self.scope.encode()))
        if self.ek_certificate:
            fields.append((_EK, self.ek_certificate))
        return _MAGIC + b"".join(bytes((tag,)) + pack(value) for tag, value in fields)

    @classmethod
    def from_bytes(cls, data: bytes) -> TpmQuote:
        """Parse a container of at most :data:`MAX_TPM_QUOTE_BYTES`.

        :raises EvidenceError: naming field and offset.
        """
        fields = _fields(data)
        return _build(
            QuoteStatement.parse(fields[_ATTEST]),
            fields,
            PublicArea.parse(fields[_AK_PUBLIC]) if _AK_PUBLIC in fields else None,
            _canonical_key(fields[_AK_SPKI]) if _AK_SPKI in fields else None,
        )

    @classmethod
    def assemble(
        cls,
        *,
        attest: bytes | QuoteStatement,
        signature: bytes,
        ak: bytes | PublicKey,
        pcr_values: bytes,
        scope: str = "",
        ek_certificate: bytes = b"",
    ) -> TpmQuote:
        """Assemble a quote from its pieces.

        ``ak`` is a ``TPMT_PUBLIC``, a ``TPM2B_PUBLIC``, or a public key, also in PEM or DER.

        :raises EvidenceError: naming the piece.
        """
        fields = {
            _SIGNATURE: signature,
            _PCRS: pcr_values,
            _SCOPE_TAG: scope.encode(),
            _EK: ek_certificate,
        }
        statement = QuoteStatement.parse(attest) if isinstance(attest, bytes) else attest
        if not isinstance(ak, bytes):
            return _build(statement, fields, None, ak)
        area = None
        if ak[:2] in (b"\x00\x01", b"\x00\x23"):
            area = PublicArea.parse(ak)
        elif ak[:1] == b"\x00" or int.from_bytes(ak[:2], "big") == len(ak) - 2:
            area = PublicArea.parse_sized(ak)
        return _build(statement, fields, area, None if area else load_public_key(ak, "ak"))

    @classmethod
    def from_evidence(cls, evidence: Evidence) -> TpmQuote:
        """Parse the quote of TPM evidence, in a container or in pieces.

        :raises EvidenceError: naming field and offset.
        """
        if evidence.quote[: len(_ATTEST_MAGIC)] == _ATTEST_MAGIC:
            statement = QuoteStatement.parse(evidence.quote)
            found = sort_pieces(statement, evidence.endorsements)
            return cls.assemble(attest=statement, **found)
        return cls.from_bytes(evidence.quote)


def _fields(data: bytes) -> dict[int, bytes]:
    """Return the fields of a container, after checking that none is missing."""
    if len(data) > MAX_TPM_QUOTE_BYTES:
        raise EvidenceError(
            f"{len(data)} bytes, at most {MAX_TPM_QUOTE_BYTES} are read", field="tpm_quote"
        )
    if not data.startswith(_MAGIC):
        raise _malformed("not a TPM quote container of version 1", "magic", 0)
    fields: dict[int, bytes] = {}
    last, at, end = 0, len(_MAGIC), len(data)
    while at < end:
        if end - at < _FIELD.size:
            raise _malformed(f"{end - at} bytes, a field has at least {_FIELD.size}", "tag", at)
        tag, length = _FIELD.unpack_from(data, at)
        if tag not in _NAMES:
            raise _malformed(f"unknown field {tag}", "tag", at)
        if tag <= last:
            raise _malformed("fields must ascend, each once", _NAMES[tag], at)
        start = at + _FIELD.size
        if length > min(_MAX_FIELD_BYTES, end - start):
            raise _malformed(
                f"{length} bytes, {end - start} are left and at most {_MAX_FIELD_BYTES} legal",
                _NAMES[tag],
                at,
            )
        last, at = tag, start + length
        fields[tag] = data[start:at]
    for tag in (_ATTEST, _SIGNATURE, _PCRS):
        if tag not in fields:
            raise _malformed("is missing", _NAMES[tag], end)
    if (_AK_PUBLIC in fields) == (_AK_SPKI in fields):
        raise _malformed("exactly one of ak_public and ak_spki is needed", "ak_public", end)
    for tag in (_SCOPE_TAG, _EK):
        if fields.get(tag) == b"":
            raise _malformed("is empty", _NAMES[tag], end)
    return fields


def _malformed(message: str, field: str, offset: int) -> EvidenceError:
    return EvidenceError(message, field=f"tpm_quote.{field}", offset=offset)


@lru_cache(maxsize=64)
def split_values(
    selection: tuple[PcrSelection, ...], values: bytes
) -> Mapping[str, Mapping[int, bytes]]:
    """Return concatenated PCR values by bank and number.

    ``values`` has the number of bytes that ``selection`` requires. The last 64 results are cached:
    a machine sends the same values each time that it attests.
    """
    banks: dict[str, Mapping[int, bytes]] = {}
    offset = 0
    for selected in selection:
        size = DIGEST_SIZES[selected.bank]
        bank = {}
        for pcr in selected.pcrs:
            bank[pcr] = values[offset : offset + size]
            offset += size
        banks[selected.bank] = MappingProxyType(bank)
    return MappingProxyType(banks)


def _build(
    statement: QuoteStatement,
    fields: Mapping[int, bytes],
    area: PublicArea | None,
    key: PublicKey | None,
) -> TpmQuote:
    values = fields[_PCRS]
    if len(values) != statement.pcr_bytes:
        raise EvidenceError(
            f"{len(values)} bytes, the quoted selection has {statement.pcr_bytes}",
            field="tpm_quote.pcr_values",
        )
    public = area.key if area is not None else key
    if public is None:
        raise EvidenceError("no attestation key", field="tpm_quote.ak_public")
    return TpmQuote(
        statement=statement,
        signature=TpmSignature.parse(fields[_SIGNATURE]),
        ak=public,
        ak_area=area,
        pcr_values=values,
        scope=_scope(fields.get(_SCOPE_TAG, b"")),
        ek_certificate=fields.get(_EK, b""),
    )


def _scope(data: bytes) -> str:
    text = data[: _MAX_SCOPE_BYTES + 1].decode("ascii", "replace")
    if text and not _SCOPE.fullmatch(text):
        raise EvidenceError("must be 1 to 64 letters, digits, '.', '_' or '-'", field="scope")
    return text


def _canonical_key(data: bytes) -> PublicKey:
    key = load_public_key(data, "tpm_quote.ak_spki")
    if spki(key) != data:
        raise EvidenceError("not the canonical DER encoding", field="tpm_quote.ak_spki")
    return key
