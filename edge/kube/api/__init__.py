"""The door to Kubernetes: few verbs on few kinds of objects, in plain JSON.

Objects are dictionaries as the API sends them. Every call has a deadline. What goes wrong is
a :class:`KubeError` in words, with what to do about it. Watching (:class:`Follower`) starts
from a list, survives lost connections, an API server that restarts, and ``410 Gone``, and
asks nothing while nothing happens.
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
