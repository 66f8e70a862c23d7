"""The two listeners, on one event loop in a thread of its own."""

from __future__ import annotations

import asyncio
import os
import socket
import tempfile
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Final, Self

import grpc

from attestation.trust import TrustAnchors
from fedlearn.errors import ConfigError, FedlearnError, TransportError
from fedlearn.identity.join import checked_address
from fedlearn.wire import fedlearn_pb2_grpc as rpc
from fedlearn.wire.channel import MAX_CONTROL_BYTES, MAX_MESSAGE_BYTES
from server.admission.challenges import Rates
from server.admission.coordinator_evidence import CoordinatorProof
from server.admission.gate import AdmissionGate
from server.identity.operators import OperatorRegistry
from server.identity.pki import CertificateAuthority
from server.identity.site import Site, SiteStatus
from server.identity.site_registry import SiteRegistry
from server.identity.tpm_enrollment import TpmEnrollment
from server.ledger import Ledger
from server.rpc.clients import ClientsService
from server.rpc.connections import Caps, Connections, Relay, accept_all, listen
from server.rpc.gate import GateService, Welcome
from server.rpc.guard import Guard, Identify, Room, identify_anyone, identify_by_certificate
from server.rpc.operator import OperatorService
from server.rpc.ports import Coordinator
from server.rpc.results.ledger import LedgerSender
from server.rpc.results.models import ModelSender
from server.rpc.results.owner import OwnerService
from server.rpc.sites import SitesService
from server.store.models import ModelStore

__all__ = ["Listeners", "RpcConfig"]

_START_SECONDS: Final = 15.0
_UNKNOWN_SECONDS: Final = 20.0
"""How long a connection to control may be open before the first call on it."""
_registry: Final[Any] = rpc
"""The generated functions, which carry no types."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RpcConfig:
    """Where to listen, and how much at once. Port 0 takes any free port.

    ``gate``, ``control``  ``host:port`` to bind
    ``deadline``           seconds that one unary call may take
    ``gate_calls``         calls under way at the gate, and ``gate_calls_per_peer`` of one address
    ``first_message``      seconds from the head of a call to the end of its message
    ``threads``            for the calls of each service
    ``watchers``           for the streams of each service: so many operators may follow jobs
    ``caps``               connections of each listener
    """

    gate: str
    control: str
    deadline: float = 60.0
    gate_calls: int = 256
    gate_calls_per_peer: int = 64
    control_calls: int = 4096
    first_message: float = 20.0
    threads: int = 16
    watchers: int = 32
    caps: Caps = field(default_factory=Caps)


class Listeners:
    """Serves Gate and Owner over TLS, and Sites, Clients and Operator over mutual TLS.

    ``server_chain``, ``server_key``  PEM; the chain ends with the CA, which pinning needs
    ``store``, ``ledger``             what operators and owners may read
    ``tpms``                          accepts proofs of sites' TPMs; by default it has no roots
    ``owner_rates``                   of the calls of owners, apart from those of the gate
    """

    def __init__(
        self,
        *,
        config: RpcConfig,
        server_chain: bytes,
        server_key: bytes,
        ca: CertificateAuthority,
        gate: AdmissionGate,
        proof: CoordinatorProof,
        sites: SiteRegistry,
        operators: OperatorRegistry,
        coordinator: Coordinator,
        welcome: Welcome,
        clock: Callable[[], datetime],
        store: ModelStore,
        ledger: Ledger,
        tpms: TpmEnrollment | None = None,
        owner_rates: Rates | None = None,
    ) -> None:
        tpms = tpms or TpmEnrollment(sites=sites, trust=TrustAnchors, clock=clock)
        self._config = config
        self._chain = server_chain
        self._key = server_key
        self._ca = ca
        # Each service has threads of its own: no site can keep an operator's call waiting.
        self._rooms = {
            name: Room(
                pool=ThreadPoolExecutor(config.threads, thread_name_prefix=name),
                streams=ThreadPoolExecutor(config.watchers, thread_name_prefix=f"{name}-stream"),
                calls=calls,
                first_message=config.first_message,
                # A TPM makes a quote in up to a second, one after the other.
                fewer={"AttestCoordinator": max(2, calls // 4)},
            )
            for name, calls in (
                ("Gate", config.gate_calls_per_peer),
                ("Owner", 16),
                ("Sites", 16),
                ("Clients", 8),
                ("Operator", 32),
            )
        }
        self._folder = tempfile.TemporaryDirectory(
            prefix="rpc-", dir=os.environ.get("RUNTIME_DIRECTORY")
        )
        self._accepting: list[asyncio.Task[None]] = []
        self.connections: dict[str, Connections] = {}
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="rpc", daemon=True)
        self._servers: list[Any] = []
        self._identify = identify_by_certificate(
            trust_domain=ca.trust_domain,
            sites=sites,
            registry=gate.registry,
            operators=operators,
            clock=clock,
        )
        self._gate_service = GateService(
            gate=gate, proof=proof, sites=sites, tpms=tpms, ca=ca, welcome=welcome
        )
        models = ModelSender(store)
        self._owner_service = OwnerService(
            models=models,
            coordinator=coordinator,
            ca_pin=ca.key_digest,
            rates=owner_rates or Rates(),
            clock=clock,
        )
        self._sites_service = SitesService(
            coordinator=coordinator,
            sites=sites,
            tpms=tpms,
            gate=gate,
            ca=ca,
            welcome=welcome,
            clock=clock,
            pool=self._rooms["Sites"].pool,
        )
        self._clients_service = ClientsService(gate=gate, coordinator=coordinator, welcome=welcome)
        self._operator_service = OperatorService(
            coordinator=coordinator,
            sites=sites,
            operators=operators,
            gate=gate,
            connected=self._sites_service.connected,
            control_address=welcome.control_address,
            models=models,
            ledger=LedgerSender(ledger, ca),
        )
        self.gate_port = 0
        self.control_port = 0

        def cut_off(site: Site) -> None:
            if site.status is SiteStatus.REMOVED:
                gate.revoke_site(site.name, f"site {site.name} was removed")
            elif site.status is SiteStatus.PENDING:
                gate.revoke_site(site.name, f"site {site.name} has to be approved again")

        sites.subscribe(cut_off)

    def start(self) -> Self:
        """Listen; return when both ports accept connections.

        :raises ConfigError: when an address cannot be bound.
        """
        self._thread.start()
        future = asyncio.run_coroutine_threadsafe(self._serve(), self._loop)
        try:
            future.result(_START_SECONDS)
        except FedlearnError:
            self.stop(0.0)
            raise
        except TimeoutError as error:
            self.stop(0.0)
            raise TransportError("the gRPC listeners did not start in time") from error
        return self

    def stop(self, grace: float = 2.0) -> None:
        """Take no new calls, give those that run ``grace`` seconds, and end."""
        if self._loop.is_closed():
            return
        future = asyncio.run_coroutine_threadsafe(self._stop(grace), self._loop)
        future.result(grace + 10.0)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(5.0)
        self._loop.close()
        for room in self._rooms.values():
            for pool in (room.pool, room.streams):
                pool.shutdown(wait=False, cancel_futures=True)
        self._folder.cleanup()

    def fault(self) -> str:
        """Return what is wrong with the listeners; ``""`` when they serve."""
        if not self._thread.is_alive():
            return "the listeners' thread has ended"
        ended = [task for task in self._accepting if task.done()]
        return "a listener accepts no connections any more" if ended else ""

    def __enter__(self) -> Self:
        """Start."""
        return self.start()

    def __exit__(self, *exception: object) -> None:
        """Stop."""
        self.stop(0.5)

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_forever()

    async def _serve(self) -> None:
        # Both addresses first: a port that is taken ends the start before anything runs.
        gate_listener = _listener(self._config.gate)
        try:
            control_listener = _listener(self._config.control)
        except ConfigError:
            gate_listener.close()
            raise
        self.gate_port = int(gate_listener.getsockname()[1])
        self.control_port = int(control_listener.getsockname()[1])
        gate, gate_relay = self._server("gate", identify_anyone, mutual=False)
        _registry.add_GateServicer_to_server(self._gate_service, gate)
        _registry.add_OwnerServicer_to_server(self._owner_service, gate)
        control, control_relay = self._server("control", self._identify, mutual=True)
        _registry.add_SitesServicer_to_server(self._sites_service, control)
        _registry.add_ClientsServicer_to_server(self._clients_service, control)
        _registry.add_OperatorServicer_to_server(self._operator_service, control)
        for name, server, listener, relay in (
            ("gate", gate, gate_listener, gate_relay),
            ("control", control, control_listener, control_relay),
        ):
            await server.start()
            self._servers.append(server)
            accepting = accept_all(listener, self.connections[name], relay.serve)
            self._accepting.append(asyncio.ensure_future(_then_close(accepting, listener)))

    async def _stop(self, grace: float) -> None:
        await asyncio.gather(*(server.stop(grace) for server in self._servers))
        for task in self._accepting:
            task.cancel()
        await asyncio.gather(*self._accepting, return_exceptions=True)

    def _server(self, name: str, identify: Identify, *, mutual: bool) -> tuple[Any, Relay]:
        path = Path(self._folder.name) / name
        connections = self.connections[name] = Connections(self._config.caps)
        relay = Relay(path, connections, unknown_seconds=_UNKNOWN_SECONDS if mutual else None)
        guard = Guard(
            identify=identify,
            rooms=self._rooms,
            connection_of=relay.of_peer,
            deadline=self._config.deadline,
        )
        max_bytes = MAX_CONTROL_BYTES if mutual else MAX_MESSAGE_BYTES
        calls = self._config.control_calls if mutual else self._config.gate_calls
        options = [
            ("grpc.max_receive_message_length", max_bytes),
            ("grpc.max_send_message_length", MAX_CONTROL_BYTES),
            ("grpc.max_concurrent_streams", 64 if mutual else 32),
            ("grpc.so_reuseport", 0),
            ("grpc.keepalive_time_ms", 30_000),
            ("grpc.keepalive_timeout_ms", 10_000),
            ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
            # No peer needs a connection to the gate for longer than a few calls take. A thousand
            # strangers may hold one, so that each idle second keeps later clients out.
            ("grpc.max_connection_idle_ms", 15 * 60_000 if mutual else 10_000),
            ("grpc.server_handshake_timeout_ms", 10_000),
        ]
        server = grpc.aio.server(
            interceptors=[guard], options=options, maximum_concurrent_rpcs=calls
        )
        credentials = grpc.ssl_server_credentials(
            [(self._key, self._chain)],
            root_certificates=self._ca.certificate_pem if mutual else None,
            require_client_auth=mutual,
        )
        server.add_secure_port(f"unix:{path}", credentials)
        return server, relay


def _listener(address: str) -> socket.socket:
    host, _, port = address.rpartition(":")
    if port != "0":
        checked_address(address)
    return listen(host.strip("[]"), int(port))


async def _then_close(accepting: Coroutine[Any, Any, None], listener: socket.socket) -> None:
    try:
        await accepting
    finally:
        listener.close()
