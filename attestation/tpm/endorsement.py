"""Endorsement key certificates, by which a manufacturer certifies that a TPM is genuine.

Profile: TCG EK Credential Profile for TPM Family 2.0, section 3.2. Such certificates may have an
empty subject and a critical subject alternative name with directory attributes, so general X.509
path validators refuse them. This module checks the chain itself: signatures and names, validity,
that issuers are authorities and may sign certificates, path lengths, the extended key usage, and
that the root equals one of the given ones. Every path is tried. Revocation is not checked:
manufacturers publish it by URL, and verification is offline.

Roots and intermediates are DER or PEM, one or many to a file, with any text before a PEM block. A
certificate that cannot be read is ignored, and the others in its file are used;
:func:`unreadable_certificates` lists those.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import AuthorityInformationAccessOID

from attestation.endorsements.chains import MAX_CERTIFICATE_BYTES, pem_blocks, whole_octets
from attestation.errors import UNREADABLE, EndorsementError, EvidenceError
from attestation.quotes.tpm_keys import PUBLIC_KEY_TYPES, PublicKey

__all__ = ["certificate_der", "check_ek_certificate", "unreadable_certificates"]

_STEP: Final = "endorsement key"
_MAX_FILE_BYTES: Final = 4 * 1024 * 1024
_MAX_CHECKS: Final = 512
_MAX_SHOWN: Final = 4
_MAX_DEPTH: Final = 5
_ADDRESS: Final = re.compile(r"https?://[!-~]{1,256}")
_EK_USAGE: Final = x509.ObjectIdentifier("2.23.133.8.1")
"""tcg-kp-EKCertificate."""

_UNDERSTOOD: Final = (
    x509.BasicConstraints,
    x509.KeyUsage,
    x509.ExtendedKeyUsage,
    x509.SubjectAlternativeName,
    x509.CertificatePolicies,
)
"""Extensions that may be critical: they are read, or have no meaning for this chain."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Certificate:
    """The parts of a certificate that checks need, all read before any is used."""

    parsed: x509.Certificate
    subject: x509.Name
    issuer: x509.Name
    start: datetime
    end: datetime
    authority: bool
    path_length: int | None
    usages: tuple[x509.ObjectIdentifier, ...]
    issuer_at: str

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

    ``intermediates`` and ``roots`` are files of certificates; see the module.

    :raises EvidenceError: when ``certificate`` is not one.
    :raises EndorsementError: when it is not an EK certificate under one of ``roots``, or more
        than 512 signatures would have to be checked to find out.
    """
    leaf = _load(certificate, "ek_certificate")
    if _EK_USAGE not in leaf.usages:
        raise EndorsementError("the certificate is not for an endorsement key", step=_STEP)
    if leaf.authority:
        raise EndorsementError("an authority's certificate is not a TPM's", step=_STEP)
    try:
        key = leaf.parsed.public_key()
    except UNREADABLE as error:
        raise EvidenceError("has no readable key", field="ek_certificate") from error
    if not isinstance(key, PUBLIC_KEY_TYPES):
        raise EndorsementError("not an RSA or EC key", step=_STEP)
    if problem := _outside(leaf, now):
        raise EndorsementError(problem, step=_STEP)
    _climb(leaf, intermediates, roots, now)
    return key


def unreadable_certificates(data: bytes) -> tuple[str, ...]:
    """Return which certificates of a file with roots or intermediates cannot be read, and why."""
    return tuple(
        f"certificate {number}: {problem}"
        for number, (_, problem) in enumerate(_read(data), start=1)
        if problem
    )


def _climb(
    leaf: _Certificate, intermediates: Sequence[bytes], roots: Sequence[bytes], now: datetime
) -> None:
    """Find a path from ``leaf`` to an anchor, the shortest first.

    Each intermediate is checked once, at the smallest depth at which a path reaches it. A path
    length constraint that refuses it there refuses it at any greater depth as well.
    """
    anchors, rest = _readable(roots), _readable(intermediates)
    problems: list[str] = []
    checked, level, last = 0, [leaf], leaf
    for depth in range(_MAX_DEPTH + 1):
        above: list[_Certificate] = []
        for child in level:
            named = [item for item in (*anchors, *rest) if _names(child, item, depth)]
            checked += len(named)
            if checked > _MAX_CHECKS:
                raise EndorsementError(
                    f"more than {_MAX_CHECKS} signatures would have to be checked", step=_STEP
                )
            for issuer in [item for item in named if _signed(child, item)]:
                if problem := _outside(issuer, now):
                    problems.append(problem)
                elif issuer in anchors:
                    return
                elif issuer not in above:
                    above.append(issuer)
        rest = [item for item in rest if item not in above]
        level, last = above, above[0] if above else last
    if problems:
        raise EndorsementError(problems[0], step=_STEP)
    message = f"no trusted root for {last.issuer.rfc4514_string() or 'an unnamed issuer'}"
    unread = [
        f"trusted root {number}, {problem}"
        for number, data in enumerate(roots, start=1)
        for problem in unreadable_certificates(data)
    ]
    if unread:
        rest_of_them = f"; and {len(unread) - _MAX_SHOWN} more" if len(unread) > _MAX_SHOWN else ""
        message += f"; not read: {'; '.join(unread[:_MAX_SHOWN])}{rest_of_them}"
    raise EndorsementError(
        message,
        step=_STEP,
        hint="add the manufacturer's root and intermediate certificates"
        + (f"; the next is at {last.issuer_at}" if last.issuer_at else ""),
    )


def _readable(files: Sequence[bytes]) -> list[_Certificate]:
    return [item for data in files for item, _ in _read(data) if item is not None]


@lru_cache(maxsize=64)
def _read(data: bytes) -> tuple[tuple[_Certificate | None, str], ...]:
    """Return each certificate of a file, or why it cannot be read."""
    return tuple(_each(data))


def _each(data: bytes) -> Iterator[tuple[_Certificate | None, str]]:
    if len(data) > _MAX_FILE_BYTES:
        yield None, f"a file of {len(data)} bytes, at most {_MAX_FILE_BYTES} are read"
        return
    for block in pem_blocks(data):
        try:
            yield _load(block, ""), ""
        except EvidenceError as error:
            yield None, str(error)


def _names(child: _Certificate, issuer: _Certificate, depth: int) -> bool:
    """Return whether ``issuer`` may have issued ``child``, which has ``depth`` others below it."""
    if not issuer.authority or child.issuer != issuer.subject:
        return False
    return issuer.path_length is None or issuer.path_length >= depth


def _signed(child: _Certificate, issuer: _Certificate) -> bool:
    try:
        child.parsed.verify_directly_issued_by(issuer.parsed)
    except (InvalidSignature, *UNREADABLE):
        return False
    return True


def _outside(certificate: _Certificate, now: datetime) -> str:
    """Return how ``now`` is outside of the certificate's validity window; empty if it is inside."""
    if now < certificate.start:
        return f"{certificate.name} is not valid before {certificate.start:%Y-%m-%d}"
    if now > certificate.end:
        return f"{certificate.name} expired on {certificate.end:%Y-%m-%d}"
    return ""


def _load(data: bytes, field: str) -> _Certificate:
    if len(data) > MAX_CERTIFICATE_BYTES:
        raise EvidenceError(f"{len(data)} bytes are too long for a certificate", field=field)
    try:
        if b"-----BEGIN" in data:
            found = x509.load_pem_x509_certificate(data)
        else:
            found = x509.load_der_x509_certificate(data)
        if not whole_octets(found.public_bytes(Encoding.DER), found.signature):
            raise ValueError("not the canonical encoding")
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
            issuer_at=_issuer_at(extensions.get(x509.AuthorityInformationAccess)),
        )
    except UNREADABLE as error:
        raise EvidenceError("not a certificate in DER or PEM", field=field) from error


def _issuer_at(access: object) -> str:
    """Return the address of the issuer's certificate (RFC 5280, 4.2.2.1); empty if not given."""
    if isinstance(access, x509.AuthorityInformationAccess):
        for item in access:
            where = getattr(item.access_location, "value", "")
            if (
                item.access_method == AuthorityInformationAccessOID.CA_ISSUERS
                and isinstance(where, str)
                and _ADDRESS.fullmatch(where)
            ):
                return where
    return ""


def certificate_der(data: bytes) -> bytes:
    """Return the certificate at the start of ``data``, without the padding of a TPM's memory.

    :raises EvidenceError: when there is none.
    """
    if len(data) < 4 or data[:2] != b"\x30\x82":
        raise EvidenceError("not a DER certificate", field="ek_certificate", offset=0)
    length = 4 + int.from_bytes(data[2:4], "big")
    return _load(data[:length], "ek_certificate").parsed.public_bytes(Encoding.DER)
