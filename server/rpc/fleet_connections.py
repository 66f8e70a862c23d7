"""Connections at the fleet listener: whose they are, and when they end.

Everything here belongs to one event loop and is not safe to use from other threads.
"""

from __future__ import annotations

import asyncio
import base64
import logging
from collections.abc import Callable
from datetime import datetime
from typing import Any, Final

from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_der_public_key,
)
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from fedlearn.errors import AdmissionDenied, TransportError
from fedlearn.identity import spiffe
from server.admission.registry import Admission, AdmissionRegistry
from server.clock import awake
from server.identity.peer_certificates import PeerCertificate
from server.rpc.connections import Connection
from server.rpc.fleet_api import Scope
from server.rpc.fleet_streams import ArrivingBody

__all__ = ["ConnectedClients", "FleetConnection"]

_LOG = logging.getLogger(__name__)
_MAX_HEAD_BYTES: Final = 64 * 1024
_HEAD_SECONDS: Final = 20.0
"""From the start of a connection, or the first byte of a request, to the end of its head."""

_REFUSED_SECONDS: Final = 5.0
"""How long a connection without a live admission may ask for the reason."""

_ABSENT_SECONDS: Final = 15.0
"""Longer than the interval of heartbeats: a client that is there has connected again by then."""

_NEAR_SECONDS: Final = 1.0


class ConnectedClients:
    """The clients that have connections, and the admission of each.

    :param absent: called with job and site when a client had no connection for some seconds.
    """

    def __init__(
        self,
        *,
        registry: AdmissionRegistry,
        trust_domain: str,
        absent: Callable[[str, str], None],
        clock: Callable[[], datetime],
    ) -> None:
        self._registry = registry
        self._trust_domain = trust_domain
        self._absent = absent
        self._clock = clock
        self._connections: dict[bytes, set[FleetConnection]] = {}
        self._present: dict[tuple[str, str], set[FleetConnection]] = {}

    def admission_of(self, peer: PeerCertificate) -> Admission:
        """Return the live admission of a certificate.

        :raises AdmissionDenied: when the certificate is not valid now, or has none.
        """
        now = self._clock()
        try:
            peer.checked(trust_domain=self._trust_domain, now=now)
        except TransportError as error:
            raise AdmissionDenied(str(error), hint=error.hint) from error
        admission = self._registry.live(peer.thumbprint, now=now)
        same = (
            isinstance(peer.id, spiffe.ClientId)
            and (peer.id.job, peer.id.site) == (admission.job, admission.site)
            and peer.tls_key == admission.tls_key
        )
        if not same:
            raise AdmissionDenied("the certificate is not that of the admission")
        return admission

    def opened(self, connection: FleetConnection, peer: PeerCertificate) -> None:
        """Note a new connection. Without a live admission it is closed after a few seconds."""
        self._connections.setdefault(peer.thumbprint, set()).add(connection)
        try:
            self.admission_of(peer)
        except AdmissionDenied as denied:
            _LOG.info("a connection of %s is closed soon: %s", peer.id, denied)
            loop = asyncio.get_running_loop()
            loop.call_later(_REFUSED_SECONDS, connection.transport.abort)
        else:
            connection.counted.identify(peer.thumbprint.hex())

    def authorized(self, connection: FleetConnection, admission: Admission) -> None:
        """Note the admission of a connection, which ends with it."""
        if connection.over.done():
            return
        client = (admission.job, admission.site)
        if connection.belongs_to is None:
            connection.belongs_to = client
        self._present.setdefault(client, set()).add(connection)
        if connection.ends != admission.expires:
            connection.ends = admission.expires
            seconds = (admission.expires - self._clock()).total_seconds()
            connection.forget_end()
            loop = asyncio.get_running_loop()
            connection.end_timer = loop.call_later(max(0.0, seconds), self._expire, connection)

    def lost(self, connection: FleetConnection, peer: PeerCertificate) -> None:
        """Note the end of a connection; report the client absent if it does not come back."""
        connection.forget_end()
        same_key = self._connections.get(peer.thumbprint, set())
        same_key.discard(connection)
        if not same_key:
            self._connections.pop(peer.thumbprint, None)
        if connection.belongs_to is not None:
            self._present.get(connection.belongs_to, set()).discard(connection)
            loop = asyncio.get_running_loop()
            loop.call_later(_ABSENT_SECONDS, self._check_absent, connection.belongs_to, awake())

    def disconnect(self, thumbprint: bytes) -> None:
        """Abort the connections of the key with this thumbprint."""
        for connection in list(self._connections.get(thumbprint, ())):
            connection.transport.abort()

    def _check_absent(self, client: tuple[str, str], since: float) -> None:
        if self._present.get(client):
            return
        left = _ABSENT_SECONDS - (awake() - since)
        if left > _NEAR_SECONDS:
            # This process was suspended, so that no client could connect.
            asyncio.get_running_loop().call_later(left, self._check_absent, client, since)
            return
        self._present.pop(client, None)
        self._absent(*client)

    def _expire(self, connection: FleetConnection) -> None:
        """Abort a connection whose admission was not renewed."""
        if connection.peer is None or connection.transport.is_closing():
            return
        try:
            self.authorized(connection, self.admission_of(connection.peer))
        except AdmissionDenied:
            connection.transport.abort()


class FleetConnection(HttpToolsProtocol):  # type: ignore[misc]
    """One connection, with the certificate that the peer presented."""

    clients: ConnectedClients
    counted: Connection
    peer: PeerCertificate | None = None
    flower_key: bytes = b""
    belongs_to: tuple[str, str] | None = None
    ends: datetime | None = None
    end_timer: asyncio.TimerHandle | None = None
    _body: ArrivingBody | None = None
    _in_head = True
    _head_bytes = 0
    _head_ends: asyncio.TimerHandle | None = None

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self.over: asyncio.Future[None] = self.loop.create_future()

    def forget_end(self) -> None:
        """Cancel the timer of the end of the admission: it would keep the connection till then."""
        if self.end_timer is not None:
            self.end_timer.cancel()
            self.end_timer = None

    def reads_body_of(self, scope: Scope) -> bool:
        """Return whether a part of the request's body has not been read."""
        return self.cycle is not None and self.cycle.scope is scope and self.cycle.more_body

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._expect_head()
        channel = transport.get_extra_info("ssl_object")
        der = channel.getpeercert(binary_form=True) if channel is not None else None
        try:
            peer = PeerCertificate.parse(der or b"")
        except TransportError as error:
            _LOG.info("a connection was refused: %s", error)
            transport.abort()
            return
        key = load_der_public_key(peer.tls_key)
        pem = key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
        self.flower_key = base64.b64encode(pem)
        self.peer = peer
        self.clients.opened(self, peer)

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._head_complete()
        if self._body is not None:
            self._body.lose()
        if not self.over.done():
            self.over.set_result(None)
        if self.peer is not None:
            self.clients.lost(self, self.peer)

    def data_received(self, data: bytes) -> None:
        idle = self.cycle is None or self.cycle.response_complete
        super().data_received(data)
        if idle and (self.cycle is None or self.cycle.response_complete):
            self._expect_head()
        # The parser does not bound the bytes before the end of a request's head.
        if self._in_head:
            self._head_bytes += len(data)
            if self._head_bytes > _MAX_HEAD_BYTES:
                self.transport.abort()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._in_head, self._head_bytes = True, 0
        self._body = ArrivingBody(self.flow)
        self.scope["fedlearn.connection"] = self
        self.scope["fedlearn.body"] = self._body

    def on_headers_complete(self) -> None:
        self._in_head = False
        self._head_complete()
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """Keep a piece until it is taken. uvicorn would add all of them to one byte string."""
        if self._body is not None and not self.cycle.response_complete:
            self._body.put(body)

    def on_message_complete(self) -> None:
        super().on_message_complete()
        if self._body is not None:
            self._body.end()

    def _expect_head(self) -> None:
        if self._head_ends is None and not self.transport.is_closing():
            self._head_ends = self.loop.call_later(_HEAD_SECONDS, self.transport.abort)

    def _head_complete(self) -> None:
        if self._head_ends is not None:
            self._head_ends.cancel()
            self._head_ends = None
