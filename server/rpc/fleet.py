"""The only door through which clients reach a job: mutual TLS, one listener for all jobs.

TLS 1.3 and a certificate of this coordinator's CA are the price of a connection. Then, on
*every* request and before a byte of its body is read:

1. the certificate is one of a client and valid now;
2. the register has a live admission for its key, for the same job and site;
3. ``flwr-public-key``, with which Flower names a node, is that key;
4. the path is one of :data:`ACTIONS`, the body's length is announced and within its bound;
5. the job of the certificate, and not of the request, chooses the link that answers.

When an admission ends, by expiry, revocation or quarantine, its open connections end with it. A
connection without a live admission is told so and ends after a few seconds.

Connections are counted (:mod:`server.rpc.connections`): for their address until TLS has shown their
certificate, and for their key from then on. A handshake, a head, a body and the taking of an answer
each have their time, and what deliveries announce together is bounded: beyond it one waits before
a byte of it is read.

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
from collections import deque
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

from fedlearn.errors import AdmissionDenied, ConfigError, TransportError
from fedlearn.identity import spiffe
from server.admission.registry import Admission, AdmissionEvent, AdmissionRegistry, Change
from server.clock import awake
from server.identity.peer_certificates import PeerCertificate
from server.rpc.connections import Caps, Connection, Connections, accept_all, listen

__all__ = ["ACTIONS", "Caller", "FleetServer", "Link", "Receive", "Scope", "Send"]

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

_NEAR_SECONDS: Final = 1.0
_START_SECONDS: Final = 30.0
_HANDSHAKE_SECONDS: Final = 10.0
_CLOSE_SECONDS: Final = 5.0
_HEAD_SECONDS: Final = 20.0
"""From the start of a connection, or the first byte of a request, to the end of its head."""

_REFUSED_SECONDS: Final = 5.0
"""What a connection without a live admission has for asking why."""

_STILL_SECONDS: Final = 30.0
"""How long a body, or the taking of an answer, may stand still."""

_PIECE_BYTES: Final = 256 * 1024
_LEAST_RATE: Final = 32 * 1024
"""Bytes per second below which a body or an answer is given up."""

ACTIONS: Final[Mapping[str, int | None]] = {
    "/v1/fleet/activate-node": _CONTROL_BYTES,
    "/v1/fleet/deactivate-node": _CONTROL_BYTES,
    "/v1/fleet/send-node-heartbeat": _CONTROL_BYTES,
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
    ``fedlearn.length`` (the announced bytes of the body) in the scope. A link that answers
    before its first ``receive()`` refuses a body unread: nothing is kept of it, and the
    connection ends with the answer.
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


class _Memory:
    """What the deliveries under way may announce together, in bytes. First come, first served.

    A delivery larger than everything is taken when it is alone.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._taken = 0
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()

    async def take(self, size: int) -> None:
        """Wait until ``size`` bytes are free, and take them."""
        if not self._waiting and self._fits(size):
            self._taken += size
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((size, turn))
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self.give(size)
            raise

    def give(self, size: int) -> None:
        """Give ``size`` bytes back."""
        self._taken -= size
        while self._waiting:
            wanted, turn = self._waiting[0]
            if not turn.cancelled():
                if not self._fits(wanted):
                    return
                self._taken += wanted
                turn.set_result(None)
            self._waiting.popleft()

    def _fits(self, size: int) -> bool:
        return self._taken == 0 or self._taken + size <= self._size


class FleetServer:
    """The listener, with an event loop in a thread of its own.

    :param tls: from :func:`fedlearn.identity.tls.server_context`.
    :param link_of: the link of a running job by name, or None.
    :param max_update_bytes: the most bytes that one delivery may have.
    :param max_deliveries_bytes: the most bytes of all deliveries that are read at once.
    :param caps: connections: without a live admission, and of one key.
    :param clock: the time, for tests.
    """

    def __init__(
        self,
        *,
        tls: ssl.SSLContext,
        register: AdmissionRegistry,
        link_of: Callable[[str], Link | None],
        trust_domain: str,
        host: str = "127.0.0.1",
        port: int = 0,
        max_update_bytes: int = _MAX_UPDATE_BYTES,
        max_deliveries_bytes: int = 2 * _MAX_UPDATE_BYTES,
        caps: Caps | None = None,
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
        self._memory = _Memory(max_deliveries_bytes)
        self.counted = Connections(caps or Caps(per_identity=16))
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
        listener = listen(*self._address)
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

    def fault(self) -> str:
        """Return what is wrong with the listener; ``""`` when it serves."""
        serves = self._thread is not None and self._thread.is_alive()
        return "" if serves else "the listener's thread has ended"

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
            accepting = asyncio.ensure_future(self._accept(server, listener))
            try:
                await server.serve(sockets=[])
            finally:
                accepting.cancel()
                await asyncio.gather(accepting, return_exceptions=True)
                listener.close()

        asyncio.run(main())

    async def _accept(self, server: uvicorn.Server, listener: socket.socket) -> None:
        while not server.started and not server.should_exit:
            await asyncio.sleep(0.01)
        self._started.set()

        async def serve(sock: socket.socket, connection: Connection) -> None:
            protocol = server.config.http_protocol_class(
                config=server.config,
                server_state=server.server_state,
                app_state=server.lifespan.state,
            )
            protocol.counted = connection
            transport, _ = await asyncio.get_running_loop().connect_accepted_socket(
                lambda: protocol,
                sock,
                ssl=self._tls,
                ssl_handshake_timeout=_HANDSHAKE_SECONDS,
                ssl_shutdown_timeout=_CLOSE_SECONDS,
            )
            try:
                await protocol.over.wait()
            finally:
                transport.abort()

        await accept_all(listener, self.counted, serve)

    def _changed(self, event: AdmissionEvent) -> None:
        if event.change in _ENDED:
            self.disconnect(event.admission.thumbprint)

    def _abort(self, thumbprint: bytes) -> None:
        for connection in list(self._connections.get(thumbprint, ())):
            connection.transport.abort()

    def _protocol(self) -> type[_Connection]:
        return type("_FrontConnection", (_Connection,), {"front": self})

    def opened(self, connection: _Connection, peer: PeerCertificate) -> None:
        """Note a connection: of a live admission, or one that soon ends."""
        self._connections.setdefault(peer.thumbprint, set()).add(connection)
        try:
            self._admission(peer)
        except AdmissionDenied as denied:
            _LOG.info("a connection of %s ends soon: %s", peer.id, denied)
            if self._loop is not None:
                self._loop.call_later(_REFUSED_SECONDS, connection.transport.abort)
        else:
            connection.counted.identify(peer.thumbprint.hex())

    def lost(self, connection: _Connection, peer: PeerCertificate) -> None:
        """Note the end of a connection; tell the job when it was the client's last."""
        same_key = self._connections.get(peer.thumbprint, set())
        same_key.discard(connection)
        if not same_key:
            self._connections.pop(peer.thumbprint, None)
        if connection.speaks_for is not None and self._loop is not None:
            self._present.get(connection.speaks_for, set()).discard(connection)
            self._loop.call_later(_ABSENT_SECONDS, self._look, connection.speaks_for, awake())

    def _look(self, who: tuple[str, str], since: float) -> None:
        if self._present.get(who):
            return
        left = _ABSENT_SECONDS - (awake() - since)
        if left > _NEAR_SECONDS and self._loop is not None:
            # This process was stopped meanwhile: nobody could come back.
            self._loop.call_later(left, self._look, who, since)
            return
        self._present.pop(who, None)
        link = self._link_of(who[0])
        if link is not None:
            link.absent(who[1])

    # A request

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        connection: _Connection = scope["fedlearn.connection"]
        answer = _Answer(send, connection)
        body: _Body | None = None
        try:
            link, caller, length = self._decide(scope)
            scope["fedlearn.caller"] = caller
            scope["fedlearn.length"] = length
            bounded = ACTIONS[scope["path"]] is not None
            body = _Body(receive, length, None if bounded else self._memory)
            await link(scope, body.receive, answer.send)
        except _Refused as refused:
            if answer.started:
                connection.transport.abort()
            else:
                await _refuse(send, refused.status, str(refused))
        except AdmissionDenied as denied:
            if answer.started:
                connection.transport.abort()
            else:
                await _refuse(send, 401, str(denied))
        finally:
            if body is not None:
                body.close()
            # A body that nobody reads ends with its connection; it is not read to be dropped.
            if connection.reads_body_of(scope):
                connection.transport.close()

    def _decide(self, scope: Scope) -> tuple[Link, Caller, int]:
        connection: _Connection = scope["fedlearn.connection"]
        if connection.peer is None:
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


class _Body:
    """A request's body as it is read: with a least rate, and in its turn."""

    def __init__(self, receive: Receive, length: int, memory: _Memory | None) -> None:
        self._receive = receive
        self._length = length
        self._memory = memory
        self._taken = False
        self._whole = False
        self._read = 0
        self._waited = 0.0

    async def receive(self) -> MutableMapping[str, Any]:
        """Return the next piece.

        :raises _Refused: when it does not come in time.
        """
        if self._whole:
            return await self._receive()
        if self._memory is not None and not self._taken:
            await self._memory.take(self._length)
            self._taken = True
        loop = asyncio.get_running_loop()
        began = loop.time()
        try:
            async with asyncio.timeout(_STILL_SECONDS):
                event = await self._receive()
        except TimeoutError:
            raise _Refused(408, f"nothing came of the body for {_STILL_SECONDS:g} s") from None
        # What counts is how long the peer kept us waiting, not how long we took.
        self._waited += loop.time() - began
        self._read += len(event.get("body", b""))
        self._whole = not event.get("more_body", False)
        if not self._whole and self._waited > _STILL_SECONDS + self._read / _LEAST_RATE:
            raise _Refused(408, f"the body came with less than {_LEAST_RATE} bytes a second")
        return event

    def close(self) -> None:
        """Give back what the body has taken."""
        if self._memory is not None and self._taken:
            self._memory.give(self._length)
            self._taken = False


class _Answer:
    """An answer as it is sent: piece by piece as the peer takes it, with a least rate.

    One write of an object as large as a model would be encrypted and kept as a whole, however
    slowly the peer takes it.
    """

    def __init__(self, send: Send, connection: _Connection) -> None:
        self._send = send
        self._connection = connection
        self.started = False
        self._sent = 0
        self._waited = 0.0

    async def send(self, event: MutableMapping[str, Any]) -> None:
        """Send one ASGI event.

        :raises _Refused: when the peer does not take it in time.
        """
        self.started = True
        body = memoryview(event.get("body", b""))
        more = event.get("more_body", False)
        for start in range(0, max(len(body), 1), _PIECE_BYTES):
            piece = body[start : start + _PIECE_BYTES]
            last = start + _PIECE_BYTES >= len(body)
            await self._send({**event, "body": piece, "more_body": more or not last})
            await self._drained(len(piece))

    async def _drained(self, size: int) -> None:
        self._sent += size
        flow = self._connection.flow
        if not flow.write_paused:
            return
        loop = asyncio.get_running_loop()
        began = loop.time()
        left = _STILL_SECONDS + self._sent / _LEAST_RATE - self._waited
        try:
            await asyncio.wait_for(flow.drain(), max(left, 0.01))
        except TimeoutError:
            raise _Refused(408, "the answer was not taken in time") from None
        self._waited += loop.time() - began


class _Connection(HttpToolsProtocol):  # type: ignore[misc]
    """One connection, with the certificate that the peer showed."""

    front: FleetServer
    counted: Connection
    peer: PeerCertificate | None = None
    flower_key: bytes = b""
    speaks_for: tuple[str, str] | None = None
    ends: datetime | None = None
    _in_head = True
    _head_bytes = 0
    _head_ends: asyncio.TimerHandle | None = None

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self.over = asyncio.Event()

    def reads_body_of(self, scope: Scope) -> bool:
        """Say whether more of the request's body is to come."""
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
        self.front.opened(self, peer)

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._had_head()
        self.over.set()
        if self.peer is not None:
            self.front.lost(self, self.peer)

    def data_received(self, data: bytes) -> None:
        idle = self.cycle is None or self.cycle.response_complete
        super().data_received(data)
        if idle and (self.cycle is None or self.cycle.response_complete):
            self._expect_head()
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
        self._had_head()
        super().on_headers_complete()

    def _expect_head(self) -> None:
        if self._head_ends is None and not self.transport.is_closing():
            self._head_ends = self.loop.call_later(_HEAD_SECONDS, self.transport.abort)

    def _had_head(self) -> None:
        if self._head_ends is not None:
            self._head_ends.cancel()
            self._head_ends = None


async def _refuse(send: Send, status: int, reason: str) -> None:
    body = reason.encode()
    headers = [
        (b"content-type", b"text/plain; charset=utf-8"),
        (b"content-length", str(len(body)).encode()),
        (b"connection", b"close"),
    ]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body, "more_body": False})
