"""The public key of a job's owner, to which the finished model is sealed (X25519)."""

from __future__ import annotations

import base64
import binascii
from pathlib import Path
from typing import Final

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PublicKey
from cryptography.hazmat.primitives.serialization import load_pem_public_key

from fedlearn import config as reading
from fedlearn.errors import ConfigError

__all__ = ["owner_key_text", "parse_owner_key", "read_owner_key"]

_PREFIX: Final = "x25519:"
_KEY_BYTES: Final = 32


def owner_key_text(key: bytes) -> str:
    """Return a raw X25519 public key as a job carries it."""
    return _PREFIX + base64.b64encode(key).decode()


def read_owner_key(written: str, where: str, base: Path | None) -> str:
    """Return ``owner_key`` of the file ``where`` as :func:`owner_key_text` writes it.

    ``written`` is empty, such a text, or a path of a public key in PEM, which starts from
    ``base``; without a base, a path is refused.

    :raises ConfigError: for anything else.
    """
    if not written:
        return ""
    try:
        if written.startswith(_PREFIX):
            return owner_key_text(parse_owner_key(written))
        if base is None:
            raise ValueError(f'must be "{_PREFIX}..." here, not a path')
        return owner_key_text(_read_pem(base / written))
    except ValueError as error:
        raise ConfigError(str(error), where=where, key="owner_key") from None


def parse_owner_key(written: str) -> bytes:
    """Return the raw key, 32 bytes, of what :func:`owner_key_text` wrote.

    :raises ValueError: when it is not one.
    """
    try:
        key = base64.b64decode(written.removeprefix(_PREFIX), validate=True)
    except (binascii.Error, ValueError):
        raise ValueError(f"is not base64 after {_PREFIX!r}") from None
    if len(key) != _KEY_BYTES:
        raise ValueError(f"has {len(key)} bytes; an X25519 public key has {_KEY_BYTES}")
    return key


def _read_pem(path: Path) -> bytes:
    data = reading.file_bytes(path, limit=64 * 1024, what="the owner's public key")
    if b"PRIVATE KEY" in data:
        raise ValueError(f"{path} holds a private key; name the public one, which may be shown")
    try:
        key = load_pem_public_key(data)
    except (ValueError, UnsupportedAlgorithm):
        raise ValueError(f"{path} is not a public key in PEM") from None
    if not isinstance(key, X25519PublicKey):
        raise ValueError(f"{path} is not an X25519 key")
    return key.public_bytes_raw()
