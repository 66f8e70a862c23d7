"""Key agreement, masks and sealed shares.

===============  =====================================================================
key agreement    X25519 (RFC 7748), then HKDF-SHA256 (RFC 5869) over the purpose
masks            AES-256 in counter mode from 0, under a key that makes one mask only
sealed shares    AES-256-GCM with a random nonce of 12 bytes, under a key of one round
===============  =====================================================================
"""

from __future__ import annotations

import secrets
from typing import Final

import numpy as np
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.ciphers.algorithms import AES256
from cryptography.hazmat.primitives.ciphers.modes import CTR
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from attestation.length_prefixed import pack
from fedlearn.errors import UpdateRejected
from fedlearn.secure_aggregation.fixed_point import Vector

__all__ = [
    "CHANNEL",
    "KEY_BYTES",
    "MASK",
    "SEALED_MOST",
    "add_mask",
    "agreed",
    "commitment",
    "opened",
    "public",
    "sealed",
    "self_mask_key",
]

KEY_BYTES: Final = 32
SEALED_MOST: Final = 512
"""Upper bound of a sealed pair of shares."""

CHANNEL: Final = b"fedlearn-secagg-channel/1\0"
MASK: Final = b"fedlearn-secagg-mask/1\0"
_SELF: Final = b"fedlearn-secagg-self/1\0"
_COMMIT: Final = b"fedlearn-secagg-commitment/1\0"
_NONCE_BYTES: Final = 12
_BLOCK: Final = 1 << 20
_ZEROS: Final = bytes(_BLOCK)


def public(private: bytes) -> bytes:
    """Return the public key of a private key, both raw and of 32 bytes."""
    return X25519PrivateKey.from_private_bytes(private).public_key().public_bytes_raw()


def agreed(private: bytes, other: bytes, purpose: bytes, context: bytes) -> bytes:
    """Return the key that two clients have in common, 32 bytes.

    :param purpose: :data:`CHANNEL` or :data:`MASK`.
    :param context: of the round, the same at both.
    :raises UpdateRejected: when the other key is not one, or of low order.
    """
    try:
        ours = X25519PrivateKey.from_private_bytes(private)
        shared = ours.exchange(X25519PublicKey.from_public_bytes(other))
    except ValueError:
        raise UpdateRejected("a client's X25519 key is not usable") from None
    return _derived(shared, purpose + context)


def self_mask_key(seed: bytes) -> bytes:
    """Return the key of a client's own mask from its seed."""
    return _derived(seed, _SELF)


def commitment(seed: bytes) -> bytes:
    """Return what a client states of its seed before it shares it: 32 bytes that hide it."""
    digest = hashes.Hash(hashes.SHA256())
    digest.update(_COMMIT + pack(seed))
    return digest.finalize()


def _derived(secret: bytes, info: bytes) -> bytes:
    return HKDF(algorithm=hashes.SHA256(), length=KEY_BYTES, salt=None, info=info).derive(secret)


def add_mask(vector: Vector, key: bytes, *, subtract: bool = False) -> None:
    """Add the mask of a key to a vector in place, or subtract it; 1 MiB of it at a time."""
    stream = Cipher(AES256(key), CTR(bytes(16))).encryptor()
    step = _BLOCK // vector.dtype.itemsize
    kind = vector.dtype.newbyteorder("<")
    for start in range(0, len(vector), step):
        part = vector[start : start + step]
        mask = np.frombuffer(stream.update(_ZEROS[: part.nbytes]), kind)
        if subtract:
            part -= mask
        else:
            part += mask


def sealed(key: bytes, shares: bytes, about: bytes) -> bytes:
    """Return shares that only the holder of the key can read; ``about`` is bound to them."""
    nonce = secrets.token_bytes(_NONCE_BYTES)
    return nonce + AESGCM(key).encrypt(nonce, shares, about)


def opened(key: bytes, data: bytes, about: bytes) -> bytes:
    """Return what :func:`sealed` was given.

    :raises UpdateRejected: when it was sealed with another key, about something else, or changed.
    """
    if len(data) > SEALED_MOST:
        raise UpdateRejected(f"sealed shares of {len(data)} bytes; at most {SEALED_MOST} are read")
    try:
        return AESGCM(key).decrypt(data[:_NONCE_BYTES], data[_NONCE_BYTES:], about)
    except (InvalidTag, ValueError):
        raise UpdateRejected(
            "sealed shares are not from this client, or not of this round"
        ) from None
