"""The coordinator's certificate authority.

One P-256 root per deployment, made once. It signs leaves directly: clients (30 minutes at
most), sites, operators and the coordinator's own listeners. A certificate is necessary and
never sufficient: what counts on each request is the admission or enrollment behind its key.

Profiles follow RFC 5280 and X509-SVID: one URI SAN with the SPIFFE id, CA false, one
extended key usage. Nothing of a certification request is copied but its public key.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from fedlearn.errors import StoreError, TransportError
from fedlearn.identity import spiffe
from fedlearn.identity.ledger_key import sign_ledger_key
from fedlearn.identity.oids import EVIDENCE_DIGEST, POLICY_DIGEST
from fedlearn.sealing import FileSigner
from server.identity.peer_certificates import (
    MAX_CSR_BYTES,
    PeerCertificate,
    csr_key,
    spki,
    thumbprint,
)

__all__ = [
    "MAX_CLIENT_LIFETIME",
    "MAX_CSR_BYTES",
    "CertificateAuthority",
    "IssuedCertificate",
    "PeerCertificate",
    "csr_key",
    "spki",
    "thumbprint",
]

MAX_CLIENT_LIFETIME: Final = timedelta(minutes=30)
MAX_SITE_LIFETIME: Final = timedelta(days=7)
MAX_OPERATOR_LIFETIME: Final = timedelta(days=366)
MAX_SERVER_LIFETIME: Final = timedelta(days=90)
ROOT_LIFETIME: Final = timedelta(days=3650)
_SKEW: Final = timedelta(seconds=60)
_DIGEST_BYTES: Final = 32
_OCTET_STRING_32: Final = b"\x04\x20"


@dataclass(frozen=True, slots=True, kw_only=True)
class IssuedCertificate:
    """A certificate that was just made.

    ``chain_pem`` holds the leaf and then the root.
    """

    chain_pem: bytes
    der: bytes
    serial: int
    not_before: datetime
    expires: datetime


class CertificateAuthority:
    """The root key and what it may sign. Every method is safe to call from many threads."""

    def __init__(
        self, *, trust_domain: str, certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey
    ) -> None:
        self.trust_domain = spiffe.checked_trust_domain(trust_domain)
        self._certificate = certificate
        self._key = key

    def __repr__(self) -> str:
        """Name the trust domain; never the key."""
        return f"CertificateAuthority({self.trust_domain!r})"

    @classmethod
    def create(cls, trust_domain: str, now: datetime) -> CertificateAuthority:
        """Make a new root with a fresh key.

        :raises ConfigError: when ``trust_domain`` is not one.
        """
        spiffe.checked_trust_domain(trust_domain)
        key = ec.generate_private_key(ec.SECP256R1())
        name = _name("fedlearn root", trust_domain)
        certificate = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(_whole(now) - _SKEW)
            .not_valid_after(_whole(now) + ROOT_LIFETIME)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_key_usage(ca=True), critical=True)
            .add_extension(
                x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False
            )
            .add_extension(
                x509.SubjectAlternativeName(
                    [x509.UniformResourceIdentifier(f"spiffe://{trust_domain}")]
                ),
                critical=False,
            )
            .sign(key, hashes.SHA256())
        )
        return cls(trust_domain=trust_domain, certificate=certificate, key=key)

    @classmethod
    def load(cls, cert_pem: bytes, key_bytes: bytes) -> CertificateAuthority:
        """Load a root from its certificate and :meth:`private_bytes`.

        :raises StoreError: when they do not belong together or are not a root of this version.
        """
        try:
            certificate = x509.load_pem_x509_certificate(cert_pem)
            key = serialization.load_der_private_key(key_bytes, password=None)
            uris = certificate.extensions.get_extension_for_class(
                x509.SubjectAlternativeName
            ).value.get_values_for_type(x509.UniformResourceIdentifier)
        except (ValueError, TypeError, UnsupportedAlgorithm, x509.ExtensionNotFound) as error:
            raise StoreError("the CA's certificate or key cannot be read") from error
        if not isinstance(key, ec.EllipticCurvePrivateKey):
            raise StoreError("the CA's key is not an EC key")
        public = certificate.public_key()
        if not isinstance(public, ec.EllipticCurvePublicKey) or spki(public) != spki(
            key.public_key()
        ):
            raise StoreError(
                "the CA's certificate and key do not belong together",
                hint="restore both from the same backup",
            )
        if len(uris) != 1:
            raise StoreError("the CA's certificate names no trust domain")
        return cls(trust_domain=uris[0].removeprefix("spiffe://"), certificate=certificate, key=key)

    def private_bytes(self) -> bytes:
        """Return the root key as unencrypted PKCS#8 DER: for sealing, never for a disk."""
        return self._key.private_bytes(
            serialization.Encoding.DER,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )

    @property
    def certificate_pem(self) -> bytes:
        """The root certificate."""
        return self._certificate.public_bytes(serialization.Encoding.PEM)

    @property
    def file_signer(self) -> FileSigner:
        """Signs sealed models with the root key, so that its pin identifies who sealed them.

        What it signs begins with a label of its own, and no certificate begins like that.
        """
        return FileSigner(self._key)

    def sign_ledger_key(self, public_key: bytes) -> bytes:
        """Sign the key of the ledger (DER SubjectPublicKeyInfo); see
        :mod:`fedlearn.identity.ledger_key`."""
        return sign_ledger_key(self._key, public_key)

    @property
    def key_digest(self) -> bytes:
        """SHA-256 of the root's SPKI: the pin in join tokens, and our ``verifier_id``."""
        return thumbprint(spki(self._key.public_key()))

    def issue_client(
        self,
        csr_der: bytes,
        *,
        job: str,
        site: str,
        client: str,
        evidence_digest: bytes,
        policy_digest: bytes,
        now: datetime,
        lifetime: timedelta = MAX_CLIENT_LIFETIME,
    ) -> IssuedCertificate:
        """Issue a client's certificate, valid for 30 minutes at most.

        :raises TransportError: when the request is unusable (see :func:`csr_key`).
        :raises ValueError: when a digest has not 32 bytes or ``lifetime`` is out of bounds.
        """
        extensions = [
            _digest_extension(EVIDENCE_DIGEST, evidence_digest),
            _digest_extension(POLICY_DIGEST, policy_digest),
        ]
        return self._issue(
            csr_key(csr_der),
            spiffe.ClientId(trust_domain=self.trust_domain, job=job, site=site, client=client),
            now,
            lifetime,
            longest=MAX_CLIENT_LIFETIME,
            extensions=extensions,
        )

    def issue_site(
        self,
        csr_der: bytes,
        *,
        site: str,
        now: datetime,
        lifetime: timedelta = timedelta(days=1),
    ) -> IssuedCertificate:
        """Issue the certificate of a site's agent, valid for 7 days at most."""
        return self._issue(
            csr_key(csr_der),
            spiffe.SiteId(trust_domain=self.trust_domain, site=site),
            now,
            lifetime,
            longest=MAX_SITE_LIFETIME,
        )

    def issue_operator(
        self,
        csr_der: bytes,
        *,
        name: str,
        now: datetime,
        lifetime: timedelta = timedelta(days=90),
    ) -> IssuedCertificate:
        """Issue an operator's certificate, valid for 366 days at most."""
        return self._issue(
            csr_key(csr_der),
            spiffe.OperatorId(trust_domain=self.trust_domain, name=name),
            now,
            lifetime,
            longest=MAX_OPERATOR_LIFETIME,
        )

    def issue_server(
        self,
        csr_der: bytes,
        *,
        dns_names: Sequence[str] = (),
        ips: Sequence[str] = (),
        now: datetime,
        lifetime: timedelta = MAX_SERVER_LIFETIME,
    ) -> IssuedCertificate:
        """Issue the coordinator's own server certificate, valid for 90 days at most.

        It always names :data:`fedlearn.identity.spiffe.COORDINATOR_DNS` besides ``dns_names`` and
        ``ips``. ``chain_pem`` ends with the root: a client that pins the root's key by its
        hash takes the root from the handshake.

        :raises ValueError: when an address is not one.
        """
        names: list[x509.GeneralName] = [x509.DNSName(spiffe.COORDINATOR_DNS)]
        names += [x509.DNSName(name) for name in dns_names if name != spiffe.COORDINATOR_DNS]
        names += [x509.IPAddress(ipaddress.ip_address(ip)) for ip in ips]
        return self._issue(
            csr_key(csr_der),
            spiffe.CoordinatorId(trust_domain=self.trust_domain),
            now,
            lifetime,
            longest=MAX_SERVER_LIFETIME,
            names=names,
        )

    def _issue(
        self,
        key: ec.EllipticCurvePublicKey,
        identity: spiffe.SpiffeId,
        now: datetime,
        lifetime: timedelta,
        *,
        longest: timedelta,
        names: Sequence[x509.GeneralName] = (),
        extensions: Sequence[x509.UnrecognizedExtension] = (),
    ) -> IssuedCertificate:
        """Sign one leaf. ``longest`` bounds the whole validity, clock allowance included."""
        if not timedelta(0) < lifetime <= longest:
            raise ValueError(f"a lifetime must be positive and at most {longest}, not {lifetime}")
        if spki(key) == spki(self._key.public_key()):
            raise TransportError("the request uses the CA's own key")
        start = _whole(now) - _SKEW
        end = min(_whole(now) + lifetime, start + longest, self._certificate.not_valid_after_utc)
        serves = isinstance(identity, spiffe.CoordinatorId)
        usage = ExtendedKeyUsageOID.SERVER_AUTH if serves else ExtendedKeyUsageOID.CLIENT_AUTH
        builder = (
            x509.CertificateBuilder()
            .subject_name(_name(type(identity).__name__.removesuffix("Id").lower(), ""))
            .issuer_name(self._certificate.subject)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(start)
            .not_valid_after(end)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_key_usage(ca=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage([usage]), critical=True)
            .add_extension(
                x509.SubjectAlternativeName(
                    [x509.UniformResourceIdentifier(str(identity)), *names]
                ),
                critical=False,
            )
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()),
                critical=False,
            )
        )
        for extension in extensions:
            builder = builder.add_extension(extension, critical=False)
        leaf = builder.sign(self._key, hashes.SHA256())
        return IssuedCertificate(
            chain_pem=leaf.public_bytes(serialization.Encoding.PEM) + self.certificate_pem,
            der=leaf.public_bytes(serialization.Encoding.DER),
            serial=leaf.serial_number,
            not_before=start,
            expires=end,
        )


def _whole(moment: datetime) -> datetime:
    """Certificates count whole seconds."""
    return moment.astimezone(UTC).replace(microsecond=0)


def _name(common: str, unit: str) -> x509.Name:
    attributes = [x509.NameAttribute(NameOID.COMMON_NAME, common[:64])]
    if unit:
        attributes.append(x509.NameAttribute(NameOID.ORGANIZATION_NAME, unit[:64]))
    return x509.Name(attributes)


def _key_usage(*, ca: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not ca,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=ca,
        crl_sign=ca,
        encipher_only=False,
        decipher_only=False,
    )


def _digest_extension(oid: x509.ObjectIdentifier, digest: bytes) -> x509.UnrecognizedExtension:
    if len(digest) != _DIGEST_BYTES:
        raise ValueError(f"a digest has {_DIGEST_BYTES} bytes, not {len(digest)}")
    return x509.UnrecognizedExtension(oid, _OCTET_STRING_32 + digest)
