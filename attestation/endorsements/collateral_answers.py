"""Builds collateral from the unmodified answers of Intel's Provisioning Certification Service.

Without this project's own tools a person requests them (API v4) with a browser or ``curl`` and
keeps the answers in files. Which piece a file has is determined by its content, not by its name::

    {"tcbInfo": {...}, "signature": "..."}            TCB info
    {"enclaveIdentity": {...}, "signature": "..."}    identity of the Quoting Enclave
    a revocation list: DER, PEM, hex or base64        of the PCK CA, of the root CA
    certificates: DER or PEM, url-encoded or not      issuer chains, which the service sends in
                                                      header fields (``curl -D``)
    HTTP/1.1 200 OK ... and what follows              header fields and body (``curl -i``)

What Intel signed is copied byte by byte, because the signature covers the bytes. Of several
certificates with the same name, the one that signed is taken; of several lists of one issuer, the
newest that is already valid. Nothing is verified here: verifiers check each piece of the document,
up to the pinned root.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final
from urllib.parse import unquote_to_bytes

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding

from attestation.ecdsa import SIGNATURE_BYTES
from attestation.encodings import json_object, unwrap_text
from attestation.endorsements.chains import Certificate, load_crl, split_certificates
from attestation.endorsements.collateral_forms import split_signed
from attestation.endorsements.collateral_sources import IntelPlatform
from attestation.endorsements.offline import Input
from attestation.errors import UNREADABLE, EndorsementError, EvidenceError

__all__ = ["Assembled", "Assembly", "assemble_answers"]

_MAX_RESPONSES: Final = 4
_PEM_START: Final = b"-----BEGIN CERTIFICATE-----"
_CERTIFICATE: Final = re.compile(rb"%s.+?-----END CERTIFICATE-----\s?" % _PEM_START, re.DOTALL)
_BLANK_LINE: Final = re.compile(rb"\r?\n\r?\n")
_IDENTITIES: Final = {"QE": "sgx", "TD_QE": "tdx"}
_AUTHORITIES: Final = {"Platform": "platform", "Processor": "processor"}
_SIGNER: Final = "TCB Signing"


@dataclass(frozen=True, slots=True, kw_only=True)
class Assembled:
    """One document of collateral, for the platforms of one FMSPC under one CA."""

    platform: IntelPlatform
    data: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Assembly:
    """The result for a set of files.

    ``used``     names of the files that are pieces of the documents
    ``missing``  pieces without which further documents could not be made
    """

    documents: tuple[Assembled, ...]
    used: frozenset[str]
    missing: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Signed:
    tee: str
    fmspc: str
    issued: str
    text: str
    signature: str


@dataclass(slots=True, kw_only=True)
class _Pieces:
    """The pieces found in the files so far, by kind."""

    tcb: list[_Signed] = field(default_factory=list)
    identities: list[_Signed] = field(default_factory=list)
    lists: list[x509.CertificateRevocationList] = field(default_factory=list)
    certificates: dict[bytes, Certificate] = field(default_factory=dict)
    files: dict[str, set[bytes]] = field(default_factory=dict)


class _MissingError(Exception):
    def __init__(self, piece: str, remedy: str) -> None:
        super().__init__(f"{piece} is missing; {remedy}")
        self.piece = piece
        self.remedy = remedy


def assemble_answers(files: Iterable[Input], *, now: datetime) -> Assembly:
    """Return the collateral that the answers among ``files`` make; other files are ignored.

    :raises EndorsementError: when there are signed answers, and a piece is missing for every
        document that could be made; it names the piece and the address that gives it.
    """
    pieces = _Pieces()
    for file in files:
        _sort(file, pieces)
    if not pieces.tcb and not pieces.identities:
        return Assembly(documents=(), used=frozenset(), missing=())
    documents: list[Assembled] = []
    missing: list[_MissingError] = []
    if not pieces.tcb:
        tee = pieces.identities[0].tee
        address = _addresses("FMSPC", tee)["tcb_info"]
        missing.append(_MissingError("the TCB info", f"it is the answer of {address}"))
    for info in pieces.tcb:
        try:
            documents += _documents(info, pieces, now)
        except _MissingError as error:
            missing.append(error)
    if not documents:
        first = missing[0]
        raise EndorsementError(
            f"{first.piece} is missing among the answers of Intel's service",
            step="collateral",
            hint=first.remedy,
        )
    return Assembly(
        documents=tuple(documents),
        used=_used(documents, pieces),
        missing=tuple(map(str, missing)),
    )


def _sort(file: Input, pieces: _Pieces) -> None:
    """Add the pieces in one file, and record the encodings that it has."""
    head, body = _response(file.data)
    pieces.files[file.name] = _take_certificates(head, pieces) | _take(unwrap_text(body), pieces)


def _response(data: bytes) -> tuple[bytes, bytes]:
    """Split an HTTP response as ``curl -i`` writes it; a proxy's response may precede it."""
    head = b""
    for _ in range(_MAX_RESPONSES):
        if not data.startswith(b"HTTP/"):
            break
        start, *rest = _BLANK_LINE.split(data, maxsplit=1)
        head, data = head + start + b"\n", rest[0] if rest else b""
    return head, data


def _take(data: bytes, pieces: _Pieces) -> set[bytes]:
    if data.lstrip()[:1] == b"{":
        return _take_signed(data, pieces)
    if (crl := _revocation_list(data)) is not None:
        pieces.lists.append(crl)
        return {_der(crl)}
    return _take_certificates(data, pieces)


def _take_signed(data: bytes, pieces: _Pieces) -> set[bytes]:
    for name, into in (("tcbInfo", pieces.tcb), ("enclaveIdentity", pieces.identities)):
        if (parts := split_signed(data, name)) is None:
            continue
        text, signature = parts
        document = json_object(text, name)
        if name == "tcbInfo":
            tee = str(document.get("id", "SGX")).lower()
            try:
                platform = IntelPlatform(fmspc=str(document.get("fmspc")), ca="platform", tee=tee)
            except ValueError as error:
                raise EvidenceError(str(error), field=name) from None
            found = _signed(document, platform.tee, platform.fmspc.upper(), text, signature)
        else:
            # The identity of Intel's verification enclave (QVE) is not needed.
            tee = _IDENTITIES.get(str(document.get("id", "QE")), "")
            found = _signed(document, tee, "", text, signature)
        into.append(found)
        return {text.encode()}
    return set()


def _signed(document: dict[str, Any], tee: str, fmspc: str, text: str, signature: str) -> _Signed:
    issued = document.get("issueDate")
    if not isinstance(issued, str):
        raise EvidenceError("is missing, or is not text", field="issueDate")
    return _Signed(tee=tee, fmspc=fmspc, issued=issued, text=text, signature=signature)


def _revocation_list(data: bytes) -> x509.CertificateRevocationList | None:
    try:
        crl = load_crl(data)
        _ = (crl.issuer, crl.last_update_utc)  # are parsed when first asked for
    except UNREADABLE:
        return None
    return crl


def _take_certificates(data: bytes, pieces: _Pieces) -> set[bytes]:
    """Return every certificate in ``data``: DER, or PEM in any text, url-encoded or not."""
    plain = unquote_to_bytes(data) if b"-----BEGIN%20" in data else data
    found: list[Certificate] = []
    for block in _CERTIFICATE.findall(plain) or ([plain] if plain[:1] == b"0" else []):
        with contextlib.suppress(EvidenceError):  # an unreadable one is skipped
            found += split_certificates(block, "certificates")
    pieces.certificates.update((item.der, item) for item in found)
    return {item.der for item in found}


def _used(documents: Sequence[Assembled], pieces: _Pieces) -> frozenset[str]:
    """Return the names of the files that are used in a document."""
    inside: set[bytes] = set()
    for item in documents:
        for key, value in json.loads(item.data).items():
            if key.endswith("_chain"):
                chain = split_certificates(value.encode(), key)
                inside.update(certificate.der for certificate in chain)
            else:
                inside.add(bytes.fromhex(value) if key.endswith("_crl") else value.encode())
    return frozenset(name for name, gave in pieces.files.items() if gave & inside)


def _documents(info: _Signed, pieces: _Pieces, now: datetime) -> Iterator[Assembled]:
    """Make the documents for one TCB info: one for each CA whose revocation list was given."""
    addresses = _addresses(info.fmspc, info.tee)
    own = [item for item in pieces.identities if item.tee == info.tee]
    if not own:
        raise _MissingError(
            f"the {info.tee.upper()} QE identity",
            f"it is the answer of {addresses['qe_identity']}",
        )
    identity = _newest(own, now)
    signer = _signer(info, pieces, now, "TCB-Info-Issuer-Chain", addresses["tcb_info"])
    identity_signer = _signer(
        identity, pieces, now, "SGX-Enclave-Identity-Issuer-Chain", addresses["qe_identity"]
    )
    roots = [item for item in pieces.lists if item.issuer == signer.issuer]
    if not roots:
        raise _MissingError(
            "the revocation list of the root CA", f"it is at {addresses['root_ca_crl']}"
        )
    lists = {
        ca: [item for item in pieces.lists if _authority(item.issuer) == ca]
        for ca in _AUTHORITIES.values()
    }
    if not any(lists.values()):
        raise _MissingError(
            "the revocation list of the PCK CA",
            f"it is the answer of {addresses['pck_crl']}; a quote names platform or processor",
        )
    for ca, found in lists.items():
        if not found:
            continue
        newest = _latest(found, now)
        issuers = [item for item in pieces.certificates.values() if item.subject == newest.issuer]
        document = {
            "pck_crl_issuer_chain": _chain((issuers or [signer])[0], pieces),
            "root_ca_crl": _der(_latest(roots, now)).hex(),
            "pck_crl": _der(newest).hex(),
            "tcb_info_issuer_chain": _chain(signer, pieces),
            "tcb_info": info.text,
            "tcb_info_signature": info.signature,
            "qe_identity_issuer_chain": _chain(identity_signer, pieces),
            "qe_identity": identity.text,
            "qe_identity_signature": identity.signature,
        }
        yield Assembled(
            platform=IntelPlatform(fmspc=info.fmspc, ca=ca, tee=info.tee),
            data=json.dumps(document, indent=1).encode() + b"\n",
        )


def _addresses(fmspc: str, tee: str) -> dict[str, str]:
    known = IntelPlatform(fmspc="0" * 12, ca="platform", tee=tee or "tdx").addresses()
    return {key: value.replace("0" * 12, fmspc) for key, value in known.items()}


def _signer(
    signed: _Signed, pieces: _Pieces, now: datetime, header: str, address: str
) -> Certificate:
    """Return the candidate that signed; when none did, one of the same name, which verification
    then refuses.

    Intel has reissued certificates for one signing key; one that is valid now is preferred.
    """
    leaves = [item for item in pieces.certificates.values() if not item.authority]
    if found := [item for item in leaves if _verifies(item, signed)]:
        return max(found, key=lambda item: (item.start <= now <= item.end, item.start))
    named = [item for item in leaves if _SIGNER in item.name]
    if not named:
        raise _MissingError(
            "the certificate of the TCB signer",
            f"it comes in the header {header} of {address}: keep it with curl -D FILE",
        )
    return max(named, key=lambda item: item.start)


def _verifies(certificate: Certificate, signed: _Signed) -> bool:
    key = certificate.key
    signature = bytes.fromhex(signed.signature) if len(signed.signature) % 2 == 0 else b""
    if not isinstance(key, ec.EllipticCurvePublicKey) or len(signature) != SIGNATURE_BYTES:
        return False
    half = SIGNATURE_BYTES // 2
    r, s = (int.from_bytes(part, "big") for part in (signature[:half], signature[half:]))
    try:
        key.verify(encode_dss_signature(r, s), signed.text.encode(), ec.ECDSA(hashes.SHA256()))
    except InvalidSignature:
        return False
    return True


def _chain(leaf: Certificate, pieces: _Pieces) -> str:
    """Return a certificate and the root above it, if it was given, in PEM."""
    above = [
        item
        for item in pieces.certificates.values()
        if item.authority and item.subject == leaf.issuer and item.der != leaf.der
    ]
    return "".join(
        item.parsed.public_bytes(Encoding.PEM).decode("ascii") for item in (leaf, *above[:1])
    )


def _authority(name: x509.Name) -> str:
    """Return which of Intel's two CAs has this name; empty for any other."""
    text = name.rfc4514_string()
    return next((ca for word, ca in _AUTHORITIES.items() if word in text), "")


def _newest(found: Sequence[_Signed], now: datetime) -> _Signed:
    stamp = now.strftime("%Y-%m-%dT%H:%M:%SZ")
    begun = [item for item in found if item.issued <= stamp]
    return max(begun or found, key=lambda item: item.issued)


def _latest(
    found: Sequence[x509.CertificateRevocationList], now: datetime
) -> x509.CertificateRevocationList:
    begun = [item for item in found if item.last_update_utc <= now]
    return max(begun or found, key=lambda item: item.last_update_utc)


def _der(crl: x509.CertificateRevocationList) -> bytes:
    return crl.public_bytes(Encoding.DER)
