"""The client service of an agent in a cluster, over gRPC: its server, and the client of it.

The agent serves TLS with a key whose SHA-256 (of the SPKI) is in a client's environment, together
with the ticket that the client presents. Neither is a secret: the holder of a ticket may ask for a
voucher, and is admitted by evidence only.
"""

from __future__ import annotations

import hashlib
import logging
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Final, Protocol, Self, TypeVar

import grpc
from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)
from cryptography.x509.oid import NameOID

from fedlearn.backoff import retry
from fedlearn.errors import ConfigError, FedlearnError, LaunchError, TransportError
from fedlearn.identity.join import checked_address
from fedlearn.job.phase import Phase
from fedlearn.wire import fedlearn_pb2 as pb
from fedlearn.wire import fedlearn_pb2_grpc as stubs
from fedlearn.wire.calls import Calls
from fedlearn.wire.failure import (
    MAX_MESSAGE_CHARS,
    UNANSWERED,
    Unreachable,
    status_of,
    trailing_of,
)
from fedlearn.wire.phases import phase_fields, phase_of
from fedlearn.wire.pinning import sent_certificates

__all__ = [
    "WORKLOAD_API_DNS",
    "Host",
    "WorkloadApiClient",
    "WorkloadApiServer",
    "Ticket",
    "key_pin",
]

WORKLOAD_API_DNS: Final = "sponsor.fedlearn.internal"
"""The name in the agent's certificate, whose key is pinned."""

_LOG = logging.getLogger(__name__)
_CHUNK_BYTES: Final = 1024 * 1024
_MAX_REQUEST_BYTES: Final = 64 * 1024
_STREAM_SECONDS: Final = 120.0
_CALLS: Final = 64
_CALLS_OF_ONE: Final = 8
"""The number of calls that one client may have in progress; each occupies a thread."""

_MESSAGE_SECONDS: Final = 10.0
"""The longest time from the head of a call to its message."""

_stubs: Final[Any] = stubs
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Ticket:
    """What a client presents: its assignment, and the agent's tag over it."""

    assignment: str
    tag: bytes = field(repr=False)


class Host(Protocol):
    """The implementation of the service. A FedlearnError of a method is sent to the client."""

    def bootstrap(self, ticket: Ticket) -> bytes:
        """Return the client's bootstrap document."""
        ...

    def vouch(self, ticket: Ticket, nonce: bytes, tls_key: bytes) -> bytes:
        """Return a voucher."""
        ...

    def grant_seed(self, ticket: Ticket, request: bytes) -> bytes:
        """Return the seed of the client's commitment, sealed to it."""
        ...

    def charge(self, ticket: Ticket, question: str) -> None:
        """Charge the update that answers ``question`` to the budget of the site's data."""
        ...

    def report(self, ticket: Ticket, phase: Phase, reason: str) -> None:
        """Take a client's report of its phase."""
        ...


def key_pin(key: ec.EllipticCurvePublicKey) -> bytes:
    """Return the SHA-256 of a key's SPKI, 32 bytes."""
    return hashlib.sha256(
        key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    ).digest()


class WorkloadApiServer:
    """The server. ``port`` is where it listens; with port 0 in ``listen``, any free one."""

    def __init__(self, host: Host, key: ec.EllipticCurvePrivateKey, *, listen: str) -> None:
        self._server = grpc.server(
            ThreadPoolExecutor(_CALLS, thread_name_prefix="client-service"),
            interceptors=[_Bounded()],
            options=[
                ("grpc.max_receive_message_length", _MAX_REQUEST_BYTES),
                ("grpc.so_reuseport", 0),
                ("grpc.server_handshake_timeout_ms", 10_000),
                ("grpc.max_connection_idle_ms", 5 * 60_000),
            ],
            maximum_concurrent_rpcs=_CALLS,
        )
        _stubs.add_SponsorServicer_to_server(_Service(host), self._server)
        private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        credentials = grpc.ssl_server_credentials([(private, _certificate(key))])
        try:
            self.port: int = self._server.add_secure_port(listen, credentials)
        except RuntimeError:
            self.port = 0
        if not self.port:
            raise ConfigError(
                f"{listen} cannot be bound",
                key="kubernetes.sponsor_listen",
                hint="check that no other process listens there (`ss -ltnp`)",
            )

    def start(self) -> Self:
        """Serve."""
        self._server.start()
        return self

    def stop(self) -> None:
        """Stop; calls in progress are aborted."""
        self._server.stop(0.0).wait(5.0)


class _Bounded(grpc.ServerInterceptor):  # type: ignore[type-arg]
    """Bounds the calls of each address, and the time until a call's message, so that one client
    cannot block the others. A call with one message is served as a stream of one message.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._under_way: Counter[str] = Counter()

    def intercept_service(self, continuation: Any, handler_call_details: Any) -> Any:
        """Return the bounded form of the method that was called."""
        handler = continuation(handler_call_details)
        if handler is None:
            return None
        if handler.unary_unary is not None:
            return grpc.stream_unary_rpc_method_handler(
                lambda requests, context: self._one(handler.unary_unary, requests, context),
                request_deserializer=handler.request_deserializer,
                response_serializer=handler.response_serializer,
            )
        return grpc.stream_stream_rpc_method_handler(
            lambda requests, context: self._many(handler.unary_stream, requests, context),
            request_deserializer=handler.request_deserializer,
            response_serializer=handler.response_serializer,
        )

    def _one(self, body: Any, requests: Iterator[Any], context: Any) -> Any:
        with self._place(context):
            return body(_first(requests, context), context)

    def _many(self, body: Any, requests: Iterator[Any], context: Any) -> Iterator[Any]:
        with self._place(context):
            yield from body(_first(requests, context), context)

    @contextmanager
    def _place(self, context: Any) -> Iterator[None]:
        peer = str(context.peer()).rpartition(":")[0]
        with self._lock:
            crowded = self._under_way[peer] >= _CALLS_OF_ONE
            if not crowded:
                self._under_way[peer] += 1
        if crowded:
            context.abort(
                grpc.StatusCode.RESOURCE_EXHAUSTED,
                f"this client has {_CALLS_OF_ONE} calls under way, which is the most",
            )
        try:
            yield
        finally:
            with self._lock:
                self._under_way[peer] -= 1
                if not self._under_way[peer]:
                    del self._under_way[peer]


def _first(requests: Iterator[Any], context: Any) -> Any:
    timer = threading.Timer(_MESSAGE_SECONDS, context.cancel)
    timer.daemon = True
    timer.start()
    try:
        return next(requests)
    except StopIteration:
        context.abort(grpc.StatusCode.INVALID_ARGUMENT, "the call ended without a message")
        raise
    finally:
        timer.cancel()


class WorkloadApiClient(Calls):
    """The client's side, which implements :class:`edge.protocol.workload.WorkloadApi`."""

    attempts = 10

    def __init__(self, address: str, *, pin: bytes, ticket: Ticket) -> None:
        self._ticket = pb.LaunchTicket(assignment=ticket.assignment, tag=ticket.tag)
        certificate = retry(lambda: _pinned(address, pin), failures=UNANSWERED, attempts=12)
        channel = grpc.secure_channel(
            checked_address(address),
            grpc.ssl_channel_credentials(root_certificates=certificate),
            options=[
                ("grpc.ssl_target_name_override", WORKLOAD_API_DNS),
                ("grpc.default_authority", WORKLOAD_API_DNS),
                ("grpc.max_receive_message_length", 2 * _CHUNK_BYTES),
                ("grpc.enable_http_proxy", 0),
                ("grpc.initial_reconnect_backoff_ms", 200),
                ("grpc.max_reconnect_backoff_ms", 2_000),
            ],
        )
        super().__init__(channel, f"the agent at {address}")
        self._stub = _stubs.SponsorStub(self._channel)

    def bootstrap(self, *, limit: int) -> bytes:
        """Return the bootstrap document, of at most ``limit`` bytes.

        :raises LaunchError: when the agent did not start this client.
        :raises TransportError: when nobody answers, or the document is too long.
        """
        return retry(lambda: self._fetch(limit), failures=UNANSWERED, attempts=30)

    def vouch(self, nonce: bytes, tls_key: bytes) -> bytes:
        """Ask for a voucher; see :class:`edge.protocol.workload.WorkloadApi`."""
        request = pb.VouchRequest(ticket=self._ticket, nonce=nonce, tls_key=tls_key)
        reply = self._retry(self._stub.Vouch, request)
        return bytes(reply.voucher)

    def grant_seed(self, request: bytes) -> bytes:
        """Ask for the seed; see :class:`edge.protocol.workload.WorkloadApi`."""
        message = pb.SeedRequest(ticket=self._ticket, request=request)
        reply = self._retry(self._stub.GrantSeed, message)
        return bytes(reply.reply)

    def charge(self, question: str) -> None:
        """Ask for the charge of an update; see :class:`edge.protocol.workload.WorkloadApi`."""
        request = pb.ChargeRequest(ticket=self._ticket, question=question)
        self._retry(self._stub.Charge, request)

    def report(self, phase: Phase, reason: str) -> None:
        """Report this client's phase.

        :raises TransportError: when the agent does not answer.
        """
        request = pb.ClientState(ticket=self._ticket, reason=reason[:2000], **phase_fields(phase))
        self._once(self._stub.Tell, request)

    def _fetch(self, limit: int) -> bytes:
        call = self._stub.Bootstrap(self._ticket, timeout=_STREAM_SECONDS)
        return self._joined(call, limit=limit, what="the bootstrap document")


class _Service:
    """Converts messages for the host and back, and errors to statuses with code and hint."""

    def __init__(self, host: Host) -> None:
        self._host = host

    def Bootstrap(self, request: pb.LaunchTicket, context: Any) -> Iterator[pb.Chunk]:  # noqa: N802
        document = _answered(context, lambda: self._host.bootstrap(_ticket(request)))
        for start in range(0, len(document), _CHUNK_BYTES):
            yield pb.Chunk(data=document[start : start + _CHUNK_BYTES])

    def Vouch(self, request: pb.VouchRequest, context: Any) -> pb.VouchReply:  # noqa: N802
        voucher = _answered(
            context,
            lambda: self._host.vouch(_ticket(request.ticket), request.nonce, request.tls_key),
        )
        return pb.VouchReply(voucher=voucher)

    def GrantSeed(self, request: pb.SeedRequest, context: Any) -> pb.SeedReply:  # noqa: N802
        reply = _answered(
            context, lambda: self._host.grant_seed(_ticket(request.ticket), request.request)
        )
        return pb.SeedReply(reply=reply)

    def Charge(self, request: pb.ChargeRequest, context: Any) -> pb.Empty:  # noqa: N802
        _answered(context, lambda: self._host.charge(_ticket(request.ticket), request.question))
        return pb.Empty()

    def Tell(self, request: pb.ClientState, context: Any) -> pb.Empty:  # noqa: N802
        _answered(
            context,
            lambda: self._host.report(_ticket(request.ticket), phase_of(request), request.reason),
        )
        return pb.Empty()


def _answered(context: Any, work: Callable[[], _T]) -> _T:
    try:
        return work()
    except Unreachable as error:
        # The client repeats the call.
        context.abort(grpc.StatusCode.UNAVAILABLE, str(error)[:MAX_MESSAGE_CHARS])
        raise
    except FedlearnError as error:
        context.set_trailing_metadata(trailing_of(error))
        context.abort(status_of(error), str(error)[:MAX_MESSAGE_CHARS])
        raise


def _ticket(message: pb.LaunchTicket) -> Ticket:
    return Ticket(assignment=message.assignment, tag=message.tag)


def _certificate(key: ec.EllipticCurvePrivateKey) -> bytes:
    """Return a self-signed certificate of ``key``, PEM. Only the key in it is checked."""
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, WORKLOAD_API_DNS)])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        # The clocks of a client's node and of its agent's node may differ.
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=3650))
        .add_extension(
            x509.SubjectAlternativeName([x509.DNSName(WORKLOAD_API_DNS)]), critical=False
        )
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    return certificate.public_bytes(Encoding.PEM)


def _pinned(address: str, pin: bytes) -> bytes:
    """Return the certificate at ``address``, PEM, if its key has the pinned hash.

    :raises Unreachable: when nobody answers.
    :raises LaunchError: when the certificate has another key.
    """
    hint = "check that the agent runs, and that a NetworkPolicy lets clients connect to it"
    certificate = sent_certificates(address, name=WORKLOAD_API_DNS, hint=hint)[0]
    try:
        key = certificate.public_key()
    except (ValueError, UnsupportedAlgorithm) as error:
        raise TransportError(f"{address} shows a malformed certificate") from error
    if not isinstance(key, ec.EllipticCurvePublicKey) or key_pin(key) != pin:
        raise LaunchError(
            f"{address} is not the agent that started this client: it has another key",
            hint="check that kubernetes.sponsor_address names this site's own agent",
        )
    return certificate.public_bytes(Encoding.PEM)
