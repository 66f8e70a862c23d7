"""The few system calls that Python's standard library does not have.

Numbers and constants are those of Linux's UAPI headers (``linux/prctl.h``, ``linux/sched.h``,
``linux/mount.h``, ``linux/capability.h``, ``asm/unistd.h``) for x86-64 and AArch64.
"""

from __future__ import annotations

import ctypes
import os
import platform
from pathlib import Path
from typing import Final

__all__ = [
    "AUDIT_ARCH",
    "CLONE_NEWIPC",
    "CLONE_NEWNET",
    "CLONE_NEWNS",
    "CLONE_NEWPID",
    "CLONE_NEWUSER",
    "MACHINE",
    "bind",
    "clone",
    "drop_capabilities",
    "end_with_parent",
    "make_private",
    "mount",
    "no_new_privileges",
    "not_dumpable",
    "pivot_root",
    "prctl",
    "set_mount_flags",
    "syscall",
    "unmount",
]

MACHINE: Final = platform.machine()

AUDIT_ARCH: Final = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
"""``AUDIT_ARCH_*`` of the machines that the system call tables here are for."""

CLONE_NEWNS: Final = 0x00020000
CLONE_NEWIPC: Final = 0x08000000
CLONE_NEWUSER: Final = 0x10000000
CLONE_NEWPID: Final = 0x20000000
CLONE_NEWNET: Final = 0x40000000

_SIGCHLD: Final = 17
_NUMBERS: Final = {
    "x86_64": {"clone": 56, "capset": 126, "pivot_root": 155},
    "aarch64": {"clone": 220, "capset": 91, "pivot_root": 41},
}
_MOUNT_SETATTR: Final = 442
_PR_SET_PDEATHSIG: Final = 1
_PR_SET_DUMPABLE: Final = 4
_PR_CAPBSET_READ: Final = 23
_PR_CAPBSET_DROP: Final = 24
PR_SET_CHILD_SUBREAPER: Final = 36
_PR_SET_NO_NEW_PRIVS: Final = 38
_PR_CAP_AMBIENT: Final = 47
_PR_CAP_AMBIENT_CLEAR_ALL: Final = 4
_CAPABILITY_VERSION_3: Final = 0x20080522
_SIGKILL: Final = 9
_CAP_CHOWN: Final = 0
_CAP_SETGID: Final = 6
_CAP_SETUID: Final = 7

MS_RDONLY: Final = 0x1
MS_NOSUID: Final = 0x2
MS_NODEV: Final = 0x4
MS_NOEXEC: Final = 0x8
MS_BIND: Final = 0x1000
MS_REC: Final = 0x4000
MS_PRIVATE: Final = 0x40000
MNT_DETACH: Final = 0x2

MOUNT_ATTR_RDONLY: Final = 0x1
MOUNT_ATTR_NOSUID: Final = 0x2
MOUNT_ATTR_NODEV: Final = 0x4
_AT_RECURSIVE: Final = 0x8000
_AT_FDCWD: Final = -100

_LIBC: Final = ctypes.CDLL(None, use_errno=True)
_LIBC.syscall.restype = ctypes.c_long


def syscall(number: int, *arguments: int | bytes | ctypes.Array[ctypes.c_char] | None) -> int:
    """Make one system call.

    :raises OSError: with the error of the kernel.
    """
    plain = [ctypes.c_long(each) if isinstance(each, int) else each for each in arguments]
    found: int = _LIBC.syscall(ctypes.c_long(number), *plain)
    if found == -1:
        _raise(f"system call {number}")
    return found


def prctl(option: int, second: int = 0, third: int = 0) -> int:
    """Call ``prctl(2)``.

    :raises OSError: with the error of the kernel.
    """
    zero = ctypes.c_ulong(0)
    found: int = _LIBC.prctl(option, ctypes.c_ulong(second), ctypes.c_ulong(third), zero, zero)
    if found == -1:
        _raise(f"prctl {option}")
    return found


def clone(flags: int) -> int:
    """Fork into new namespaces; return 0 in the child.

    For a process with a single thread only: no handler of ``os.register_at_fork`` runs.

    :raises OSError: when the kernel does not permit it.
    """
    return syscall(_number("clone"), flags | _SIGCHLD, 0, 0, 0, 0)


def may_change_user() -> bool:
    """Return whether this process may take another user id and give files to it."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("CapEff:"):
            held = int(line.split()[1], 16)
            return all(held >> each & 1 for each in (_CAP_CHOWN, _CAP_SETGID, _CAP_SETUID))
    return False


def end_with_parent() -> None:
    """Let the kernel kill this process when the thread that started it ends."""
    prctl(_PR_SET_PDEATHSIG, _SIGKILL)


def not_dumpable() -> None:
    """Keep processes of the same user from tracing this one and from reading its memory."""
    prctl(_PR_SET_DUMPABLE, 0)


def no_new_privileges() -> None:
    """Disable the privileges of set-user-ID programs for this process and its children."""
    prctl(_PR_SET_NO_NEW_PRIVS, 1)


def drop_capabilities() -> None:
    """Drop every capability, and what would add one at the next ``execve``.

    The bounding set needs CAP_SETPCAP; without it ``no_new_privileges`` does the same.
    """
    capability = 0
    while True:
        try:
            if prctl(_PR_CAPBSET_READ, capability):
                prctl(_PR_CAPBSET_DROP, capability)
        except PermissionError:
            break
        except OSError:  # past the last one that this kernel knows
            break
        capability += 1
    prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL)
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0)
    sets = (ctypes.c_uint32 * 6)()
    if _LIBC.syscall(ctypes.c_long(_number("capset")), header, sets) == -1:
        _raise("capset")


def mount(kind: str, target: Path, *, flags: int = 0, options: str = "") -> None:
    """Mount a file system of ``kind`` (``tmpfs``, ``proc``).

    :raises OSError: when the kernel does not permit it.
    """
    _mount(kind.encode(), target, kind.encode(), flags, options.encode())


def bind(source: Path, target: Path) -> None:
    """Bind-mount ``source``, with what is mounted below it, at ``target``.

    :raises OSError: when the kernel does not permit it.
    """
    _mount(os.fsencode(source), target, None, MS_BIND | MS_REC, None)


def make_private(target: Path) -> None:
    """Separate the mounts below ``target`` from those of other namespaces.

    :raises OSError: when the kernel does not permit it.
    """
    _mount(None, target, None, MS_REC | MS_PRIVATE, None)


def set_mount_flags(target: Path, attributes: int, *, below: bool = True) -> None:
    """Add ``MOUNT_ATTR_*`` to a mount and, with ``below``, to all below it.

    ``mount_setattr``, Linux 5.12.

    :raises OSError: when the kernel does not permit it.
    """
    fields = (ctypes.c_uint64 * 4)(attributes, 0, 0, 0)
    path = ctypes.c_char_p(os.fsencode(target))
    found = _LIBC.syscall(
        ctypes.c_long(_MOUNT_SETATTR),
        ctypes.c_long(_AT_FDCWD),
        path,
        ctypes.c_ulong(_AT_RECURSIVE if below else 0),
        ctypes.byref(fields),
        ctypes.c_ulong(ctypes.sizeof(fields)),
    )
    if found == -1:
        _raise(f"mount_setattr {target}")


def pivot_root(new: Path, old: Path) -> None:
    """Make ``new`` the root of this mount namespace, and the former root appear at ``old``.

    :raises OSError: when the kernel does not permit it.
    """
    found = _LIBC.syscall(
        ctypes.c_long(_number("pivot_root")),
        ctypes.c_char_p(os.fsencode(new)),
        ctypes.c_char_p(os.fsencode(old)),
    )
    if found == -1:
        _raise(f"pivot_root {new}")


def unmount(target: Path) -> None:
    """Unmount a mount, with all below it, in this namespace.

    :raises OSError: when the kernel does not permit it.
    """
    if _LIBC.umount2(os.fsencode(target), MNT_DETACH) == -1:
        _raise(f"umount {target}")


def _mount(
    source: bytes | None, target: Path, kind: bytes | None, flags: int, options: bytes | None
) -> None:
    found = _LIBC.mount(source, os.fsencode(target), kind, ctypes.c_ulong(flags), options)
    if found == -1:
        _raise(f"mount {target}")


def _number(name: str) -> int:
    try:
        return _NUMBERS[MACHINE][name]
    except KeyError:
        raise OSError(38, f"the number of {name} is not known for {MACHINE}") from None


def _raise(what: str) -> None:
    number = ctypes.get_errno()
    raise OSError(number, f"{what}: {os.strerror(number)}")
