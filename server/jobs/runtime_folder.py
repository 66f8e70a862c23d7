"""The folder of what exists only while a coordinator runs: sockets, and the folders of apps.

A job's app is unpacked there and writes its own files there, in the clear: they are sealed when the
app has ended. So the folder should be in memory. ``RUNTIME_DIRECTORY`` names it, as systemd and the
chart do; otherwise it is in the state directory.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Final

__all__ = ["in_memory", "make_runtime_folder", "runtime_folder"]

_MOUNTS: Final = Path("/proc/self/mountinfo")
_MEMORY: Final = frozenset({"ramfs", "tmpfs"})


def runtime_folder(state: Path) -> Path:
    """Return the folder of a coordinator whose state is in ``state``."""
    return Path(os.environ.get("RUNTIME_DIRECTORY", state)).absolute() / "run"


def make_runtime_folder(state: Path) -> Path:
    """Make the folder anew, for this user alone; what a coordinator that was killed left goes.

    :raises OSError: when it cannot be made.
    """
    folder = runtime_folder(state)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(mode=0o700)
    return folder


def in_memory(folder: Path) -> bool:
    """Return whether ``folder`` is on a file system that the kernel keeps in memory.

    The kernel's list of mounts is in proc(5): the third field is the device, and the type follows
    the separator ``-``. The answer is for a warning: swap is not looked at.
    """
    device = folder.stat().st_dev
    wanted = f"{os.major(device)}:{os.minor(device)}"
    for line in _MOUNTS.read_text(errors="replace").splitlines():
        fields, _, rest = line.partition(" - ")
        if fields.split(" ")[2:3] == [wanted]:
            return rest.split(" ")[0] in _MEMORY
    return False
