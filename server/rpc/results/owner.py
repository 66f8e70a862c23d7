"""The Owner service: the models and logs that are sealed for a key, for whoever holds it.

It is reached without a certificate. A session is a token that only the key's holder can open
(:mod:`fedlearn.sealing.owner_session`), authenticated with a secret of this process. Nothing is
kept for a caller, so there is nothing to exhaust, and requests are limited for each address.

A stranger learns nothing about keys: a session is sealed for every key that is one, and what
another key's models are called is answered as if they were not there.
"""

from __future__ import annotations

import dataclasses
import hmac
import secrets
import struct
import threading
import time
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from typing import Final

from fedlearn.errors import ConfigError, Throttled, TransportError
from fedlearn.sealing.owner_session import seal_owner_session
from fedlearn.wire import fedlearn_pb2 as pb
from server.admission.challenges import Rates
from server.rpc.guard import Caller
from server.rpc.ports import Coordinator
from server.rpc.results.models import ModelSender
from server.store.models import StoredModel

__all__ = ["MAX_DOWNLOADS", "SESSION_LIFETIME", "OwnerService", "OwnerTokens"]

SESSION_LIFETIME: Final = timedelta(minutes=5)
MAX_DOWNLOADS: Final = 64
"""Downloads of all owners at once: slow ones leave the most part of the gate's calls to others."""

_PURPOSE: Final = b"fedlearn/owner-token/1\0"
_KEY_BYTES: Final = 32
_BODY: Final = struct.Struct(">32sQ")
_MAC_BYTES: Final = 32
_MAX_NAME: Final = 80


class OwnerTokens:
    """Tokens that name an owner's key and an expiry, with a MAC under a secret of this object.

    ``monotonic`` returns seconds on a clock that nobody sets.
    """

    def __init__(self, *, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._secret = secrets.token_bytes(32)
        self._monotonic = monotonic

    def issue(self, owner_key: bytes) -> bytes:
        """Return a token for a raw X25519 public key."""
        expires = self._monotonic() + SESSION_LIFETIME.total_seconds()
        body = _BODY.pack(owner_key, int(expires * 1000))
        return body + self._mac(body)

    def owner_key(self, token: bytes) -> bytes:
        """Return the key that a token stands for.

        :raises TransportError: when it was not issued here, or has expired.
        """
        body, mac = token[: _BODY.size], token[_BODY.size :]
        if len(mac) != _MAC_BYTES or not hmac.compare_digest(mac, self._mac(body)):
            raise TransportError("the session is not one of this coordinator", hint=_AGAIN)
        key, expires = _BODY.unpack(body)
        if self._monotonic() * 1000 >= expires:
            raise TransportError("the session has expired", hint=_AGAIN)
        return bytes(key)

    def _mac(self, body: bytes) -> bytes:
        return hmac.digest(self._secret, _PURPOSE + body, "sha256")


_AGAIN: Final = "open another one, with the owner's key"


class OwnerService:
    """Bodies of ``fedlearn.v1.Owner``.

    ``ca_pin``  SHA-256 of the SPKI of the coordinator's CA
    ``rates``   limit the requests, of each address and of all; not those of the gate
    """

    def __init__(
        self,
        *,
        models: ModelSender,
        coordinator: Coordinator,
        ca_pin: bytes,
        rates: Rates,
        clock: Callable[[], datetime],
        tokens: OwnerTokens | None = None,
    ) -> None:
        self._models = models
        self._coordinator = coordinator
        self._ca_pin = ca_pin
        self._rates = rates
        self._clock = clock
        self._tokens = tokens or OwnerTokens()
        self._downloads = threading.BoundedSemaphore(MAX_DOWNLOADS)

    def OpenSession(  # noqa: N802
        self, request: pb.OpenOwnerSessionRequest, caller: Caller
    ) -> pb.SealedOwnerSession:
        """Seal a session to the key; whether it owns anything plays no part."""
        self._rates.take(caller.peer, now=self._clock())
        key = request.owner_key
        if len(key) != _KEY_BYTES:
            raise ConfigError(f"an X25519 public key has {_KEY_BYTES} bytes", key="owner_key")
        expires = int((self._clock() + SESSION_LIFETIME).timestamp() * 1000)
        try:
            sealed = seal_owner_session(
                self._tokens.issue(key), key, ca_pin=self._ca_pin, expires_unix_ms=expires
            )
        except ValueError as error:
            raise ConfigError("is not an X25519 public key", key="owner_key") from error
        return pb.SealedOwnerSession(sealed=sealed, expires_unix_ms=expires)

    def ListModels(  # noqa: N802
        self, request: pb.OwnerModelsRequest, caller: Caller, stop: threading.Event
    ) -> Iterator[pb.SealedModel]:
        """Return the versions that are sealed for the session's key."""
        return self._models.listed(request.job, self._visible(request.token, caller))

    def DownloadModel(  # noqa: N802
        self, request: pb.OwnerDownloadRequest, caller: Caller, stop: threading.Event
    ) -> Iterator[pb.ModelPart]:
        """Send one file that is sealed for the session's key."""
        visible = self._visible(request.token, caller)
        if not self._downloads.acquire(blocking=False):
            raise _too_many()
        try:
            yield from self._models.parts(request.download, visible, stop)
        finally:
            self._downloads.release()

    def FetchAppLogs(  # noqa: N802
        self, request: pb.OwnerAppLogsRequest, caller: Caller, stop: threading.Event
    ) -> Iterator[pb.OwnerAppLogsPart]:
        """Send the logs of a job whose owner's key is the session's."""
        self._rates.take(caller.peer, now=self._clock())
        key = self._tokens.owner_key(request.token)
        if len(request.logs.job) > _MAX_NAME or len(request.logs.site) > _MAX_NAME:
            raise ConfigError(f"a name has at most {_MAX_NAME} characters", key="job")
        if not self._downloads.acquire(blocking=False):
            raise _too_many()
        try:
            found = self._coordinator.app_logs_of_owner(request.logs.job, request.logs.site, key)
            run, digest, logs = found
            yield pb.OwnerAppLogsPart(run=pb.AppLogsRun(run_id=run, digest=digest))
            for log in logs:
                if stop.is_set():
                    return
                yield pb.OwnerAppLogsPart(log=pb.AppLog(**dataclasses.asdict(log)))
        finally:
            self._downloads.release()

    def _visible(self, token: bytes, caller: Caller) -> Callable[[StoredModel], bool]:
        self._rates.take(caller.peer, now=self._clock())
        key = self._tokens.owner_key(token)
        return lambda stored: key in stored.recipients


def _too_many() -> Throttled:
    return Throttled(
        f"owners have {MAX_DOWNLOADS} downloads under way, which is the most",
        hint="try again in some minutes",
    )
