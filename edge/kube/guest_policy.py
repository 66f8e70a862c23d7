"""The policy of a guest's kata agent: which requests of the host a confidential pod accepts.

Rego, package ``agent_policy``, as the kata agent evaluates it on every request. It is part of
the initdata and so of the evidence: a guest with another policy has other evidence. The host may
start and end the pod's container. It gets no shell, no output and no swap; it cannot set a
variable, mount, hook or file that would add code.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from typing import Final

from fedlearn.errors import ConfigError

__all__ = ["COMMAND", "guest_policy"]

COMMAND: Final = ("python", "-I", "-m", "edge.client.pod_main")
"""What a client's container runs; the policy allows nothing else. Isolated mode (``-I``): no
variable and no file of the working folder changes what is imported."""

_WRITABLE: Final = re.compile(r"[A-Za-z0-9._:/@+=-]{1,500}")
_ALLOWED: Final = (
    "AddARPNeighbors",
    "CloseStdin",
    "CreateSandbox",
    "DestroySandbox",
    "GetMetrics",
    "GetOOMEvent",
    "GuestDetails",
    "ListInterfaces",
    "ListRoutes",
    "MemHotplugByProbe",
    "OnlineCPUMem",
    "PauseContainer",
    "PullImage",
    "RemoveContainer",
    "RemoveStaleVirtiofsShareMounts",
    "ReseedRandomDev",
    "ResumeContainer",
    "SetGuestDateTime",
    "SignalProcess",
    "StartContainer",
    "StatsContainer",
    "TtyWinResize",
    "UpdateContainer",
    "UpdateEphemeralMounts",
    "UpdateInterface",
    "UpdateRoutes",
    "WaitProcess",
)
_REFUSED: Final = (
    "AddSwap",  # memory would leave the guest
    "CopyFile",  # except files of the pod's mounts
    "CreateContainer",  # except the containers below
    "ExecProcess",  # nobody gets a shell
    "ReadStream",  # nobody reads what the client writes
    "SetPolicy",  # nobody replaces this policy
    "StartTracing",
    "StopTracing",
    "WriteStream",
)
_RULES: Final = r"""
# The pod's sandbox: the guest's own pause image.
CreateContainerRequest if {
  input.OCI.Annotations["io.kubernetes.cri.container-type"] == "sandbox"
  input.OCI.Process.Args == ["/pause"]
  pulled("pause")
  harmless
}

# The client.
CreateContainerRequest if {
  input.OCI.Annotations["io.kubernetes.cri.container-type"] == "container"
  input.OCI.Process.Args == [@ARGUMENTS@]
  pulled("@IMAGE@")
  harmless
}

CopyFileRequest if {
  regex.match(`^/run/kata-containers/shared/containers/[A-Za-z0-9._/-]+$`, input.path)
  not contains(input.path, "..")
}

# The guest itself pulls the image, and checks its digest.
pulled(image) if {
  some storage in input.storages
  storage.driver == "image_guest_pull"
  storage.source == image
}

# Nothing around the container brings in code.
harmless if {
  no_hooks
  every storage in input.storages { allowed_storage(storage) }
  every mount in input.OCI.Mounts { mount.destination in allowed_mounts }
  every variable in input.OCI.Process.Env { allowed_variable(variable) }
}

no_hooks if not input.OCI.Hooks
no_hooks if is_null(input.OCI.Hooks)

allowed_storage(storage) if {
  storage.driver == "image_guest_pull"
  storage.source in {"pause", "@IMAGE@"}
}

allowed_storage(storage) if {
  storage.driver != "image_guest_pull"
  regex.match(`^/run/kata-containers/(sandbox|shared)/[A-Za-z0-9._=/-]+$`, storage.mount_point)
  not contains(storage.mount_point, "..")
}

allowed_mounts := {
  "/data",
  "/dev",
  "/dev/mqueue",
  "/dev/pts",
  "/dev/shm",
  "/dev/termination-log",
  "/etc/hostname",
  "/etc/hosts",
  "/etc/resolv.conf",
  "/proc",
  "/run/confidential-containers",
  "/scratch",
  "/state",
  "/sys",
  "/sys/fs/cgroup",
}

allowed_variable(variable) if {
  some pattern in allowed_variables
  regex.match(pattern, variable)
}

allowed_variables := {
  `^FEDLEARN_[A-Z_]+=[^\n]*$`,
  `^FLWR_(TELEMETRY_ENABLED=0|DISABLE_UPDATE_CHECK=1)$`,
  `^(HOME|TMPDIR)=/scratch$`,
  `^HOSTNAME=[a-z0-9.-]*$`,
  `^KUBERNETES_[A-Z0-9_]+=[a-z0-9.:/\[\]-]*$`,
  `^(LANG|LC_ALL)=[A-Za-z0-9._-]+$`,
  `^(OMP|MKL|OPENBLAS)_NUM_THREADS=[0-9]+$`,
  `^PATH=(/(usr|opt|bin|sbin)(/[a-z0-9_-]+)*:?)+$`,
  `^PYTHON(DONTWRITEBYTECODE|UNBUFFERED)=1$`,
  `^TERM=[a-z0-9-]+$`,
}
"""


@functools.lru_cache(maxsize=64)
def guest_policy(image: str, command: Sequence[str] = COMMAND) -> str:
    """Return the policy for a client ``image`` (by digest) that runs ``command``.

    :raises ConfigError: for a text that a policy cannot contain.
    """
    for item in (image, *command):
        if not _WRITABLE.fullmatch(item):
            raise ConfigError(f"{item[:80]!r} cannot be part of the guest's policy", key="image")
    rules = _RULES.replace("@ARGUMENTS@", ", ".join(f'"{item}"' for item in command))
    lines = [
        "package agent_policy",
        "",
        "import future.keywords.every",
        "import future.keywords.if",
        "import future.keywords.in",
        "",
        *(f"default {name}Request := true" for name in _ALLOWED),
        *(f"default {name}Request := false" for name in _REFUSED),
    ]
    return "\n".join(lines) + "\n" + rules.replace("@IMAGE@", image)
