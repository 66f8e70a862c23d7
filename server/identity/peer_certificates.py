"""What a peer shows about itself: a certification request, and later a certificate."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID

from attestation.endorsements.chains import MAX_CERTIFICATE_BYTES
from attestation.errors import UNREADABLE
from fedlearn.errors import TransportError
from fedlearn.identity import spiffe
from fedlearn.identity.oids import EVIDENCE_DIGEST, POLICY_DIGEST

__all__ = [
    "MAX_CSR_BYTES",
    "PeerCertificate",
    "csr_key",
    "spki",
    "thumbprint",
]

MAX_CSR_BYTES: Final = 4096
_DIGEST_BYTES: Final = 32
_OCTET_STRING_32: Final = b"\x04\x20"


def spki(key: ec.EllipticCurvePublicKey) -> bytes:
    """Return the DER SubjectPublicKeyInfo of ``key``."""
    return key.public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )


def thumbprint(spki_der: bytes) -> bytes:
    """Return the SHA-256 of a DER SubjectPublicKeyInfo (32 bytes)."""
    return hashlib.sha256(spki_der).digest()


def csr_key(csr_der: bytes) -> ec.EllipticCurvePublicKey:
    """Return the public key of a PKCS#10 request (RFC 2986) that signed itself.

    The subject, names and attributes of the request are ignored.

    :raises TransportError: when it is too long, malformed, not on P-256, or not signed by
        its own key.
    """
    if len(csr_der) > MAX_CSR_BYTES:
        raise TransportError(
            f"the certification request has {len(csr_der)} bytes, at most {MAX_CSR_BYTES} are read"
        )
    try:
        request = x509.load_der_x509_csr(csr_der)
        key = request.public_key()
        signed = request.is_signature_valid
    except (InvalidSignature, *UNREADABLE) as error:
        raise TransportError("the certification request is not PKCS#10 in DER") from error
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise TransportError(
            "the certification request has another kind of key", hint="make an EC key on P-256"
        )
    if not signed:
        raise TransportError("the certification request is not signed by its own key")
    return key


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerCertificate:
    """The contents of a peer's certificate. The TLS layer has verified its chain; this has not.

    ``thumbprint`` is the SHA-256 of the key's DER SPKI. The digests are ``None`` where the
    certificate carries none (every kind but a client's).
    """

    id: spiffe.SpiffeId
    thumbprint: bytes
    tls_key: bytes
    serial: int
    not_before: datetime
    expires: datetime
    evidence_digest: bytes | None
    policy_digest: bytes | None

    @classmethod
    def parse(cls, data: bytes) -> PeerCertificate:
        """Parse a certificate in DER or PEM.

        :raises TransportError: unless it has the form of a certificate of this coordinator: at most
            :data:`MAX_CERTIFICATE_BYTES`, P-256, CA false, one SPIFFE id as its URI SAN, and
            client-auth only (server-auth only for the coordinator).
        """
        if len(data) > MAX_CERTIFICATE_BYTES:
            raise TransportError("the peer's certificate is too long")
        try:
            if data.startswith(b"-----BEGIN"):
                certificate = x509.load_pem_x509_certificate(data)
            else:
                certificate = x509.load_der_x509_certificate(data)
            extensions = certificate.extensions
            key = certificate.public_key()
            names = extensions.get_extension_for_class(x509.SubjectAlternativeName).value
            usage = list(extensions.get_extension_for_class(x509.ExtendedKeyUsage).value)
            is_ca = extensions.get_extension_for_class(x509.BasicConstraints).value.ca
        except x509.DuplicateExtension as error:
            raise TransportError("the peer's certificate repeats an extension") from error
        except (x509.ExtensionNotFound, *UNREADABLE) as error:
            raise TransportError("the peer's certificate is not one of this coordinator") from error
        if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(
            key.curve, ec.SECP256R1
        ):
            raise TransportError("the peer's certificate has another kind of key than P-256")
        if is_ca:
            raise TransportError("a CA certificate identifies no peer")
        uris = names.get_values_for_type(x509.UniformResourceIdentifier)
        if len(uris) != 1:
            raise TransportError("the peer's certificate must carry exactly one SPIFFE id")
        identity = spiffe.parse(uris[0])
        serves = isinstance(identity, spiffe.CoordinatorId)
        if not serves and len(list(names)) != 1:
            raise TransportError("the peer's certificate carries other names than its SPIFFE id")
        expected = ExtendedKeyUsageOID.SERVER_AUTH if serves else ExtendedKeyUsageOID.CLIENT_AUTH
        if usage != [expected]:
            raise TransportError("the peer's certificate is for another use")
        key_der = spki(key)
        return cls(
            id=identity,
            thumbprint=thumbprint(key_der),
            tls_key=key_der,
            serial=certificate.serial_number,
            not_before=certificate.not_valid_before_utc,
            expires=certificate.not_valid_after_utc,
            evidence_digest=_digest_of(extensions, EVIDENCE_DIGEST),
            policy_digest=_digest_of(extensions, POLICY_DIGEST),
        )

    def checked(self, *, trust_domain: str, now: datetime) -> PeerCertificate:
        """Return itself if it belongs to ``trust_domain`` and is valid at ``now``.

        A connection outlives the handshake in which TLS looked at the dates.

        :raises TransportError: naming which of the two it is not.
        """
        if self.id.trust_domain != trust_domain:
            raise TransportError(f"{self.id} is of another trust domain than {trust_domain}")
        if now < self.not_before:
            raise TransportError(
                f"the certificate of {self.id} is not valid before {self.not_before.isoformat()}",
                hint="set the clocks of both machines (NTP)",
            )
        if now >= self.expires:
            raise TransportError(
                f"the certificate of {self.id} expired at {self.expires.isoformat()}",
                hint="renew it, then connect again with the new one",
            )
        return self


def _digest_of(extensions: x509.Extensions, oid: x509.ObjectIdentifier) -> bytes | None:
    try:
        extension = extensions.get_extension_for_oid(oid).value
    except x509.ExtensionNotFound:
        return None
    if not isinstance(extension, x509.UnrecognizedExtension):
        raise TransportError("a digest extension of the certificate is malformed")
    value = extension.value
    if len(value) != 2 + _DIGEST_BYTES or not value.startswith(_OCTET_STRING_32):
        raise TransportError("a digest extension of the certificate is malformed")
    return value[2:]
