"""The request to the supervisor of a sandbox, and what its processes share."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from fedlearn.sandbox.spec import Protection, Sandbox

__all__ = ["DEVICES", "FAILED", "Applied", "Request", "send_status"]

FAILED: Final = 98
"""Exit status of a process that could not execute the command."""

DEVICES: Final = tuple(
    map(Path, ("/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom"))
)
"""The devices of every sandbox."""


@dataclass(frozen=True, slots=True)
class Request:
    """The command, its sandbox, the paths of the interpreter, and the descriptors it gets."""

    argv: list[str]
    env: dict[str, str]
    cwd: str
    sandbox: Sandbox
    system: list[Path]
    listable: list[Path]
    keep: list[int]

    @classmethod
    def read(cls, descriptor: int) -> Request:
        """Return what :func:`fedlearn.sandbox.spawn.spawn` wrote, and close ``descriptor``."""
        with os.fdopen(descriptor, "rb") as source:
            document = json.load(source)
        return cls(
            argv=document["argv"],
            env=document["env"],
            cwd=document["cwd"],
            sandbox=Sandbox.from_json(document["sandbox"]),
            system=list(map(Path, document["system"])),
            listable=list(map(Path, document["listable"])),
            keep=document["keep"],
        )


@dataclass(slots=True)
class Applied:
    """What was applied so far, by name, and why the rest was not."""

    applied: list[Protection] = field(default_factory=list)
    missing: dict[Protection, str] = field(default_factory=dict)

    def attempt(self, name: Protection, action: Callable[[], object]) -> bool:
        """Apply a protection; return whether the kernel applied it."""
        try:
            action()
        except OSError as error:
            self.missing[name] = error.strerror or str(error)
            return False
        self.applied.append(name)
        return True


def send_status(status: int, document: Mapping[str, Any]) -> None:
    """Write one line of the status, which :mod:`fedlearn.sandbox.spawn` reads."""
    os.write(status, json.dumps(document).encode() + b"\n")
