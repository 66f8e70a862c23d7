"""The only door through which clients reach a job: mutual TLS, one listener for all jobs.

TLS 1.3 and a certificate of this coordinator's CA are the price of a connection. Then, on
*every* request and before a byte of its body is read:

1. the certificate is one of a client and valid now;
2. the register has a live admission for its key, for the same job and site;
3. ``flwr-public-key``, with which Flower names a node, is that key;
4. the path is one of :data:`ACTIONS`, the body's length is announced and within its bound;
5. the job of the certificate, and not of the request, chooses the link that answers.

When an admission ends, by expiry, revocation or quarantine, its open connections end with it.
When a client has had no connection for longer than it waits between two heartbeats, its job is
told: a client that vanished does not hold up a round until the deadline. (Of one that was
killed its agent tells at once.)

Flower is not imported here. A link is an ASGI application; see :class:`Link`.
"""

from __future__ import annotations

import asyncio
import base64
import logging
import socket
import ssl
import threading
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final, Protocol

import uvicorn
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_der_public_key,
)
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from fedlearn import spiffe
from fedlearn.errors import AdmissionDenied, ConfigError, TransportError
from server.peers import PeerCertificate
from server.register import Admission, AdmissionEvent, AdmissionRegister, Change

__all__ = ["ACTIONS", "Caller", "Front", "Link", "Receive", "Scope", "Send"]

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

_LOG = logging.getLogger(__name__)
_CONTROL_BYTES: Final = 64 * 1024
_MAX_HEAD_BYTES: Final = 64 * 1024
_MAX_UPDATE_BYTES: Final = 4 * 1024**3
_IDLE_SECONDS: Final = 120
_ABSENT_SECONDS: Final = 15.0
"""Longer than a client waits between two heartbeats: one that is there has a connection again."""

_START_SECONDS: Final = 30.0

ACTIONS: Final[Mapping[str, int | None]] = {
    "/v1/fleet/activate-node": _CONTROL_BYTES,
    "/v1/fleet/deactivate-node": _CONTROL_BYTES,
    "/v1/fleet/send-node-heartbeat": _CONTROL_BYTES,
    "/v1/fleet/get-run": _CONTROL_BYTES,
    "/v1/fleet/fetch": _CONTROL_BYTES,
    "/v1/fleet/deliver": None,
}
"""What a client may do, with the most bytes of a request; ``None``: as much as an update."""

_ENDED: Final = frozenset({Change.QUARANTINED, Change.REVOKED, Change.EXPIRED})


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """Who makes a request, as the front found out.

    ``still_live`` raises AdmissionDenied when the admission has ended meanwhile; whoever
    waited, or read a long body, asks it before acting. ``key`` is the thumbprint under which
    the register knows the admission.
    """

    node_id: int
    site: str
    still_live: Callable[[], None]
    key: bytes = b""


class Link(Protocol):
    """One job's side of the front.

    Called as an ASGI application, with ``fedlearn.caller`` (:class:`Caller`) and
    ``fedlearn.length`` (the announced bytes of the body) in the scope.
    """

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one action of one node."""
        ...

    def absent(self, site: str) -> None:
        """Note that the site's client has no connection left."""
        ...


class _Refused(Exception):
    """A request that is answered with a status and one line."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status


class Front:
    """The listener, with an event loop in a thread of its own.

    :param tls: from :func:`fedlearn.tls.server_context`.
    :param link_of: the link of a running job by name, or None.
    :param max_update_bytes: the most bytes that one delivery may have.
    :param clock: the time, for tests.
    """

    def __init__(
        self,
        *,
        tls: ssl.SSLContext,
        register: AdmissionRegister,
        link_of: Callable[[str], Link | None],
        trust_domain: str,
        host: str = "127.0.0.1",
        port: int = 0,
        max_update_bytes: int = _MAX_UPDATE_BYTES,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        if tls.verify_mode is not ssl.CERT_REQUIRED or tls.minimum_version < ssl.TLSVersion.TLSv1_3:
            raise ConfigError("the front needs TLS 1.3 and a client certificate")
        self._tls = tls
        self._register = register
        self._link_of = link_of
        self._trust_domain = trust_domain
        self._address = (host, port)
        self._max_update_bytes = max_update_bytes
        self._clock = clock
        self._connections: dict[bytes, set[_Connection]] = {}
        self._present: dict[tuple[str, str], set[_Connection]] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._server: uvicorn.Server | None = None
        self._thread: threading.Thread | None = None
        self._unsubscribe: Callable[[], None] | None = None
        self._started = threading.Event()

    def start(self) -> tuple[str, int]:
        """Listen; return host and port.

        :raises ConfigError: when the address cannot be listened on.
        """
        host, port = self._address
        try:
            listener = socket.create_server(
                (host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET
            )
        except OSError as error:
            raise ConfigError(
                f"cannot listen on {host}:{port}: {error.strerror}",
                hint="choose another port, or stop what uses it",
            ) from error
        config = uvicorn.Config(
            self._serve,
            loop="asyncio",
            http=self._protocol(),
            ws="none",
            lifespan="off",
            interface="asgi3",
            access_log=False,
            log_config=None,
            proxy_headers=False,
            server_header=False,
            timeout_keep_alive=_IDLE_SECONDS,
            ssl_context_factory=lambda _config, _default: self._tls,
        )
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(
            target=self._run, args=(self._server, listener), name="front", daemon=True
        )
        self._thread.start()
        if not self._started.wait(_START_SECONDS):
            raise ConfigError(f"the front did not start within {_START_SECONDS:g} s")
        self._unsubscribe = self._register.subscribe(self._changed)
        bound = listener.getsockname()
        return str(bound[0]), int(bound[1])

    def disconnect(self, thumbprint: bytes) -> None:
        """End the open connections of the key with this thumbprint."""
        loop = self._loop
        if loop is not None and not loop.is_closed():
            loop.call_soon_threadsafe(self._abort, thumbprint)

    def stop(self) -> None:
        """Stop listening and end every connection."""
        if self._unsubscribe is not None:
            self._unsubscribe()
        if self._server is not None and self._thread is not None:
            self._server.should_exit = self._server.force_exit = True
            self._thread.join(timeout=10)

    # The loop's thread

    def _run(self, server: uvicorn.Server, listener: socket.socket) -> None:
        async def main() -> None:
            self._loop = asyncio.get_running_loop()
            watch = asyncio.ensure_future(self._tell_started(server))
            await server.serve(sockets=[listener])
            await watch

        asyncio.run(main())

    async def _tell_started(self, server: uvicorn.Server) -> None:
        while not server.started and not server.should_exit:
            await asyncio.sleep(0.01)
        self._started.set()

    def _changed(self, event: AdmissionEvent) -> None:
        if event.change in _ENDED:
            self.disconnect(event.admission.thumbprint)

    def _abort(self, thumbprint: bytes) -> None:
        for connection in list(self._connections.get(thumbprint, ())):
            connection.transport.abort()

    def _protocol(self) -> type[_Connection]:
        return type("_FrontConnection", (_Connection,), {"front": self})

    def opened(self, connection: _Connection, peer: PeerCertificate) -> None:
        """Note a connection."""
        self._connections.setdefault(peer.thumbprint, set()).add(connection)

    def lost(self, connection: _Connection, peer: PeerCertificate) -> None:
        """Note the end of a connection; tell the job when it was the client's last."""
        same_key = self._connections.get(peer.thumbprint, set())
        same_key.discard(connection)
        if not same_key:
            self._connections.pop(peer.thumbprint, None)
        if connection.speaks_for is not None and self._loop is not None:
            self._present.get(connection.speaks_for, set()).discard(connection)
            self._loop.call_later(_ABSENT_SECONDS, self._look, connection.speaks_for)

    def _look(self, who: tuple[str, str]) -> None:
        if self._present.get(who):
            return
        self._present.pop(who, None)
        link = self._link_of(who[0])
        if link is not None:
            link.absent(who[1])

    # A request

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        started = False

        async def noting(event: MutableMapping[str, Any]) -> None:
            nonlocal started
            started = started or event["type"] == "http.response.start"
            await send(event)

        try:
            link, caller, length = self._decide(scope)
            scope["fedlearn.caller"] = caller
            scope["fedlearn.length"] = length
            await link(scope, receive, noting)
        except _Refused as refused:
            await _refuse(send, refused.status, str(refused))
        except AdmissionDenied as denied:
            if started:
                scope["fedlearn.connection"].transport.abort()
            else:
                await _refuse(send, 401, str(denied))

    def _decide(self, scope: Scope) -> tuple[Link, Caller, int]:
        connection: _Connection | None = scope.get("fedlearn.connection")
        if scope["type"] != "http" or connection is None or connection.peer is None:
            raise _Refused(401, "no certificate of a client")
        admission = self._admission(connection.peer)
        headers: dict[bytes, bytes] = {}
        for name, value in scope["headers"]:
            if name in headers and name in _SINGLE:
                raise _Refused(400, "a header that may appear once appears twice")
            headers[name] = value
        if headers.get(b"flwr-public-key", b"") != connection.flower_key:
            raise _Refused(401, "flwr-public-key is not the key of the certificate")
        path = str(scope["path"])
        if path not in ACTIONS:
            raise _Refused(404, "there is nothing here")
        if scope["method"] != "POST":
            raise _Refused(405, "only POST is served")
        length = self._length(headers, ACTIONS[path])
        link = self._link_of(admission.job)
        if link is None:
            raise _Refused(410, f"job {admission.job} does not run here")
        self._remember(connection, admission)
        peer = connection.peer

        def still_live() -> None:
            self._admission(peer)

        caller = Caller(
            node_id=admission.node_id,
            site=admission.site,
            still_live=still_live,
            key=admission.thumbprint,
        )
        return link, caller, length

    def _admission(self, peer: PeerCertificate) -> Admission:
        now = self._clock()
        try:
            peer.checked(trust_domain=self._trust_domain, now=now)
        except TransportError as error:
            raise AdmissionDenied(str(error), hint=error.hint) from error
        admission = self._register.live(peer.thumbprint, now=now)
        same = (
            isinstance(peer.id, spiffe.ClientId)
            and (peer.id.job, peer.id.site) == (admission.job, admission.site)
            and peer.tls_key == admission.tls_key
        )
        if not same:
            raise AdmissionDenied("the certificate is not that of the admission")
        return admission

    def _length(self, headers: Mapping[bytes, bytes], bound: int | None) -> int:
        if b"transfer-encoding" in headers:
            raise _Refused(411, "the length of the body must be announced")
        text = headers.get(b"content-length", b"")
        if not text.isdigit() or len(text) > 15:
            raise _Refused(411, "the length of the body must be announced")
        length, most = int(text), self._max_update_bytes if bound is None else bound
        if length > most:
            raise _Refused(413, f"the body has {length} bytes; at most {most} are taken")
        return length

    def _remember(self, connection: _Connection, admission: Admission) -> None:
        who = (admission.job, admission.site)
        if connection.speaks_for is None:
            connection.speaks_for = who
        self._present.setdefault(who, set()).add(connection)
        if connection.ends != admission.expires and self._loop is not None:
            connection.ends = admission.expires
            seconds = (admission.expires - self._clock()).total_seconds()
            self._loop.call_later(max(0.0, seconds), self._expire, connection)

    def _expire(self, connection: _Connection) -> None:
        """End a connection whose admission was not prolonged."""
        if connection.peer is None or connection.transport.is_closing():
            return
        try:
            self._remember(connection, self._admission(connection.peer))
        except AdmissionDenied:
            connection.transport.abort()


_SINGLE: Final = frozenset({b"flwr-public-key", b"content-length", b"transfer-encoding"})


class _Connection(HttpToolsProtocol):  # type: ignore[misc]
    """One connection, with the certificate that the peer showed."""

    front: Front
    peer: PeerCertificate | None = None
    flower_key: bytes = b""
    speaks_for: tuple[str, str] | None = None
    ends: datetime | None = None
    _in_head = True
    _head_bytes = 0

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
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
        self.front.opened(self, peer)

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        if self.peer is not None:
            self.front.lost(self, self.peer)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        # What came before the end of a request's head is bounded here, as the parser does not.
        if self._in_head:
            self._head_bytes += len(data)
            if self._head_bytes > _MAX_HEAD_BYTES:
                self.transport.abort()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._in_head, self._head_bytes = True, 0
        self.scope["fedlearn.connection"] = self

    def on_headers_complete(self) -> None:
        self._in_head = False
        super().on_headers_complete()


async def _refuse(send: Send, status: int, reason: str) -> None:
    body = reason.encode()
    headers = [
        (b"content-type", b"text/plain; charset=utf-8"),
        (b"content-length", str(len(body)).encode()),
        (b"connection", b"close"),
    ]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body, "more_body": False})
