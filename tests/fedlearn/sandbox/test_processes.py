"""A sandboxed program reaches no process outside, whatever the kernel offers for its protection."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from fedlearn.sandbox import (
    Protection,
    Sandbox,
    report,
)
from tests.harness.sandbox import (
    NEEDS_SANDBOX,
    TRY,
    Run,
    alive,
    attack,
    lines,
    run_without_namespaces,
)

pytestmark = NEEDS_SANDBOX

_VICTIM = """
import sys, time
from fedlearn.sandbox import protect_this_process
secret = b"the secret " + b"of the runner"
buffer = bytearray(secret)
if sys.argv[1] == "protected":
    protect_this_process()
import ctypes
address = ctypes.addressof((ctypes.c_char * len(buffer)).from_buffer(buffer))
print(address, flush=True)
time.sleep(60)
"""


_READER = """
import ctypes, sys
pid, address = int(sys.argv[1]), int(sys.argv[2])
def by_file():
    with open(f"/proc/{pid}/mem", "rb", 0) as memory:
        memory.seek(address)
        return memory.read(24)
def by_call():
    class Piece(ctypes.Structure):
        _fields_ = [("base", ctypes.c_void_p), ("length", ctypes.c_size_t)]
    buffer = ctypes.create_string_buffer(24)
    ours, theirs = Piece(ctypes.addressof(buffer), 24), Piece(address, 24)
    libc = ctypes.CDLL(None, use_errno=True)
    count = libc.process_vm_readv(pid, ctypes.byref(ours), 1, ctypes.byref(theirs), 1, 0)
    if count == -1:
        raise OSError(ctypes.get_errno(), "process_vm_readv")
    return buffer.raw
def by_trace():
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.ptrace(16, pid, 0, 0) == -1:
        raise OSError(ctypes.get_errno(), "ptrace")
    return b"attached"
for way in (by_file, by_call, by_trace):
    try:
        print("done", way())
    except OSError as error:
        print("refused", way.__name__)
"""


@pytest.fixture
def victim() -> Iterator[Callable[..., tuple[int, int]]]:
    started: list[subprocess.Popen[str]] = []

    def start(how: str, **more: Any) -> tuple[int, int]:
        process = subprocess.Popen(
            [sys.executable, "-P", "-c", _VICTIM, how], stdout=subprocess.PIPE, text=True, **more
        )
        started.append(process)
        assert process.stdout is not None
        return process.pid, int(process.stdout.readline())

    yield start
    for process in started:
        process.kill()
        process.communicate()


def test_the_memory_of_our_processes_cannot_be_read(
    run: Run, victim: Callable[..., tuple[int, int]]
) -> None:
    # Nothing but the sandbox protects this one: it runs as the same user.
    pid, address = victim("open")
    assert lines(run(_READER, pid, address)) == [
        "refused by_file",
        "refused by_call",
        "refused by_trace",
    ]


def test_the_memory_of_our_processes_cannot_be_read_by_another_process_of_the_user(
    victim: Callable[..., tuple[int, int]],
) -> None:
    def read(pid: int, address: int) -> list[str]:
        command = [sys.executable, "-P", "-c", _READER, str(pid), str(address)]
        # Root has CAP_SYS_PTRACE, which no process of ours would have left.
        dropped = ["setpriv", "--bounding-set=-all", "--inh-caps=-all"] if os.getuid() == 0 else []
        done = subprocess.run([*dropped, *command], capture_output=True, text=True, check=True)
        return [line.split()[0] for line in done.stdout.splitlines()]

    assert read(*victim("protected")) == ["refused"] * 3


def test_processes_outside_cannot_be_seen(run: Run, victim: Callable[..., tuple[int, int]]) -> None:
    pid, _ = victim("open")
    found = attack(
        run,
        """
        attempt(lambda: open(f"/proc/{sys.argv[1]}/cmdline").read())
        attempt(lambda: open(f"/proc/{sys.argv[1]}/environ").read())
        """,
        pid,
    )
    assert [line.split()[0] for line in found] == ["refused"] * 2


def test_processes_outside_get_no_signal(run: Run, victim: Callable[..., tuple[int, int]]) -> None:
    pid, _ = victim("open")
    found = attack(
        run,
        """
        attempt(os.kill, int(sys.argv[1]), signal.SIGKILL)
        attempt(os.kill, int(sys.argv[2]), signal.SIGKILL)
        attempt(os.kill, os.getppid(), signal.SIGKILL)
        """,
        pid,
        os.getpid(),
    )
    assert [line.split()[0] for line in found] == ["refused"] * 3
    os.kill(pid, 0)


_LANDLOCK = (444, 445, 446)


_MOUNT_SETATTR = 442


_MOUNT = {"x86_64": 165, "aarch64": 40}


@pytest.mark.skipif(
    Protection.FILES not in report().applied, reason=f"no namespaces here: {report()}"
)
@pytest.mark.parametrize("call", ["mount_setattr", "mount"])
def test_where_no_view_can_be_made_the_old_root_stays(tmp_path: Path, call: str) -> None:
    folder = tmp_path / ("long" * 25)
    folder.mkdir()
    absent = (_MOUNT_SETATTR,) if call == "mount_setattr" else (_MOUNT[os.uname().machine],)
    code = """
        print(os.getpid() > 2 or os.listdir("/proc/self") != [], len(os.environ["TMPDIR"]) < 70)
        attempt(lambda: open("/etc/shadow").read())
        attempt(os.kill, 1, 0)
        open("own", "w").write("x")
        """
    argv = [sys.executable, "-P", "-c", TRY + textwrap.dedent(code)]
    sandbox = Sandbox(writable=(folder,))
    ran = run_without_namespaces(argv, sandbox, {}, 60, absent=absent, namespaces=True)
    first, *found = lines(ran)
    assert first.endswith("True")
    assert [line.split()[0] for line in found] == ["refused"] * 2
    assert {Protection.PROCESSES, Protection.LANDLOCK} <= ran.applied
    assert Protection.FILES not in ran.applied
    assert (folder / "own").read_text() == "x"


def test_without_landlock_and_namespaces_the_rest_holds_and_is_reported(tmp_path: Path) -> None:
    code = """
        attempt(socket.socket, socket.AF_INET)
        for number in (signal.SIGKILL, signal.SIGSTOP):
            for pid in (os.getppid(), -os.getppid(), -1):
                attempt(os.kill, pid, number)
        attempt(call, {"x86_64": 302, "aarch64": 261}[os.uname().machine], os.getppid(), 0, 0, 0)
        attempt(os.pidfd_open, os.getppid())
        outer = int(open(f"/proc/{os.getppid()}/stat").read().rpartition(")")[2].split()[1])
        for pid in (outer, -os.getpgid(outer)):
            attempt(os.kill, pid, 0)
        attempt(os.pidfd_open, outer)
        if os.fork() == 0:
            os.setsid()
            while os.fork() == 0:  # a process that is gone whenever somebody looks
                os.setsid()
                time.sleep(0.001)
            os._exit(0)
        time.sleep(0.5)
        """
    program = [sys.executable, "-P", "-c", TRY + "import time\n" + textwrap.dedent(code)]
    marker = f"marker-{uuid.uuid4()}"
    sandbox = Sandbox(writable=(tmp_path,))
    ran = run_without_namespaces([*program, marker], sandbox, {}, 60, absent=_LANDLOCK)
    assert [line.split()[0] for line in lines(ran)] == ["refused"] * 12, ran.output
    assert ran.applied == {Protection.CAPABILITIES, Protection.SECCOMP}
    assert alive(marker) == []
    required = Sandbox(writable=(tmp_path,), required=frozenset({Protection.LANDLOCK}))
    ran = run_without_namespaces(program, required, {}, 60, absent=_LANDLOCK)
    assert "landlock: the kernel has no Landlock" in ran.why
