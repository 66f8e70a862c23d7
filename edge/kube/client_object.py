"""What the manifests of a client's pod and of its virtual machine share. Pure."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Final

from edge.config.kubernetes import KubernetesSettings
from edge.kube import labels
from edge.protocol.workload import Workload

__all__ = [
    "DATA_PATH",
    "SCRATCH_PATH",
    "STATE_PATH",
    "Launch",
    "Owner",
    "cores",
    "environment",
    "object_metadata",
    "placement",
    "scratch_mib",
]

DATA_PATH: Final = "/data"
STATE_PATH: Final = "/state"
SCRATCH_PATH: Final = "/scratch"

_TERMINATION_MESSAGE: Final = "/dev/termination-log"
_LEAST_SCRATCH_MIB: Final = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class Owner:
    """An object of the same namespace; Kubernetes removes what it owns together with it."""

    api_version: str
    kind: str
    name: str
    uid: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Launch:
    """What the agent adds to a workload. It contains no secret.

    ``agent_address``  ``host:port`` of the agent, as a client reaches it
    ``pin``            SHA-256 of the SPKI of the agent's TLS key, 32 bytes
    ``ticket``         the tag with which this client may ask for a voucher
    ``grace_s``        seconds between the request to stop and the kill
    """

    agent_address: str
    pin: bytes
    ticket: bytes
    grace_s: float = 10.0
    owner: Owner | None = None


def object_metadata(
    workload: Workload, settings: KubernetesSettings, launch: Launch
) -> dict[str, Any]:
    """Return name, labels, annotations and owner; the name is the assignment's id."""
    assignment = workload.assignment
    metadata: dict[str, Any] = {
        "name": assignment.id,
        "namespace": settings.namespace,
        "labels": labels.client_labels(
            job=assignment.job, site=assignment.site, assignment=assignment.id
        ),
        "annotations": {
            labels.CLIENT: workload.client,
            labels.WORKLOAD: assignment.workload.hex(),
        },
    }
    if (owner := launch.owner) is not None:
        metadata["ownerReferences"] = [
            {
                "apiVersion": owner.api_version,
                "kind": owner.kind,
                "name": owner.name,
                "uid": owner.uid,
                "controller": False,
                "blockOwnerDeletion": False,
            }
        ]
    return metadata


def environment(workload: Workload, launch: Launch) -> dict[str, str]:
    """Return the environment of a client (see :mod:`edge.client.pod_main`)."""
    return {
        "FEDLEARN_ASSIGNMENT": workload.assignment.id,
        "FEDLEARN_TICKET": launch.ticket.hex(),
        "FEDLEARN_SPONSOR": launch.agent_address,
        "FEDLEARN_SPONSOR_PIN": launch.pin.hex(),
        "FEDLEARN_DATA": DATA_PATH,
        "FEDLEARN_STATE": STATE_PATH,
        "FEDLEARN_SCRATCH": SCRATCH_PATH,
        "FEDLEARN_LAST_WORDS": _TERMINATION_MESSAGE,
    }


def placement(settings: KubernetesSettings) -> dict[str, Any]:
    """Return affinity, tolerations and node selector: the same for pods and machines."""
    found: dict[str, Any] = {"tolerations": _tolerations(settings)}
    if settings.placement.node_selector:
        found["nodeSelector"] = dict(settings.placement.node_selector)
    if label := settings.tee_label:
        term = {"matchExpressions": [{"key": label, "operator": "In", "values": ["true"]}]}
        found["affinity"] = {
            "nodeAffinity": {
                "requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [term]}
            }
        }
    if settings.placement.priority_class:
        found["priorityClassName"] = settings.placement.priority_class
    if settings.placement.spread:
        found["topologySpreadConstraints"] = [
            {
                "maxSkew": 1,
                "topologyKey": settings.placement.spread,
                "whenUnsatisfiable": "ScheduleAnyway",
                "labelSelector": {"matchLabels": {labels.COMPONENT: labels.CLIENT_COMPONENT}},
            }
        ]
    return found


def cores(cpu: float) -> str:
    """Return a number of cores as a Kubernetes quantity, rounded up."""
    thousandths = math.ceil(round(cpu * 1000, 3))
    return str(thousandths // 1000) if thousandths % 1000 == 0 else f"{thousandths}m"


def scratch_mib(workload: Workload) -> int:
    """Return the size of a client's scratch volume in MiB."""
    return max(workload.spec.resources.disk_mib, _LEAST_SCRATCH_MIB)


def _tolerations(settings: KubernetesSettings) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    for item in settings.placement.tolerations:
        toleration: dict[str, Any] = {"key": item.key, "operator": "Exists"}
        if item.value:
            toleration |= {"operator": "Equal", "value": item.value}
        if item.effect:
            toleration["effect"] = item.effect
        found.append(toleration)
    lost = (
        {
            "key": f"node.kubernetes.io/{reason}",
            "operator": "Exists",
            "effect": "NoExecute",
            "tolerationSeconds": settings.placement.unreachable_s,
        }
        for reason in ("not-ready", "unreachable")
    )
    return [*found, *lost]
