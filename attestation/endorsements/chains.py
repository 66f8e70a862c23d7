"""Checks certificate chains of TEE vendors, link by link.

General path validators refuse what these vendors issue (serial number 0, RSA-PSS, unusual names).
So this module checks each signature, each name, each validity window, and that the chain ends at a
root whose public key is pinned by its digest. Parsed certificates are cached; signatures are
checked every time.
"""

from __future__ import annotations

import hashlib
import hmac
import itertools
import re
import threading
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from itertools import pairwise
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.utils import CryptographyDeprecationWarning

from attestation.errors import UNREADABLE, EndorsementError, EvidenceError, FreshnessError

__all__ = [
    "MAX_CERTIFICATE_BYTES",
    "Certificate",
    "check_chain",
    "check_issued",
    "check_validity",
    "load_certificate",
    "load_crl",
    "names_issuer",
    "pem_blocks",
    "split_certificates",
    "whole_octets",
]

MAX_CERTIFICATE_BYTES: Final = 16 * 1024
_MAX_FILE_BYTES: Final = 256 * 1024
_MAX_PER_FILE: Final = 16
_PEM_START: Final = re.compile(rb"-----BEGIN ")

_WARNINGS = threading.Lock()


@dataclass(frozen=True, slots=True, kw_only=True)
class Certificate:
    """The parts of a certificate that checks need, all read before any is used.

    ``extensions`` are the raw values of extensions without a type of their own, by OID;
    ``key_digest`` is the SHA-256 of the SubjectPublicKeyInfo.
    """

    der: bytes
    parsed: x509.Certificate
    subject: x509.Name
    issuer: x509.Name
    start: datetime
    end: datetime
    authority: bool
    key: ec.EllipticCurvePublicKey | rsa.RSAPublicKey
    key_digest: bytes
    extensions: dict[str, bytes]

    @property
    def name(self) -> str:
        """The common name, or the whole subject where there is none."""
        found = self.subject.get_attributes_for_oid(x509.NameOID.COMMON_NAME)
        return str(found[0].value) if found else self.subject.rfc4514_string()

    @property
    def self_issued(self) -> bool:
        """True when subject and issuer are the same name, as in a root."""
        return self.subject == self.issuer


def load_certificate(der: bytes, field: str) -> Certificate:
    """Parse one certificate in DER.

    :raises EvidenceError: when it is not one, naming ``field``.
    """
    if len(der) > MAX_CERTIFICATE_BYTES:
        raise EvidenceError(f"{len(der)} bytes are too long for a certificate", field=field)
    try:
        return _load(der)
    except UNREADABLE as error:
        raise EvidenceError("not a well-formed certificate", field=field) from error


@lru_cache(maxsize=256)
def _load(der: bytes) -> Certificate:
    with _WARNINGS, warnings.catch_warnings():
        # AMD gives its VCEKs the serial number 0, which RFC 5280 does not allow.
        warnings.simplefilter("ignore", CryptographyDeprecationWarning)
        # A malformed name causes a warning when the name is first read.
        warnings.simplefilter("ignore", UserWarning)
        parsed = x509.load_der_x509_certificate(der)
        subject, issuer = parsed.subject, parsed.issuer
        key = parsed.public_key()
        listed = list(parsed.extensions)
    if not isinstance(key, ec.EllipticCurvePublicKey | rsa.RSAPublicKey):
        raise TypeError("neither an EC nor an RSA key")
    if parsed.public_bytes(Encoding.DER) != der or not whole_octets(der, parsed.signature):
        raise ValueError("not the canonical encoding")
    constraints = [e.value for e in listed if isinstance(e.value, x509.BasicConstraints)]
    usage = [e.value for e in listed if isinstance(e.value, x509.KeyUsage)]
    spki = key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return Certificate(
        der=der,
        parsed=parsed,
        subject=subject,
        issuer=issuer,
        start=parsed.not_valid_before_utc,
        end=parsed.not_valid_after_utc,
        authority=bool(constraints and constraints[0].ca)
        and all(item.key_cert_sign for item in usage),
        key=key,
        key_digest=hashlib.sha256(spki).digest(),
        extensions={
            e.oid.dotted_string: e.value.value
            for e in listed
            if isinstance(e.value, x509.UnrecognizedExtension)
        },
    )


def load_crl(data: bytes) -> x509.CertificateRevocationList:
    """Parse a revocation list, PEM or DER. Its size is to be bounded by the caller.

    :raises Exception: one of :data:`attestation.errors.UNREADABLE`, when it is none.
    """
    pem = b"-----BEGIN X509 CRL" in data
    return x509.load_pem_x509_crl(data) if pem else x509.load_der_x509_crl(data)


def whole_octets(der: bytes, signature: bytes) -> bool:
    """Return whether the signature that ends ``der`` is a BIT STRING without unused bits.

    The count of unused bits is the only byte of a certificate that neither its signature nor
    ``cryptography`` protects, when the bits that it leaves out are zero.
    """
    return der.endswith(b"\0" + signature)


def pem_blocks(data: bytes) -> tuple[bytes, ...]:
    """Split a file into pieces that are read one by one, so that a bad one affects no other.

    Every PEM block is a piece, with the text after it; text before the first block is left out. A
    file without any block is one piece, which may be DER. Nothing is parsed.
    """
    starts = [found.start() for found in _PEM_START.finditer(data)]
    return tuple(data[start:end] for start, end in pairwise([*starts, len(data)])) or (data,)


def split_certificates(data: bytes, field: str) -> tuple[Certificate, ...]:
    """Return the certificates in ``data``, DER or PEM; none when it is something else.

    :raises EvidenceError: when it looks like certificates and is malformed.
    """
    if len(data) > _MAX_FILE_BYTES:
        raise EvidenceError(f"{len(data)} bytes are too long for a chain", field=field)
    if b"-----BEGIN CERTIFICATE-----" in data:
        try:
            ders = _split(data)
        except UNREADABLE as error:
            raise EvidenceError("not a chain of certificates in PEM", field=field) from error
        if len(ders) > _MAX_PER_FILE:
            raise EvidenceError(f"more than {_MAX_PER_FILE} certificates", field=field)
        return tuple(load_certificate(der, field) for der in ders)
    return (load_certificate(data, field),)


@lru_cache(maxsize=64)
def _split(data: bytes) -> tuple[bytes, ...]:
    with _WARNINGS, warnings.catch_warnings():
        warnings.simplefilter("ignore", CryptographyDeprecationWarning)
        found = x509.load_pem_x509_certificates(data)
        return tuple(item.public_bytes(Encoding.DER) for item in found)


def names_issuer(child: Certificate, issuer: Certificate) -> bool:
    """Return whether the issuer's name in ``child`` is the subject of ``issuer``."""
    return _names_issuer(child.der, issuer.der)


@lru_cache(maxsize=1024)
def _names_issuer(child: bytes, issuer: bytes) -> bool:
    # Comparing two names costs as much as checking a short signature.
    return _load(child).issuer == _load(issuer).subject


def check_issued(child: Certificate, issuer: Certificate, *, step: str) -> None:
    """Check that ``issuer`` is an authority, has the issuer's name in ``child``, and signed it.

    :raises EndorsementError: when it did not.
    """
    if not issuer.authority:
        raise EndorsementError(f"{issuer.name} is not an authority", step=step)
    if not names_issuer(child, issuer):
        raise EndorsementError(
            f"{child.name} was issued by {child.issuer.rfc4514_string()}, not by {issuer.name}",
            step=step,
        )
    try:
        _check_form(child.der, issuer.der)
        signed = _signed(child.der)
        if isinstance(issuer.key, rsa.RSAPublicKey):
            if not isinstance(signed.scheme, padding.AsymmetricPadding):
                raise TypeError("not an RSA signature")
            issuer.key.verify(signed.signature, signed.data, signed.scheme, signed.hash)
        else:
            issuer.key.verify(signed.signature, signed.data, ec.ECDSA(signed.hash))
    except (InvalidSignature, *UNREADABLE):
        raise EndorsementError(f"{issuer.name} did not sign {child.name}", step=step) from None


def check_chain(
    chain: Sequence[Certificate], *, root: bytes, root_name: str, now: datetime, step: str
) -> None:
    """Check a whole chain, leaf first, that ends at a self-signed root which is pinned.

    ``root`` is the SHA-256 of the SPKI of the pinned root, ``root_name`` its name in messages.

    :raises EndorsementError: when a link is not signed by the next, or the root is another.
    :raises FreshnessError: when a certificate is not valid at ``now``.
    """
    if not hmac.compare_digest(chain[-1].key_digest, root):
        raise EndorsementError(
            f"ends at {chain[-1].name}, which is not the pinned {root_name}", step=step
        )
    for certificate in chain:
        check_validity(certificate, now, step=step)
    for child, issuer in (*itertools.pairwise(chain), (chain[-1], chain[-1])):
        check_issued(child, issuer, step=step)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Signed:
    data: bytes
    signature: bytes
    scheme: object
    hash: hashes.HashAlgorithm


@lru_cache(maxsize=256)
def _signed(der: bytes) -> _Signed:
    parsed = _load(der).parsed
    algorithm = parsed.signature_hash_algorithm
    if algorithm is None:
        raise TypeError("neither an RSA nor an ECDSA signature")
    return _Signed(
        data=parsed.tbs_certificate_bytes,
        signature=parsed.signature,
        scheme=parsed.signature_algorithm_parameters,
        hash=algorithm,
    )


@lru_cache(maxsize=1024)
def _check_form(child: bytes, issuer: bytes) -> None:
    """Check names, algorithms and kinds of key of a link; results are cached for each pair."""
    _load(child).parsed.verify_directly_issued_by(_load(issuer).parsed)


def check_validity(certificate: Certificate, now: datetime, *, step: str, hint: str = "") -> None:
    """Check that ``now`` is inside of the certificate's validity window.

    :raises FreshnessError: naming the certificate and the date.
    """
    if now < certificate.start:
        raise FreshnessError(
            f"{certificate.name} is not valid before {certificate.start.isoformat()}",
            step=step,
            hint="check the clock, or appraise at another time",
        )
    if now > certificate.end:
        raise FreshnessError(
            f"{certificate.name} expired on {certificate.end.isoformat()}", step=step, hint=hint
        )
