"""The coordinator's CA states which key signs the ledger.

An ECDSA P-256 signature in the encoding of :mod:`attestation.ecdsa`, by the key of the CA, over::

    "fedlearn/ledger-key/1\\0" | SHA-256(DER SubjectPublicKeyInfo of the ledger's key)

Whoever pinned the CA, as every operator's login does, needs no other way to learn the key, and
trusts none on first use.
"""

from __future__ import annotations

import hashlib
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_der_public_key

from attestation import ecdsa
from attestation.errors import UNREADABLE
from fedlearn.errors import LedgerError

__all__ = ["certified_ledger_key", "sign_ledger_key"]

_DOMAIN: Final = b"fedlearn/ledger-key/1\0"
_MAX_KEY_BYTES: Final = 1024


def sign_ledger_key(ca_key: ec.EllipticCurvePrivateKey, public_key: bytes) -> bytes:
    """Return the CA's signature (64 bytes) over a ledger's key (DER SubjectPublicKeyInfo)."""
    return ecdsa.sign(ca_key, _statement(public_key))


def certified_ledger_key(
    ca_pem: bytes, public_key: bytes, signature: bytes
) -> ec.EllipticCurvePublicKey:
    """Return the ledger's key, if the CA signed it.

    :param ca_pem: the certificate of the coordinator's CA, which is trusted.
    :param public_key: the key, DER SubjectPublicKeyInfo.
    :raises LedgerError: when the CA did not sign this key, or it is not a key on P-256.
    """
    hint = "use the login of the coordinator that keeps the ledger, and the same release"
    try:
        authority = x509.load_pem_x509_certificate(ca_pem).public_key()
        if not isinstance(authority, ec.EllipticCurvePublicKey):
            raise LedgerError("the key of the CA is not an ECDSA key", hint=hint)
        ecdsa.verify(authority, signature, _statement(public_key))
        if len(public_key) > _MAX_KEY_BYTES:
            raise LedgerError(f"the key of the ledger has more than {_MAX_KEY_BYTES} bytes")
        key = load_der_public_key(public_key)
    except (InvalidSignature, *UNREADABLE) as error:
        raise LedgerError(
            "the coordinator's CA did not sign the key of the ledger that it shows", hint=hint
        ) from error
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise LedgerError("the key of a ledger is an ECDSA key on P-256", hint=hint)
    return key


def _statement(public_key: bytes) -> bytes:
    return _DOMAIN + hashlib.sha256(public_key).digest()
