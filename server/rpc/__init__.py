"""The coordinator's gRPC services: two listeners, one guard, thin services.

``Gate`` is reached over TLS without a client certificate. ``Sites``, ``Clients`` and
``Operator`` need mutual TLS; the guard decides on every call who may call what.
"""

from __future__ import annotations

from server.rpc.gate import Welcome
from server.rpc.listeners import Listeners, RpcConfig
from server.rpc.ports import (
    Coordinator,
    Orders,
    StartOrder,
    StopOrder,
)

__all__ = [
    "Coordinator",
    "Listeners",
    "Orders",
    "RpcConfig",
    "StartOrder",
    "StopOrder",
    "Welcome",
]
