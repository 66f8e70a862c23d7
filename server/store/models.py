"""The sealed model store: every version of every model, and the coordinator's other state.

Guaranteed: only names, types, shapes and sizes are in its directory in the clear. A version is
stored whole or not at all, also after a crash. A read returns what was written last: an
altered, exchanged, deleted or older file is refused, and the error names the fault.

::

    with ModelStore.open(state / "store", keys, record=ledger.append) as store:
        stored = store.write("demo", arrays, round=3, state=strategy_state)
        arrays = store.load("demo")
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self

from attestation.errors import UnsealError
from fedlearn.errors import StoreError
from fedlearn.sandbox.memory_file import Part
from fedlearn.sealing import (
    FileSigner,
    SealedReader,
    SealedWriter,
    TensorSpec,
    signer_digest,
)
from fedlearn.update import sealed
from fedlearn.update.arrays import Array
from server.keys.root_key import reason
from server.keys.service import KeyService, RecordEntry
from server.naming import checked_name
from server.store.catalogue import Catalogue, MonotonicCounter, StoredModel
from server.store.directory import RESTORE_HINT, SealedDirectory
from server.store.head_file import HeadFile
from server.store.model_files import ModelFiles, not_as_sealed

__all__ = ["ModelStore", "StoredModel"]


class ModelStore:
    """Models, sealed under a key service. Safe to use from several threads.

    Use :meth:`open`; close it, or use it as a context manager.
    """

    def __init__(
        self,
        directory: SealedDirectory,
        keys: KeyService,
        record: RecordEntry | None,
        signer: FileSigner | None,
    ) -> None:
        self._directory = directory
        self._keys = keys
        self._record = record
        self._files = ModelFiles(directory.files, keys, signer)

    @classmethod
    def open(
        cls,
        directory: Path,
        keys: KeyService,
        *,
        counter: MonotonicCounter | None = None,
        adopt_counter: bool = False,
        record: RecordEntry | None = None,
        signer: FileSigner | None = None,
        read_only: bool = False,
        head: HeadFile | None = None,
        create: bool = True,
    ) -> Self:
        """Open the store in ``directory``, or make it there.

        :param counter: a monotonic counter, by which an older copy of the directory is detected.
        :param adopt_counter: binds an existing store to ``counter`` for the first time, or
            to that of a new machine. An older copy then cannot be distinguished from the newest.
        :param record: the ledger; it gets an entry for each checkpoint, rotation and export.
        :param signer: signs the models that are sealed for an owner as well; they leave this
            store, and the signature shows their owner where they come from.
        :param read_only: read beside a running coordinator; nothing can be written, and
            the counter is not used.
        :param head: binds the catalogue to the ledger; the caller compares the two
            (:func:`server.store.rollback.check_bound`), then calls :meth:`sweep`.
        :param create: whether there may be no store yet.
        :raises StoreError: when another process writes here, the catalogue does not open,
            or was rolled back.
        """
        opened = SealedDirectory.open(
            directory,
            keys.root,
            counter=counter,
            adopt_counter=adopt_counter,
            read_only=read_only,
            head=head,
            create=create,
        )
        if not read_only:
            keys.sweep()
            if head is None:
                opened.sweep()
        return cls(opened, keys, record, signer)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let another process write."""
        self._directory.close()

    def record_with(self, record: RecordEntry) -> None:
        """Write the entries to the ledger with ``record`` from now on."""
        self._record = record

    @property
    def catalogue(self) -> Catalogue:
        """The contents of the store as they were sealed last; not to be changed."""
        return self._directory.catalogue

    def sweep(self) -> None:
        """Remove what a crash left and the catalogue does not name."""
        self._directory.sweep()

    def initialize(self, *, protectors: Sequence[str] | None = None) -> None:
        """Seal that this store has a ledger, and the head of that ledger.

        :param protectors: the key protectors of the coordinator when it is initialized.
        """

        def enter(catalogue: Catalogue) -> None:
            catalogue.established = True
            if protectors is not None:
                catalogue.protectors = list(protectors)

        with self._directory.writing():
            self._directory.commit(enter)

    # -- models

    def write(
        self,
        model: str,
        content: Mapping[str, Array] | Part,
        *,
        round: int,  # noqa: A002
        job: str = "",
        state: bytes | Sequence[Part] = b"",
        meta: Mapping[str, str | int | bool] | None = None,
        recipients: Sequence[bytes] = (),
        entry: str = "checkpoint",
    ) -> StoredModel:
        """Seal the next version of ``model``. It is durable when this returns.

        ``content`` is the weights, or a document of :mod:`fedlearn.update.arrays` with them. Arrays
        are not copied; a document that lies in a file is read piece by piece. When this raises,
        the version before stays the latest.

        :param job: the job that the model belongs to; by default one of the same name.
        :param state: what must be restored together with the weights, in one part or several;
            sealed in the same file, so that a crash cannot separate the two. See :meth:`state`.
        :param recipients: raw X25519 public keys of owners, who can open the file by themselves.
        :param entry: the kind of the ledger's entry.
        :raises StoreError: when it cannot be written, or it has recipients and this store has
            nothing to sign it with.
        :raises UpdateRejected: for an array that has no name or type in the format.
        """
        checked_name(model)
        parts = (state,) if isinstance(state, bytes) else tuple(state)
        size = sum(map(len, parts))
        try:
            found = list(sealed.sources(content))
            if size:
                spec = TensorSpec(name=sealed.STATE, dtype="U8", shape=(size,))
                found.append(sealed.Source(spec, parts))
        except ValueError as error:
            raise StoreError(f"{model}: {error}") from error

        def fill(writer: SealedWriter) -> None:
            for source in found:
                writer.write_chunks(source.chunks(writer.header.lengths(source.spec)))

        with self._directory.writing():
            self._keys.define(model, job=job or model)
            stored = self._files.seal(
                model,
                [source.spec for source in found],
                fill,
                version=self._directory.catalogue.highest(model) + 1,
                round=round,
                meta={**(meta or {}), "job": job or model},
                recipients=recipients,
            )
            self._directory.commit(lambda catalogue: catalogue.add(stored))
        body = {"round": round, "file_id": stored.file_id.hex(), "digest": stored.digest.hex()}
        self._report(entry, stored, body)
        return stored

    def models(self) -> tuple[str, ...]:
        """Return the names of the models."""
        return tuple(sorted(self._directory.catalogue.models))

    def versions(self, model: str) -> tuple[StoredModel, ...]:
        """Return the versions that are kept, oldest first.

        :raises StoreError: when there is no such model.
        """
        return self._directory.catalogue.versions(checked_name(model), self._directory.files)

    def kept(self) -> tuple[StoredModel, ...]:
        """Return the versions of all models that are kept."""
        catalogue = self._directory.catalogue
        return tuple(
            stored
            for model in sorted(catalogue.models)
            for stored in catalogue.versions(model, self._directory.files)
        )

    def latest(self, model: str, *, expected_version: int = 0) -> StoredModel:
        """Return the latest version.

        :param expected_version: the version that is known from elsewhere (the ledger) to
            have been written.
        :raises StoreError: when there is none, or only an older one.
        """
        stored = self.versions(model)[-1]
        if stored.version < expected_version:
            raise StoreError(
                f"rolled back: {model} is at version {stored.version}, "
                f"version {expected_version} was written",
                hint=RESTORE_HINT,
            )
        return stored

    def version(self, model: str, version: int | None = None) -> StoredModel:
        """Return one version, by default the latest.

        :raises StoreError: when it is not kept.
        """
        kept = self.versions(model)
        if version is None:
            return kept[-1]
        for stored in kept:
            if stored.version == version:
                return stored
        raise StoreError(
            f"{model} has no version {version}",
            hint=f"kept are {kept[0].version} to {kept[-1].version}",
        )

    def open_model(self, model: str, version: int | None = None) -> SealedReader:
        """Open one version, by default the latest, and check that it is the one written.

        :raises StoreError: when it is missing, altered, exchanged or does not open.
        """
        return self._opened(model, version)[1]

    def open_file(self, model: str, version: int | None = None) -> tuple[StoredModel, BinaryIO]:
        """Open the sealed file of one version, by default the latest; to be closed.

        Nothing is locked: while it is open it stays readable, also when the version is pruned or
        sealed again.

        :raises StoreError: when it is missing or cannot be read.
        """
        stored = self.version(model, version)
        try:
            return stored, stored.path.open("rb")
        except OSError as error:
            fresh = self.version(model, version)
            if fresh == stored:
                raise not_as_sealed(stored, error) from error
            return self.open_file(model, version)

    def _opened(self, model: str, version: int | None) -> tuple[StoredModel, SealedReader]:
        """Open one version; once more where another thread sealed it again meanwhile."""
        stored = self.version(model, version)
        try:
            return stored, self._files.open(stored)
        except StoreError:
            fresh = self.version(model, version)
            if fresh == stored:
                raise
            return fresh, self._files.open(fresh)

    def load(self, model: str, version: int | None = None) -> dict[str, Array]:
        """Return the weights of one version, by default the latest.

        :raises StoreError: naming the tensor that is not what was sealed.
        """
        with self._authentic(model, version) as reader:
            return sealed.load(reader)

    def state(self, model: str, version: int | None = None) -> bytes:
        """Return what was sealed as ``state`` beside the weights; empty if nothing was."""
        return bytes(self.load_parts(model, version)[1])

    def load_parts(self, model: str, version: int | None = None) -> tuple[Part, Part]:
        """Return the weights as a document, and the state; what is large is in a file in memory.

        :raises StoreError: naming the tensor that is not what was sealed.
        """
        with self._authentic(model, version) as reader:
            return sealed.load_document(reader), sealed.load_state(reader)

    @contextmanager
    def _authentic(self, model: str, version: int | None) -> Iterator[SealedReader]:
        stored, opened = self._opened(model, version)
        with opened as reader:
            try:
                if reader.header.signer:
                    reader.check_signer({signer_digest(reader.header.signer)})
                yield reader
            except UnsealError as error:
                raise not_as_sealed(stored, error) from error

    def verify(self, model: str) -> tuple[StoredModel, ...]:
        """Read every byte of every version that is kept; return the versions.

        :raises StoreError: naming version, tensor and chunk of the first fault.
        """
        kept = self.versions(model)
        for stored in kept:
            with self._files.open(stored) as reader:
                try:
                    reader.verify()
                    if reader.header.signer:
                        reader.check_signer({signer_digest(reader.header.signer)})
                except UnsealError as error:
                    raise not_as_sealed(stored, error) from error
        return kept

    def export(
        self,
        model: str,
        out: Path,
        *,
        version: int | None = None,
        replace: bool = False,
        names: Collection[str] = (),
    ) -> StoredModel:
        """Write one version in the clear, all of it or some tensors; see :func:`sealed.export`.

        The ledger has an entry before the file appears.

        :raises StoreError: when ``out`` exists, lies in the store's own directory or cannot
            be written, or the version is not what was sealed; no file is left then.
        """
        with self.released(model, out, version=version) as (stored, reader):
            try:
                sealed.export(reader, out, replace=replace, names=names)
            except OSError as error:
                raise StoreError(f"{out}: {reason(error)}") from error
        return stored

    @contextmanager
    def released(
        self, model: str, out: Path, *, version: int | None = None
    ) -> Iterator[tuple[StoredModel, SealedReader]]:
        """Open one version to be written in the clear to ``out``, after an entry in the ledger.

        :raises StoreError: when ``out`` lies in the store's own directory, or the version is
            not what was sealed.
        """
        if out.resolve().is_relative_to(self._directory.path.resolve()):
            raise StoreError(
                f"{out} lies in the sealed store, where no file is stored in the clear",
                hint="choose a place outside of it",
            )
        stored, opened = self._opened(model, version)
        with opened as reader:
            self.record_export(stored, str(out))
            try:
                yield stored, reader
            except UnsealError as error:
                raise not_as_sealed(stored, error) from error

    def record_export(self, stored: StoredModel, to: str) -> None:
        """Enter into the ledger that a version is written in the clear to ``to``."""
        self._report("export", stored, {"digest": stored.digest.hex(), "to": to})

    def rotate(self, model: str) -> tuple[StoredModel, ...]:
        """Seal every kept version again under a new key and destroy the old keys.

        A crash in the middle loses nothing; rotate again to complete it.

        :raises StoreError: when a version is not what was sealed, or cannot be written.
        """
        with self._directory.writing():
            kept = self.versions(model)
            self._keys.rotate(model)
            fresh = tuple(map(self._files.reseal, kept))

            def enter(catalogue: Catalogue) -> None:
                for stored in fresh:
                    catalogue.add(stored)

            self._directory.commit(enter)
            self._keys.retire(model)
        digests = {str(stored.version): stored.digest.hex() for stored in fresh}
        body = {"change": "rotated", "key": fresh[-1].key, "digests": digests}
        self._report("model", fresh[-1], body)
        return fresh

    def prune(self, model: str, *, keep: int) -> int:
        """Delete all but the last ``keep`` versions (at least 1); return how many."""
        if keep < 1:
            raise ValueError("the latest version is always kept")
        with self._directory.writing():
            old = self.versions(model)[:-keep]

            def drop(catalogue: Catalogue) -> None:
                for stored in old:
                    del catalogue.models[model]["kept"][str(stored.version)]

            if old:
                self._directory.commit(drop)
        return len(old)

    def remove(self, model: str) -> bool:
        """Delete every version of a model and destroy its keys; return whether there was one.

        The ledger must have that it is deleted: otherwise a store without it is refused as an
        older one (:mod:`server.store.rollback`).

        :raises StoreError: when it cannot be written.
        """
        with self._directory.writing():
            found = model in self._directory.catalogue.models
            if found:
                self._directory.commit(lambda catalogue: catalogue.models.pop(model))
            # A crash between the two leaves keys that open nothing.
            self._keys.destroy(model)
        return found

    def _report(self, kind: str, stored: StoredModel, body: Mapping[str, Any]) -> None:
        if self._record is not None:
            place = {"job": stored.job, "model": stored.model, "version": stored.version}
            self._record(kind, {**place, **body})
