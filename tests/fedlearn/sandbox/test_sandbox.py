"""User code in a sandbox: each promise is attacked from inside, by real processes.

Every attack runs twice: with all that this kernel gives, and where no namespace can be made, as
in most containers.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import textwrap
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from fedlearn.sandbox import (
    FULL,
    Protection,
    Sandbox,
    SandboxError,
    free_user,
    report,
    seccomp,
    spawn,
    thread_environment,
    usage,
)
from fedlearn.sandbox.user import hidden

pytestmark = pytest.mark.skipif(
    not report().applied >= {Protection.LANDLOCK, Protection.SECCOMP},
    reason=f"this kernel has no Landlock or no seccomp: {report()}",
)

_DRIVER = """
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


def _run_here(argv: list[str], sandbox: Sandbox, env: dict[str, str], seconds: float) -> Ran:
    with spawn(
        argv, sandbox=sandbox, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    ) as process:
        assert process.stdout is not None
        with process.stdout as stream:
            output = stream.read().decode()
        code = process.wait(seconds)
        return Ran(code, process.why, output, process.report.applied)


def _run_without_namespaces(
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
        [sys.executable, "-P", "-c", _DRIVER],
        input=json.dumps(request),
        capture_output=True,
        text=True,
        check=True,
        timeout=seconds + 30,
    )
    answer = json.loads(done.stdout)
    applied = frozenset(map(Protection, answer["applied"]))
    return Ran(answer["code"], answer["why"], done.stderr, applied)


@pytest.fixture(params=["namespaces", "none"])
def run(request: pytest.FixtureRequest, tmp_path: Path) -> Run:
    """Run a Python program in a sandbox whose folder is ``tmp_path / "own"``."""
    folder = tmp_path / "own"
    folder.mkdir()
    runner = _run_here if request.param == "namespaces" else _run_without_namespaces
    if request.param == "namespaces" and Protection.PROCESSES not in report().applied:
        pytest.skip(f"no namespaces here: {report()}")

    def act(code: str, *arguments: object, seconds: float = 60.0, **fields: Any) -> Ran:
        program = folder / "program.py"
        program.write_text(textwrap.dedent(code))
        env = fields.pop("env", {})
        argv = [sys.executable, "-P", str(program), *map(str, arguments)]
        return runner(argv, Sandbox(writable=(folder,), **fields), env, seconds)

    return act


_TRY = """
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
    return lines(run(_TRY + textwrap.dedent(code), *arguments, **fields))


# --- files


def test_files_outside_cannot_be_read(run: Run, tmp_path: Path) -> None:
    other = tmp_path / "other-job"
    other.mkdir()
    (other / "model").write_text("weights")
    found = attack(
        run,
        """
        attempt(lambda: open("/etc/shadow").read())
        attempt(lambda: open(sys.argv[1] + "/model").read())
        attempt(os.listdir, sys.argv[1])
        attempt(lambda: open("/proc/1/environ").read())
        os.symlink(sys.argv[1] + "/model", "link")
        attempt(lambda: open("link").read())
        """,
        other,
    )
    assert len(found) == 5
    assert all(line.startswith("refused") for line in found), found


def test_nothing_is_written_outside(run: Run, tmp_path: Path) -> None:
    found = attack(
        run,
        """
        for path in (sys.argv[1] + "/x", "/usr/x", "/etc/x", "/dev/x", "/x", "/sys/x"):
            attempt(lambda: open(path, "w"))
        attempt(os.rename, "program.py", sys.argv[1] + "/moved")
        attempt(os.link, "program.py", sys.argv[1] + "/linked")
        """,
        tmp_path,
    )
    assert len(found) == 8
    assert all(line.startswith("refused") for line in found), found
    assert [path.name for path in tmp_path.iterdir()] == ["own"]


def test_what_it_was_given_is_readable_and_not_writable(run: Run, tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    (data / "rows.csv").write_text("1,2")
    found = attack(
        run,
        """
        attempt(lambda: open(sys.argv[1] + "/rows.csv").read())
        attempt(lambda: open(sys.argv[1] + "/rows.csv", "a"))
        attempt(lambda: open(sys.argv[1] + "/more.csv", "w"))
        attempt(os.unlink, sys.argv[1] + "/rows.csv")
        """,
        data,
        readable=(data,),
    )
    assert found[0] == "done 1,2"
    assert [line.split()[0] for line in found[1:]] == ["refused"] * 3
    assert (data / "rows.csv").read_text() == "1,2"


# --- other processes


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
    argv = [sys.executable, "-P", "-c", _TRY + textwrap.dedent(code)]
    sandbox = Sandbox(writable=(folder,))
    ran = _run_without_namespaces(argv, sandbox, {}, 60, absent=absent, namespaces=True)
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
    program = [sys.executable, "-P", "-c", _TRY + "import time\n" + textwrap.dedent(code)]
    marker = f"marker-{uuid.uuid4()}"
    sandbox = Sandbox(writable=(tmp_path,))
    ran = _run_without_namespaces([*program, marker], sandbox, {}, 60, absent=_LANDLOCK)
    assert [line.split()[0] for line in lines(ran)] == ["refused"] * 12, ran.output
    assert ran.applied == {Protection.CAPABILITIES, Protection.SECCOMP}
    assert alive(marker) == []
    required = Sandbox(writable=(tmp_path,), required=frozenset({Protection.LANDLOCK}))
    ran = _run_without_namespaces(program, required, {}, 60, absent=_LANDLOCK)
    assert "landlock: the kernel has no Landlock" in ran.why


# --- the network and the kernel


@pytest.mark.parametrize(
    "family", ["AF_INET", "AF_INET6", "AF_NETLINK", "AF_PACKET", "AF_VSOCK", "AF_ALG"]
)
def test_no_socket_but_unix(run: Run, family: str) -> None:
    code = "attempt(socket.socket, getattr(socket, sys.argv[1]), socket.SOCK_RAW)"
    assert attack(run, code, family) == ["refused EACCES"]


def test_an_abstract_socket_of_others_is_out_of_reach(run: Run) -> None:
    name = f"\0fedlearn-{uuid.uuid4()}"
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(name)
        listening.listen()
        code = 'attempt(lambda: socket.socket(socket.AF_UNIX).connect("\\0" + sys.argv[1]))'
        (line,) = attack(run, code, name[1:])
    assert line.startswith("refused")


def test_a_socket_of_others_in_a_folder_is_out_of_reach(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(path))
        listening.listen()
        ran = run(
            _TRY + "attempt(lambda: socket.socket(socket.AF_UNIX).connect(sys.argv[1]))", path
        )
    # Landlock does not look at connect(): without a file system of its own, file modes decide.
    if Protection.FILES in ran.applied:
        assert lines(ran)[0].startswith("refused")


def test_calls_that_reach_the_kernel_are_refused(run: Run) -> None:
    numbers = seccomp.DENIED[os.uname().machine]
    names = ("bpf", "io_uring_setup", "keyctl", "mount", "perf_event_open", "setns", "userfaultfd")
    code = "for number in sys.argv[1:]: attempt(call, int(number), 0, 0, 0, 0, 0)"
    found = attack(run, code, *(numbers[name] for name in names))
    assert found == ["refused EPERM"] * len(names)


def test_no_namespace_is_made_inside(run: Run) -> None:
    found = attack(
        run,
        """
        attempt(call, {"x86_64": 272, "aarch64": 97}[os.uname().machine], 0x10000000)
        attempt(call, {"x86_64": 56, "aarch64": 220}[os.uname().machine], 0x10000011, 0, 0, 0, 0)
        attempt(call, 435, 0, 0)
        """,
    )
    assert found == ["refused EPERM", "refused EPERM", "refused ENOSYS"]


def test_no_capability_is_left(run: Run) -> None:
    ran = run("print(open('/proc/self/status').read())")
    found = dict(line.split(":\t") for line in lines(ran) if ":\t" in line)
    for name in ("CapInh", "CapPrm", "CapEff", "CapAmb"):
        assert int(found[name], 16) == 0, name
    assert found["NoNewPrivs"] == "1"
    assert found["Seccomp"] == "2"


def test_files_and_environment_of_the_parent_do_not_come_along(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("THE_SECRET", "x")
    with Path("/etc/hostname").open() as kept:
        os.set_inheritable(kept.fileno(), True)
        found = attack(
            run,
            """
            print(sorted(os.environ))
            opened = [n for n in range(256) if os.path.exists(f"/proc/self/fd/{n}")]
            print(opened)
            """,
            env={"GIVEN": "1", "LC_CTYPE": "C.UTF-8"},
        )
    assert found[0] == "['GIVEN', 'LC_CTYPE', 'TMPDIR']"
    assert found[1] == "[0, 1, 2]"


# --- bounds


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


_STAYS = """
import os, subprocess, sys, time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)", sys.argv[1]],
                         start_new_session=True, stdout=subprocess.DEVNULL,
                         stderr=subprocess.DEVNULL, stdin=subprocess.DEVNULL)
        os.close(1); os.close(2)
        time.sleep(600)
    os._exit(0)
time.sleep(1)
"""


def test_nothing_outlives_the_first_process(run: Run) -> None:
    marker = f"marker-{uuid.uuid4()}"
    assert run(_STAYS, marker).code == 0
    assert alive(marker) == []


def test_a_kill_ends_all_of_it(tmp_path: Path) -> None:
    marker = f"marker-{uuid.uuid4()}"
    argv = [sys.executable, "-P", "-c", _STAYS + "time.sleep(600)", marker]
    process = spawn(argv, sandbox=Sandbox(writable=(tmp_path,)), env={})
    deadline = time.monotonic() + 20
    while len(alive(marker)) < 3 and time.monotonic() < deadline:
        time.sleep(0.05)
    assert len(alive(marker)) >= 3
    started = time.monotonic()
    assert process.kill() == -signal.SIGKILL
    assert time.monotonic() - started < 5
    assert alive(marker) == []
    assert process.why == ""


def test_nothing_outlives_who_started_it(tmp_path: Path) -> None:
    marker = f"marker-{uuid.uuid4()}"
    code = textwrap.dedent("""
        import sys, time
        from pathlib import Path
        from fedlearn.sandbox import Sandbox, spawn
        program, folder, marker = sys.argv[1:]
        spawn([sys.executable, "-P", "-c", program, marker],
              sandbox=Sandbox(writable=(Path(folder),)), env={})
        print("started", flush=True)
        time.sleep(600)
    """)
    arguments = [_STAYS + "time.sleep(600)", str(tmp_path), marker]
    with subprocess.Popen(
        [sys.executable, "-P", "-c", code, *arguments], stdout=subprocess.PIPE
    ) as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline() == b"started\n"
        parent.kill()
    deadline = time.monotonic() + 10
    while alive(marker) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert alive(marker) == []


def test_processes_without_end_are_ended(run: Run) -> None:
    code = """
        import os, time
        while True:
            try:
                if os.fork() == 0:
                    time.sleep(600)
            except OSError:
                time.sleep(0.01)
        """
    ran = run(code, processes=100)
    assert ran.code == -signal.SIGKILL
    assert "processes and threads, at most 100" in ran.why


@pytest.mark.skipif(free_user() is None, reason="only root can change to another user")
def test_compiled_modules_of_ours_do_not_keep_the_user_from_changing() -> None:
    number = free_user()
    assert number is not None
    with tempfile.TemporaryDirectory() as folder:
        package = Path(folder)
        module, compiled = package / "module.py", package / "__pycache__"
        compiled.mkdir(mode=0o700)
        module.write_text("")
        module.chmod(0o644)
        package.chmod(0o755)
        assert hidden(number, readable=[], wholly=[package], reachable=[]) == ""
        module.chmod(0o600)
        assert hidden(number, readable=[], wholly=[package], reachable=[]) == str(module)


@pytest.mark.skipif(free_user() is None, reason="only root can change to another user")
def test_the_kernel_bounds_the_processes_of_another_user(tmp_path: Path) -> None:
    code = textwrap.dedent("""
        import os, time
        made = 0
        try:
            while made < 1000:
                if os.fork() == 0:
                    time.sleep(60)
                made += 1
        except BlockingIOError:
            print("refused after", made)
    """)
    sandbox = Sandbox(writable=(tmp_path,), user=free_user(), processes=50)
    ran = _run_here([sys.executable, "-P", "-c", code], sandbox, {}, 30)
    assert lines(ran) == ["refused after 49"]


def test_memory_without_end_is_ended(run: Run) -> None:
    code = """
        import time
        held = []
        while True:
            held.append(bytearray(b"x") * (16 << 20))
            time.sleep(0.02)
        """
    ran = run(code, memory_bytes=300 << 20)
    assert ran.code == -signal.SIGKILL
    assert "of memory, at most 300 MiB" in ran.why


def test_memory_that_processes_share_counts_once(run: Run) -> None:
    code = """
        import os, time
        held = bytearray(b"x") * (150 << 20)
        for _ in range(3):
            if os.fork() == 0:
                time.sleep(1)
                os._exit(0)
        time.sleep(1)
        """
    ran = run(code, memory_bytes=400 << 20)
    assert (ran.code, ran.why) == (0, "")


def test_one_allocation_that_is_far_too_large_fails(run: Run) -> None:
    ran = run("try: bytearray(8 << 30)\nexcept MemoryError: print('refused')", memory_bytes=1 << 30)
    assert ran.output == "refused\n"


def test_disk_without_end_is_ended(run: Run) -> None:
    code = """
        import itertools, time
        for number in itertools.count():
            with open(f"file-{number}", "wb") as target:
                target.write(bytes(4 << 20))
            time.sleep(0.02)
        """
    ran = run(code, disk_bytes=40 << 20)
    assert ran.code == -signal.SIGKILL
    assert "on disk, at most 40 MiB" in ran.why


def test_one_file_that_is_too_large_fails(run: Run) -> None:
    code = """
        try:
            open("large", "wb").truncate(100 << 20)
        except OSError as error:
            print(error.strerror)
        """
    assert lines(run(code, disk_bytes=40 << 20)) == ["File too large"]


def test_processor_time_is_bounded(run: Run) -> None:
    ran = run("while True: pass", cpu_seconds=1)
    assert ran.code in {-signal.SIGXCPU, -signal.SIGKILL}


# --- what must work


def test_what_applications_do_works(run: Run) -> None:
    code = """
        import multiprocessing, subprocess, tempfile
        from multiprocessing import shared_memory
        import numpy, torch
        from torch.utils.data import DataLoader, TensorDataset

        def double(x):
            return 2 * x

        if __name__ == "__main__":
            for method in ("fork", "spawn", "forkserver"):
                with multiprocessing.get_context(method).Pool(2) as pool:
                    print(pool.map(double, [1, 2, 3]))
            with multiprocessing.Manager() as manager:
                print(list(manager.list([1, 2])))
            loader = DataLoader(TensorDataset(torch.arange(8.0)), batch_size=2, num_workers=2)
            print(sum(float(batch.sum()) for (batch,) in loader))
            memory = shared_memory.SharedMemory(create=True, size=4096)
            memory.close(); memory.unlink()
            print(subprocess.run(["echo", "hello"], capture_output=True, text=True).stdout.strip())
            print((numpy.ones((300, 300)) @ numpy.ones((300, 300))).sum())
            with tempfile.NamedTemporaryFile() as file:
                file.write(b"x")
    """
    ran = run(code, env={"PATH": "/usr/bin:/bin"}, seconds=120)
    assert lines(ran) == [
        *["[2, 4, 6]"] * 3,
        "[1, 2]",
        "28.0",
        "hello",
        "27000000.0",
    ]


def test_a_folder_with_a_long_name_has_room_for_sockets(tmp_path: Path) -> None:
    folder = tmp_path / ("long" * 25)
    folder.mkdir()
    program = folder / "program.py"
    program.write_text(
        "import multiprocessing\n"
        "if __name__ == '__main__':\n"
        "    with multiprocessing.Manager() as manager: print(list(manager.list([1])))\n"
    )
    argv = [sys.executable, "-P", str(program)]
    sandbox = Sandbox(writable=(folder,))
    assert _run_here(argv, sandbox, {}, 60).output == "[1]\n"
    assert _run_without_namespaces(argv, sandbox, {}, 60).output == "[1]\n"


def test_a_passed_descriptor_is_there_and_its_end_is_seen(tmp_path: Path) -> None:
    ours, theirs = socket.socketpair()
    code = "import os, sys, socket; socket.socket(fileno=int(sys.argv[1])).sendall(b'x')"
    with ours:
        with theirs:
            argv = [sys.executable, "-c", code, str(theirs.fileno())]
            process = spawn(
                argv, sandbox=Sandbox(writable=(tmp_path,)), env={}, pass_fds=[theirs.fileno()]
            )
        ours.settimeout(20)
        assert ours.recv(10) == b"x"
        assert ours.recv(10) == b""
        assert process.wait(10) == 0


@pytest.mark.skipif(free_user() is None, reason="only root can change to another user")
@pytest.mark.parametrize("mask", [0o022, 0o077], ids=["022", "077"])
def test_it_runs_as_another_user_that_owns_its_folder(tmp_path: Path, mask: int) -> None:
    """With the mask of a coordinator, an agent and a client as well, which is 077."""
    before = os.umask(mask)
    try:
        _runs_as_another_user(tmp_path)
    finally:
        os.umask(before)


def _runs_as_another_user(tmp_path: Path) -> None:
    user = free_user()
    code = "import os; print(os.getuid(), os.getgid(), os.getgroups()); open('x', 'w')"
    argv = [sys.executable, "-P", "-c", code]
    ran = _run_here(argv, Sandbox(writable=(tmp_path,), user=user), {}, 30)
    assert lines(ran) == [f"{user} {user} []"]
    assert Protection.USER in ran.applied
    assert (tmp_path / "x").stat().st_uid == user
    assert (tmp_path / "x").stat().st_mode & 0o777 == 0o600
    (tmp_path / "x").unlink()
    # Without it again, the folder is ours again.
    assert lines(_run_here(argv, Sandbox(writable=(tmp_path,)), {}, 30)) == [
        f"{os.getuid()} {os.getgid()} {os.getgroups()}"
    ]


@pytest.mark.skipif(free_user() is None, reason="only root can change to another user")
def test_data_that_only_this_user_reads_stays_readable(run: Run, tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    (data / "rows.csv").write_text("1,2")
    (data / "rows.csv").chmod(0o600)
    ran = run(
        "import sys; print(open(sys.argv[1] + '/rows.csv').read())",
        data,
        readable=(data,),
        user=free_user(),
    )
    assert lines(ran) == ["1,2"]
    assert Protection.USER not in ran.applied


def test_the_exit_status_is_that_of_the_program(run: Run) -> None:
    assert run("raise SystemExit(7)").code == 7
    assert run("import os; os.kill(os.getpid(), 15)").code == -15


# --- refusals


def test_a_protection_that_is_required_and_missing_is_named(tmp_path: Path) -> None:
    sandbox = Sandbox(writable=(tmp_path,), required=FULL)
    ran = _run_without_namespaces([sys.executable, "-c", "print('ran')"], sandbox, {}, 30)
    assert ran.code == -1
    assert "pid-namespace" in ran.why
    assert "required" in ran.why
    assert "ran" not in ran.output.split()


def test_the_report_states_what_is_missing_and_why() -> None:
    found = report()
    assert found.applied | set(found.missing) == set(Protection)
    for name, why in found.missing.items():
        assert why
        assert f"{name}: {why}" in str(found)


def test_a_program_that_does_not_exist_is_named(tmp_path: Path) -> None:
    with pytest.raises(SandboxError, match="/no/such/program: No such file"):
        spawn(["/no/such/program"], sandbox=Sandbox(writable=(tmp_path,)), env={})


def test_a_relative_path_is_refused() -> None:
    with pytest.raises(ValueError, match="absolute"):
        Sandbox(writable=(Path("here"),))
    with pytest.raises(ValueError, match="positive"):
        Sandbox(writable=(Path("/here"),), memory_bytes=0)


def test_threads_come_from_the_job() -> None:
    assert set(thread_environment(2.5).values()) == {"2"}
    assert set(thread_environment(0.1).values()) == {"1"}


# --- the filter, for machines that are not here


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
