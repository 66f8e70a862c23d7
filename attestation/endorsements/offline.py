"""Prepares evidence in files, with endorsements in files, for verification without a network.

A person who names a file as an endorsement vouches for it. A public key among the endorsements is
therefore a pinned key (a TPM's attestation key, a development key), and a self-signed CA
certificate a root for TPM endorsement keys. Collateral may be among them as well. The roots of
Intel and AMD stay the pinned ones in any case.
"""

from __future__ import annotations

import hashlib
import warnings
from dataclasses import dataclass

from cryptography import x509
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_der_public_key,
    load_pem_public_key,
)
from cryptography.utils import CryptographyDeprecationWarning

from attestation.documents.formats import is_bare_tpm_quote, to_evidence
from attestation.encodings import unwrap_text
from attestation.endorsements.chains import load_crl, pem_blocks
from attestation.endorsements.intel import parse_collateral
from attestation.endorsements.nvidia_rim import is_rim
from attestation.endorsements.ocsp import is_ocsp
from attestation.errors import UNREADABLE, EndorsementError, EvidenceError
from attestation.evidence import Evidence, Tee
from attestation.quotes.snp import is_certificate_table, parse_certificate_table
from attestation.quotes.tpm import TpmQuote
from attestation.trust import TrustAnchors

__all__ = [
    "MAX_COLLATERAL_BYTES",
    "MAX_ENDORSEMENT_BYTES",
    "Input",
    "gather",
    "load_certificates",
    "readable_certificates",
    "unread_pieces",
]

MAX_ENDORSEMENT_BYTES = 1024 * 1024
MAX_COLLATERAL_BYTES = 4 * 1024 * 1024

_ANSWERS = (b'{"tcbInfo"', b'{"enclaveIdentity"')
_ANSWERS_HINT = (
    "it is one of several answers of Intel's service: put all of them into one folder, and name "
    "that with --collateral"
)

_KEY_START = b"-----BEGIN PUBLIC KEY-----"
_CRL_START = b"-----BEGIN X509 CRL-----"


@dataclass(frozen=True, slots=True, kw_only=True)
class Input:
    """A file's bytes, and its name in messages."""

    name: str
    data: bytes


def gather(
    evidence: Input,
    *,
    format: str | None = None,  # noqa: A002 (the word that the command line uses)
    endorsements: tuple[Input, ...] = (),
    event_log: bytes = b"",
    collateral: tuple[bytes, ...] = (),
) -> tuple[Evidence, TrustAnchors]:
    """Return evidence and trust anchors, ready for :func:`attestation.verifiers.verify`.

    :raises EvidenceError: when the evidence is of another format.
    :raises EndorsementError: when a file is no endorsement.
    """
    parsed = to_evidence(evidence.data, format, event_log=event_log)
    pinned: set[bytes] = set()
    certificates: list[bytes] = []
    roots: list[bytes] = []
    pieces: list[Input] = []
    documents = list(collateral)
    for item in map(_unwrapped, endorsements):
        if is_rim(item.data) or is_ocsp(item.data) or _is_collateral(item):
            documents.append(item.data)
        elif is_certificate_table(item.data):
            certificates += _table(item)
        elif (found := readable_certificates(item.data)) or _has_crl(item.data):
            certificates.append(item.data)
            roots += [_der(cert) for cert in found if _is_root(cert)]
        elif (key := _public_key(item.data)) is not None:
            pinned.add(hashlib.sha256(key).digest())
            pieces.append(item)
        elif is_bare_tpm_quote(parsed):
            pieces.append(item)
        else:
            raise EndorsementError(
                f"{item.name} is not a certificate, a revocation list, a public key or collateral",
                step="endorsement",
                hint=_ANSWERS_HINT if item.data.lstrip().startswith(_ANSWERS) else "",
            )
    if is_bare_tpm_quote(parsed):
        parsed = Evidence(
            tee=Tee.TPM,
            quote=parsed.quote,
            event_log=event_log,
            endorsements=tuple(item.data for item in pieces),
        )
        # A person named the key as an endorsement, and so vouches for it.
        pinned.add(_bare_quote(parsed, pieces).ak_digest)
    return parsed, TrustAnchors(
        sample_keys=frozenset(pinned),
        tpm_aks=frozenset(pinned),
        tpm_ek_roots=tuple(roots),
        collateral=tuple(documents),
        endorsements=tuple(certificates),
    )


def _bare_quote(evidence: Evidence, pieces: list[Input]) -> TpmQuote:
    """Assemble a quote from its pieces; an error names the file and not its number."""
    try:
        return TpmQuote.from_evidence(evidence)
    except EvidenceError as error:
        names = {f"endorsements[{number}]": item.name for number, item in enumerate(pieces)}
        if error.field not in names:
            raise
        message = str(error).removeprefix(f"{error.field}: ")
        raise EvidenceError(message, field=names[error.field], hint=error.hint) from error


def _is_collateral(item: Input) -> bool:
    try:
        return parse_collateral(item.data) is not None
    except EvidenceError as error:
        raise EndorsementError(f"{item.name}: {error}", step="collateral") from None


def _table(item: Input) -> tuple[bytes, ...]:
    try:
        return parse_certificate_table(item.data)
    except EvidenceError as error:
        raise EndorsementError(f"{item.name}: {error}", step="endorsement") from None


def _unwrapped(item: Input) -> Input:
    return Input(name=item.name, data=unwrap_text(item.data))


def _public_key(data: bytes) -> bytes | None:
    blocks = [piece for piece in pem_blocks(data) if piece.startswith(_KEY_START)]
    try:
        key = load_pem_public_key(blocks[0]) if blocks else load_der_public_key(data)
    except UNREADABLE:
        return None
    return key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def load_certificates(data: bytes) -> list[x509.Certificate]:
    """Return the certificates in a file, PEM or DER.

    AMD gives its VCEKs the serial number 0, which RFC 5280 does not allow; the warning about it is
    suppressed, because nobody can act on it.

    :raises Exception: one of :data:`UNREADABLE`, when there are none.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CryptographyDeprecationWarning)
        if b"-----BEGIN CERTIFICATE" in data:
            return x509.load_pem_x509_certificates(data)
        return [x509.load_der_x509_certificate(data)]


def readable_certificates(data: bytes) -> list[x509.Certificate]:
    """Return the readable certificates in a file, PEM or DER."""
    return [item for piece in pem_blocks(data) for item in _one_certificate(piece)]


def unread_pieces(data: bytes) -> tuple[str, ...]:
    """Return why certificates and lists of a file cannot be read, by their number in it.

    ``data`` is a file with certificates, revocation lists or public keys; the result for another
    file, such as collateral, is empty.
    """
    if data.lstrip()[:1] == b"{" or is_certificate_table(data):
        return ()
    return tuple(
        f"block {number} cannot be read: no certificate, revocation list or public key"
        for number, piece in enumerate(pem_blocks(data), start=1)
        if not _one_certificate(piece) and not _is_crl(piece) and _public_key(piece) is None
    )


def _one_certificate(piece: bytes) -> list[x509.Certificate]:
    try:
        found = load_certificates(piece)
        for item in found:
            _ = (item.subject, item.issuer, item.extensions)  # are parsed when first asked for
    except UNREADABLE:
        return []
    return found


def _has_crl(data: bytes) -> bool:
    return any(item.startswith(_CRL_START) or _is_crl(item) for item in pem_blocks(data))


def _is_crl(piece: bytes) -> bool:
    try:
        load_crl(piece)
    except UNREADABLE:
        return False
    return True


def _is_root(certificate: x509.Certificate) -> bool:
    try:
        constraints = certificate.extensions.get_extension_for_class(x509.BasicConstraints)
    except (x509.ExtensionNotFound, *UNREADABLE):
        return False
    return constraints.value.ca and certificate.subject == certificate.issuer


def _der(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(Encoding.DER)
