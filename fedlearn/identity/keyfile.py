"""Private keys of people in files: of a model's owner, of operators' policies and for recovery.

X25519 in PKCS #8 PEM, as ``fedlearn model keygen`` and ``openssl genpkey -algorithm x25519`` write
it, encrypted with a passphrase or not. A key that signs policies is Ed25519.
"""

from __future__ import annotations

import stat
from collections.abc import Callable
from pathlib import Path
from typing import Final

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)

from attestation.durable import write_durably
from fedlearn.config import file_bytes
from fedlearn.errors import ConfigError

__all__ = ["check_new_pair", "check_private", "make_key_pair", "public_file", "read_private_key"]

_LIMIT: Final = 64 * 1024
_MAKE: Final = "`fedlearn model keygen --out NEW.pem` makes a pair, and overwrites no file"


def public_file(path: Path) -> Path:
    """Return where the public half of a new key is written: ``owner.pub.pem`` for ``owner.pem``."""
    return path.with_name(f"{path.name.removesuffix('.pem')}.pub.pem")


def check_new_pair(path: Path) -> None:
    """Check that a new key and its public half would overwrite no file.

    :raises ConfigError: when one would.
    """
    for file in (path, public_file(path)):
        if file.exists():
            raise ConfigError("exists", where=str(file), hint="name another file")


def make_key_pair(path: Path, *, passphrase: str = "", signing: bool = False) -> Path:
    """Write a new key to ``path`` (mode 0600); return the file of its public half.

    It is an X25519 key, or for ``signing`` an Ed25519 key.

    :raises ConfigError: when one of the two files exists. Nothing is written then.
    :raises OSError: when the folder cannot be written.
    """
    check_new_pair(path)
    public = public_file(path)
    key = Ed25519PrivateKey.generate() if signing else X25519PrivateKey.generate()
    protection = BestAvailableEncryption(passphrase.encode()) if passphrase else NoEncryption()
    path.parent.mkdir(parents=True, exist_ok=True)
    write_durably(path, key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, protection))
    public_pem = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    write_durably(public, public_pem, mode=0o644)
    return public


def check_private(path: Path) -> None:
    """Check that nobody else on this machine may read a key file.

    :raises ConfigError: when somebody may.
    """
    mode = stat.S_IMODE(path.stat().st_mode)
    if mode & 0o077:
        raise ConfigError(
            f"others on this machine may read this key (mode {mode:03o})",
            where=str(path),
            hint=f"chmod 600 {path}",
        )


def read_private_key(
    path: Path, *, what: str = "the private key", ask: Callable[[], str] | None = None
) -> X25519PrivateKey:
    """Return the X25519 private key in ``path``.

    :param ask: returns the passphrase; called only when the file is encrypted.
    :raises ConfigError: when the file cannot be read, holds something else, or is encrypted
        and the passphrase is missing or wrong.
    """
    data = file_bytes(path, limit=_LIMIT, what=what)
    where = str(path)
    if b"PRIVATE KEY" not in data:
        if b"PUBLIC KEY" in data:
            raise ConfigError(
                "holds a public key, the private one is needed",
                where=where,
                hint="name the file of the private half, which was made together with this one",
            )
        raise ConfigError("holds no key", where=where, hint=_MAKE)
    try:
        key = load_pem_private_key(data, password=None)
    except TypeError:
        if ask is None:
            raise ConfigError("is encrypted, and there is no passphrase", where=where) from None
        try:
            key = load_pem_private_key(data, password=ask().encode())
        except (ValueError, TypeError):
            raise ConfigError("does not open with this passphrase", where=where) from None
    except (ValueError, UnsupportedAlgorithm):
        raise ConfigError("is not a private key in PEM", where=where, hint=_MAKE) from None
    if not isinstance(key, X25519PrivateKey):
        raise ConfigError("is not an X25519 key", where=where, hint=_MAKE)
    return key
