"""TLS 1.3 contexts from keys that stay in memory.

``ssl`` reads certificates and keys from files only. They are passed in an anonymous file in memory
(memfd_create(2)), which has no name in any directory and ends with its descriptor, so a private key
is never written to disk.
"""

from __future__ import annotations

import os
import ssl
from collections.abc import Sequence

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
)

__all__ = ["client_context", "load_identity", "server_context"]


def server_context(
    chain: Sequence[x509.Certificate],
    key: ec.EllipticCurvePrivateKey,
    client_authorities: Sequence[x509.Certificate],
) -> ssl.SSLContext:
    """Return a context for a server that uses TLS 1.3 and requires a client certificate.

    :param chain: the server's certificate first.
    :param client_authorities: the authorities for client certificates; not empty.
    :raises ValueError: without an authority.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.verify_mode = ssl.CERT_REQUIRED
    # A resumed session would skip the client certificate, on which every decision depends.
    context.num_tickets = 0
    _trust(context, client_authorities)
    load_identity(context, chain, key)
    return context


def client_context(
    chain: Sequence[x509.Certificate],
    key: ec.EllipticCurvePrivateKey,
    server_authorities: Sequence[x509.Certificate],
) -> ssl.SSLContext:
    """Return a context for a client that has a certificate and uses TLS 1.3.

    Only ``server_authorities`` are trusted, never those of the machine. The server's name is
    checked as usual.

    :raises ValueError: without an authority.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    _trust(context, server_authorities)
    load_identity(context, chain, key)
    return context


def load_identity(
    context: ssl.SSLContext,
    chain: Sequence[x509.Certificate],
    key: ec.EllipticCurvePrivateKey,
) -> None:
    """Set the certificate and key of ``context`` for new connections; open ones continue."""
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    pem += b"".join(certificate.public_bytes(Encoding.PEM) for certificate in chain)
    descriptor = os.memfd_create("identity", os.MFD_CLOEXEC)
    try:
        os.write(descriptor, pem)
        context.load_cert_chain(f"/proc/self/fd/{descriptor}")
    finally:
        os.ftruncate(descriptor, 0)
        os.close(descriptor)


def _trust(context: ssl.SSLContext, authorities: Sequence[x509.Certificate]) -> None:
    if not authorities:
        raise ValueError("at least one authority must be trusted")
    pem = b"".join(certificate.public_bytes(Encoding.PEM) for certificate in authorities)
    context.load_verify_locations(cadata=pem.decode("ascii"))
