"""The calls of a model's owner, who holds its key and has no certificate of the coordinator."""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Iterator
from datetime import datetime
from typing import Any, Final, Self

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from attestation.errors import UnsealError
from fedlearn.errors import TransportError
from fedlearn.job.app_log import SealedAppLog
from fedlearn.sealing.owner_session import open_owner_session
from fedlearn.wire import fedlearn_pb2 as pb
from fedlearn.wire import fedlearn_pb2_grpc as stubs
from fedlearn.wire.calls import Calls
from fedlearn.wire.channel import open_channel
from fedlearn.wire.failure import Unreachable
from fedlearn.wire.pinning import PinnedServer, fetch_pinned
from fedlearn.wire.results import (
    STREAM_SECONDS,
    ModelDownload,
    SealedModel,
    app_log,
    download,
    download_request,
    sealed_models,
)

__all__ = ["OwnerClient"]

_stubs: Final[Any] = stubs


class OwnerClient(Calls):
    """A client of a coordinator's gate for an owner; its context closes the channel.

    Each call opens a session of its own, which the coordinator seals to the owner's key.
    """

    attempts = 4

    def __init__(self, pinned: PinnedServer, key: X25519PrivateKey) -> None:
        super().__init__(
            open_channel(pinned.address, roots=pinned.leaf_pem),
            f"the coordinator at {pinned.address}",
        )
        self._pin = pinned.verifier_id
        self._key = key
        self._owner = _stubs.OwnerStub(self._channel)

    @classmethod
    def connect(cls, address: str, *, ca_pin: bytes, key: X25519PrivateKey, now: datetime) -> Self:
        """Return a client of the gate at ``host:port``.

        :param ca_pin: SHA-256 of the key of the coordinator's CA.
        :raises FedlearnError: as :func:`fedlearn.wire.pinning.fetch_pinned`.
        """
        return cls(fetch_pinned(address, ca_pin=ca_pin, now=now), key)

    def list_models(self, job: str = "") -> tuple[SealedModel, ...]:
        """Return the versions that are sealed for the key, of one job or of all; oldest first."""
        request = pb.OwnerModelsRequest(token=self._session(), job=job)
        call = self._owner.ListModels(request, timeout=STREAM_SECONDS)
        return sealed_models(self._stream(call))

    @contextlib.contextmanager
    def download_model(
        self, model: str, *, version: int = 0, offset: int = 0, file_id: bytes = b""
    ) -> Generator[ModelDownload, None, None]:
        """Download one version; see
        :meth:`fedlearn.wire.results.OperatorResults.download_model`."""
        request = pb.OwnerDownloadRequest(
            token=self._session(),
            download=download_request(model, version=version, offset=offset, file_id=file_id),
        )
        call = self._owner.DownloadModel(request, timeout=STREAM_SECONDS)
        with contextlib.closing(self._stream(call)) as parts:
            yield download(parts)

    @contextlib.contextmanager
    def fetch_app_logs(
        self, job: str, site: str
    ) -> Generator[tuple[str, bytes, Iterator[SealedAppLog]], None, None]:
        """Yield the id of the run, the digest of its job, and its sealed logs at one site.

        They are as the coordinator sent them: :mod:`fedlearn.api.app_logs` opens and checks them.

        :raises JobError: when no such logs are sealed for the key.
        """
        request = pb.OwnerAppLogsRequest(
            token=self._session(), logs=pb.AppLogsRequest(job=job, site=site)
        )
        call = self._owner.FetchAppLogs(request, timeout=STREAM_SECONDS)
        with contextlib.closing(self._stream(call)) as parts:
            first = next(parts, None)
            if first is None or first.WhichOneof("part") != "run":
                raise TransportError(f"{self._other} does not name the run of the logs")
            logs = (app_log(part.log) for part in parts)
            yield first.run.run_id, first.run.digest, logs

    def _session(self) -> bytes:
        """Have a session sealed to the key, and open it.

        :raises TransportError: when it is not for this key and this coordinator.
        """
        public = self._key.public_key().public_bytes_raw()
        request = pb.OpenOwnerSessionRequest(owner_key=public)
        try:
            reply = self._retry(self._owner.OpenSession, request)
        except Unreachable as error:
            raise Unreachable(
                str(error),
                hint="check that this is the address of the coordinator's gate (`listen.gate` in "
                "server.toml), and not of another listener",
            ) from error
        try:
            return open_owner_session(
                reply.sealed,
                self._key,
                ca_pin=self._pin,
                expires_unix_ms=reply.expires_unix_ms,
            )
        except (UnsealError, ValueError, OverflowError) as error:
            raise TransportError(
                f"the session that {self._other} sealed does not open: it is for another key, or "
                "was made by another coordinator",
                hint="check the address, and use the same release on both sides",
            ) from error
