"""A site's voucher: the site's statement that it started this client, with this key and nonce.

An ECDSA P-256 signature (SHA-256, DER) by the site's enrolled key over::

    "fedlearn-voucher/1\\0" | LP(job) | LP(site) | LP(client) | LP(nonce)
    | LP(SHA-256(client's TLS SPKI))                              LP(x) = u32be(len x) | x

Evidence proves what runs; only the site can state that it runs there. The nonce limits each voucher
to one admission.
"""

from __future__ import annotations

import hashlib
from typing import Final

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from attestation.length_prefixed import pack
from fedlearn.errors import AdmissionDenied

__all__ = ["MAX_VOUCHER_BYTES", "sign_voucher", "verify_voucher"]

MAX_VOUCHER_BYTES: Final = 128
_DOMAIN: Final = b"fedlearn-voucher/1\0"


def sign_voucher(
    site_key: ec.EllipticCurvePrivateKey,
    *,
    job: str,
    site: str,
    client: str,
    nonce: bytes,
    tls_key: bytes,
) -> bytes:
    """Return the voucher. ``tls_key`` is the client's DER SPKI."""
    message = _message(job, site, client, nonce, tls_key)
    return site_key.sign(message, ec.ECDSA(hashes.SHA256()))


def verify_voucher(
    voucher: bytes,
    *,
    site_key: bytes,
    job: str,
    site: str,
    client: str,
    nonce: bytes,
    tls_key: bytes,
) -> None:
    """Check ``voucher`` against the site's enrolled key (DER SPKI).

    :raises AdmissionDenied: when this site did not sign for this client, job and nonce.
    """
    hint = f"let the agent of site {site} sign for its client; no other key can"
    if not voucher:
        raise AdmissionDenied(f"no voucher of site {site} came with the request", hint=hint)
    if len(voucher) > MAX_VOUCHER_BYTES:
        raise AdmissionDenied("the site's voucher is too long", hint=hint)
    try:
        key = serialization.load_der_public_key(site_key)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise AdmissionDenied(f"the enrolled key of site {site} cannot be read") from error
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise AdmissionDenied(f"the enrolled key of site {site} is not an EC key")
    try:
        key.verify(voucher, _message(job, site, client, nonce, tls_key), ec.ECDSA(hashes.SHA256()))
    except InvalidSignature:
        raise AdmissionDenied(f"site {site} does not vouch for this client", hint=hint) from None


def _message(job: str, site: str, client: str, nonce: bytes, tls_key: bytes) -> bytes:
    fields = (job.encode(), site.encode(), client.encode(), nonce, hashlib.sha256(tls_key).digest())
    return _DOMAIN + pack(*fields)
