"""The Kubernetes API: few verbs on few kinds of objects, as JSON.

Objects are dictionaries as the API sends them. Every call has a deadline. A failure is a
:class:`KubeError` with a hint. A watch (:class:`Follower`) starts from a list, continues after
lost connections, a restart of the API server and ``410 Gone``, and sends no requests while nothing
changes.

The page is docs/adr/0026-kubernetes-client.md.
"""

from __future__ import annotations

from edge.kube.api.access import Account
from edge.kube.api.connection import Kube
from edge.kube.api.errors import Exists, Forbidden, KubeError, Missing, Unavailable
from edge.kube.api.follower import Follower
from edge.kube.api.resources import (
    EVENTS,
    JOBS,
    MACHINES,
    NODES,
    PODS,
    RUNTIME_CLASSES,
    Object,
    Resource,
)

__all__ = [
    "EVENTS",
    "JOBS",
    "MACHINES",
    "NODES",
    "PODS",
    "RUNTIME_CLASSES",
    "Account",
    "Exists",
    "Follower",
    "Forbidden",
    "Kube",
    "KubeError",
    "Missing",
    "Object",
    "Resource",
    "Unavailable",
]
