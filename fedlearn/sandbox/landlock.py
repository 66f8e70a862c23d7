"""Landlock: restricts the files of a process, and denies the network.

Source: ``linux/landlock.h`` and ``Documentation/userspace-api/landlock.rst`` of Linux. What a
kernel's ABI does not support is left out, and the ABI is reported.
"""

from __future__ import annotations

import ctypes
import os
import stat
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from fedlearn.sandbox.kernel import syscall

__all__ = ["NETWORK_ABI", "SCOPE_ABI", "Rules", "abi", "build", "restrict"]

NETWORK_ABI: Final = 4
"""From this ABI on, TCP can be denied."""

SCOPE_ABI: Final = 6
"""From this ABI on, signals and abstract sockets can be restricted."""

_CREATE_RULESET: Final = 444
_ADD_RULE: Final = 445
_RESTRICT_SELF: Final = 446
_VERSION: Final = 1
_PATH_BENEATH: Final = 1

_EXECUTE: Final = 1 << 0
_WRITE_FILE: Final = 1 << 1
_READ_FILE: Final = 1 << 2
_READ_DIR: Final = 1 << 3
_TRUNCATE: Final = 1 << 14
_IOCTL_DEV: Final = 1 << 15
_FILE_RIGHTS: Final = _EXECUTE | _WRITE_FILE | _READ_FILE | _TRUNCATE | _IOCTL_DEV
_READ: Final = _EXECUTE | _READ_FILE | _READ_DIR
_ALL_BY_ABI: Final = {1: (1 << 13) - 1, 2: (1 << 14) - 1, 3: (1 << 15) - 1, 5: (1 << 16) - 1}
_NETWORK: Final = 0b11
_SCOPES: Final = 0b11


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """What may be accessed; everything else is denied.

    ``readable``    files, and folders with all below them: read and execute
    ``listable``    folders whose names may be listed
    ``writable``    folders with all below them: everything but devices
    ``devices``     device files: read, write and ioctl
    ``changeable``  folders whose files may be written, but neither made nor removed
    """

    readable: Iterable[Path]
    listable: Iterable[Path]
    writable: Iterable[Path]
    devices: Iterable[Path]
    changeable: Iterable[Path] = ()


def abi() -> int:
    """Return the version of this kernel's Landlock; 0 when it has none or it is not enabled."""
    try:
        return syscall(_CREATE_RULESET, None, 0, _VERSION)
    except OSError:
        return 0


def build(rules: Rules) -> int:
    """Return the descriptor of a ruleset; paths that do not exist are left out.

    :raises OSError: when the kernel has no Landlock.
    """
    version = abi()
    if version == 0:
        raise OSError(95, "the kernel has no Landlock, or it is not enabled (lsm=)")
    handled = _ALL_BY_ABI[max(known for known in _ALL_BY_ABI if known <= version)]
    fields = [handled]
    if version >= NETWORK_ABI:
        fields.append(_NETWORK)
    if version >= SCOPE_ABI:
        fields.append(_SCOPES)
    attributes = struct.pack(f"={len(fields)}Q", *fields)
    ruleset = syscall(_CREATE_RULESET, attributes, len(attributes), 0)
    everything = handled & ~_IOCTL_DEV
    device = _READ_FILE | _WRITE_FILE | _TRUNCATE | _IOCTL_DEV
    for paths, rights in (
        (rules.readable, _READ),
        (rules.listable, _READ_DIR),
        (rules.writable, everything),
        (rules.devices, device),
        (rules.changeable, _WRITE_FILE | _TRUNCATE),
    ):
        for path in paths:
            _allow(ruleset, path, rights & handled)
    return ruleset


def restrict(ruleset: int) -> None:
    """Apply a ruleset to this process and all that it starts; it cannot be removed.

    ``no_new_privileges`` must have been set.

    :raises OSError: when the kernel refuses.
    """
    syscall(_RESTRICT_SELF, ruleset, 0)
    os.close(ruleset)


def _allow(ruleset: int, path: Path, rights: int) -> None:
    try:
        descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    try:
        if not stat.S_ISDIR(os.fstat(descriptor).st_mode):
            rights &= _FILE_RIGHTS
        rule = ctypes.create_string_buffer(struct.pack("=Qi", rights, descriptor))
        if rights:
            syscall(_ADD_RULE, ruleset, _PATH_BENEATH, rule, 0)
    finally:
        os.close(descriptor)
