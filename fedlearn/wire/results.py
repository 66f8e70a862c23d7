"""What a coordinator has of finished work: sealed models and the ledger, as calls return them.

Nothing that is returned here was verified: :mod:`fedlearn.api.downloads` and
:mod:`fedlearn.api.remote_ledger` do that.
"""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

from fedlearn.errors import TransportError
from fedlearn.job.app_log import SealedAppLog
from fedlearn.wire import fedlearn_pb2 as pb
from fedlearn.wire.calls import Calls

__all__ = [
    "STREAM_SECONDS",
    "app_log",
    "EntryRow",
    "LedgerState",
    "ModelDownload",
    "OperatorResults",
    "SealedModel",
    "download",
    "download_request",
    "sealed_models",
]

EntryRow: TypeAlias = tuple[int, int, str, bytes, bytes, bytes, bytes]
"""An entry of the ledger: sequence, time (Unix ms), kind, body, previous, hash, signature."""

STREAM_SECONDS: Final = 24 * 3600.0
"""The deadline of a download, in seconds."""

_MAX_MODELS: Final = 1_000_000
_MAX_OWNERS: Final = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class SealedModel:
    """One sealed version of a model that the coordinator keeps.

    ``size``     of the sealed file in bytes
    ``digest``   of the sealed file (32 bytes), see :class:`fedlearn.sealing.Sealed`
    ``file_id``  16 random bytes that the sealed file has in its header
    ``owners``   raw X25519 public keys that it is sealed for besides the coordinator's key
    """

    model: str
    version: int
    job: str
    round: int
    size: int
    digest: bytes
    file_id: bytes
    owners: tuple[bytes, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelDownload:
    """A download in progress: ``chunks`` yields the bytes of ``model`` from ``offset`` on."""

    model: SealedModel
    offset: int
    chunks: Iterator[bytes]


@dataclass(frozen=True, slots=True, kw_only=True)
class LedgerState:
    """Where the ledger ends (``sequence`` 0: it is empty), and its key.

    ``public_key``     of the ledger, DER SubjectPublicKeyInfo
    ``key_signature``  by the coordinator's CA, see :mod:`fedlearn.identity.ledger_key`
    """

    sequence: int
    time: int
    hash: bytes
    signature: bytes
    public_key: bytes
    key_signature: bytes


class OperatorResults(Calls):
    """The calls of an operator for sealed models and the ledger."""

    _operator: Any

    def list_models(self, job: str = "") -> tuple[SealedModel, ...]:
        """Return the versions of models that are kept, of one job or of all; oldest first."""
        call = self._operator.ListModels(pb.ListModelsRequest(job=job), timeout=STREAM_SECONDS)
        return sealed_models(self._stream(call))

    @contextlib.contextmanager
    def download_model(
        self, model: str, *, version: int = 0, offset: int = 0, file_id: bytes = b""
    ) -> Generator[ModelDownload, None, None]:
        """Download one version (0: the latest) as it is sealed; a context that ends the call.

        :param offset: how many bytes the caller has of the file that ``file_id`` names. If the
            version is another file now, everything is sent: see :attr:`ModelDownload.offset`.
        :raises FedlearnError: as the coordinator raised it.
        """
        request = download_request(model, version=version, offset=offset, file_id=file_id)
        call = self._operator.DownloadModel(request, timeout=STREAM_SECONDS)
        with contextlib.closing(self._stream(call)) as parts:
            yield download(parts)

    def read_ledger(
        self, *, after: int = 0, kind: str = "", limit: int = 0
    ) -> Generator[EntryRow, None, None]:
        """Yield the entries above sequence ``after``, oldest first, as the coordinator sends them.

        :param kind: only entries of this kind.
        :param limit: the largest number of entries; 0 for all.
        """
        request = pb.ReadLedgerRequest(after=after, kind=kind, limit=limit)
        call = self._operator.ReadLedger(request, timeout=STREAM_SECONDS)
        with contextlib.closing(self._stream(call)) as pages:
            for page in pages:
                for one in page.entries:
                    yield (
                        one.sequence,
                        one.unix_ms,
                        one.kind,
                        one.body,
                        one.previous,
                        one.hash,
                        one.signature,
                    )

    def ledger_state(self) -> LedgerState:
        """Return where the ledger ends now, and its key."""
        found = self._retry(self._operator.GetLedgerHead, pb.Empty())
        return LedgerState(
            sequence=found.sequence,
            time=found.unix_ms,
            hash=found.hash,
            signature=found.signature,
            public_key=found.public_key,
            key_signature=found.key_signature,
        )


def download_request(
    model: str, *, version: int, offset: int, file_id: bytes
) -> pb.DownloadModelRequest:
    """Return the request for a download, as :meth:`OperatorResults.download_model` makes it."""
    return pb.DownloadModelRequest(model=model, version=version, offset=offset, file_id=file_id)


def sealed_models(stream: Generator[Any, None, None]) -> tuple[SealedModel, ...]:
    """Return the models of a stream.

    :raises TransportError: when they are more than a coordinator can have, or malformed.
    """
    found: list[SealedModel] = []
    with contextlib.closing(stream) as items:
        for item in items:
            if len(found) >= _MAX_MODELS:
                raise TransportError(f"the coordinator lists more than {_MAX_MODELS} models")
            found.append(_model(item))
    return tuple(found)


def download(parts: Iterator[Any]) -> ModelDownload:
    """Return the download whose messages ``parts`` yields.

    :raises TransportError: when the first message does not describe the file.
    """
    first = next(parts, None)
    if first is None or first.WhichOneof("part") != "file":
        raise TransportError(
            "the coordinator did not describe the model that it sends",
            hint="use the same release on both sides",
        )
    return ModelDownload(
        model=_model(first.file.model), offset=first.file.offset, chunks=_data(parts)
    )


def _data(parts: Iterator[Any]) -> Iterator[bytes]:
    for part in parts:
        if part.WhichOneof("part") != "data":
            raise TransportError("the coordinator described the model twice")
        yield part.data


def _model(item: pb.SealedModel) -> SealedModel:
    if len(item.owners) > _MAX_OWNERS:
        raise TransportError(f"the coordinator names more than {_MAX_OWNERS} owners of a model")
    return SealedModel(
        model=item.model,
        version=item.version,
        job=item.job,
        round=item.round,
        size=item.bytes,
        digest=item.digest,
        file_id=item.file_id,
        owners=tuple(item.owners),
    )


def app_log(log: pb.AppLog) -> SealedAppLog:
    """Return a log as the coordinator sent it, unchecked."""
    return SealedAppLog(
        client=log.client,
        stream=log.stream,
        round=log.round,
        sequence=log.sequence,
        sealed=log.sealed,
        fault=log.fault,
    )
