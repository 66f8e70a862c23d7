"""Development keys: what signs sample evidence, where a machine has no TEE.

::

    insecure-development.key        EC key on P-256, PKCS #8 in PEM, mode 0600
    insecure-development.pub.pem    its public half, which others name to trust it

Whoever has the key signs any statement about a process, so that it proves nothing about hardware.
A verifier accepts it only where it is named: by its digest, the SHA-256 of its SPKI.

The page is docs/adr/0036-development-keys.md.
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import Final

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from attestation.durable import write_durably, write_once
from fedlearn.config.files import file_bytes
from fedlearn.errors import ConfigError

__all__ = [
    "DEVELOPMENT_KEY",
    "digest_of",
    "key_digest",
    "make_key",
    "make_key_file",
    "named_digest",
    "read_key",
]

DEVELOPMENT_KEY: Final = "insecure-development.key"
"""Its name in a state directory."""

_MAX_BYTES: Final = 64 * 1024
_DIGEST: Final = re.compile(r"[0-9a-f]{64}")
_WHAT: Final = "the development key"
_UNREADABLE: Final = (ValueError, TypeError, UnsupportedAlgorithm)


def make_key(state: Path) -> bytes:
    """Do :func:`make_key_file` for the development key of a state directory."""
    return make_key_file(state / DEVELOPMENT_KEY)


def make_key_file(path: Path) -> bytes:
    """Make a development key and its public half, unless there is one; return its digest.

    :raises ConfigError: when there is something else at its place.
    :raises OSError: when the folder cannot be written.
    """
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    if not path.exists():
        made = ec.generate_private_key(ec.SECP256R1()).private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        write_once(path, made)
    public = read_key(path).public_key()
    pem = public.public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    write_durably(path.with_suffix(".pub.pem"), pem, mode=0o644)
    return digest_of(public)


def read_key(path: Path) -> ec.EllipticCurvePrivateKey:
    """Return the development key in ``path``.

    :raises ConfigError: when it cannot be read, or is none.
    """
    data = _bytes(path)
    try:
        key = serialization.load_pem_private_key(data, password=None)
    except _UNREADABLE:
        raise ConfigError("not a private key in PEM", where=str(path)) from None
    if not _is_p256(key) or not isinstance(key, ec.EllipticCurvePrivateKey):
        raise ConfigError("a development key is an EC key on P-256", where=str(path))
    return key


def digest_of(public: ec.EllipticCurvePublicKey) -> bytes:
    """Return the SHA-256 of the SPKI of a public key (RFC 5280, section 4.1), 32 bytes."""
    return hashlib.sha256(
        public.public_bytes(
            serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
        )
    ).digest()


def key_digest(path: Path) -> bytes:
    """Return the digest of a development key, by either half of it.

    :raises ConfigError: when the file cannot be read, or holds no such key.
    """
    if b"PRIVATE KEY" in _bytes(path):
        return digest_of(read_key(path).public_key())
    return _public_digest(path)


def named_digest(text: str) -> bytes:
    """Return the digest that a person named: its 64 digits, or the file of the public key.

    :raises ConfigError: when it is neither. A private key is refused: others need its public half.
    """
    if _DIGEST.fullmatch(text):
        return bytes.fromhex(text)
    path = Path(text)
    if not path.exists():
        raise ConfigError(
            f"{text[:80]!r} is neither a SHA-256 (64 digits in hexadecimal, lower case) nor a file "
            "with a public key"
        )
    if b"PRIVATE KEY" in file_bytes(path, limit=_MAX_BYTES, what=_WHAT):
        raise ConfigError(
            "is a private key, which stays with its party",
            where=str(path),
            hint=f"name its public half, {path.with_suffix('.pub.pem')}, or its digest, which "
            "`fedlearn evidence development-key FILE` prints",
        )
    return _public_digest(path)


def _public_digest(path: Path) -> bytes:
    try:
        public = serialization.load_pem_public_key(file_bytes(path, limit=_MAX_BYTES, what=_WHAT))
    except _UNREADABLE:
        raise ConfigError("not a key in PEM", where=str(path)) from None
    if not _is_p256(public) or not isinstance(public, ec.EllipticCurvePublicKey):
        raise ConfigError("a development key is an EC key on P-256", where=str(path))
    return digest_of(public)


def _bytes(path: Path) -> bytes:
    made_by = f"fedlearn evidence development-key --new {path}"
    return file_bytes(path, limit=_MAX_BYTES, what=_WHAT, made_by=made_by)


def _is_p256(key: object) -> bool:
    return isinstance(key, ec.EllipticCurvePrivateKey | ec.EllipticCurvePublicKey) and isinstance(
        key.curve, ec.SECP256R1
    )
