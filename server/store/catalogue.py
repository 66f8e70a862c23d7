"""The catalogue of the store: the high-water mark of every model, sealed in one file.

The catalogue is written after the file that it names and sealed under the root key, so a
file that the store did not finish, an older file under a newer name, and a deleted file are
all found. An older *catalogue* with the older files is found by a counter that the disk does
not hold (:class:`MonotonicCounter`, for instance a TPM's), or by the version that the caller
knows from the ledger.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Final, Protocol

from attestation.errors import UnsealError
from fedlearn.errors import StoreError
from fedlearn.sealing import read_header
from server.keys.root_key import RootKey

__all__ = ["Catalogue", "CatalogueFile", "MonotonicCounter", "StoredModel"]

CATALOGUE_FILE: Final = "catalogue.sealed"
_LABEL: Final = "catalogue"
_LIMIT: Final = 256 * 1024 * 1024
_ANOTHER_TPM: Final = (
    "restore the newest backup; if the TPM was replaced on purpose, adopt its counter"
)


class MonotonicCounter(Protocol):
    """A counter outside of the disk that only increases, such as a TPM's NV counter."""

    def create(self) -> int:
        """Create the counter unless it exists; return its value."""
        ...

    def increment(self) -> int:
        """Add one, durably; return the new value."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredModel:
    """One sealed version of a model.

    ``file_id``     of the sealed file (16 bytes)
    ``digest``      of the sealed file (32 bytes), see ``fedlearn.sealing.Sealed``
    ``key``         the key service's name of the key that it is sealed under
    ``size``        of the sealed file in bytes
    ``recipients``  raw X25519 public keys of owners, who can open the file by themselves
    """

    model: str
    job: str
    version: int
    round: int
    file_id: bytes
    digest: bytes
    key: str
    path: Path
    size: int
    recipients: tuple[bytes, ...] = ()


@dataclass(slots=True)
class Catalogue:
    """The content of the catalogue.

    ``models``       of each model its job, its highest version so far, and the kept versions
    ``counter``      the value of the monotonic counter after the last write; None without one
    ``generation``   how often the catalogue was written
    ``established``  a coordinator was initialized with this store: it has a ledger
    ``protectors``   of the root key when the coordinator was initialized
                     (``server.state_directory.protector_names``)
    ``head``         the end of that ledger when the catalogue was written, ``sequence:hash``
    """

    models: dict[str, dict[str, Any]] = field(default_factory=dict)
    counter: int | None = None
    generation: int = 0
    established: bool = False
    protectors: list[str] = field(default_factory=list)
    head: str = ""

    def copy(self) -> Catalogue:
        """Return a deep copy, which the caller changes and writes."""
        return Catalogue(**json.loads(self.to_bytes()))

    def to_bytes(self) -> bytes:
        """Return the JSON form."""
        document = {item.name: getattr(self, item.name) for item in fields(self)}
        return json.dumps(document, sort_keys=True, separators=(",", ":")).encode()

    def highest(self, model: str) -> int:
        """Return the highest version that was ever committed; 0 before the first."""
        return int(self.models.get(model, {}).get("highest", 0))

    def files(self) -> set[str]:
        """Return the names of all files that must exist."""
        return {
            str(entry["file"]) for model in self.models.values() for entry in model["kept"].values()
        }

    def add(self, stored: StoredModel) -> None:
        """Add a version, or replace the entry of the same version."""
        model = self.models.setdefault(stored.model, {"job": stored.job, "highest": 0, "kept": {}})
        model["highest"] = max(model["highest"], stored.version)
        model["kept"][str(stored.version)] = {
            "round": stored.round,
            "file": stored.path.name,
            "file_id": stored.file_id.hex(),
            "digest": stored.digest.hex(),
            "key": stored.key,
            "size": stored.size,
            "recipients": [key.hex() for key in stored.recipients],
        }

    def versions(self, model: str, directory: Path) -> tuple[StoredModel, ...]:
        """Return the versions that are kept, oldest first.

        :raises StoreError: when there is no such model.
        """
        entry = self.models.get(model)
        if entry is None:
            known = ", ".join(sorted(self.models)) or "none"
            raise StoreError(f"there is no model {model!r}", hint=f"there are: {known}")
        kept = sorted(entry["kept"].items(), key=lambda item: int(item[0]))
        return tuple(
            _stored(model, entry["job"], int(version), facts, directory) for version, facts in kept
        )


def _stored(
    model: str, job: str, version: int, facts: Mapping[str, Any], directory: Path
) -> StoredModel:
    path = directory / facts["file"]
    if "size" not in facts:
        facts = {**facts, **_of_file(path)}
    return StoredModel(
        model=model,
        job=job,
        version=version,
        round=facts["round"],
        file_id=bytes.fromhex(facts["file_id"]),
        digest=bytes.fromhex(facts["digest"]),
        key=facts["key"],
        path=path,
        size=facts["size"],
        recipients=tuple(map(bytes.fromhex, facts["recipients"])),
    )


def _of_file(path: Path) -> dict[str, Any]:
    """Return what catalogues of earlier stores leave to the header of the file."""
    try:
        wraps = read_header(path).wraps
        return {
            "size": path.stat().st_size,
            "recipients": [wrap.recipient.hex() for wrap in wraps],
        }
    except (OSError, UnsealError):
        # Whoever opens the file gets the reason.
        return {"size": 0, "recipients": []}


class CatalogueFile:
    """The catalogue on disk, and the counter that it must match.

    ``adopt``    bind to the present value of the counter
    ``unbound``  read without the counter, where nothing will be written
    """

    def __init__(
        self,
        path: Path,
        root: RootKey,
        counter: MonotonicCounter | None,
        *,
        adopt: bool,
        unbound: bool = False,
    ) -> None:
        self._path = path
        self._root = root
        self._counter = counter
        self._adopt = adopt
        self._unbound = unbound

    def read(self) -> Catalogue | None:
        """Return the catalogue; ``None`` when there is none.

        :raises StoreError: when it does not open, or is older than the counter shows.
        """
        data = self._root.read(self._path, _LABEL, limit=_LIMIT)
        if data is None:
            return None
        try:
            document = json.loads(data)
            document.pop("blobs", None)  # of stores from before its removal, always empty
            catalogue = Catalogue(**document)
        except (TypeError, ValueError, AttributeError):
            raise StoreError(
                f"{self._path}: not a catalogue that this version can read",
                hint="use the version that wrote it, or a newer one",
            ) from None
        if self._counter is None:
            if catalogue.counter is not None and not self._unbound:
                raise StoreError(
                    "this store is bound to a monotonic counter, and none was given",
                    hint="start with the TPM that it was written with",
                )
        elif not self._adopt:
            self._compare(catalogue.counter, self._counter)
        return catalogue

    def write(self, catalogue: Catalogue) -> None:
        """Seal the catalogue and increment the counter.

        :raises StoreError: when it cannot be written, or the counter was used elsewhere.
        :raises AttestationError: when the counter cannot be used.
        """
        if self._counter is None:
            self._root.write(self._path, _LABEL, catalogue.to_bytes())
            return
        if catalogue.counter is None or self._adopt:
            catalogue.counter = self._counter.create()
            self._adopt = False
        catalogue.counter += 1
        self._root.write(self._path, _LABEL, catalogue.to_bytes())
        self._expect(catalogue.counter, self._counter.increment())

    def _compare(self, written: int | None, counter: MonotonicCounter) -> None:
        value = counter.create()
        if written is None:
            raise StoreError("this store was not yet bound to the counter", hint=_ANOTHER_TPM)
        if written == value + 1:
            # After a crash between the write of the catalogue and the increment: increment now.
            value = counter.increment()
        if written < value:
            raise StoreError(
                f"rolled back: the store was written at count {written}, the counter is at {value}",
                hint=_ANOTHER_TPM,
            )
        self._expect(written, value)

    def _expect(self, written: int, value: int) -> None:
        if written != value:
            raise StoreError(
                f"the counter is at {value}, the store expects {written}: "
                "it is another counter, or another program increments it",
                hint=_ANOTHER_TPM,
            )
