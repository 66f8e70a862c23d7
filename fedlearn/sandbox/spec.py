"""The specification of a sandbox, and the report of what was applied."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Final

from fedlearn.errors import FedlearnError

__all__ = ["FULL", "Protection", "Sandbox", "SandboxError", "SandboxReport"]

_MIB: Final = 1024 * 1024
_GIB: Final = 1024 * _MIB


class SandboxError(FedlearnError):
    """A process could not be started in its sandbox, or the sandbox ended it."""

    code: ClassVar[str] = "sandbox"


class Protection(enum.StrEnum):
    """One protection; the kernel determines which of them are available."""

    CAPABILITIES = "capabilities"
    """No capability, and no program that adds one."""
    USER = "user"
    """Another user id than that of the process that started it."""
    PROCESSES = "pid-namespace"
    """It sees no process outside, and all of its processes end with the first one."""
    NETWORK = "network-namespace"
    """It has no network interface, and no abstract socket of others."""
    FILES = "mount-namespace"
    """Only the given folders exist, and ``/proc`` and ``/dev/shm`` are its own."""
    LANDLOCK = "landlock"
    """It can open files in the given folders only."""
    LANDLOCK_NETWORK = "landlock-network"
    """No TCP."""
    LANDLOCK_SCOPE = "landlock-scope"
    """No signal to a process outside, and no abstract socket of others."""
    SECCOMP = "seccomp"
    """None of the system calls of :data:`fedlearn.sandbox.seccomp.DENIED`."""


FULL: Final = frozenset(Protection) - {Protection.USER}
"""What ``sandbox = "full"`` requires. Another user, which only root can set, is added to it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sandbox:
    """What processes in a sandbox may access and use; everything else is denied.

    Besides these paths, a sandbox can read the system's libraries and those of this Python.

    ``writable``      folders; the first holds the temporary folder. They belong to the
                      sandbox alone: with ``user`` set, their files are given to that user
    ``readable``      files, and folders with all that is in them
    ``devices``       device files that may be opened and controlled (``/dev/nvidia0``)
    ``thread_names``  whether a process may write the names of its threads in ``/proc``, without
                      which the driver of CUDA does not start
    ``memory_bytes``  for all of its processes together
    ``processes``     processes and threads, together
    ``cpu_seconds``   processor time of each process; None for no bound
    ``open_files``    open files of each process
    ``disk_bytes``    in all writable folders together
    ``user``          the user and group id to change to, if permitted; None for no change
    ``required``      protections without which the process is not started
    """

    writable: tuple[Path, ...]
    readable: tuple[Path, ...] = ()
    devices: tuple[Path, ...] = ()
    thread_names: bool = False
    memory_bytes: int = 4 * _GIB
    processes: int = 512
    cpu_seconds: int | None = None
    open_files: int = 4096
    disk_bytes: int = 16 * _GIB
    user: int | None = None
    required: frozenset[Protection] = frozenset()

    def __post_init__(self) -> None:
        """Check that the paths are absolute and that the bounds are positive."""
        if not self.writable:
            raise ValueError("a sandbox has at least one writable folder")
        for path in (*self.writable, *self.readable, *self.devices):
            if not path.is_absolute():
                raise ValueError(f"{path}: a path of a sandbox is absolute")
        bounds = (self.memory_bytes, self.processes, self.open_files, self.disk_bytes)
        if min(bounds) <= 0 or (self.cpu_seconds is not None and self.cpu_seconds <= 0):
            raise ValueError("the bounds of a sandbox are positive")

    def to_json(self) -> dict[str, Any]:
        """Return the values as JSON."""
        return {
            "writable": list(map(str, self.writable)),
            "readable": list(map(str, self.readable)),
            "devices": list(map(str, self.devices)),
            "thread_names": self.thread_names,
            "memory_bytes": self.memory_bytes,
            "processes": self.processes,
            "cpu_seconds": self.cpu_seconds,
            "open_files": self.open_files,
            "disk_bytes": self.disk_bytes,
            "user": self.user,
            "required": sorted(self.required),
        }

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Sandbox:
        """Return what :meth:`to_json` wrote."""
        values = dict(document)
        for name in ("writable", "readable", "devices"):
            values[name] = tuple(map(Path, document[name]))
        values["required"] = frozenset(map(Protection, document["required"]))
        return cls(**values)


@dataclass(frozen=True, slots=True, kw_only=True)
class SandboxReport:
    """What is in force in a sandbox.

    ``applied``  the protections in force
    ``missing``  each other one, with the reason
    ``abi``      the version of the kernel's Landlock; 0 for none
    """

    applied: frozenset[Protection]
    missing: Mapping[Protection, str] = field(default_factory=dict)
    abi: int = 0

    @property
    def full(self) -> bool:
        """Whether all of :data:`FULL` is in force."""
        return self.applied >= FULL

    def __str__(self) -> str:
        """Return one line for a log."""
        found = f"in force: {', '.join(sorted(self.applied)) or 'nothing'}"
        if self.abi:
            found += f" (Landlock ABI {self.abi})"
        if self.missing:
            reasons = "; ".join(f"{name}: {why}" for name, why in sorted(self.missing.items()))
            found += f"; not in force: {reasons}"
        return found
