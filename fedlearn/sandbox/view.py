"""A file system of its own for a sandbox: only the folders that it is given, and its own /proc.

What is not in it has no path: no other job's folder, no socket of a service, no process outside.
It is made in a new mount namespace, before user code runs.
"""

from __future__ import annotations

import errno
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
_FLAGS: Final = kernel.MS_NOSUID | kernel.MS_NODEV
_MAX_LINKS: Final = 40
_MOUNT_POINTS: Final = tuple(
    map(Path, ("/mnt", "/media", "/srv", "/boot", "/opt", "/home", "/run", "/var/opt"))
)
_HARMLESS: Final = kernel.MOUNT_ATTR_NOSUID | kernel.MOUNT_ATTR_NODEV


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """What is visible, each path under the same name as outside.

    ``temporary``     is at :data:`TEMPORARY`
    ``shared_memory`` the size of /dev/shm in bytes, which is empty at first
    """

    readable: Iterable[Path]
    writable: Iterable[Path]
    devices: Iterable[Path]
    temporary: Path
    shared_memory: int
    thread_names: bool = False


def enter(view: View) -> None:
    """Change to a new root. Paths that do not exist are left out.

    :raises OSError: when the kernel does not permit it; the old root is unchanged then.
    """
    root = _mount_point(view)
    kernel.make_private(Path("/"))
    kernel.mount("tmpfs", root, flags=_FLAGS, options="size=1m,mode=0755")
    mask = os.umask(0o022)  # another user must be able to search the new root
    try:
        _fill(root, view)
        old = root / _OLD.name
        old.mkdir()
        kernel.set_mount_flags(root, 0, below=False)  # a kernel without it fails here
        kernel.pivot_root(root, old)
    except OSError:
        kernel.unmount(root)
        raise
    finally:
        os.umask(mask)
    os.chdir("/")
    kernel.unmount(_OLD)
    _OLD.rmdir()
    kernel.set_mount_flags(Path("/"), kernel.MOUNT_ATTR_RDONLY, below=False)


def _mount_point(view: View) -> Path:
    """Return a folder of the old root that contains no path of the view."""
    shown = [Path(path) for path in (*view.readable, *view.writable, *view.devices)]
    shown.append(view.temporary)
    for path in _MOUNT_POINTS:
        if path.is_dir() and not any(each.is_relative_to(path) for each in shown):
            return path
    raise OSError(errno.EBUSY, f"no folder for a new root: {', '.join(map(str, _MOUNT_POINTS))}")


def _fill(root: Path, view: View) -> None:
    # First: a path of the view may be below it.
    shared = root / "dev/shm"
    shared.mkdir(parents=True)
    kernel.mount("tmpfs", shared, flags=_FLAGS, options=f"size={view.shared_memory},mode=1777")
    for path in view.readable:
        _show(root, path, _HARMLESS | kernel.MOUNT_ATTR_RDONLY)
    for path in view.writable:
        _show(root, path, _HARMLESS)
    for path in view.devices:
        _show(root, path, kernel.MOUNT_ATTR_NOSUID)
    temporary = _below(root, TEMPORARY)
    temporary.mkdir()
    _bind(view.temporary, temporary, _HARMLESS)
    usual = _below(root, _USUAL)
    if not os.path.lexists(usual):
        usual.symlink_to(TEMPORARY)
    for name, target in (("fd", "fd"), ("stdin", "fd/0"), ("stdout", "fd/1"), ("stderr", "fd/2")):
        (root / "dev" / name).symlink_to(f"/proc/self/{target}")
    proc = root / "proc"
    proc.mkdir(exist_ok=True)
    flags = _FLAGS | kernel.MS_NOEXEC
    if not view.thread_names:
        kernel.mount("proc", proc, flags=flags | kernel.MS_RDONLY)
        return
    kernel.mount("proc", proc, flags=flags)
    for entry in proc.iterdir():
        # The command and its children have no entry yet, and theirs alone can be written.
        if not entry.is_symlink():
            _bind(entry, entry, _HARMLESS | kernel.MOUNT_ATTR_RDONLY)


def _show(root: Path, path: Path, attributes: int) -> None:
    found = _placed(root, path)
    if found is None:
        return
    target = _below(root, found)
    if not os.path.lexists(target):
        if found.is_dir():
            target.mkdir()
        else:
            target.touch()
    _bind(found, target, attributes)


def _bind(source: Path, target: Path, attributes: int) -> None:
    kernel.bind(source, target)
    kernel.set_mount_flags(target, attributes)


def _below(root: Path, path: Path) -> Path:
    return root / path.relative_to("/")


def _placed(root: Path, path: Path) -> Path | None:
    """Make the folders and links of ``path``; return the real path.

    None when there is no such path.
    """
    current, rest = Path("/"), list(path.parts[1:])
    links = 0
    while rest:
        current = current / rest.pop(0)
        target = _below(root, current)
        if current.is_symlink():
            links += 1
            if links > _MAX_LINKS:
                return None
            link = current.readlink()
            if not os.path.lexists(target):
                target.symlink_to(link)
            joined = Path(os.path.normpath(current.parent / link))
            current, rest = Path("/"), [*joined.parts[1:], *rest]
        elif not current.exists():
            return None
        elif rest and not os.path.lexists(target):
            target.mkdir(mode=0o755)
    return current
