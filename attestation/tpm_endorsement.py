"""Endorsement key certificates: which manufacturer says that this TPM is one of theirs.

Profile: TCG EK Credential Profile for TPM Family 2.0, section 3.2. Such certificates may
have an empty subject and a critical subject alternative name with directory attributes, so
general X.509 path validators refuse them; the chain is checked here, by hand: signatures and
names, validity, that issuers are authorities and may sign certificates, path lengths, the
extended key usage, and a root that is one of the given ones, byte for byte. Revocation is
not checked: manufacturers publish it by URL, and verification is offline.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import Encoding

from attestation.errors import EndorsementError, EvidenceError
from attestation.quotes.tpm_keys import PUBLIC_KEY_TYPES, PublicKey

__all__ = ["certificate_der", "check_ek_certificate"]

_STEP: Final = "endorsement key"
_MAX_CERTIFICATE_BYTES: Final = 16 * 1024
_MAX_INTERMEDIATES: Final = 32
_MAX_DEPTH: Final = 5
_EK_USAGE: Final = x509.ObjectIdentifier("2.23.133.8.1")
"""tcg-kp-EKCertificate."""

_UNDERSTOOD: Final = (
    x509.BasicConstraints,
    x509.KeyUsage,
    x509.ExtendedKeyUsage,
    x509.SubjectAlternativeName,
    x509.CertificatePolicies,
)
"""Extensions that may be critical: read, or without meaning for this chain."""

_UNREADABLE: Final = (
    ValueError,
    TypeError,
    UnsupportedAlgorithm,
    x509.InvalidVersion,
    x509.DuplicateExtension,
    x509.UnsupportedGeneralNameType,
)
"""What ``cryptography`` raises for certificates that are not well-formed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Certificate:
    """What is needed of a certificate, all of it read before any of it is used."""

    parsed: x509.Certificate
    subject: x509.Name
    issuer: x509.Name
    start: datetime
    end: datetime
    authority: bool
    path_length: int | None
    usages: tuple[x509.ObjectIdentifier, ...]

    @property
    def name(self) -> str:
        return self.subject.rfc4514_string() or "the EK certificate"


def check_ek_certificate(
    certificate: bytes,
    intermediates: Sequence[bytes],
    *,
    roots: Sequence[bytes],
    now: datetime,
) -> PublicKey:
    """Return the endorsement key that ``certificate`` vouches for.

    Certificates are DER or PEM; ``intermediates`` that are not certificates are passed over.

    :raises EvidenceError: when ``certificate`` is not one.
    :raises EndorsementError: when it is not an EK certificate under one of ``roots``.
    """
    leaf = _load(certificate, "ek_certificate")
    if _EK_USAGE not in leaf.usages:
        raise EndorsementError("the certificate is not for an endorsement key", step=_STEP)
    if leaf.authority:
        raise EndorsementError("an authority's certificate is not a TPM's", step=_STEP)
    try:
        key = leaf.parsed.public_key()
    except _UNREADABLE as error:
        raise EvidenceError("has no readable key", field="ek_certificate") from error
    if not isinstance(key, PUBLIC_KEY_TYPES):
        raise EndorsementError("not an RSA or EC key", step=_STEP)
    _check_time(leaf, now)
    anchors = [_load(root, "trusted root") for root in roots]
    known = [item for data in intermediates[:_MAX_INTERMEDIATES] if (item := _maybe(data))]
    _climb(leaf, known, anchors, now, depth=0)
    return key


def _climb(
    child: _Certificate,
    known: Sequence[_Certificate],
    anchors: Sequence[_Certificate],
    now: datetime,
    *,
    depth: int,
) -> None:
    """Walk up to an anchor; ``depth`` is the number of intermediates below the next issuer."""
    for issuer in anchors:
        if _issued(child, issuer, depth):
            _check_time(issuer, now)
            return
    if depth < _MAX_DEPTH:
        for issuer in known:
            if issuer.parsed != child.parsed and _issued(child, issuer, depth):
                _check_time(issuer, now)
                _climb(issuer, known, anchors, now, depth=depth + 1)
                return
    raise EndorsementError(
        f"no trusted root for {child.issuer.rfc4514_string() or 'an unnamed issuer'}",
        step=_STEP,
        hint="add the manufacturer's root and intermediate certificates",
    )


def _issued(child: _Certificate, issuer: _Certificate, depth: int) -> bool:
    if not issuer.authority or child.issuer != issuer.subject:
        return False
    if issuer.path_length is not None and issuer.path_length < depth:
        return False
    try:
        child.parsed.verify_directly_issued_by(issuer.parsed)
    except (InvalidSignature, *_UNREADABLE):
        return False
    return True


def _check_time(certificate: _Certificate, now: datetime) -> None:
    if now < certificate.start:
        raise EndorsementError(
            f"{certificate.name} is not valid before {certificate.start:%Y-%m-%d}", step=_STEP
        )
    if now > certificate.end:
        raise EndorsementError(
            f"{certificate.name} expired on {certificate.end:%Y-%m-%d}", step=_STEP
        )


def _load(data: bytes, field: str) -> _Certificate:
    if len(data) > _MAX_CERTIFICATE_BYTES:
        raise EvidenceError(f"{len(data)} bytes are too long for a certificate", field=field)
    try:
        if data.lstrip().startswith(b"-----BEGIN"):
            found = x509.load_pem_x509_certificate(data)
        else:
            found = x509.load_der_x509_certificate(data)
        for item in found.extensions:
            if item.critical and not isinstance(item.value, _UNDERSTOOD):
                raise EvidenceError(
                    f"critical extension {item.oid.dotted_string} is not understood", field=field
                )
        extensions = {type(item.value): item.value for item in found.extensions}
        constraints = extensions.get(x509.BasicConstraints)
        key_usage = extensions.get(x509.KeyUsage)
        usages = extensions.get(x509.ExtendedKeyUsage)
        is_authority = isinstance(constraints, x509.BasicConstraints) and constraints.ca
        if isinstance(key_usage, x509.KeyUsage) and not key_usage.key_cert_sign:
            is_authority = False
        return _Certificate(
            parsed=found,
            subject=found.subject,
            issuer=found.issuer,
            start=found.not_valid_before_utc,
            end=found.not_valid_after_utc,
            authority=is_authority,
            path_length=getattr(constraints, "path_length", None),
            usages=tuple(usages) if isinstance(usages, x509.ExtendedKeyUsage) else (),
        )
    except _UNREADABLE as error:
        raise EvidenceError("not a certificate in DER or PEM", field=field) from error


def _maybe(data: bytes) -> _Certificate | None:
    try:
        return _load(data, "endorsement")
    except EvidenceError:
        return None


def certificate_der(data: bytes) -> bytes:
    """Return the certificate at the start of ``data``, without what a TPM's memory pads it with.

    :raises EvidenceError: when there is none.
    """
    if len(data) < 4 or data[:2] != b"\x30\x82":
        raise EvidenceError("not a DER certificate", field="ek_certificate", offset=0)
    length = 4 + int.from_bytes(data[2:4], "big")
    return _load(data[:length], "ek_certificate").parsed.public_bytes(Encoding.DER)
