"""Programs in a sandbox, with and without namespaces, and attempts that must fail."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from fedlearn.sandbox import (
    Protection,
    Sandbox,
    report,
    spawn,
)

NEEDS_SANDBOX = pytest.mark.skipif(
    not report().applied >= {Protection.LANDLOCK, Protection.SECCOMP},
    reason=f"this kernel has no Landlock or no seccomp: {report()}",
)


DRIVER = """
import json, sys
import ctypes, struct
from fedlearn.sandbox import SandboxError, kernel, seccomp, spawn
from fedlearn.sandbox.spec import Sandbox
request = json.load(sys.stdin)
kernel.no_new_privileges()
if request["absent"]:  # calls that this kernel does not have (ENOSYS)
    code = [(0x20, 0, 0, 0)]
    for number in request["absent"]:
        code += [(0x15, 0, 1, number), (0x06, 0, 0, 0x50026)]
    code += [(0x06, 0, 0, 0x7FFF0000)]
    data = b"".join(struct.pack("=HBBI", *each) for each in code)
    buffer = ctypes.create_string_buffer(data, len(data))
    fields = struct.pack("HxxxxxxQ", len(code), ctypes.addressof(buffer))
    value = ctypes.create_string_buffer(fields)
    kernel.prctl(22, 2, ctypes.addressof(value))
if not request["namespaces"]:
    seccomp.install()  # from now on none can be made
try:
    process = spawn(request["argv"], sandbox=Sandbox.from_json(request["sandbox"]),
                    env=request["env"], stdout=2, stderr=2)
    code = process.wait(request["seconds"])
    answer = {"code": code, "why": process.why, "applied": sorted(process.report.applied)}
except SandboxError as error:
    answer = {"code": -1, "why": str(error), "applied": []}
print(json.dumps(answer))
"""


@dataclass(frozen=True)
class Ran:
    code: int
    why: str
    output: str
    applied: frozenset[Protection]


Run = Callable[..., Ran]


def run_here(argv: list[str], sandbox: Sandbox, env: dict[str, str], seconds: float) -> Ran:
    with spawn(
        argv, sandbox=sandbox, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    ) as process:
        assert process.stdout is not None
        with process.stdout as stream:
            output = stream.read().decode()
        code = process.wait(seconds)
        return Ran(code, process.why, output, process.report.applied)


def run_without_namespaces(
    argv: list[str],
    sandbox: Sandbox,
    env: dict[str, str],
    seconds: float,
    *,
    absent: tuple[int, ...] = (),
    namespaces: bool = False,
) -> Ran:
    request = {"argv": argv, "sandbox": sandbox.to_json(), "env": env, "seconds": seconds}
    request |= {"absent": absent, "namespaces": namespaces}
    done = subprocess.run(
        [sys.executable, "-P", "-c", DRIVER],
        input=json.dumps(request),
        capture_output=True,
        text=True,
        check=True,
        timeout=seconds + 30,
    )
    answer = json.loads(done.stdout)
    applied = frozenset(map(Protection, answer["applied"]))
    return Ran(answer["code"], answer["why"], done.stderr, applied)


TRY = """
import ctypes, errno, json, os, signal, socket, sys
def attempt(action, *arguments):
    try:
        found = action(*arguments)
    except OSError as error:
        print("refused", errno.errorcode[error.errno])
    else:
        print("done", found)
libc = ctypes.CDLL(None, use_errno=True)
def call(number, *arguments):
    if libc.syscall(number, *arguments) == -1:
        raise OSError(ctypes.get_errno(), "")
"""


def lines(ran: Ran) -> list[str]:
    assert ran.code == 0, (ran.code, ran.why, ran.output)
    return ran.output.splitlines()


def attack(run: Run, code: str, *arguments: object, **fields: Any) -> list[str]:
    return lines(run(TRY + textwrap.dedent(code), *arguments, **fields))


def alive(marker: str) -> list[str]:
    found = []
    for path in Path("/proc").iterdir():
        if path.name.isdecimal():
            try:
                command = (path / "cmdline").read_bytes()
            except OSError:
                continue
            if marker.encode() in command:
                found.append(path.name)
    return found
