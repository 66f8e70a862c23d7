"""The fleet listener's ASGI application: it authorizes each request before a byte of its body."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from fedlearn.errors import AdmissionDenied
from server.rpc.fleet_api import ACTIONS, Caller, Link, Receive, Scope, Send
from server.rpc.fleet_connections import ConnectedClients, FleetConnection
from server.rpc.fleet_streams import (
    ArrivingBody,
    DeliveryMemory,
    RequestBody,
    RequestRefused,
    ResponseBody,
)

__all__ = ["FleetApplication"]

_SINGLE: Final = frozenset({b"flwr-public-key", b"content-length", b"transfer-encoding"})
"""Headers that may appear once."""


class FleetApplication:
    """Passes each request that is authorized to the link of its job.

    :param link_of: the link of a running job by name, or None.
    :param max_update_bytes: the most bytes of one delivery.
    :param max_deliveries_bytes: the most bytes of all deliveries that are being read.
    """

    def __init__(
        self,
        clients: ConnectedClients,
        *,
        link_of: Callable[[str], Link | None],
        max_update_bytes: int,
        max_deliveries_bytes: int,
    ) -> None:
        self._clients = clients
        self._link_of = link_of
        self._max_update_bytes = max_update_bytes
        self._memory = DeliveryMemory(max_deliveries_bytes)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        connection: FleetConnection = scope["fedlearn.connection"]
        response = ResponseBody(send, connection.flow)
        arriving: ArrivingBody = scope["fedlearn.body"]
        body: RequestBody | None = None
        try:
            link, caller, length = self._authorize(connection, scope)
            scope["fedlearn.caller"] = caller
            scope["fedlearn.length"] = length
            bounded = ACTIONS[scope["path"]] is not None
            body = RequestBody(arriving.receive, length, None if bounded else self._memory)
            scope["fedlearn.keep"] = body.keep
            await link(scope, body.receive, response.send)
        except (RequestRefused, AdmissionDenied) as refused:
            if response.started:
                connection.transport.abort()
            else:
                status = refused.status if isinstance(refused, RequestRefused) else 401
                await _refuse(send, status, str(refused))
        finally:
            if body is not None:
                body.close()
            # The unread rest of a body is not read only to be dropped.
            if connection.reads_body_of(scope):
                connection.transport.close()

    def _authorize(self, connection: FleetConnection, scope: Scope) -> tuple[Link, Caller, int]:
        peer = connection.peer
        if peer is None:
            raise RequestRefused(401, "no certificate of a client")
        admission = self._clients.admission_of(peer)
        headers: dict[bytes, bytes] = {}
        for name, value in scope["headers"]:
            if name in headers and name in _SINGLE:
                raise RequestRefused(400, "a header that may appear once appears twice")
            headers[name] = value
        if headers.get(b"flwr-public-key", b"") != connection.flower_key:
            raise RequestRefused(401, "flwr-public-key is not the key of the certificate")
        path = str(scope["path"])
        if path not in ACTIONS:
            raise RequestRefused(404, "there is nothing here")
        if scope["method"] != "POST":
            raise RequestRefused(405, "only POST is served")
        length = self._length(headers, ACTIONS[path])
        link = self._link_of(admission.job)
        if link is None:
            raise RequestRefused(410, f"job {admission.job} is not open at the coordinator")
        self._clients.authorized(connection, admission)

        def still_live() -> None:
            self._clients.admission_of(peer)

        caller = Caller(
            node_id=admission.node_id,
            site=admission.site,
            still_live=still_live,
            key=admission.thumbprint,
        )
        return link, caller, length

    def _length(self, headers: Mapping[bytes, bytes], bound: int | None) -> int:
        if b"transfer-encoding" in headers:
            raise RequestRefused(411, "the length of the body must be announced")
        text = headers.get(b"content-length", b"")
        if not text.isdigit() or len(text) > 15:
            raise RequestRefused(411, "the length of the body must be announced")
        length, most = int(text), self._max_update_bytes if bound is None else bound
        if length > most:
            raise RequestRefused(413, f"the body has {length} bytes; at most {most} are accepted")
        return length


async def _refuse(send: Send, status: int, reason: str) -> None:
    body = reason.encode()
    headers = [
        (b"content-type", b"text/plain; charset=utf-8"),
        (b"content-length", str(len(body)).encode()),
        (b"connection", b"close"),
    ]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body, "more_body": False})
