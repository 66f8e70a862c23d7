"""Makes the manifest of a workload from a site's settings. Pure.

The pods meet the restricted Pod Security Standard with one exception: on a confidential
cluster, CCNP's socket is a folder of the node, mounted read-only. Requests equal limits, so
that their quality of service is Guaranteed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Final

from edge.config.kubernetes import KubernetesSettings
from edge.kube.client_object import (
    DATA_PATH,
    SCRATCH_PATH,
    STATE_PATH,
    Launch,
    cores,
    environment,
    object_metadata,
    placement,
    scratch_mib,
)
from edge.kube.guest_policy import COMMAND
from edge.kube.initdata import ANNOTATION, annotation_value, initdata_document
from edge.kube.vm_manifest import virtual_machine
from edge.protocol.workload import REFUSED_EXIT, Workload
from fedlearn.errors import LaunchError

__all__ = [
    "CCNP_PATH",
    "CONTAINER",
    "batch_job",
    "manifest",
    "manifest_work",
]

CONTAINER: Final = "client"
CCNP_PATH: Final = "/run/ccnp/uds"

_USER: Final = 65_532
_STATE_MIB: Final = 16
_KATA_PARAMETERS: Final = "io.katacontainers.config.hypervisor.kernel_params"
_QUEUE: Final = "kueue.x-k8s.io/queue-name"


def manifest(workload: Workload, settings: KubernetesSettings, launch: Launch) -> dict[str, Any]:
    """Return the object that runs ``workload``: a Job, or a VirtualMachineInstance.

    :raises LaunchError: when the job asks for what these settings cannot give.
    """
    if settings.workload == "kubevirt":
        return virtual_machine(workload, settings, launch)
    return batch_job(workload, settings, launch)


def batch_job(workload: Workload, settings: KubernetesSettings, launch: Launch) -> dict[str, Any]:
    """Return a ``batch/v1`` Job: one client, one pod at a time.

    Disruptions (eviction, preemption, a lost node) start it elsewhere and do not count as a
    failure; a refusal ends it at once; other failures are retried as the site configures.
    """
    metadata = object_metadata(workload, settings, launch)
    spec: dict[str, Any] = {
        "parallelism": 1,
        "completions": 1,
        "backoffLimit": settings.retries,
        "ttlSecondsAfterFinished": settings.keep_s,
        # A client never has two pods: the next one starts when the former has ended.
        "podReplacementPolicy": "Failed",
        "podFailurePolicy": {
            "rules": [
                {
                    "action": "FailJob",
                    "onExitCodes": {
                        "containerName": CONTAINER,
                        "operator": "In",
                        "values": [REFUSED_EXIT],
                    },
                },
                {
                    "action": "Ignore",
                    "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}],
                },
            ]
        },
        "template": _pod(workload, settings, launch, metadata["labels"]),
    }
    if settings.placement.queue:
        # Kueue admits a job that is suspended, and resumes it.
        metadata["labels"] = {**metadata["labels"], _QUEUE: settings.placement.queue}
        spec["suspend"] = True
    return {"apiVersion": "batch/v1", "kind": "Job", "metadata": metadata, "spec": spec}


def manifest_work(
    manifests: Sequence[Mapping[str, Any]], *, name: str, cluster: str
) -> dict[str, Any]:
    """Wrap manifests for Open Cluster Management: a hub sends them to ``cluster``."""
    return {
        "apiVersion": "work.open-cluster-management.io/v1",
        "kind": "ManifestWork",
        "metadata": {"name": name, "namespace": cluster},
        "spec": {
            "workload": {"manifests": [dict(manifest) for manifest in manifests]},
            "deleteOption": {"propagationPolicy": "Foreground"},
        },
    }


# --- the pod ------------------------------------------------------------------------------


def _pod(
    workload: Workload,
    settings: KubernetesSettings,
    launch: Launch,
    pod_labels: Mapping[str, str],
) -> dict[str, Any]:
    spec: dict[str, Any] = {
        "restartPolicy": "Never",
        "serviceAccountName": settings.service_account,
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": math.ceil(launch.grace_s),
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": _USER,
            "runAsGroup": _USER,
            "fsGroup": _USER,
            "fsGroupChangePolicy": "OnRootMismatch",
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [_container(workload, settings, launch)],
        "volumes": _volumes(workload, settings),
        **placement(settings),
    }
    if settings.runtime_class:
        spec["runtimeClassName"] = settings.runtime_class
    if settings.pull_secrets:
        spec["imagePullSecrets"] = [{"name": name} for name in settings.pull_secrets]
    if claims := _gpu_claims(workload, settings):
        template = settings.devices.gpu_claim
        spec["resourceClaims"] = [
            {"name": name, "resourceClaimTemplateName": template} for name in claims
        ]
    return {
        "metadata": {
            "labels": dict(pod_labels),
            "annotations": _annotations(workload, settings),
        },
        "spec": spec,
    }


def _container(workload: Workload, settings: KubernetesSettings, launch: Launch) -> dict[str, Any]:
    amounts = _amounts(workload, settings)
    resources: dict[str, Any] = {"requests": amounts, "limits": dict(amounts)}
    if claims := _gpu_claims(workload, settings):
        resources["claims"] = [{"name": name} for name in claims]
    mounts: list[dict[str, Any]] = [
        {"name": "state", "mountPath": STATE_PATH},
        {"name": "scratch", "mountPath": SCRATCH_PATH},
    ]
    if workload.data:
        mounts.append({"name": "data", "mountPath": DATA_PATH, "readOnly": True})
    if settings.workload == "confidential-cluster":
        mounts.append({"name": "ccnp", "mountPath": CCNP_PATH, "readOnly": True})
    variables = {
        **environment(workload, launch),
        "HOME": SCRATCH_PATH,
        "TMPDIR": SCRATCH_PATH,
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    return {
        "name": CONTAINER,
        "image": settings.image,
        "imagePullPolicy": "IfNotPresent",
        "command": list(COMMAND),
        "workingDir": SCRATCH_PATH,
        "env": [{"name": name, "value": value} for name, value in variables.items()],
        "resources": resources,
        "volumeMounts": mounts,
        # The client's output is not read outside; its termination message is in this file.
        "terminationMessagePolicy": "File",
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "privileged": False,
            "readOnlyRootFilesystem": True,
            "runAsNonRoot": True,
            "capabilities": {"drop": ["ALL"]},
            "seccompProfile": {"type": "RuntimeDefault"},
        },
    }


def _amounts(workload: Workload, settings: KubernetesSettings) -> dict[str, str]:
    wanted = workload.spec.resources
    amounts = {
        "cpu": cores(wanted.cpu),
        # The state is a memory volume and part of the pod's memory.
        "memory": f"{wanted.memory_mib + _STATE_MIB}Mi",
    }
    if not settings.devices.scratch_class:
        amounts["ephemeral-storage"] = f"{scratch_mib(workload) + 64}Mi"
    if settings.devices.tee:
        amounts[settings.devices.tee] = "1"
    if wanted.gpu and not settings.devices.gpu_claim:
        if settings.devices.gpu in amounts:
            raise LaunchError(
                "devices.tee and devices.gpu of this site are the same resource",
                hint="correct [kubernetes.devices] in site.toml",
            )
        amounts[settings.devices.gpu] = str(wanted.gpu)
    return amounts


def _gpu_claims(workload: Workload, settings: KubernetesSettings) -> tuple[str, ...]:
    if not settings.devices.gpu_claim:
        return ()
    return tuple(f"gpu-{index}" for index in range(workload.spec.resources.gpu))


def _volumes(workload: Workload, settings: KubernetesSettings) -> list[dict[str, Any]]:
    volumes: list[dict[str, Any]] = [
        {"name": "state", "emptyDir": {"medium": "Memory", "sizeLimit": f"{_STATE_MIB}Mi"}},
        {"name": "scratch", **_scratch(workload, settings)},
    ]
    if workload.data:
        claim = {"claimName": workload.data, "readOnly": True}
        volumes.append({"name": "data", "persistentVolumeClaim": claim})
    if settings.workload == "confidential-cluster":
        place = {"path": str(settings.devices.ccnp_socket), "type": "Directory"}
        volumes.append({"name": "ccnp", "hostPath": place})
    return volumes


def _scratch(workload: Workload, settings: KubernetesSettings) -> dict[str, Any]:
    size = f"{scratch_mib(workload)}Mi"
    if not settings.devices.scratch_class:
        return {"emptyDir": {"sizeLimit": size}}
    return {
        "ephemeral": {
            "volumeClaimTemplate": {
                "spec": {
                    "accessModes": ["ReadWriteOnce"],
                    "storageClassName": settings.devices.scratch_class,
                    "resources": {"requests": {"storage": size}},
                }
            }
        }
    }


def _annotations(workload: Workload, settings: KubernetesSettings) -> dict[str, str]:
    hints = settings.hints
    found = dict(hints.annotations)
    if hints.rdt:
        found["rdt.resources.beta.kubernetes.io/pod"] = hints.rdt
    if hints.blockio:
        found["blockio.resources.beta.kubernetes.io/pod"] = hints.blockio
    if settings.workload == "confidential-containers":
        document = initdata_document(
            image=settings.image, bundle=workload.assignment.bundle, tee=settings.tee
        )
        found[ANNOTATION] = annotation_value(document)
        # The guest's attestation API, through which the client gets its evidence.
        found[_KATA_PARAMETERS] = "agent.guest_components_rest_api=all"
    return found
