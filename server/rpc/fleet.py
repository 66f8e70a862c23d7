"""The only listener through which clients reach a job: mutual TLS, one listener for all jobs.

A connection needs TLS 1.3 and a certificate of this coordinator's CA. On *every* request, before
a byte of its body is read, :mod:`server.rpc.fleet_app` checks that

1. the certificate is one of a client and valid now;
2. the registry has a live admission for its key, for the same job and site;
3. ``flwr-public-key``, with which Flower names a node, is that key;
4. the path is one of :data:`server.rpc.fleet_api.ACTIONS`, and the length of the body is announced
   and within its bound.

The job of the certificate, and not of the request, selects the link that answers.

When an admission ends, by expiry, revocation or quarantine, its open connections end with it. A
connection without a live admission gets the reason as its response and ends after a few seconds.

Connections are counted (:mod:`server.rpc.connections`): for their address until TLS has shown their
certificate, and for their key from then on. A handshake, a head, a body and a response each have
a time limit. The bytes that all deliveries announce are bounded together: a delivery beyond the
bound waits before a byte of it is read.

A client that has had no connection for longer than the interval of heartbeats is reported to its
job as absent, so that a client that vanished does not hold up a round until the deadline. (A
client that was killed is reported by its agent at once.)

The page is docs/adr/0002-front-and-links.md.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
import threading
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Final

import uvicorn

from fedlearn.errors import ConfigError
from server.admission.registry import AdmissionEvent, AdmissionRegistry, Change
from server.rpc.connections import Caps, Connection, Connections, accept_all, listen
from server.rpc.fleet_api import Link
from server.rpc.fleet_app import FleetApplication
from server.rpc.fleet_connections import ConnectedClients, FleetConnection
from server.rpc.fleet_tls import TlsAcceptor

__all__ = ["FleetServer"]

_MAX_UPDATE_BYTES: Final = 4 * 1024**3
_IDLE_SECONDS: Final = 120
_START_SECONDS: Final = 30.0
_HANDSHAKE_SECONDS: Final = 10.0
_CLOSE_SECONDS: Final = 5.0
_ENDED: Final = frozenset({Change.QUARANTINED, Change.REVOKED, Change.EXPIRED})


class FleetServer:
    """The listener, with an event loop in a thread of its own.

    :param tls: from :func:`fedlearn.identity.tls.server_context`.
    :param link_of: the link of a running job by name, or None.
    :param max_update_bytes: the most bytes of one delivery.
    :param max_deliveries_bytes: the most bytes of all deliveries that are being read.
    :param caps: connections: without a live admission, and of one key.
    :param clock: the time, for tests.
    """

    def __init__(
        self,
        *,
        tls: ssl.SSLContext,
        registry: AdmissionRegistry,
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
            raise ConfigError("the fleet listener needs TLS 1.3 and a client certificate")
        self._tls = tls
        self._registry = registry
        self._link_of = link_of
        self._address = (host, port)
        self.counted = Connections(caps or Caps(per_identity=16))
        self.clients = ConnectedClients(
            registry=registry, trust_domain=trust_domain, absent=self._absent, clock=clock
        )
        self._application = FleetApplication(
            self.clients,
            link_of=link_of,
            max_update_bytes=max_update_bytes,
            max_deliveries_bytes=max_deliveries_bytes,
        )
        self._loop: asyncio.AbstractEventLoop | None = None
        self._server: uvicorn.Server | None = None
        self._thread: threading.Thread | None = None
        self._unsubscribe: Callable[[], None] | None = None
        self._started = threading.Event()

    def start(self) -> tuple[str, int]:
        """Listen; return host and port.

        :raises ConfigError: when the address cannot be bound.
        """
        listener = listen(*self._address)
        config = uvicorn.Config(
            self._application,
            loop="asyncio",
            http=type("_Connection", (FleetConnection,), {"clients": self.clients}),
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
            target=self._run, args=(self._server, listener), name="fleet", daemon=True
        )
        self._thread.start()
        if not self._started.wait(_START_SECONDS):
            raise ConfigError(f"the fleet listener did not start within {_START_SECONDS:g} s")
        self._unsubscribe = self._registry.subscribe(self._changed)
        bound = listener.getsockname()
        return str(bound[0]), int(bound[1])

    def disconnect(self, thumbprint: bytes) -> None:
        """Abort the open connections of the key with this thumbprint, from any thread."""
        loop = self._loop
        if loop is not None and not loop.is_closed():
            loop.call_soon_threadsafe(self.clients.disconnect, thumbprint)

    def fault(self) -> str:
        """Return what is wrong with the listener; ``""`` while it serves."""
        serves = self._thread is not None and self._thread.is_alive()
        return "" if serves else "the listener's thread has ended"

    def stop(self) -> None:
        """Stop listening and end every connection."""
        if self._unsubscribe is not None:
            self._unsubscribe()
        if self._server is not None and self._thread is not None:
            self._server.should_exit = self._server.force_exit = True
            self._thread.join(timeout=10)

    def _changed(self, event: AdmissionEvent) -> None:
        if event.change in _ENDED:
            self.disconnect(event.admission.thumbprint)

    def _absent(self, job: str, site: str) -> None:
        link = self._link_of(job)
        if link is not None:
            link.absent(site)

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

        acceptor = TlsAcceptor(
            self._tls, handshake_seconds=_HANDSHAKE_SECONDS, close_seconds=_CLOSE_SECONDS
        )

        async def serve(sock: socket.socket, connection: Connection) -> None:
            protocol = server.config.http_protocol_class(
                config=server.config,
                server_state=server.server_state,
                app_state=server.lifespan.state,
            )
            protocol.counted = connection
            await acceptor.accept(sock, protocol)
            try:
                await protocol.over
            finally:
                protocol.transport.abort()

        await accept_all(listener, self.counted, serve)
