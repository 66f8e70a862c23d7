"""The signature of a sealed file over its digest, by a key that the reader pins.

A content key does not identify the sealer: anybody can seal a file for an owner whose public key
they know. So a file that leaves its coordinator is signed (:mod:`attestation.ecdsa`).

The page is docs/adr/0015-signed-models.md.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import Final

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_der_public_key,
)

from attestation import ecdsa
from attestation.ecdsa import SIGNATURE_BYTES
from attestation.errors import UnsealError

__all__ = ["SIGNATURE_BYTES", "FileSigner", "check_signature", "signer_digest"]

_DOMAIN: Final = b"fedlearn/flsw2/signature\0"


@dataclass(frozen=True, slots=True)
class FileSigner:
    """Signs files with a private key on P-256, for the purpose of this module only.

    :raises ValueError: for a key on another curve.
    """

    key: ec.EllipticCurvePrivateKey = field(repr=False)

    def __post_init__(self) -> None:
        if not isinstance(self.key.curve, ec.SECP256R1):
            raise ValueError("files are signed with a key on P-256")

    @property
    def public_key(self) -> bytes:
        """The public key, as DER SubjectPublicKeyInfo."""
        return self.key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)

    def sign(self, digest: bytes) -> bytes:
        """Return the signature (64 bytes) over the digest of a file (32 bytes)."""
        return ecdsa.sign(self.key, _DOMAIN + digest)


def signer_digest(public_key: bytes) -> bytes:
    """Return the pin of a signer: the SHA-256 (32 bytes) of a DER SubjectPublicKeyInfo.

    :raises ValueError: when it is not a public key on P-256 in canonical DER.
    """
    _load(public_key)
    return hashlib.sha256(public_key).digest()


def check_signature(public_key: bytes, digest: bytes, signature: bytes) -> None:
    """Check that the holder of ``public_key`` (DER SubjectPublicKeyInfo) signed ``digest``.

    :raises UnsealError: when it did not, or in another encoding than that of :class:`FileSigner`.
    """
    try:
        ecdsa.verify(_load(public_key), signature, _DOMAIN + digest)
    except ValueError as error:
        raise UnsealError(str(error)) from error
    except InvalidSignature:
        raise UnsealError("the key that the header names did not sign this file") from None


def _load(public_key: bytes) -> ec.EllipticCurvePublicKey:
    try:
        key = load_der_public_key(public_key)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise ValueError("the signer is not a public key") from None
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise ValueError("the signer is not a key on P-256")
    if key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo) != public_key:
        raise ValueError("the signer is not in its canonical encoding")
    return key
