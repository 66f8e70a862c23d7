"""The permissions of an agent in its cluster, as data for charts, checks and tests.

The Role of an agent is :data:`REQUIRED`, in its own namespace. :data:`OPTIONAL` adds details to
reports; nothing depends on it. :data:`NEVER` is what it must not be able to do: read secrets,
enter pods, or create anything but jobs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from edge.kube.api import EVENTS, JOBS, MACHINES, NODES, PODS, RUNTIME_CLASSES, Resource

__all__ = ["MACHINES_REQUIRED", "NEVER", "OPTIONAL", "REQUIRED", "Permission"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Permission:
    """Verbs on a kind of object or on a part of it, and their purpose."""

    verbs: tuple[str, ...]
    resource: Resource
    part: str = ""
    why: str

    def __str__(self) -> str:
        return f"{self.resource}/{self.part}" if self.part else str(self.resource)


_LIFE: Final = ("create", "get", "list", "watch", "delete")
_READ: Final = ("get", "list", "watch")

REQUIRED: Final = (
    Permission(verbs=_LIFE, resource=JOBS, why="clients are jobs"),
    Permission(verbs=_READ, resource=PODS, why="to see the status of a client"),
    Permission(verbs=_READ, resource=PODS, part="log", why="to show why a client failed"),
)
MACHINES_REQUIRED: Final = (
    Permission(verbs=_LIFE, resource=MACHINES, why="clients are virtual machines (KubeVirt)"),
)
OPTIONAL: Final = (
    Permission(verbs=_READ, resource=EVENTS, why="to report why a pod cannot be created"),
    Permission(verbs=("get", "list"), resource=NODES, why="to report TEEs, GPUs and capacity"),
    Permission(
        verbs=("get", "list"),
        resource=RUNTIME_CLASSES,
        why="to see that the RuntimeClass exists before a client is started",
    ),
)
NEVER: Final = (
    Permission(
        verbs=("get", "list", "create"),
        resource=Resource(plural="secrets"),
        why="no key is stored in a Secret",
    ),
    Permission(verbs=("create", "get"), resource=PODS, part="exec", why="nobody enters a client"),
    Permission(verbs=("create",), resource=PODS, part="attach", why="nobody enters a client"),
    Permission(verbs=("create", "delete"), resource=PODS, why="clients are jobs, not bare pods"),
    Permission(verbs=("patch", "update"), resource=JOBS, why="a client is ended, never changed"),
    Permission(
        verbs=("get",), resource=Resource(plural="configmaps"), why="an agent needs no ConfigMaps"
    ),
    Permission(
        verbs=("create", "update"),
        resource=Resource(group="rbac.authorization.k8s.io", plural="roles"),
        why="an agent grants no rights",
    ),
    Permission(
        verbs=("create",),
        resource=Resource(plural="serviceaccounts"),
        part="token",
        why="an agent does not impersonate others",
    ),
)
