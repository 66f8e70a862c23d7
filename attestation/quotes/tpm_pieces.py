"""The files that ``tpm2_quote`` writes, recognized by their content.

PCR values come either bare and concatenated (``-F values``) or in the tool's own format
(``-F serialized``, its default): the C structures of a little-endian machine, a
``TPML_PCR_SELECTION`` of 132 bytes, a u32 count, and that many ``TPML_DIGEST`` of 532 bytes,
each a u32 count and eight slots of u16 length and 64 bytes.

The attestation key comes in PEM, in DER, or as the TPM's own description of it. For a primary key
the signed statement proves that description. ``tpm2_createak`` makes the key a child of the
endorsement key instead, whose name is not in the files, so that the description is not proven. Such
a key must be described as restricted, and is used as a bare public key, like one in PEM.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Final, TypedDict

from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature

from attestation.errors import EvidenceError
from attestation.quotes.tpm_keys import ObjectAttribute, PublicArea, load_public_key, qualify
from attestation.quotes.tpm_structures import QuoteStatement

__all__ = ["Pieces", "sort_pieces"]

_MAX_PIECES: Final = 16
_SELECTION_BYTES: Final = 132
_SLOTS: Final = 8
_SLOT: Final = struct.Struct("<H64s")
_LIST_BYTES: Final = 4 + _SLOTS * _SLOT.size
_KEY_TYPES: Final = (b"\x00\x01", b"\x00\x23")
_HIERARCHIES: Final = tuple(
    handle.to_bytes(4, "big") for handle in (0x40000001, 0x4000000B, 0x4000000C)
)
_RESTRICTED: Final = (
    ObjectAttribute.FIXED_TPM
    | ObjectAttribute.FIXED_PARENT
    | ObjectAttribute.SENSITIVE_DATA_ORIGIN
    | ObjectAttribute.RESTRICTED
    | ObjectAttribute.SIGN
)
_RSA_BYTES: Final = (256, 384, 512)
_SIGNATURE_IDS: Final = (b"\x00\x14", b"\x00\x16", b"\x00\x18")


class Pieces(TypedDict):
    """What belongs to a statement, as :meth:`~.quotes.tpm.TpmQuote.assemble` takes it."""

    signature: bytes
    ak: bytes
    pcr_values: bytes
    ek_certificate: bytes


def sort_pieces(statement: QuoteStatement, pieces: Sequence[bytes]) -> Pieces:
    """Find signature, attestation key, PCR values and certificate among ``pieces``.

    :raises EvidenceError: when one is missing, comes twice, or cannot be read.
    """
    if len(pieces) > _MAX_PIECES:
        raise EvidenceError(f"more than {_MAX_PIECES}", field="endorsements")
    found: dict[str, bytes] = {}
    for number, piece in enumerate(pieces):
        field = f"endorsements[{number}]"
        kind, content = _recognise(piece, statement, field)
        if found.setdefault(kind, content) != content:
            raise EvidenceError(f"a second {kind}", field=field)
    for kind in ("quote signature", "attestation key", "file of PCR values"):
        if kind not in found and (statement.pcr_bytes or kind != "file of PCR values"):
            raise EvidenceError(
                f"the {kind} is missing",
                field="endorsements",
                hint="a bare TPMS_ATTEST needs its signature, the attestation key and the PCR "
                "values beside it",
            )
    return Pieces(
        signature=found["quote signature"],
        ak=_key(found["attestation key"], statement),
        pcr_values=found.get("file of PCR values", b""),
        ek_certificate=found.get("EK certificate", b""),
    )


def _recognise(piece: bytes, statement: QuoteStatement, field: str) -> tuple[str, bytes]:
    values = _unserialize(piece, statement)
    if values is not None:
        return "file of PCR values", values
    if piece and len(piece) == statement.pcr_bytes and not _is_key(piece):
        return "file of PCR values", piece
    if piece[:2] in _SIGNATURE_IDS:
        return "quote signature", piece
    if b"-----BEGIN CERTIFICATE" in piece:
        return "EK certificate", piece
    if b"-----BEGIN" not in piece and not _is_key(piece) and (bare := _bare_signature(piece)):
        raise EvidenceError(
            f"a bare {bare} signature: a TPMT_SIGNATURE is needed, which names scheme and hash",
            field=field,
            hint="write it with tpm2_quote -f tss, which is its default",
        )
    if piece[:1] == b"\x30" and not _is_key(piece):
        return "EK certificate", piece
    return "attestation key", piece


def _bare_signature(piece: bytes) -> str:
    """Return the kind of a signature that ``tpm2_quote -f plain`` wrote; empty for others."""
    if piece[:1] != b"\x30":
        return "RSA" if len(piece) in _RSA_BYTES else ""
    try:
        decode_dss_signature(piece)
    except ValueError:
        return ""
    return "ECDSA"


def _is_key(piece: bytes) -> bool:
    try:
        if _area(piece) is None:
            load_public_key(piece, "ak")
    except EvidenceError:
        return False
    return True


def _area(piece: bytes) -> PublicArea | None:
    """Return a parsed ``TPMT_PUBLIC`` or ``TPM2B_PUBLIC``; ``None`` for another file."""
    if piece[:2] in _KEY_TYPES:
        return PublicArea.parse(piece)
    if int.from_bytes(piece[:2], "big") == len(piece) - 2:
        return PublicArea.parse_sized(piece)
    return None


def _key(piece: bytes, statement: QuoteStatement) -> bytes:
    """Return the key, described or bare as the module states."""
    area = _area(piece)
    if area is None:
        return piece
    primary = {qualify(area.name_hash, handle + area.name) for handle in _HIERARCHIES}
    if statement.signer in primary:
        return piece
    if area.attributes & (_RESTRICTED | ObjectAttribute.DECRYPT) != _RESTRICTED:
        raise EvidenceError(
            "is not a restricted signing key that is fixed to its TPM", field="attestation key"
        )
    return area.spki


def _unserialize(piece: bytes, statement: QuoteStatement) -> bytes | None:
    """Return the values in the tool's format, or ``None`` for another format."""
    start = _SELECTION_BYTES + 4
    lists, rest = divmod(len(piece) - start, _LIST_BYTES)
    if lists < 1 or rest or piece[:4] != struct.pack("<I", len(statement.selection)):
        return None
    if piece[_SELECTION_BYTES:start] != struct.pack("<I", lists):
        return None
    values: list[bytes] = []
    for at in range(start, len(piece), _LIST_BYTES):
        (count,) = struct.unpack_from("<I", piece, at)
        if count > _SLOTS:
            return None
        for slot in range(_SLOTS):
            length, content = _SLOT.unpack_from(piece, at + 4 + slot * _SLOT.size)
            if length > len(content) or any(content[length:]) or bool(length) != (slot < count):
                return None
            values.append(content[:length])
    return b"".join(values)
