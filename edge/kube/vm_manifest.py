"""A client as a confidential virtual machine: KubeVirt's VirtualMachineInstance.

The machine has no console and no login. Its image is a container disk by digest. The environment
of a pod is for a machine in ``/run/fedlearn/client.env``, which cloud-init (NoCloud) writes and
which is not measured, like a pod's environment.
"""

from __future__ import annotations

import json
import math
from typing import Any

from edge.config.kubernetes import KubernetesSettings
from edge.kube.client_object import Launch, environment, object_metadata, placement, scratch_mib
from edge.protocol.workload import Workload
from fedlearn.errors import LaunchError

__all__ = ["virtual_machine"]


def virtual_machine(
    workload: Workload, settings: KubernetesSettings, launch: Launch
) -> dict[str, Any]:
    """Return the machine.

    :raises LaunchError: when GPUs are requested through claims, which KubeVirt does not support.
    """
    wanted = workload.spec.resources
    if wanted.gpu and settings.devices.gpu_claim:
        raise LaunchError(
            "a virtual machine gets GPUs as host devices, not through claims",
            hint="name the device in kubernetes.devices.gpu and leave gpu_claim out",
        )
    disks: list[dict[str, Any]] = [
        {"name": "system", "disk": {"bus": "virtio"}},
        {"name": "environment", "disk": {"bus": "virtio", "readonly": True}},
        {"name": "scratch", "disk": {"bus": "virtio"}},
    ]
    volumes: list[dict[str, Any]] = [
        {"name": "system", "containerDisk": {"image": settings.image}},
        {"name": "environment", "cloudInitNoCloud": {"userData": _cloud_config(workload, launch)}},
        {"name": "scratch", "emptyDisk": {"capacity": f"{scratch_mib(workload)}Mi"}},
    ]
    if workload.data:
        disks.append({"name": "data", "disk": {"bus": "virtio", "readonly": True}})
        volumes.append(
            {
                "name": "data",
                "persistentVolumeClaim": {"claimName": workload.data, "readOnly": True},
            }
        )
    devices: dict[str, Any] = {
        "disks": disks,
        "interfaces": [{"name": "default", "masquerade": {}}],
        "rng": {},
        "autoattachGraphicsDevice": False,
        "autoattachSerialConsole": False,
        "autoattachMemBalloon": False,
    }
    if wanted.gpu:
        devices["gpus"] = [
            {"name": f"gpu-{index}", "deviceName": settings.devices.gpu}
            for index in range(wanted.gpu)
        ]
    memory = f"{wanted.memory_mib}Mi"
    domain = {
        "cpu": {"cores": math.ceil(wanted.cpu), "dedicatedCpuPlacement": False},
        "memory": {"guest": memory},
        "resources": {"requests": {"memory": memory}, "limits": {"memory": memory}},
        "machine": {"type": "q35"},
        # Both TEEs measure the firmware, and need one without a secure boot store.
        "firmware": {"bootloader": {"efi": {"secureBoot": False}}},
        "features": {"smm": {"enabled": False}},
        "launchSecurity": {settings.tee: {}},
        "devices": devices,
    }
    return {
        "apiVersion": "kubevirt.io/v1",
        "kind": "VirtualMachineInstance",
        "metadata": object_metadata(workload, settings, launch),
        "spec": {
            "domain": domain,
            "networks": [{"name": "default", "pod": {}}],
            "volumes": volumes,
            # A confidential machine cannot be migrated live.
            "evictionStrategy": "None",
            "terminationGracePeriodSeconds": math.ceil(launch.grace_s),
            **placement(settings),
        },
    }


def _cloud_config(workload: Workload, launch: Launch) -> str:
    lines = "".join(f"{key}={value}\n" for key, value in environment(workload, launch).items())
    document = {
        "write_files": [
            {"path": "/run/fedlearn/client.env", "permissions": "0400", "content": lines}
        ],
        "ssh_pwauth": False,
        "disable_root": True,
    }
    # JSON is valid YAML.
    return "#cloud-config\n" + json.dumps(document, sort_keys=True)
