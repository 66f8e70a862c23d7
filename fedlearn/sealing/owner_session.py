"""A session for whoever holds the private half of an owner's key, sealed to that key.

The coordinator makes a token and seals it (HPKE, as for content keys) to the X25519 key that a
caller names. Only the holder of the private half can open it, and using it proves that. The info
binds purpose, coordinator and time::

    "fedlearn/owner-session/1\\0" | LP(SHA-256 of the CA's SPKI) | LP(u64be expiry, Unix ms)

A token of one coordinator is therefore never opened for another that passes it on, and an owner
never opens the key of a model in place of a token.

The page is docs/adr/0034-owner-role.md.
"""

from __future__ import annotations

import struct
from typing import Final

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from attestation.length_prefixed import pack
from fedlearn.sealing.keys import hpke_open, hpke_seal

__all__ = ["open_owner_session", "seal_owner_session"]

_PURPOSE: Final = b"fedlearn/owner-session/1\0"
_TIME: Final = struct.Struct(">Q")


def seal_owner_session(
    token: bytes, owner_key: bytes, *, ca_pin: bytes, expires_unix_ms: int
) -> bytes:
    """Seal ``token`` to a raw X25519 public key.

    :raises ValueError: when the key is not one, or is of small order.
    """
    return hpke_seal(token, owner_key, info=_info(ca_pin, expires_unix_ms))


def open_owner_session(
    sealed: bytes, key: X25519PrivateKey, *, ca_pin: bytes, expires_unix_ms: int
) -> bytes:
    """Return the token.

    :raises UnsealError: when it was sealed to another key, by another coordinator, for another time
        or purpose, or was altered.
    """
    return hpke_open(sealed, key, info=_info(ca_pin, expires_unix_ms))


def _info(ca_pin: bytes, expires_unix_ms: int) -> bytes:
    return _PURPOSE + pack(ca_pin, _TIME.pack(expires_unix_ms))
