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
from datetime import datetime
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import Encoding

from attestation.errors import EndorsementError, EvidenceError
from attestation.quotes.tpm_structures import PUBLIC_KEY_TYPES, PublicKey

__all__ = ["certificate_der", "check_ek_certificate"]

_STEP: Final = "endorsement key"
_MAX_CERTIFICATE_BYTES: Final = 16 * 1024
_MAX_INTERMEDIATES: Final = 32
_MAX_DEPTH: Final = 5
_EK_USAGE: Final = x509.ObjectIdentifier("2.23.133.8.1")
"""tcg-kp-EKCertificate."""


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
    try:
        extensions = leaf.extensions
        usage = extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
        if _EK_USAGE not in usage:
            raise EndorsementError("the certificate is not for an endorsement key", step=_STEP)
        key = leaf.public_key()
    except x509.ExtensionNotFound:
        raise EndorsementError(
            "the certificate does not say that it is for an endorsement key", step=_STEP
        ) from None
    except (ValueError, UnsupportedAlgorithm) as error:
        raise EvidenceError("cannot be read", field="ek_certificate") from error
    if not isinstance(key, PUBLIC_KEY_TYPES):
        raise EndorsementError("not an RSA or EC key", step=_STEP)
    if _is_authority(leaf):
        raise EndorsementError("an authority's certificate is not a TPM's", step=_STEP)
    _check_time(leaf, now)
    anchors = [_load(root, "trusted root") for root in roots]
    known = [item for data in intermediates[:_MAX_INTERMEDIATES] if (item := _maybe(data))]
    _climb(leaf, known, anchors, now, depth=0)
    return key


def _climb(
    child: x509.Certificate,
    known: Sequence[x509.Certificate],
    anchors: Sequence[x509.Certificate],
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
            if issuer != child and _issued(child, issuer, depth):
                _check_time(issuer, now)
                _climb(issuer, known, anchors, now, depth=depth + 1)
                return
    raise EndorsementError(
        f"no trusted root for {child.issuer.rfc4514_string() or 'an unnamed issuer'}",
        step=_STEP,
        hint="add the manufacturer's root and intermediate certificates",
    )


def _issued(child: x509.Certificate, issuer: x509.Certificate, depth: int) -> bool:
    if not _is_authority(issuer) or child.issuer != issuer.subject:
        return False
    constraint = issuer.extensions.get_extension_for_class(x509.BasicConstraints).value
    if constraint.path_length is not None and constraint.path_length < depth:
        return False
    try:
        child.verify_directly_issued_by(issuer)
    except (InvalidSignature, ValueError, TypeError, UnsupportedAlgorithm):
        return False
    return True


def _is_authority(certificate: x509.Certificate) -> bool:
    try:
        extensions = certificate.extensions
    except (ValueError, UnsupportedAlgorithm) as error:
        raise EvidenceError("extensions cannot be read", field="certificate") from error
    try:
        authority = extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    except x509.ExtensionNotFound:
        return False
    try:
        signs = extensions.get_extension_for_class(x509.KeyUsage).value.key_cert_sign
    except x509.ExtensionNotFound:
        signs = True
    return authority and signs


def _check_time(certificate: x509.Certificate, now: datetime) -> None:
    name = certificate.subject.rfc4514_string() or "the EK certificate"
    if now < certificate.not_valid_before_utc:
        raise EndorsementError(
            f"{name} is not valid before {certificate.not_valid_before_utc:%Y-%m-%d}", step=_STEP
        )
    if now > certificate.not_valid_after_utc:
        raise EndorsementError(
            f"{name} expired on {certificate.not_valid_after_utc:%Y-%m-%d}", step=_STEP
        )


def _load(data: bytes, field: str) -> x509.Certificate:
    if len(data) > _MAX_CERTIFICATE_BYTES:
        raise EvidenceError(f"{len(data)} bytes are too long for a certificate", field=field)
    try:
        if data.lstrip().startswith(b"-----BEGIN"):
            return x509.load_pem_x509_certificate(data)
        return x509.load_der_x509_certificate(data)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise EvidenceError("not a certificate in DER or PEM", field=field) from error


def _maybe(data: bytes) -> x509.Certificate | None:
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
    return _load(data[:length], "ek_certificate").public_bytes(Encoding.DER)
