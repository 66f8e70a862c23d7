"""The bundles of all jobs, each stored once, in files named by their SHA-256."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pathlib import Path

from attestation.durable import write_durably
from fedlearn.app.checks import MAX_BUNDLE_BYTES
from fedlearn.errors import StoreError
from server.disk import store_error
from server.keys.root_key import reason

__all__ = ["Bundle", "Bundles"]


@dataclass(frozen=True, slots=True)
class Bundle:
    """An app bundle and its SHA-256, 32 bytes, which is computed when the value is made."""

    data: bytes = field(repr=False)
    digest: bytes = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "digest", hashlib.sha256(self.data).digest())


class Bundles:
    """Bundles by digest. A read returns what was stored, or raises."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def keep(self, bundle: Bundle) -> None:
        """Keep a bundle, durably.

        :raises StoreError: when it cannot be written.
        """
        path = self._folder / bundle.digest.hex()
        try:
            self._folder.mkdir(mode=0o700, exist_ok=True)
            if not path.exists() or path.read_bytes() != bundle.data:
                write_durably(path, bundle.data)
        except OSError as error:
            raise store_error(f"{path}: {reason(error)}", error) from error

    def remove(self, digest: bytes) -> None:
        """Remove a bundle, if it is there.

        :raises StoreError: when it cannot be removed.
        """
        path = self._folder / digest.hex()
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            raise store_error(f"{path}: {reason(error)}", error) from error

    def get(self, digest: bytes) -> Bundle:
        """Return the bundle with this SHA-256.

        :raises StoreError: when it is missing or has another digest.
        """
        path = self._folder / digest.hex()
        hint = "restore the file from a backup, or submit the job again"
        try:
            with path.open("rb") as stream:
                bundle = Bundle(stream.read(MAX_BUNDLE_BYTES + 1))
        except OSError as error:
            raise store_error(f"{path}: {reason(error)}", error, hint=hint) from error
        if bundle.digest != digest:
            raise StoreError(f"{path}: is not the bundle that was submitted", hint=hint)
        return bundle
