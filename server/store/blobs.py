"""Small sealed values of the coordinator: the state of a job, never a model."""

from __future__ import annotations

import hashlib
import secrets
from typing import Final

from attestation.durable import write_durably
from attestation.errors import UnsealError
from fedlearn.errors import StoreError
from server.disk import store_error
from server.keys.root_key import RootKey, reason
from server.naming import checked_name
from server.store.directory import RESTORE_HINT, SealedDirectory

__all__ = ["MAX_BLOB_BYTES", "SealedBlobs"]

MAX_BLOB_BYTES: Final = 256 * 1024 * 1024


class SealedBlobs:
    """Values by name, held in memory while they are read or written."""

    def __init__(self, directory: SealedDirectory, root: RootKey) -> None:
        self._directory = directory
        self._root = root

    def put(self, name: str, data: bytes) -> None:
        """Seal a value under ``name``, replacing what was there. Durable on return.

        :raises StoreError: when it is too large or cannot be written; the previous value
            is then unchanged.
        """
        checked_name(name)
        if len(data) > MAX_BLOB_BYTES:
            raise StoreError(f"{name}: a blob has at most {MAX_BLOB_BYTES} bytes")
        with self._directory.writing():
            value = self._root.seal(f"blob/{name}", data)
            path = self._directory.files / f"{name}.blob.{secrets.token_hex(8)}"
            try:
                write_durably(path, value)
            except OSError as error:
                raise store_error(f"{name}: {reason(error)}", error) from error
            entry = {"file": path.name, "sha256": hashlib.sha256(value).hexdigest()}
            self._directory.commit(lambda catalogue: catalogue.blobs.update({name: entry}))

    def get(self, name: str) -> bytes | None:
        """Return the value under ``name``, or ``None``.

        :raises StoreError: when it is not what was written last.
        """
        entry = self._directory.catalogue.blobs.get(checked_name(name))
        if entry is None:
            return None
        path = self._directory.files / entry["file"]
        try:
            with path.open("rb") as stream:
                value = stream.read(MAX_BLOB_BYTES + 1024)
        except OSError as error:
            message = f"{name}: {path}: {reason(error)}"
            raise store_error(message, error, hint=RESTORE_HINT) from error
        if hashlib.sha256(value).hexdigest() != entry["sha256"]:
            raise StoreError(f"{name}: not the value that was written last", hint=RESTORE_HINT)
        try:
            return self._root.unseal(f"blob/{name}", value)
        except UnsealError as error:
            raise StoreError(str(error), hint=RESTORE_HINT) from error

    def drop(self, name: str) -> None:
        """Remove the value under ``name``, if there is one."""
        with self._directory.writing():
            if checked_name(name) in self._directory.catalogue.blobs:
                self._directory.commit(lambda catalogue: catalogue.blobs.pop(name))
