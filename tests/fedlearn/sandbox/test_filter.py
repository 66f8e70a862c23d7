"""The seccomp filter, judged for machines that are not here."""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import subprocess
import sys

import pytest

from fedlearn.sandbox import (
    seccomp,
    usage,
)
from tests.harness.sandbox import NEEDS_SANDBOX

pytestmark = NEEDS_SANDBOX


def judge(code: bytes, arch: int, number: int, arguments: tuple[int, ...] = ()) -> int:
    """Run a BPF program as the kernel does; return its verdict."""
    data = bytearray(64)
    data[0:4], data[4:8] = number.to_bytes(4, "little"), arch.to_bytes(4, "little")
    for index, value in enumerate(arguments):
        data[16 + 8 * index : 24 + 8 * index] = value.to_bytes(8, "little")
    accumulator, at = 0, 0
    while True:
        kind, yes, no, value = (
            int.from_bytes(code[8 * at : 8 * at + 2], "little"),
            code[8 * at + 2],
            code[8 * at + 3],
            int.from_bytes(code[8 * at + 4 : 8 * at + 8], "little"),
        )
        at += 1
        if kind == 0x20:
            accumulator = int.from_bytes(data[value : value + 4], "little")
        elif kind == 0x06:
            return value
        else:
            holds = {
                0x15: accumulator == value,
                0x25: accumulator > value,
                0x45: bool(accumulator & value),
            }[kind]
            at += yes if holds else no


_ALLOW, _KILL, _EPERM = 0x7FFF0000, 0x80000000, 0x00050001


@pytest.mark.parametrize(
    ("machine", "arch", "other", "numbers"),
    [
        (
            "x86_64",
            0xC000003E,
            0x40000003,
            {"read": 0, "clone": 56, "ioctl": 16, "socket": 41, "socketpair": 53, "futex": 202},
        ),
        (
            "aarch64",
            0xC00000B7,
            0x40000028,
            {"read": 63, "clone": 220, "ioctl": 29, "socket": 198, "socketpair": 199, "futex": 98},
        ),
    ],
)
def test_the_filter_states_what_it_should(
    machine: str, arch: int, other: int, numbers: dict[str, int]
) -> None:
    code = seccomp.program(machine)

    def verdict(number: int, *arguments: int) -> int:
        return judge(code, arch, number, arguments)

    for name, number in seccomp.DENIED[machine].items():
        assert verdict(number) == _EPERM, name
    assert judge(code, other, numbers["read"]) == _KILL
    assert verdict(numbers["read"]) == verdict(numbers["futex"]) == _ALLOW
    for name in ("socket", "socketpair"):
        assert verdict(numbers[name], socket.AF_UNIX) == _ALLOW
        for family in (socket.AF_INET, socket.AF_INET6, socket.AF_NETLINK, 40):
            assert verdict(numbers[name], family) == 0x00050000 | 13
    assert verdict(numbers["clone"], 0x11) == _ALLOW
    assert verdict(numbers["clone"], 0x11 | 0x10000000) == _EPERM
    assert verdict(numbers["ioctl"], 0, 0x5401) == _ALLOW
    assert verdict(numbers["ioctl"], 0, 0x5412) == _EPERM
    assert verdict(435) == verdict(9999) == 0x00050000 | 38
    if machine == "x86_64":
        assert verdict(0x40000000 | 101) == _KILL
    kill = {"x86_64": 62, "aarch64": 129}[machine]
    assert verdict(kill, 4711) == _ALLOW
    code = seccomp.program(machine, protected=(4711, 815, 4711))
    for target in (4711, 815, 2**32 - 4711, 2**32 - 815, 2**32 - 1):
        assert verdict(kill, target) == _EPERM
    assert verdict(kill, 4712) == verdict(kill, 0) == verdict(numbers["read"], 4711) == _ALLOW


def test_children_are_found_without_the_kernels_list(monkeypatch: pytest.MonkeyPatch) -> None:
    code = (
        "import subprocess, time; child = subprocess.Popen(['sleep', '60']); "
        "print(child.pid, flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        child = int(process.stdout.readline())
        for listed in (True, False):
            monkeypatch.setattr(usage, "_LISTED", listed)
            assert child in usage.children(process.pid)
            assert {process.pid, child} <= set(usage.descendants(os.getpid()))
            assert usage.descendants(process.pid) == [child]
            assert usage.tree(process.pid, bound=1 << 40).tasks == 1
        os.kill(child, signal.SIGKILL)
        process.kill()


def test_a_machine_without_a_table_is_reported() -> None:
    with pytest.raises(OSError, match="riscv64"):
        seccomp.program("riscv64")
    assert ctypes.sizeof(ctypes.c_long) == 8
