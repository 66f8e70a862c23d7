"""A file system of its own for a sandbox: only the folders that it is given, and its own /proc.

What is not in it cannot be named: no other job's folder, no socket of a service, no process
outside. It is made in a new mount namespace, before user code runs.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from fedlearn.sandbox import kernel

__all__ = ["TEMPORARY", "View", "enter"]

TEMPORARY: Final = Path("/t")
"""Where the temporary folder is in a view: short, as the path of a socket has 107 bytes."""

_USUAL: Final = Path("/tmp")  # noqa: S108  where a program may look that ignores TMPDIR
_OLD: Final = Path("/.old")
_HARMLESS: Final = kernel.MOUNT_ATTR_NOSUID | kernel.MOUNT_ATTR_NODEV


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """What appears, each under the name that it has outside.

    ``temporary``     appears at :data:`TEMPORARY`
    ``shared_memory`` the size of /dev/shm in bytes, which is empty at first
    """

    readable: Iterable[Path]
    writable: Iterable[Path]
    devices: Iterable[Path]
    temporary: Path
    shared_memory: int


def enter(view: View, *, at: Path) -> None:
    """Make a new root and leave the old one. Paths that do not exist are left out.

    :param at: an existing folder; the new root is mounted over it, in this namespace only.
    :raises OSError: when the kernel does not let us; the namespace is of no use then.
    """
    kernel.make_private(Path("/"))
    kernel.mount("tmpfs", at, flags=_mount_flags(), options="size=1m,mode=0755")
    (at / _OLD.name).mkdir()
    kernel.pivot_root(at, at / _OLD.name)
    os.chdir("/")
    for path in view.readable:
        _show(path, _HARMLESS | kernel.MOUNT_ATTR_RDONLY)
    for path in view.writable:
        _show(path, _HARMLESS)
    for path in view.devices:
        _show(path, kernel.MOUNT_ATTR_NOSUID)
    TEMPORARY.mkdir()
    _bind(_OLD / view.temporary.relative_to("/"), TEMPORARY, _HARMLESS)
    if not os.path.lexists(_USUAL):
        _USUAL.symlink_to(TEMPORARY)
    shared = Path("/dev/shm")  # noqa: S108  the place that POSIX shared memory has on Linux
    shared.mkdir(parents=True)
    kernel.mount(
        "tmpfs", shared, flags=_mount_flags(), options=f"size={view.shared_memory},mode=1777"
    )
    for name, target in (("fd", "fd"), ("stdin", "fd/0"), ("stdout", "fd/1"), ("stderr", "fd/2")):
        Path("/dev", name).symlink_to(f"/proc/self/{target}")
    Path("/proc").mkdir(exist_ok=True)
    kernel.mount("proc", Path("/proc"), flags=_mount_flags() | kernel.MS_NOEXEC | kernel.MS_RDONLY)
    kernel.unmount(_OLD)
    _OLD.rmdir()
    kernel.set_mount_flags(Path("/"), kernel.MOUNT_ATTR_RDONLY, below=False)


def _mount_flags() -> int:
    return kernel.MS_NOSUID | kernel.MS_NODEV


def _show(path: Path, attributes: int) -> None:
    found = _placed(path)
    if found is None:
        return
    target, folder = found
    if not os.path.lexists(target):
        if folder:
            target.mkdir()
        else:
            target.touch()
    _bind(_OLD / target.relative_to("/"), target, attributes)


def _bind(source: Path, target: Path, attributes: int) -> None:
    kernel.bind(source, target)
    kernel.set_mount_flags(target, attributes)


def _placed(path: Path) -> tuple[Path, bool] | None:
    """Make the folders and links on the way to ``path``; return where it really is.

    None when there is no such path.
    """
    current, rest = Path("/"), list(path.parts[1:])
    links = 0
    while rest:
        current = current / rest.pop(0)
        old = _OLD / current.relative_to("/")
        if old.is_symlink():
            links += 1
            if links > 40:
                return None
            target = old.readlink()
            if not os.path.lexists(current):
                current.symlink_to(target)
            joined = Path(os.path.normpath(current.parent / target))
            current, rest = Path("/"), [*joined.parts[1:], *rest]
        elif not old.exists():
            return None
        elif rest and not os.path.lexists(current):
            current.mkdir(mode=0o755)
    return current, (_OLD / current.relative_to("/")).is_dir()
