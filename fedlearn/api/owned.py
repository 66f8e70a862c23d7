"""Opens what is sealed for an owner's key."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from attestation.errors import UnsealError
from fedlearn.errors import KeyReleaseDenied, StoreError
from fedlearn.identity.keyfile import read_private_key
from fedlearn.sealing import PrivateKey, SealedReader, open_sealed, read_header

__all__ = ["open_owned"]


def open_owned(path: Path, key: Path, *, ask: Callable[[], str] | None = None) -> SealedReader:
    """Open a sealed file with the owner's private key. Who sealed it is not checked here.

    :param key: the key's file, X25519 in PEM.
    :param ask: returns the passphrase of the key; called only when its file is encrypted.
    :raises ConfigError: when the key cannot be read.
    :raises KeyReleaseDenied: when the file is not sealed for the key.
    :raises StoreError: when it was altered, or cannot be read.
    """
    try:
        header = read_header(path)
    except UnsealError as error:
        raise StoreError(f"{path}: {error}") from error
    except OSError as error:
        raise StoreError(f"{path}: {(error.strerror or 'cannot be read').lower()}") from error
    private = read_private_key(key, what="the owner's key", ask=ask)
    mine = private.public_key().public_bytes_raw()
    try:
        return open_sealed(path, PrivateKey(private))
    except UnsealError as error:
        if all(wrap.recipient != mine for wrap in header.wraps):
            raise KeyReleaseDenied(f"{path}: {error}", hint=error.hint) from error
        raise StoreError(f"{path}: {error}") from error
