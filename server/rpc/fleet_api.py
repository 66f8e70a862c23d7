"""What a job serves to its clients, and what the fleet listener passes to it.

:class:`server.rpc.fleet.FleetServer` authenticates and authorizes a request; the :class:`Link` of
the job answers it. Flower is not imported here: a link is an ASGI application.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from dataclasses import dataclass
from typing import Any, Final, Protocol

__all__ = ["ACTIONS", "Caller", "Link", "Receive", "Scope", "Send"]

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

_CONTROL_BYTES: Final = 64 * 1024

ACTIONS: Final[Mapping[str, int | None]] = {
    "/v1/fleet/activate-node": _CONTROL_BYTES,
    "/v1/fleet/deactivate-node": _CONTROL_BYTES,
    "/v1/fleet/send-node-heartbeat": _CONTROL_BYTES,
    "/v1/fleet/fetch": _CONTROL_BYTES,
    "/v1/fleet/deliver": None,
    "/v1/fleet/delivery-offset": _CONTROL_BYTES,
}
"""The paths of requests, each with the most bytes of its body; ``None``: those of an update."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """The authenticated client that makes a request.

    ``still_live`` raises AdmissionDenied when the admission has ended since. It must be called
    again before acting, after a wait or after a long body was read. ``key`` is the thumbprint
    under which the registry has the admission.
    """

    node_id: int
    site: str
    still_live: Callable[[], None]
    key: bytes = b""


class Link(Protocol):
    """The ASGI application of one job.

    The scope has ``fedlearn.caller`` (:class:`Caller`), ``fedlearn.length`` (the announced bytes
    of the body), and ``fedlearn.keep``, which keeps memory for the beginning of a delivery
    (:meth:`server.rpc.fleet_streams.RequestBody.keep`). When it responds before its first
    ``receive()``, the body is refused unread, and the connection is closed after the response.
    """

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one action of one node."""
        ...

    def absent(self, site: str) -> None:
        """Note that the site's client has no connection left."""
        ...
