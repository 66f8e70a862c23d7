"""Identifies the coordinator's CA by the hash of its key: no trust on first use.

The server sends its certificate and its CA in the handshake (RFC 8446, section 4.4.2). One
handshake reads them. If the CA's key has the pinned hash, and it signed the certificate, channels
are opened that trust exactly these certificates.

The page is docs/adr/0008-pinned-coordinator.md.
"""

from __future__ import annotations

import hashlib
import socket
import ssl
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, cast

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import ExtendedKeyUsageOID

from attestation.endorsements.chains import MAX_CERTIFICATE_BYTES
from attestation.errors import UNREADABLE
from fedlearn.errors import TransportError
from fedlearn.identity.join import checked_address
from fedlearn.identity.spiffe import COORDINATOR_DNS, CoordinatorId, parse
from fedlearn.wire.unreachable import cause_of_error, unreachable

__all__ = ["PinnedServer", "fetch_pinned", "sent_certificates"]

_MAX_CERTIFICATES: Final = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class PinnedServer:
    """A server whose CA has the pinned key.

    ``ca_pem``, ``leaf_pem``  its CA, and the certificate of its listener
    ``tls_key``               DER SPKI of the listener
    ``verifier_id``           SHA-256 of the CA's SPKI: the pin
    """

    address: str
    trust_domain: str
    ca_pem: bytes
    leaf_pem: bytes
    tls_key: bytes
    verifier_id: bytes


def fetch_pinned(
    address: str, *, ca_pin: bytes, now: datetime, timeout: float = 10.0
) -> PinnedServer:
    """Return the server at ``address``, if the CA with the pinned key signed its certificate.

    :raises ConfigError: when the address is malformed.
    :raises Unreachable: when nobody answers.
    :raises TransportError: when the CA has another key, or did not sign this certificate.
    """
    chain = sent_certificates(address, name=COORDINATOR_DNS, timeout=timeout)
    leaf = chain[0]
    authority = next((item for item in chain[1:] if _pin(item) == ca_pin), None)
    if authority is None:
        raise TransportError(
            f"{address} is not the expected coordinator: its CA does not have the pinned key",
            hint="check the address; if the coordinator has a new CA, ask for a new join token",
        )
    try:
        is_ca = authority.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
        names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        usage = leaf.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
        leaf.verify_directly_issued_by(authority)
    except (InvalidSignature, x509.ExtensionNotFound, *UNREADABLE) as error:
        raise TransportError(
            f"the certificate of {address} is not signed by the pinned CA"
        ) from error
    uris = names.get_values_for_type(x509.UniformResourceIdentifier)
    identity = parse(uris[0]) if len(uris) == 1 else None
    if (
        not is_ca
        or not isinstance(identity, CoordinatorId)
        or COORDINATOR_DNS not in names.get_values_for_type(x509.DNSName)
        or list(usage) != [ExtendedKeyUsageOID.SERVER_AUTH]
    ):
        raise TransportError(f"the certificate of {address} is not that of a coordinator")
    for item in (leaf, authority):
        if not item.not_valid_before_utc <= now < item.not_valid_after_utc:
            raise TransportError(
                f"a certificate of {address} is valid from {item.not_valid_before_utc} "
                f"to {item.not_valid_after_utc}",
                hint="set the clocks of both machines (NTP), or renew the certificate",
            )
    return PinnedServer(
        address=address,
        trust_domain=identity.trust_domain,
        ca_pem=authority.public_bytes(Encoding.PEM),
        leaf_pem=leaf.public_bytes(Encoding.PEM),
        tls_key=leaf.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo),
        verifier_id=ca_pin,
    )


def sent_certificates(
    address: str, *, name: str, hint: str = "", timeout: float = 10.0
) -> list[x509.Certificate]:
    """Return the certificates that the server at ``address`` sends, at least one, unverified.

    :param name: the name that the server is asked for.
    :param hint: what to do when the server does not answer, where that is known better.
    :raises ConfigError: when the address is malformed.
    :raises Unreachable: when the server does not answer.
    :raises TransportError: when it does not speak TLS, or sends no certificate.
    """
    host, _, port = checked_address(address).rpartition(":")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    # This handshake trusts no certificate and sends no data: the caller verifies the chain.
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    try:
        with (
            socket.create_connection((host.strip("[]"), int(port)), timeout=timeout) as plain,
            context.wrap_socket(plain, server_hostname=name) as secure,
        ):
            found = [_load(der) for der in _unverified_chain(secure)]
    except OSError as error:
        raise unreachable(address, cause_of_error(error), hint=hint) from error
    if not found:
        raise TransportError(f"{address} sent no certificate")
    return found


def _unverified_chain(secure: ssl.SSLSocket) -> list[bytes]:
    """Return the certificates that the peer sent; public in ``ssl`` since Python 3.13 only."""
    public = getattr(secure, "get_unverified_chain", None)
    if public is not None:
        found: list[Any] = list(public())
    else:
        inner = cast("Any", secure)._sslobj
        found = [item.public_bytes(2) for item in inner.get_unverified_chain() or ()]
    certificates = [bytes(item) for item in found[:_MAX_CERTIFICATES]]
    if any(len(item) > MAX_CERTIFICATE_BYTES for item in certificates):
        raise TransportError("the server sent a certificate that is too long")
    return certificates


def _load(der: bytes) -> x509.Certificate:
    try:
        return x509.load_der_x509_certificate(der)
    except UNREADABLE as error:
        raise TransportError("the server sent a malformed certificate") from error


def _pin(certificate: x509.Certificate) -> bytes:
    try:
        key = certificate.public_key()
    except UNREADABLE:
        return b""
    der = key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return hashlib.sha256(der).digest()
