# ruff: noqa: RUF009 (an option is a field specifier; each makes a new field)
"""The ``[kubernetes]`` table of ``site.toml``: how a cluster runs this site's clients.

::

    [launcher]
    kind = "kubernetes"

    [kubernetes]
    namespace = "fedlearn"
    workload = "confidential-containers"   # "kubevirt", "confidential-cluster", "insecure-pods"
    image = "registry.example/fedlearn-client@sha256:..."
    runtime_class = "kata-qemu-tdx"
    sponsor_listen = "0.0.0.0:8453"        # where this agent answers its clients
    sponsor_address = "fedlearn-edge.fedlearn.svc:8453"

    [kubernetes.placement]                 # where clients may run
    [kubernetes.devices]                   # what they get of the nodes' devices
    [kubernetes.hints]                     # for the node's runtime

``insecure-pods`` are pods outside of any TEE; they can produce evidence of insecure kinds only.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Final

from attestation.config import (
    FieldType,
    InconsistentValues,
    choice,
    each,
    file_path,
    matching,
    option,
    seq,
    table,
    tables,
    text,
    whole,
)
from fedlearn import config
from fedlearn.config import address

__all__ = [
    "NFD_LABELS",
    "Devices",
    "Hints",
    "KubernetesSettings",
    "Placement",
    "Toleration",
    "WORKLOADS",
]

WORKLOADS: Final = (
    "confidential-containers",
    "kubevirt",
    "confidential-cluster",
    "insecure-pods",
)

_IMAGE: Final = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9._:/-]{0,400}@sha256:[0-9a-f]{64}")
_SUBDOMAIN: Final = re.compile(r"[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?")
_QUALIFIED: Final = re.compile(
    r"([a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?/)?[A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?"
)
_RESOURCE: Final = re.compile(
    r"[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?/[A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?"
)
_LABEL_VALUE: Final = re.compile(r"([A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?)?")
NFD_LABELS: Final = {
    "tdx": "feature.node.kubernetes.io/cpu-security.tdx.enabled",
    "snp": "feature.node.kubernetes.io/cpu-security.sev.snp.enabled",
}


def _subdomain() -> FieldType[str]:
    return matching(_SUBDOMAIN, "a name in the cluster: a-z, 0-9, '-' and '.'")


def _resource() -> FieldType[str]:
    return matching(_RESOURCE, 'an extended resource such as "nvidia.com/gpu"')


def _label_value() -> FieldType[str]:
    return matching(_LABEL_VALUE, "at most 63 of A-Z, a-z, 0-9, '-', '_' and '.'")


@dataclass(frozen=True, slots=True, kw_only=True)
class Toleration:
    """A taint that clients tolerate.

    ``key``     of the taint
    ``value``   of the taint; any by default
    ``effect``  of the taint; any by default
    """

    key: str = option(matching(_QUALIFIED, "the key of a taint"))
    value: str = option(_label_value(), default="")
    effect: str = option(choice("", "NoSchedule", "PreferNoSchedule", "NoExecute"), default="")


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """Where clients run, and with which priority.

    ``node_selector``  labels that a node must have
    ``tee_label``      node label that must be ``"true"``; that of Node Feature Discovery for
                       the TEE by default, ``"-"`` for none
    ``tolerations``    taints that clients tolerate
    ``priority_class``
                       PriorityClass of the clients
    ``spread``         topology key over which clients are spread; empty for none
    ``queue``          name of a Kueue LocalQueue; the client waits for its quota there
    ``unreachable_s``  seconds after which a client on a lost node is started elsewhere
    """

    node_selector: Mapping[str, str] = option(
        each(_label_value(), key=_QUALIFIED, most=50), factory=lambda: MappingProxyType({})
    )
    tee_label: str = option(
        matching(re.compile(rf"-|{_QUALIFIED.pattern}|"), "a label's key or -"), default=""
    )
    tolerations: tuple[Toleration, ...] = option(tables(Toleration, most=50), default=())
    priority_class: str = option(_subdomain(), default="")
    spread: str = option(
        matching(re.compile(rf"{_QUALIFIED.pattern}|"), "a label's key, or nothing"),
        default="kubernetes.io/hostname",
    )
    queue: str = option(_subdomain(), default="")
    unreachable_s: int = option(whole(0, 86_400), default=30)


@dataclass(frozen=True, slots=True, kw_only=True)
class Devices:
    """What clients get of the nodes' devices.

    ``tee``           extended resource of which a client takes one, such as
                      ``tdx.intel.com/tdx-guest``; none by default
    ``gpu``           extended resource of GPUs; with KubeVirt the device's name
    ``gpu_claim``     name of a ResourceClaimTemplate; GPUs are then claimed through it, one
                      claim each (dynamic resource allocation, Kubernetes 1.31 and later), and
                      ``gpu`` is not used
    ``scratch_class``
                      StorageClass of a volume that lives as long as the pod; memory and the
                      node's disk by default
    ``ccnp_socket``   folder of CCNP's socket on the nodes of a confidential cluster
    """

    tee: str = option(_resource(), default="")
    gpu: str = option(_resource(), default="nvidia.com/gpu")
    gpu_claim: str = option(_subdomain(), default="")
    scratch_class: str = option(_subdomain(), default="")
    ccnp_socket: Path = option(file_path(), default=Path("/run/ccnp/uds"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Hints:
    """Classes and annotations for the node's runtime.

    ``rdt``          class of Intel RDT (cache and memory bandwidth)
    ``blockio``      class of block I/O
    ``annotations``  others that the site's NRI plug-ins understand
    """

    rdt: str = option(_label_value(), default="")
    blockio: str = option(_label_value(), default="")
    annotations: Mapping[str, str] = option(
        each(text(least=0), key=_QUALIFIED, most=50), factory=lambda: MappingProxyType({})
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class KubernetesSettings:
    """How a cluster runs clients.

    ``placement``        where clients may run
    ``devices``          what they get of the nodes' devices
    ``hints``            classes and annotations for the node's runtime
    ``namespace``        of the clients
    ``workload``         what a client is; ``insecure-pods`` are outside of any TEE
    ``image``            of the client, by digest
    ``runtime_class``    RuntimeClass of confidential containers
    ``kubeconfig``       for an agent outside of the cluster; inside, its service account is used
    ``tee``              which TEE: taken from ``runtime_class`` where its name ends with one
    ``sponsor_listen``   where this agent answers its clients
    ``sponsor_address``  how a client reaches this agent
    ``service_account``  of the clients; it needs no rights and its token is not mounted
    ``pull_secrets``     names of Secrets with the registry's credentials
    ``retries``          how often a client that failed is started again
    ``keep_s``           seconds that an ended client stays in the cluster, so that a restarted
                         agent can report how it ended
    """

    kubeconfig: Path | None = option(file_path(), default=None)
    namespace: str = option(config.name(), default="fedlearn")
    workload: str = option(choice(*WORKLOADS), default="confidential-containers")
    image: str = option(
        matching(_IMAGE, "an image by digest, registry/name@sha256:... (a tag may move)")
    )
    runtime_class: str = option(_subdomain(), default="")
    tee: str = option(choice("", "tdx", "snp"), default="")
    sponsor_listen: str = option(address(port_zero=True), default="0.0.0.0:8453")
    sponsor_address: str = option(address(), default="fedlearn-edge:8453")
    service_account: str = option(_subdomain(), default="fedlearn-client")
    pull_secrets: tuple[str, ...] = option(seq(_subdomain(), most=10), default=())
    retries: int = option(whole(0, 10), default=2)
    keep_s: int = option(whole(0, 7 * 86_400), default=6 * 3600)
    placement: Placement = option(table(Placement), factory=Placement)
    devices: Devices = option(table(Devices), factory=Devices)
    hints: Hints = option(table(Hints), factory=Hints)

    def __post_init__(self) -> None:
        if self.workload == "confidential-containers" and not self.runtime_class:
            raise InconsistentValues(
                (
                    ("runtime_class",),
                    'is needed for workload = "confidential-containers", such as "kata-qemu-tdx"',
                )
            )
        if self.workload == "kubevirt":
            if not self.tee:
                raise InconsistentValues(
                    (("tee",), 'is needed for workload = "kubevirt": "tdx" or "snp"')
                )
            if self.runtime_class:
                raise InconsistentValues((("runtime_class",), "a virtual machine has none"))
        named = next((tee for tee in NFD_LABELS if self.runtime_class.endswith(f"-{tee}")), "")
        if self.tee and named and self.tee != named:
            raise InconsistentValues(
                (("tee",), f'is "{self.tee}", but runtime_class is for "{named}"')
            )
        if not self.tee:
            object.__setattr__(self, "tee", named)

    @property
    def tee_label(self) -> str:
        """The label of nodes that can run these clients; empty when any node can."""
        if self.placement.tee_label:
            return self.placement.tee_label.removeprefix("-")
        if self.workload in ("confidential-containers", "kubevirt"):
            return NFD_LABELS.get(self.tee, "")
        return ""
