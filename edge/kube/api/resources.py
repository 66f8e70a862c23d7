"""The kinds of objects that a site uses, as the API names them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import quote

__all__ = ["EVENTS", "JOBS", "MACHINES", "NODES", "PODS", "RUNTIME_CLASSES", "Object", "Resource"]

Object = dict[str, Any]
"""An object, as the API sends it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Resource:
    """A kind of object, as the API names it."""

    group: str = ""
    version: str = "v1"
    plural: str
    namespaced: bool = True

    def path(self, namespace: str, name: str = "", part: str = "") -> str:
        """Return the path of one object, or of all."""
        steps = ["apis", self.group] if self.group else ["api"]
        steps.append(self.version)
        if self.namespaced:
            steps += ["namespaces", namespace]
        steps += [self.plural, *filter(None, (name, part))]
        return "/" + "/".join(quote(step, safe="") for step in steps)

    def __str__(self) -> str:
        return f"{self.plural}.{self.group}" if self.group else self.plural


JOBS: Final = Resource(group="batch", plural="jobs")
PODS: Final = Resource(plural="pods")
EVENTS: Final = Resource(plural="events")
NODES: Final = Resource(plural="nodes", namespaced=False)
RUNTIME_CLASSES: Final = Resource(group="node.k8s.io", plural="runtimeclasses", namespaced=False)
MACHINES: Final = Resource(group="kubevirt.io", plural="virtualmachineinstances")
