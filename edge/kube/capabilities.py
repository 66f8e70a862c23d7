"""What a cluster can run for this site, and what is missing.

A site reports the survey to the coordinator when it connects (``fedlearn site show``). It is made
from RuntimeClasses and nodes: labels of Node Feature Discovery, extended resources, capacity. The
checks are printed by ``fedlearn doctor --cluster``; each states how to correct what it found.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from edge.config.kubernetes import NFD_LABELS, KubernetesSettings
from edge.kube.api import NODES, RUNTIME_CLASSES, Forbidden, Kube
from edge.kube.permissions import MACHINES_REQUIRED, NEVER, OPTIONAL, REQUIRED, Permission
from fedlearn.checks import Check, fail, ok, warn

__all__ = ["NodeReport", "RuntimeClass", "Survey", "cluster_checks", "quantity", "survey"]

_SUFFIXES: Final = {
    "": 1.0,
    "m": 1e-3,
    "k": 1e3,
    "M": 1e6,
    "G": 1e9,
    "T": 1e12,
    "P": 1e15,
    "Ki": 2.0**10,
    "Mi": 2.0**20,
    "Gi": 2.0**30,
    "Ti": 2.0**40,
    "Pi": 2.0**50,
}
_QUANTITY: Final = re.compile(r"([0-9]{1,30}(?:\.[0-9]{1,12})?)([a-zA-Z]{0,2})")
_MOST_NODES: Final = 5000
_LEAST_MINOR: Final = 31
"""The first minor release of Kubernetes in which a Job's failure policy is stable."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RuntimeClass:
    """A RuntimeClass; ``overhead`` is what it adds to a pod's own requests."""

    name: str
    overhead: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeReport:
    """A node: whether it accepts pods, which TEEs it has, and what it can allocate.

    ``extended``  extended resources (devices) and how many may be allocated
    """

    name: str
    ready: bool
    tees: tuple[str, ...]
    cpu: float
    memory_mib: int
    extended: Mapping[str, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Survey:
    """What a cluster can run. ``unseen`` names what this account may not read.

    ``tee``, ``gpu``  the TEE that this site's clients need, and the GPUs that they get
    ``runtime_class`` that of this site's clients, or empty
    """

    version: str
    workload: str
    tee: str
    gpu: str = ""
    runtime_class: str = ""
    runtime_classes: tuple[RuntimeClass, ...] = ()
    nodes: tuple[NodeReport, ...] = ()
    unseen: tuple[str, ...] = ()
    ccnp_here: bool = False

    @property
    def suitable(self) -> tuple[NodeReport, ...]:
        """The nodes that are ready and have the TEE that this site's clients need."""
        return tuple(
            node for node in self.nodes if node.ready and (not self.tee or self.tee in node.tees)
        )

    def _overhead(self, name: str) -> float:
        """Return what the RuntimeClass adds to the requests of each client's pod."""
        found = (item.overhead for item in self.runtime_classes if item.name == self.runtime_class)
        return quantity(next(found, {}).get(name, "0"))

    def to_json(self) -> dict[str, Any]:
        """Return the survey for the coordinator, without the names of nodes.

        ``cpu``, ``memory_mib`` and ``gpu`` are the most that one client can get, after the
        overhead of its RuntimeClass; with the prefix ``total_``, what all pods can get. What this
        account cannot read is left out, and does not exclude the site from a job.
        """
        fit = self.suitable
        report: dict[str, Any] = {
            "launcher": "kubernetes",
            "version": self.version,
            "workload": self.workload,
            "ccnp": self.ccnp_here,
            "unseen": list(self.unseen),
        }
        if "runtimeclasses" not in self.unseen:
            report["runtime_classes"] = [item.name for item in self.runtime_classes]
        if "nodes" in self.unseen:
            return report
        devices: dict[str, int] = {}
        for node in fit:
            for name, count in node.extended.items():
                devices[name] = devices.get(name, 0) + count
        report |= {
            "nodes": len(self.nodes),
            "suitable_nodes": len(fit),
            "tee_nodes": {
                tee: sum(tee in node.tees for node in self.nodes) for tee in sorted(NFD_LABELS)
            },
            "cpu": max(0.0, max((node.cpu for node in fit), default=0.0) - self._overhead("cpu")),
            "memory_mib": max(
                0,
                max((node.memory_mib for node in fit), default=0)
                - math.ceil(self._overhead("memory") / 2**20),
            ),
            "total_cpu": round(sum(node.cpu for node in fit), 3),
            "total_memory_mib": sum(node.memory_mib for node in fit),
            "devices": devices,
        }
        if self.tee:
            report["tees"] = [self.tee] if fit else []
        if self.gpu:
            report["gpu"] = max((node.extended.get(self.gpu, 0) for node in fit), default=0)
            report["total_gpu"] = sum(node.extended.get(self.gpu, 0) for node in fit)
        return report


def survey(kube: Kube, settings: KubernetesSettings) -> Survey:
    """Survey the cluster.

    :raises KubeError: when the API server cannot be reached.
    """
    unseen: list[str] = []
    classes: tuple[RuntimeClass, ...] = ()
    nodes: tuple[NodeReport, ...] = ()
    try:
        classes = tuple(_runtime_class(item) for item in kube.objects(RUNTIME_CLASSES))
    except Forbidden:
        unseen.append("runtimeclasses")
    try:
        nodes = tuple(_node(item) for item in kube.objects(NODES)[:_MOST_NODES])
    except Forbidden:
        unseen.append("nodes")
    return Survey(
        version=kube.version(),
        workload=settings.workload,
        tee=settings.tee,
        gpu="" if settings.devices.gpu_claim else settings.devices.gpu,
        runtime_class=settings.runtime_class,
        runtime_classes=classes,
        nodes=nodes,
        unseen=tuple(unseen),
        ccnp_here=settings.devices.ccnp_socket.exists(),
    )


def cluster_checks(kube: Kube, settings: KubernetesSettings) -> Iterator[Check]:
    """Return what is missing in a cluster, and how to correct it.

    :raises KubeError: when the API server cannot be reached.
    """
    found = survey(kube, settings)
    yield _version(found.version)
    needed = MACHINES_REQUIRED if settings.workload == "kubevirt" else ()
    for permission in (*REQUIRED, *needed):
        yield _permission(kube, permission, fail)
    for permission in OPTIONAL:
        yield _permission(kube, permission, warn)
    yield from _excess(kube)
    if settings.workload == "insecure-pods":
        yield warn(
            "workload",
            "insecure-pods: clients run outside of any TEE",
            'use workload = "confidential-containers" where TEEs are',
        )
    if settings.runtime_class and "runtimeclasses" not in found.unseen:
        yield _class(found, settings.runtime_class)
    if "nodes" not in found.unseen:
        yield from _nodes(found, settings)
    if settings.workload == "confidential-cluster" and not found.ccnp_here:
        yield warn(
            "ccnp",
            f"{settings.devices.ccnp_socket} is not on this machine",
            "install CCNP's DaemonSet on the nodes that run clients",
        )


def quantity(text: str) -> float:
    """Return a Kubernetes quantity as a number; 0 when it is malformed."""
    found = _QUANTITY.fullmatch(text)
    if found is None or found[2] not in _SUFFIXES:
        return 0.0
    return float(found[1]) * _SUFFIXES[found[2]]


# --- reading ------------------------------------------------------------------------------


def _runtime_class(item: Mapping[str, Any]) -> RuntimeClass:
    overhead = (item.get("overhead") or {}).get("podFixed") or {}
    return RuntimeClass(
        name=str(item["metadata"]["name"]),
        overhead={str(key): str(value) for key, value in overhead.items()},
    )


def _node(item: Mapping[str, Any]) -> NodeReport:
    metadata, spec, status = item["metadata"], item.get("spec") or {}, item.get("status") or {}
    node_labels = metadata.get("labels") or {}
    amounts = {str(key): str(value) for key, value in (status.get("allocatable") or {}).items()}
    ready = any(
        condition.get("type") == "Ready" and condition.get("status") == "True"
        for condition in status.get("conditions") or ()
    )
    return NodeReport(
        name=str(metadata["name"]),
        ready=ready and not spec.get("unschedulable"),
        tees=tuple(tee for tee, label in NFD_LABELS.items() if node_labels.get(label) == "true"),
        cpu=quantity(amounts.get("cpu", "0")),
        memory_mib=int(quantity(amounts.get("memory", "0")) / 2**20),
        extended={key: int(quantity(value)) for key, value in amounts.items() if "/" in key},
    )


# --- checking -----------------------------------------------------------------------------


def _version(version: str) -> Check:
    found = re.match(r"v1\.(\d+)", version)
    if found is None:
        return warn(
            "kubernetes", f"version {version or 'unknown'}", "check it with `kubectl version`"
        )
    if int(found[1]) < _LEAST_MINOR:
        return warn(
            "kubernetes",
            f"{version}: it retries clients that were refused, and counts evictions as failures",
            f"use 1.{_LEAST_MINOR} or later",
        )
    return ok("kubernetes", version)


def _permission(kube: Kube, permission: Permission, otherwise: Any) -> Check:
    lacking = [
        verb
        for verb in permission.verbs
        if not kube.may(verb, permission.resource, part=permission.part)
    ]
    if not lacking:
        return ok("rights", f"{permission}: {', '.join(permission.verbs)}")
    lost: Check = otherwise(
        "rights",
        f"may not {', '.join(lacking)} {permission} ({permission.why})",
        "install the Role of the fedlearn-edge chart, or grant it to the agent's service account",
    )
    return lost


def _excess(kube: Kube) -> Iterator[Check]:
    for permission in NEVER:
        held = [
            verb
            for verb in permission.verbs
            if kube.may(verb, permission.resource, part=permission.part)
        ]
        if held:
            yield warn(
                "rights",
                f"may {', '.join(held)} {permission}, which an agent does not need "
                f"({permission.why})",
                "run it under a separate service account, with the chart's Role only",
            )


def _class(found: Survey, wanted: str) -> Check:
    names = [item.name for item in found.runtime_classes]
    if wanted in names:
        chosen = next(item for item in found.runtime_classes if item.name == wanted)
        extra = ", ".join(f"{key} {value}" for key, value in sorted(chosen.overhead.items()))
        return ok("runtime class", f"{wanted}{f', overhead {extra}' if extra else ''}")
    kata = ", ".join(name for name in names if name.startswith("kata")) or "none of kata"
    return fail(
        "runtime class",
        f"{wanted} does not exist (the cluster has {kata})",
        "install Confidential Containers, or name another in kubernetes.runtime_class",
    )


def _nodes(found: Survey, settings: KubernetesSettings) -> Iterator[Check]:
    ready = [node for node in found.nodes if node.ready]
    if not ready:
        yield fail("nodes", "no node is ready", "check `kubectl get nodes` and the kubelets")
        return
    yield ok("nodes", f"{len(ready)} of {len(found.nodes)} ready")
    label = settings.tee_label
    if settings.tee and label:
        fit = found.suitable
        if fit:
            yield ok("TEE", f"{len(fit)} nodes have {settings.tee.upper()}")
        else:
            yield fail(
                "TEE",
                f'no node has the label {label}="true"',
                "install Node Feature Discovery, and switch the TEE on in the firmware; or name "
                "another label in kubernetes.placement.tee_label",
            )
    for what, name in (("TEE device", settings.devices.tee), ("GPU", settings.devices.gpu)):
        if not name or (what == "GPU" and settings.devices.gpu_claim):
            continue
        count = sum(node.extended.get(name, 0) for node in ready)
        if count:
            yield ok(what, f"{count} x {name}")
        elif what == "GPU":
            yield warn(what, f"no node has {name}", "only jobs without GPUs can run")
        else:
            yield fail(what, f"no node has {name}", "install its device plug-in")
