"""The guard before every call: authentication, authorization, and the form of errors.

Bodies of services are plain functions of a request and a :class:`Caller`. The guard runs
them in a bounded pool of threads with a deadline, turns errors into statuses with a code and
a hint, and lets nothing of the inside out.

It decides when the head of a call is there, before its message is read: who is calling, and
whether that caller has a place left. On the wire a call with one message and a stream of
messages are the same, so every method is served as a stream whose first message has to come
within :class:`Room`'s time.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import secrets
import threading
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from concurrent.futures import Executor
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final

import grpc

from attestation.errors import AttestationError
from fedlearn.errors import FedlearnError, Throttled, TransportError
from fedlearn.identity.spiffe import ClientId, OperatorId, SiteId
from fedlearn.wire.channel import MAX_CONTROL_BYTES, MAX_MESSAGE_BYTES
from fedlearn.wire.failure import MAX_MESSAGE_CHARS, status_of, trailing_of
from server.admission.registry import Admission, AdmissionRegistry
from server.identity.operators import OperatorRegistry
from server.identity.peer_certificates import PeerCertificate
from server.identity.site import Site
from server.identity.site_registry import SiteRegistry
from server.rpc.connections import Connection

__all__ = ["Caller", "Guard", "Identify", "Room", "identify_anyone", "identify_by_certificate"]

_LOG = logging.getLogger("fedlearn.rpc")
_SUBMIT: Final = "/fedlearn.v1.Operator/SubmitJob"
_SUBMIT_SECONDS: Final = 600.0
"""A job's bundle has up to 64 MiB, and comes from an operator."""
_STILL_SECONDS: Final = 0.5
"""How often a caller who waits for the next answer of a stream is looked at again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """Who is calling. Exactly what the service needs is set; the gate's callers have no name.

    ``peer``  the network address without its port, for rates and the ledger
    ``name``  under which its calls are counted: its identity, or else its address
    """

    peer: str
    certificate: PeerCertificate | None = None
    site: Site | None = None
    admission: Admission | None = None
    operator: str = ""

    @property
    def name(self) -> str:
        """The identity of its certificate, or its address."""
        return self.peer if self.certificate is None else str(self.certificate.id)


@dataclass(frozen=True, slots=True, kw_only=True)
class Room:
    """What the calls of one service may use up; nothing of it is shared with other services.

    ``pool``           runs the bodies of its calls
    ``streams``        runs the bodies of its streams of answers
    ``calls``          how many calls one caller may have under way
    ``feeds``          how many of them may be streams of answers
    ``fewer``          methods whose bodies take long, and how many calls of each one caller may
                       have under way in place of ``calls``
    ``first_message``  seconds from the head of a call to the end of its first message
    """

    pool: Executor
    streams: Executor
    calls: int = 16
    feeds: int = 8
    fewer: Mapping[str, int] = field(default_factory=dict)
    first_message: float = 20.0


_parsed = functools.lru_cache(maxsize=1024)(PeerCertificate.parse)
"""A certificate is parsed once, not on each call; whether it counts is checked each time."""

Identify = Callable[[str, str, bytes | None], Caller]
"""From method, peer address and PEM certificate to a caller; raises TransportError or
AdmissionDenied when it may not call this."""


def identify_anyone(method: str, peer: str, pem: bytes | None) -> Caller:
    """Let anyone call: for the gate, whose callers prove themselves in the message."""
    return Caller(peer=peer)


def identify_by_certificate(
    *,
    trust_domain: str,
    sites: SiteRegistry,
    registry: AdmissionRegistry,
    operators: OperatorRegistry,
    clock: Callable[[], datetime],
) -> Identify:
    """Return a function that admits sites to Sites, live clients to Clients, operators to
    Operator, and no peer to anything else. It is called on every call, and while a stream of
    answers lasts: a certificate that expired, a site that was removed, an operator who was
    revoked or an admission that ended counts at once, whatever the age of the connection.
    """

    def identify(method: str, peer: str, pem: bytes | None) -> Caller:
        if not pem:
            raise TransportError("this service needs a client certificate")
        now = clock()
        certificate = _parsed(pem).checked(trust_domain=trust_domain, now=now)
        service = method.split("/")[1].removeprefix("fedlearn.v1.")
        match service, certificate.id:
            case "Sites", SiteId():
                site = sites.authenticate(certificate)
                return Caller(peer=peer, certificate=certificate, site=site)
            case "Clients", ClientId() as client:
                admission = registry.live(certificate.thumbprint, now=now)
                named = (client.job, client.site, client.client)
                if named != (admission.job, admission.site, admission.client):
                    raise TransportError(f"{client} is not whom this key was admitted as")
                return Caller(peer=peer, certificate=certificate, admission=admission)
            case "Operator", OperatorId():
                operator = operators.authenticate(certificate)
                return Caller(peer=peer, certificate=certificate, operator=operator.name)
            case _:
                raise TransportError(
                    f"{certificate.id} may not call {service}",
                    hint="use the certificate that was issued for this service",
                )

    return identify


@dataclass(frozen=True, slots=True)
class _TooLong:
    """What takes the place of a message that was not parsed."""

    size: int
    limit: int


class Guard(grpc.aio.ServerInterceptor):  # type: ignore[type-arg]
    """Wraps every method of a server.

    ``rooms``          of each service, by its name without the package
    ``connection_of``  the connection of what gRPC calls a peer, ``None`` when it has ended
    """

    def __init__(
        self,
        *,
        identify: Identify,
        rooms: Mapping[str, Room],
        connection_of: Callable[[str], Connection | None],
        deadline: float,
    ) -> None:
        self._identify = identify
        self._rooms = rooms
        self._connection_of = connection_of
        self._deadline = deadline
        self._under_way: Counter[tuple[str, str, str]] = Counter()

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        """Return the guarded form of the method that was called."""
        handler = await continuation(handler_call_details)
        if handler is None:
            return None
        method = handler_call_details.method
        limit = MAX_CONTROL_BYTES if method == _SUBMIT else MAX_MESSAGE_BYTES
        parse = _bounded(handler.request_deserializer, limit)
        if handler.unary_unary is not None:
            return grpc.stream_unary_rpc_method_handler(
                self._unary(method, handler.unary_unary),
                request_deserializer=parse,
                response_serializer=handler.response_serializer,
            )
        if handler.unary_stream is not None:
            return grpc.stream_stream_rpc_method_handler(
                self._feed(method, handler.unary_stream),
                request_deserializer=parse,
                response_serializer=handler.response_serializer,
            )
        return grpc.stream_stream_rpc_method_handler(
            self._dialogue(method, handler.stream_stream),
            request_deserializer=parse,
            response_serializer=handler.response_serializer,
        )

    def _unary(self, method: str, body: Callable[[Any, Caller], Any]) -> Any:
        room = self._rooms[_service(method)]
        name = method.rpartition("/")[2]
        what = f"calls of {name}" if name in room.fewer else "calls"
        most = room.fewer.get(name, room.calls)

        async def call(requests: AsyncIterator[Any], context: Any) -> Any:
            place = _Place()
            work: asyncio.Future[Any] | None = None
            try:
                caller = self._caller(method, context)
                place.take(self, method, caller, what, most)
                request = await _first(requests, method, room)
                work = asyncio.get_running_loop().run_in_executor(room.pool, body, request, caller)
                async with asyncio.timeout(self._deadline):
                    return await asyncio.shield(work)
            except Exception as error:  # noqa: BLE001 - the one place where errors are reported
                await self._fail(context, method, error)
            finally:
                # A body that is not awaited any more still occupies its thread.
                if work is None:
                    place.leave()
                else:
                    work.add_done_callback(lambda _: place.leave())

        return call

    def _feed(self, method: str, body: Callable[[Any, Caller, threading.Event], Any]) -> Any:
        room = self._rooms[_service(method)]

        async def call(requests: AsyncIterator[Any], context: Any) -> AsyncIterator[Any]:
            stop = threading.Event()
            place = _Place()

            def ended(_: object) -> None:
                stop.set()
                place.leave()

            # A call that is cancelled while an item is being sent leaves this generator where
            # it is, and `finally` to the garbage collector.
            context.add_done_callback(ended)
            try:
                caller = self._caller(method, context)
                place.take(self, method, caller, "feeds", room.feeds)
                source = body(await _first(requests, method, room), caller, stop)
                # Nothing is sent to a caller that is not authorized any more.
                async for item in _drawn(
                    source, room.streams, still=lambda: self._caller(method, context)
                ):
                    yield item
            except Exception as error:  # noqa: BLE001 - the one place where errors are reported
                await self._fail(context, method, error)
            finally:
                stop.set()
                place.leave()

        return call

    def _dialogue(self, method: str, body: Callable[[AsyncIterator[Any], Caller], Any]) -> Any:
        room = self._rooms[_service(method)]

        async def call(requests: AsyncIterator[Any], context: Any) -> AsyncIterator[Any]:
            place = _Place()
            context.add_done_callback(lambda _: place.leave())
            try:
                caller = self._caller(method, context)
                place.take(self, method, caller, "feeds", room.feeds)
                async for item in body(_all_checked(requests), caller):
                    yield item
            except Exception as error:  # noqa: BLE001 - the one place where errors are reported
                await self._fail(context, method, error)
            finally:
                place.leave()

        return call

    def _caller(self, method: str, context: Any) -> Caller:
        connection = self._connection_of(context.peer())
        if connection is None:
            raise TransportError("the connection has ended")
        shown = context.auth_context().get("x509_pem_cert") or (None,)
        caller = self._identify(method, connection.peer, shown[0])
        if caller.certificate is not None:
            connection.identify(caller.name)
        return caller

    def count(self, key: tuple[str, str, str], most: int) -> None:
        """Count one more call under way.

        :raises Throttled: when it is one too many.
        """
        if self._under_way[key] >= most:
            _, name, what = key
            raise Throttled(
                f"{name} has {most} {what} under way, which is the most",
                hint="wait until one of them has ended",
            )
        self._under_way[key] += 1

    def uncount(self, key: tuple[str, str, str]) -> None:
        """Count one call less."""
        self._under_way[key] -= 1
        if not self._under_way[key]:
            del self._under_way[key]

    async def _fail(self, context: Any, method: str, error: Exception) -> None:
        if isinstance(error, Throttled | TransportError):
            connection = self._connection_of(context.peer())
            if connection is not None:
                connection.refused()
        await _report(context, method, error)


class _Place:
    """One call's place among those of its caller; given back once."""

    def __init__(self) -> None:
        self._guard: Guard | None = None
        self._key = ("", "", "")

    def take(self, guard: Guard, method: str, caller: Caller, what: str, most: int) -> None:
        self._key = (_service(method), caller.name, what)
        guard.count(self._key, most)
        self._guard = guard

    def leave(self) -> None:
        guard, self._guard = self._guard, None
        if guard is not None:
            guard.uncount(self._key)


def _service(method: str) -> str:
    return method.split("/")[1].removeprefix("fedlearn.v1.")


async def _first(requests: AsyncIterator[Any], method: str, room: Room) -> Any:
    """Return the one message of a call.

    :raises Throttled: when it is too long.
    :raises TransportError: when it does not come, or not in time.
    """
    seconds = _SUBMIT_SECONDS if method == _SUBMIT else room.first_message
    try:
        async with asyncio.timeout(seconds):
            return _checked(await anext(requests))
    except StopAsyncIteration:
        raise TransportError("the call ended without a message") from None
    except TimeoutError:
        raise TransportError(
            f"the message of the call was not there after {seconds:g} s",
            hint="see that the network between is not too slow, and try again",
        ) from None


def _bounded(parse: Callable[[bytes], Any], limit: int) -> Callable[[bytes], Any]:
    def parse_bounded(data: bytes) -> Any:
        return _TooLong(len(data), limit) if len(data) > limit else parse(data)

    return parse_bounded


def _checked(request: Any) -> Any:
    if isinstance(request, _TooLong):
        raise Throttled(
            f"the message has {request.size} bytes, at most {request.limit} are accepted"
        )
    return request


async def _all_checked(requests: AsyncIterator[Any]) -> AsyncIterator[Any]:
    async for request in requests:
        yield _checked(request)


async def _drawn(
    source: Iterator[Any], pool: Executor, *, still: Callable[[], object]
) -> AsyncIterator[Any]:
    """Draw from a blocking iterator in ``pool``, for as long as ``still`` does not raise."""
    loop = asyncio.get_running_loop()
    end = object()
    while True:
        drawing = loop.run_in_executor(pool, next, source, end)
        done: set[Any] = set()
        while not done:
            done, _ = await asyncio.wait({drawing}, timeout=_STILL_SECONDS)
            still()
        item = drawing.result()
        if item is end:
            return
        yield item


async def _report(context: Any, method: str, error: Exception) -> None:
    """End the call with what the caller may know of ``error``."""
    if isinstance(error, FedlearnError | AttestationError):
        message = str(error)
        if len(message) > MAX_MESSAGE_CHARS:
            message = message[: MAX_MESSAGE_CHARS - 3] + "..."
        await context.abort(status_of(error), message, trailing_of(error))
    elif isinstance(error, TimeoutError):
        await context.abort(grpc.StatusCode.DEADLINE_EXCEEDED, "the coordinator took too long")
    elif isinstance(error, grpc.aio.AbortError):
        raise error
    else:
        reference = secrets.token_hex(4)
        _LOG.error("%s failed (reference %s)", method, reference, exc_info=error)
        await context.abort(
            grpc.StatusCode.INTERNAL,
            f"internal error; the coordinator's log has more under reference {reference}",
        )
