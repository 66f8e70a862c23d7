"""The sealed files of model versions: written, sealed again under another key, and opened."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from attestation.errors import UnsealError
from fedlearn.errors import StoreError
from fedlearn.sealing import (
    FileSigner,
    Scalar,
    SealedReader,
    SealedWriter,
    TensorSpec,
    open_sealed,
)
from server.disk import store_error
from server.keys.root_key import reason
from server.keys.service import KeyService
from server.store.catalogue import StoredModel
from server.store.directory import RESTORE_HINT

__all__ = ["ModelFiles", "not_as_sealed"]


class ModelFiles:
    """The files in ``folder``. They are in the store when the catalogue names them.

    :param signer: signs the files that are sealed for an owner as well.
    """

    def __init__(self, folder: Path, keys: KeyService, signer: FileSigner | None) -> None:
        self._folder = folder
        self._keys = keys
        self._signer = signer

    def seal(
        self,
        model: str,
        specs: Sequence[TensorSpec],
        fill: Callable[[SealedWriter], None],
        *,
        version: int,
        round: int,  # noqa: A002
        meta: Mapping[str, Scalar],
        recipients: Sequence[bytes],
    ) -> StoredModel:
        """Write one version; ``fill`` writes its tensors in the order of ``specs``.

        :raises StoreError: when it cannot be written, or has recipients and there is no signer.
        """
        if recipients and self._signer is None:
            raise StoreError(
                f"{model}, version {version}: a model for an owner must be signed, and no "
                "signing key was given",
                hint="name the state directory of a coordinator",
            )
        key = self._keys.model_key(model)
        path = self._folder / f"{model}.{version}.{secrets.token_hex(8)}"
        try:
            with SealedWriter(
                path,
                model=model,
                version=version,
                round=round,
                tensors=specs,
                key=key,
                recipients=recipients,
                meta=meta,
                signer=self._signer if recipients else None,
            ) as writer:
                fill(writer)
                done = writer.commit()
        except OSError as error:
            message = f"{model}, version {version}: {reason(error)}"
            raise store_error(message, error) from error
        except ValueError as error:
            raise StoreError(f"{model}, version {version}: {error}") from error
        return StoredModel(
            model=model,
            job=str(meta["job"]),
            version=version,
            round=round,
            file_id=done.header.file_id,
            digest=done.digest,
            key=key.key_id,
            path=path,
            size=done.size,
            recipients=tuple(recipients),
        )

    def reseal(self, stored: StoredModel) -> StoredModel:
        """Seal a version under the present key, chunk by chunk, with the same number."""
        with self.open(stored) as reader:
            header = reader.header

            def fill(writer: SealedWriter) -> None:
                for spec in header.tensors:
                    writer.write_chunks(reader.chunks(spec.name))

            try:
                return self.seal(
                    stored.model,
                    header.tensors,
                    fill,
                    version=stored.version,
                    round=stored.round,
                    meta=header.meta,
                    recipients=[wrap.recipient for wrap in header.wraps],
                )
            except UnsealError as error:
                raise not_as_sealed(stored, error) from error

    def open(self, stored: StoredModel) -> SealedReader:
        """Open one version, and check that it is the one that was written.

        :raises StoreError: when it is missing, altered, exchanged or does not open.
        """
        try:
            reader = open_sealed(stored.path, self._keys, model=stored.model)
        except FileNotFoundError:
            raise StoreError(
                f"{stored.model}, version {stored.version}: {stored.path} is missing",
                hint=RESTORE_HINT,
            ) from None
        except (UnsealError, OSError) as error:
            raise not_as_sealed(stored, error) from error
        try:
            found = (reader.header.version, reader.header.file_id, reader.digest())
            if found != (stored.version, stored.file_id, stored.digest):
                raise UnsealError(
                    f"the file holds version {found[0]} as it was sealed at another time"
                )
        except UnsealError as error:
            reader.close()
            raise not_as_sealed(stored, error) from error
        return reader


def not_as_sealed(stored: StoredModel, error: Exception) -> StoreError:
    """Return the error for a version that is not what was sealed."""
    message = f"{stored.model}, version {stored.version}: {reason(error)}"
    cause = error.__cause__ if isinstance(error.__cause__, OSError) else error
    return store_error(message, cause, hint=RESTORE_HINT)
