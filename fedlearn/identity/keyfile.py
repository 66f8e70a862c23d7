"""Private keys of people in files: of a model's owner, and the operator's recovery key.

X25519 in PKCS #8 PEM, as ``openssl genpkey -algorithm x25519`` writes it, encrypted with a
passphrase or not.
"""

from __future__ import annotations

import stat
from collections.abc import Callable
from pathlib import Path
from typing import Final

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from fedlearn.config import file_bytes
from fedlearn.errors import ConfigError

__all__ = ["check_private", "read_private_key"]

_LIMIT: Final = 64 * 1024
_MAKE: Final = "make a pair with: openssl genpkey -algorithm x25519 -out owner.pem"


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
        kind = "a public key, the private one is needed" if b"PUBLIC KEY" in data else "no key"
        raise ConfigError(f"holds {kind}", where=where, hint=_MAKE)
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
