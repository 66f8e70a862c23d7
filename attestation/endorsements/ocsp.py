"""OCSP answers (RFC 6960): checks that certificates were not revoked. Uses no network.

An answer counts for a certificate when its CertID names it (issuer's name, issuer's key, serial
number), ``thisUpdate <= now < nextUpdate``, and its signature is by the certificate's issuer or by
a responder whose certificate is in the answer, was issued by the same issuer for OCSP signing
(RFC 6960, section 4.2.2.2), and is valid at ``now``. The revocation of the responder itself is not
checked, as its CA states by *id-pkix-ocsp-nocheck*.
"""

from __future__ import annotations

import hashlib
import itertools
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.utils import CryptographyDeprecationWarning
from cryptography.x509 import ocsp
from cryptography.x509.oid import ExtendedKeyUsageOID

from attestation.endorsements.chains import (
    Certificate,
    check_issued,
    check_validity,
    load_certificate,
)
from attestation.errors import (
    UNREADABLE,
    EndorsementError,
    EvidenceError,
    FreshnessError,
    SignatureError,
)

__all__ = ["MAX_OCSP_BYTES", "OcspAnswer", "check_not_revoked", "is_ocsp", "ocsp_request"]

MAX_OCSP_BYTES: Final = 16 * 1024
_FIELD: Final = "ocsp"
_MAX_SINGLE: Final = 64
_HASHES: Final = (hashes.SHA256, hashes.SHA384, hashes.SHA512)
_ID_HASHES: Final = (hashes.SHA1, *_HASHES)
_UNREADABLE: Final = (*UNREADABLE, OverflowError)


@dataclass(frozen=True, slots=True, kw_only=True)
class OcspAnswer:
    """The status of one certificate in one answer. The signature is not verified yet.

    ``start`` and ``end`` are ``thisUpdate`` and ``nextUpdate``; ``revoked`` is the time of the
    revocation; ``good`` is false for *revoked* and for *unknown*.
    """

    data: bytes
    serial: int
    algorithm: str
    issuer_name: bytes
    issuer_key: bytes
    start: datetime
    end: datetime
    good: bool
    revoked: datetime | None
    reason: str

    @classmethod
    def parse(cls, data: bytes) -> tuple[OcspAnswer, ...]:
        """Return the statuses in an answer, one for each certificate.

        :raises EvidenceError: when it is malformed, not successful, has no ``nextUpdate``, or is
            larger than :data:`MAX_OCSP_BYTES`.
        """
        if len(data) > MAX_OCSP_BYTES:
            raise EvidenceError(
                f"{len(data)} bytes, at most {MAX_OCSP_BYTES} are read", field=_FIELD
            )
        return _parse(data)

    def names(self, certificate: Certificate, issuer: Certificate) -> bool:
        """Return whether the CertID is that of ``certificate`` under ``issuer``."""
        return (
            self.serial == certificate.parsed.serial_number
            and self.issuer_name == _digest(self.algorithm, issuer.subject.public_bytes())
            and self.issuer_key == _digest(self.algorithm, _key_bits(issuer))
        )


def is_ocsp(data: bytes) -> bool:
    """Return whether ``data`` is an OCSP answer, of any content."""
    if len(data) > MAX_OCSP_BYTES or data[:1] != b"0":
        return False
    try:
        ocsp.load_der_ocsp_response(data)
    except _UNREADABLE:
        return False
    return True


def ocsp_request(certificate: Certificate, issuer: Certificate) -> bytes:
    """Return the request (DER, CertID with SHA-384) that asks about ``certificate``."""
    builder = ocsp.OCSPRequestBuilder().add_certificate(
        certificate.parsed, issuer.parsed, hashes.SHA384()
    )
    return builder.build().public_bytes(Encoding.DER)


def check_not_revoked(
    chain: Sequence[Certificate],
    answers: Iterable[OcspAnswer],
    *,
    now: datetime,
    step: str,
    hint: str = "",
) -> tuple[OcspAnswer, ...]:
    """Check that every certificate of a verified chain, except its root, has a good answer now.

    The chain is leaf first and ends at its root. The answers that count are returned in its order.

    :raises EndorsementError: when there is no answer for a certificate, it was revoked, or is not
        known to the responder.
    :raises FreshnessError: when the answers for it are out of date.
    :raises SignatureError: when the issuer or its responder did not sign one.
    """
    known = tuple(answers)
    return tuple(
        _check(certificate, issuer, known, now, step, hint)
        for certificate, issuer in itertools.pairwise(chain)
    )


def _check(
    certificate: Certificate,
    issuer: Certificate,
    known: Sequence[OcspAnswer],
    now: datetime,
    step: str,
    hint: str,
) -> OcspAnswer:
    name = f"{certificate.name} (serial {certificate.parsed.serial_number:x})"
    mine = [item for item in known if item.names(certificate, issuer)]
    if not mine:
        raise EndorsementError(f"no OCSP answer for {name}", step=step, hint=hint)
    current = [item for item in mine if item.start <= now < item.end]
    if not current:
        newest = max(mine, key=lambda item: item.end)
        raise FreshnessError(
            f"the OCSP answer for {name} counts from {newest.start.isoformat()} to "
            f"{newest.end.isoformat()}, not at {now.isoformat()}",
            step=step,
            hint=hint,
        )
    for item in current:
        _check_signature(item.data, issuer, now, step)
        if item.revoked is not None:
            raise EndorsementError(
                f"{name} was revoked at {item.revoked.isoformat()} ({item.reason})", step=step
            )
        if not item.good:
            raise EndorsementError(f"the responder does not know {name}", step=step)
    return max(current, key=lambda item: item.end)


def _check_signature(data: bytes, issuer: Certificate, now: datetime, step: str) -> None:
    """Check that the signer is the issuer, or a responder that the issuer certified."""
    answer = ocsp.load_der_ocsp_response(data)
    signer = next((item for item in (issuer, *_responders(answer)) if _named(item, answer)), None)
    if signer is None:
        raise EndorsementError("the OCSP answer has no certificate of its responder", step=step)
    if signer is not issuer:
        check_issued(signer, issuer, step=step)
        check_validity(signer, now, step=step)
        if not _may_answer(signer):
            raise EndorsementError(f"{signer.name} is not for OCSP signing", step=step)
    algorithm = answer.signature_hash_algorithm
    if not isinstance(algorithm, _HASHES) or not isinstance(signer.key, ec.EllipticCurvePublicKey):
        raise EndorsementError("an OCSP answer is signed with ECDSA and SHA-2 here", step=step)
    try:
        signer.key.verify(answer.signature, answer.tbs_response_bytes, ec.ECDSA(algorithm))
    except InvalidSignature:
        raise SignatureError(f"{signer.name} did not sign the OCSP answer", step=step) from None


def _responders(answer: ocsp.OCSPResponse) -> list[Certificate]:
    return [
        load_certificate(item.public_bytes(Encoding.DER), f"{_FIELD}.certs")
        for item in answer.certificates
    ]


def _named(candidate: Certificate, answer: ocsp.OCSPResponse) -> bool:
    """Return whether the ResponderID is that of ``candidate``."""
    if answer.responder_key_hash is not None:
        return answer.responder_key_hash == _digest("sha1", _key_bits(candidate))
    return answer.responder_name == candidate.subject


def _may_answer(responder: Certificate) -> bool:
    purposes = [
        purpose
        for item in responder.parsed.extensions
        if isinstance(item.value, x509.ExtendedKeyUsage)
        for purpose in item.value
    ]
    return ExtendedKeyUsageOID.OCSP_SIGNING in purposes and not responder.authority


@lru_cache(maxsize=256)
def _parse(data: bytes) -> tuple[OcspAnswer, ...]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", CryptographyDeprecationWarning)
            answer = ocsp.load_der_ocsp_response(data)
            if answer.response_status is not ocsp.OCSPResponseStatus.SUCCESSFUL:
                status = answer.response_status.name.lower()
                raise EvidenceError(f"the responder answered {status}", field=_FIELD)
            # Everything that is used later is parsed now, so that malformed parts fail here.
            _ = answer.signature, answer.tbs_response_bytes, answer.signature_hash_algorithm
            _ = answer.responder_name, answer.responder_key_hash, _responders(answer)
            if answer.public_bytes(Encoding.DER) != data:
                raise EvidenceError("is not the canonical encoding", field=_FIELD)
            found = tuple(_single(data, item) for item in answer.responses)
    except _UNREADABLE as error:
        raise EvidenceError("is not a well-formed OCSP answer", field=_FIELD) from error
    if not 0 < len(found) <= _MAX_SINGLE:
        raise EvidenceError(f"is about {len(found)} certificates", field=_FIELD)
    return found


def _single(data: bytes, item: ocsp.OCSPSingleResponse) -> OcspAnswer:
    if item.next_update_utc is None:
        raise EvidenceError("has no nextUpdate, so nothing bounds its age", field=_FIELD)
    if not isinstance(item.hash_algorithm, _ID_HASHES):
        raise EvidenceError(f"a CertID with {item.hash_algorithm.name} is not read", field=_FIELD)
    reason = item.revocation_reason
    return OcspAnswer(
        data=data,
        serial=item.serial_number,
        algorithm=item.hash_algorithm.name,
        issuer_name=item.issuer_name_hash,
        issuer_key=item.issuer_key_hash,
        start=item.this_update_utc,
        end=item.next_update_utc,
        good=item.certificate_status is ocsp.OCSPCertStatus.GOOD,
        revoked=item.revocation_time_utc,
        reason=reason.value if reason is not None else "no reason given",
    )


def _key_bits(certificate: Certificate) -> bytes:
    """Return the content of the BIT STRING of the SubjectPublicKeyInfo."""
    if isinstance(certificate.key, rsa.RSAPublicKey):
        return certificate.key.public_bytes(Encoding.DER, PublicFormat.PKCS1)
    return certificate.key.public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)


def _digest(algorithm: str, data: bytes) -> bytes:
    # SHA-1 only identifies here; the issuer's signature protects the serial number.
    return hashlib.new(algorithm, data, usedforsecurity=False).digest()
