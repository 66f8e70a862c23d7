"""The system calls that user code may not make: a BPF program for seccomp.

It denies a list of calls and allows the others, because numerical libraries and drivers use calls
that a list of allowed ones would miss. Denied are calls that act on other processes, the network,
the kernel or its configuration, and calls that make namespaces in which a process has capabilities
again. Calls that are newer than Linux 6.15 fail with ENOSYS.

Source: ``linux/seccomp.h``, ``linux/bpf_common.h``, and the system call tables of Linux for
x86-64 (``syscall_64.tbl``) and AArch64 (``scripts/syscall.tbl``).
"""

from __future__ import annotations

import ctypes
import errno
import socket
import struct
from collections.abc import Iterable
from typing import Final

from fedlearn.sandbox.kernel import AUDIT_ARCH, MACHINE, prctl

__all__ = ["DENIED", "install", "program"]

_NEWEST: Final = 467
_PR_SET_SECCOMP: Final = 22
_MODE_FILTER: Final = 2
_X32_BIT: Final = 0x40000000

_LOAD: Final = 0x20  # BPF_LD | BPF_W | BPF_ABS
_EQUAL: Final = 0x15  # BPF_JMP | BPF_JEQ | BPF_K
_GREATER: Final = 0x25  # BPF_JMP | BPF_JGT | BPF_K
_ANY_BIT: Final = 0x45  # BPF_JMP | BPF_JSET | BPF_K
_RETURN: Final = 0x06  # BPF_RET | BPF_K
_ALLOW: Final = 0x7FFF0000
_KILL: Final = 0x80000000
_ERROR: Final = 0x00050000

_NUMBER: Final = 0
_ARCH: Final = 4
_FIRST_ARGUMENT: Final = 16
_SECOND_ARGUMENT: Final = 24

# Every CLONE_NEW* flag that clone() knows.
_NAMESPACES: Final = 0x7E020000
_TIOCSTI: Final = 0x5412
_TIOCLINUX: Final = 0x541C

_SAME: Final = {
    "io_uring_setup": 425,
    "io_uring_enter": 426,
    "io_uring_register": 427,
    "open_tree": 428,
    "move_mount": 429,
    "fsopen": 430,
    "fsconfig": 431,
    "fsmount": 432,
    "fspick": 433,
    "pidfd_getfd": 438,
    "process_madvise": 440,
    "mount_setattr": 442,
    "quotactl_fd": 443,
    "memfd_secret": 447,
    "process_mrelease": 448,
    "open_tree_attr": 467,
}
_BOTH: Final = {
    "acct": (163, 89),
    "add_key": (248, 217),
    "adjtimex": (159, 171),
    "bpf": (321, 280),
    "chroot": (161, 51),
    "clock_adjtime": (305, 266),
    "clock_settime": (227, 112),
    "delete_module": (176, 106),
    "fanotify_init": (300, 262),
    "fanotify_mark": (301, 263),
    "finit_module": (313, 273),
    "init_module": (175, 105),
    "kcmp": (312, 272),
    "kexec_file_load": (320, 294),
    "kexec_load": (246, 104),
    "keyctl": (250, 219),
    "lookup_dcookie": (212, 18),
    "migrate_pages": (256, 238),
    "mount": (165, 40),
    "move_pages": (279, 239),
    "msgctl": (71, 187),
    "msgget": (68, 186),
    "msgrcv": (70, 188),
    "msgsnd": (69, 189),
    "name_to_handle_at": (303, 264),
    "nfsservctl": (180, 42),
    "open_by_handle_at": (304, 265),
    "perf_event_open": (298, 241),
    "personality": (135, 92),
    "pivot_root": (155, 41),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "ptrace": (101, 117),
    "quotactl": (179, 60),
    "reboot": (169, 142),
    "request_key": (249, 218),
    "semctl": (66, 191),
    "semget": (64, 190),
    "semop": (65, 193),
    "semtimedop": (220, 192),
    "setdomainname": (171, 162),
    "sethostname": (170, 161),
    "setns": (308, 268),
    "settimeofday": (164, 170),
    "shmat": (30, 196),
    "shmctl": (31, 195),
    "shmdt": (67, 197),
    "shmget": (29, 194),
    "swapoff": (168, 225),
    "swapon": (167, 224),
    "syslog": (103, 116),
    "umount2": (166, 39),
    "unshare": (272, 97),
    "userfaultfd": (323, 282),
    "vhangup": (153, 58),
}
_X86_ONLY: Final = {
    "_sysctl": 156,
    "create_module": 174,
    "get_kernel_syms": 177,
    "ioperm": 173,
    "iopl": 172,
    "modify_ldt": 154,
    "query_module": 178,
    "sysfs": 139,
    "uselib": 134,
    "ustat": 136,
}
_FILTERED: Final = {
    "x86_64": {"clone": 56, "ioctl": 16, "socket": 41, "socketpair": 53},
    "aarch64": {"clone": 220, "ioctl": 29, "socket": 198, "socketpair": 199},
}
# Calls whose first argument is the process that they act on.
_DIRECTED: Final = {
    "x86_64": {
        "kill": 62,
        "pidfd_open": 434,
        "prlimit64": 302,
        "rt_sigqueueinfo": 129,
        "rt_tgsigqueueinfo": 297,
        "sched_setaffinity": 203,
        "sched_setattr": 314,
        "sched_setparam": 142,
        "sched_setscheduler": 144,
        "tgkill": 234,
        "tkill": 200,
    },
    "aarch64": {
        "kill": 129,
        "pidfd_open": 434,
        "prlimit64": 261,
        "rt_sigqueueinfo": 138,
        "rt_tgsigqueueinfo": 240,
        "sched_setaffinity": 122,
        "sched_setattr": 274,
        "sched_setparam": 118,
        "sched_setscheduler": 119,
        "tgkill": 131,
        "tkill": 130,
    },
}
_EVERYBODY: Final = 0xFFFFFFFF
_CLONE3: Final = 435

DENIED: Final = {
    "x86_64": _SAME | {name: pair[0] for name, pair in _BOTH.items()} | _X86_ONLY,
    "aarch64": _SAME | {name: pair[1] for name, pair in _BOTH.items()},
}
"""The calls that fail with EPERM for any arguments, by machine."""


def program(machine: str = MACHINE, *, protected: Iterable[int] = ()) -> bytes:
    """Return the BPF program for a machine, as ``struct sock_filter`` values in a row.

    :param protected: processes and process groups, by their numbers, that get no signal and no
        other limit: no call acts on them, or on all processes at once (EPERM). Used for the
        supervisor and its parent, if they are in the same PID namespace.

    Besides :data:`DENIED`: ``socket`` and ``socketpair`` make sockets of AF_UNIX only (EACCES
    otherwise), ``clone`` makes no namespace, ``clone3`` fails with ENOSYS (a filter cannot read its
    flags; libraries fall back to ``clone``), and TIOCSTI is denied. A call by another
    architecture's table ends the process.

    :raises OSError: for a machine whose system calls are not known here.
    """
    if machine not in DENIED:
        raise OSError(errno.ENOSYS, f"no table of system calls for {machine}")
    code: list[tuple[int, int, int, int]] = [
        (_LOAD, 0, 0, _ARCH),
        (_EQUAL, 1, 0, AUDIT_ARCH[machine]),
        (_RETURN, 0, 0, _KILL),
        (_LOAD, 0, 0, _NUMBER),
    ]
    if machine == "x86_64":
        code += [(_ANY_BIT, 0, 1, _X32_BIT), (_RETURN, 0, 0, _KILL)]
    code += [(_GREATER, 0, 1, _NEWEST), (_RETURN, 0, 0, _ERROR | errno.ENOSYS)]
    code += [(_EQUAL, 0, 1, _CLONE3), (_RETURN, 0, 0, _ERROR | errno.ENOSYS)]
    for number in sorted(DENIED[machine].values()):
        code += [(_EQUAL, 0, 1, number), (_RETURN, 0, 0, _ERROR | errno.EPERM)]
    kept = sorted({each & _EVERYBODY for one in protected for each in (one, -one, -1)})
    if kept:
        for number in sorted(_DIRECTED[machine].values()):
            code += [(_EQUAL, 0, len(kept) + 3, number), (_LOAD, 0, 0, _FIRST_ARGUMENT)]
            for left, value in zip(reversed(range(len(kept))), kept, strict=True):
                code.append((_EQUAL, left, 0 if left else 1, value))
            code += [(_RETURN, 0, 0, _ERROR | errno.EPERM), (_RETURN, 0, 0, _ALLOW)]
    numbers = _FILTERED[machine]
    for name in ("socket", "socketpair"):
        code += [
            (_EQUAL, 0, 4, numbers[name]),
            (_LOAD, 0, 0, _FIRST_ARGUMENT),
            (_EQUAL, 1, 0, socket.AF_UNIX),
            (_RETURN, 0, 0, _ERROR | errno.EACCES),
            (_RETURN, 0, 0, _ALLOW),
        ]
    code += [
        (_EQUAL, 0, 4, numbers["clone"]),
        (_LOAD, 0, 0, _FIRST_ARGUMENT),
        (_ANY_BIT, 0, 1, _NAMESPACES),
        (_RETURN, 0, 0, _ERROR | errno.EPERM),
        (_RETURN, 0, 0, _ALLOW),
        (_EQUAL, 0, 4, numbers["ioctl"]),
        (_LOAD, 0, 0, _SECOND_ARGUMENT),
        (_EQUAL, 1, 0, _TIOCSTI),
        (_EQUAL, 0, 1, _TIOCLINUX),
        (_RETURN, 0, 0, _ERROR | errno.EPERM),
        (_RETURN, 0, 0, _ALLOW),
    ]
    return b"".join(struct.pack("=HBBI", *each) for each in code)


def install(*, protected: Iterable[int] = ()) -> None:
    """Apply the program to this process and its children, after ``no_new_privileges``.

    :raises OSError: when the kernel has no seccomp, or the machine is not known here.
    """
    code = program(protected=protected)
    buffer = ctypes.create_string_buffer(code, len(code))

    class Program(ctypes.Structure):
        _fields_ = (("count", ctypes.c_ushort), ("filter", ctypes.c_void_p))

    value = Program(len(code) // 8, ctypes.addressof(buffer))
    prctl(_PR_SET_SECCOMP, _MODE_FILTER, ctypes.addressof(value))
