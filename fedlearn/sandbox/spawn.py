"""Start a process in a sandbox, wait for it, and end it with all that it started."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import resource
import secrets
import select
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, Final

from fedlearn.sandbox import kernel
from fedlearn.sandbox.spec import Protection, Sandbox, SandboxError, SandboxReport

__all__ = [
    "SandboxedProcess",
    "free_user",
    "protect_this_process",
    "report",
    "spawn",
    "thread_environment",
]

_START_SECONDS: Final = 60.0
_KILL_SECONDS: Final = 10.0
_MAX_STATUS: Final = 64 * 1024
_PACKAGES: Final = ("attestation", "edge", "fedlearn", "server")
_USERS: Final = range(61184, 65520)
"""Ids that systemd keeps for services without an account of their own (DynamicUser=)."""

_SYSTEM: Final = tuple(
    map(
        Path,
        (
            *("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/nix/store"),
            *("/etc/ld.so.cache", "/etc/ld.so.conf", "/etc/ld.so.conf.d", "/etc/alternatives"),
            *("/etc/passwd", "/etc/group", "/etc/nsswitch.conf", "/etc/os-release"),
            *("/etc/localtime", "/etc/timezone", "/etc/mime.types", "/etc/fonts", "/etc/magic"),
            *("/etc/ssl/certs", "/etc/pki/tls/certs", "/etc/ca-certificates"),
            *("/sys/devices/system/cpu", "/sys/devices/system/node"),
        ),
    )
)


class SandboxedProcess:
    """A process in a sandbox, with all that it starts. Safe to use from many threads.

    ``pid`` is that of the supervisor, ``report`` states what is in force. The process ends when
    the calling process ends, for any reason.
    """

    def __init__(
        self,
        process: subprocess.Popen[bytes],
        *,
        report: SandboxReport,
        end: int,
        lifeline: int,
    ) -> None:
        self.report = report
        self._process = process
        self._end = end
        self._lifeline = lifeline
        self._lock = threading.Lock()
        self._returncode: int | None = None
        self._why = ""

    @property
    def pid(self) -> int:
        """The number of the supervisor's process."""
        return self._process.pid

    @property
    def stdin(self) -> IO[bytes] | None:
        """As :class:`subprocess.Popen` has it."""
        return self._process.stdin

    @property
    def stdout(self) -> IO[bytes] | None:
        """As :class:`subprocess.Popen` has it."""
        return self._process.stdout

    @property
    def stderr(self) -> IO[bytes] | None:
        """As :class:`subprocess.Popen` has it."""
        return self._process.stderr

    @property
    def returncode(self) -> int | None:
        """The exit status, negative for a signal; None while a process of the sandbox runs."""
        return self.poll()

    @property
    def why(self) -> str:
        """The bound for which the sandbox ended it ("3000 MiB of memory, at most 2048 MiB")."""
        self.poll()
        return self._why

    def poll(self) -> int | None:
        """Return the exit status when all processes have ended, and None before."""
        with self._lock:
            if self._returncode is None and self._process.poll() is not None:
                self._finish()
            return self._returncode

    def wait(self, timeout: float | None = None) -> int:
        """Wait until all processes have ended; return the exit status.

        :raises subprocess.TimeoutExpired: when one still runs after ``timeout`` seconds.
        """
        self._process.wait(timeout)
        found = self.poll()
        return -signal.SIGKILL if found is None else found

    def kill(self) -> int:
        """End everything that runs inside, now; return the exit status.

        :raises SandboxError: when a process does not end (it waits in the kernel).
        """
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(signal.SIGTERM)
        try:
            return self.wait(_KILL_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            raise SandboxError(
                f"a process of sandbox {self.pid} does not end",
                hint="it waits in the kernel, often for a device or a network file system",
            ) from None

    def __enter__(self) -> SandboxedProcess:
        """Return this process; leaving the block ends it."""
        return self

    def __exit__(self, *_: object) -> None:
        """End everything that runs inside."""
        self.kill()

    def _finish(self) -> None:
        written = os.read(self._end, _MAX_STATUS)
        os.close(self._end)
        os.close(self._lifeline)
        if written:
            document = json.loads(written)
            self._returncode, self._why = int(document["code"]), str(document["why"])
        else:  # the supervisor was killed, and then the kernel killed the other processes
            self._returncode = -signal.SIGKILL


def spawn(
    argv: Sequence[str],
    *,
    sandbox: Sandbox,
    env: Mapping[str, str],
    cwd: Path | None = None,
    pass_fds: Sequence[int] = (),
    stdin: int | IO[bytes] | None = subprocess.DEVNULL,
    stdout: int | IO[bytes] | None = None,
    stderr: int | IO[bytes] | None = None,
) -> SandboxedProcess:
    """Run ``argv`` in a sandbox, and return when it runs.

    The process has the environment ``env``, to which ``TMPDIR`` is added, and of the open
    files of this one only ``pass_fds`` and the standard streams, which are those of
    :class:`subprocess.Popen`. It starts in ``cwd``, or else in the first writable folder. A
    protection that this kernel lacks is left out and named in ``report``, unless it is required.

    :param argv: the program, as an absolute path, and its arguments.
    :raises SandboxError: when the program cannot be started, or a required protection is missing.
    """
    listable, system = _interpreter_paths()
    document = {
        "argv": list(argv),
        "env": dict(env),
        "cwd": str(cwd or sandbox.writable[0]),
        "sandbox": sandbox.to_json(),
        "system": [str(path) for path in (*_SYSTEM, *system)],
        "listable": [str(path) for path in listable],
        "keep": list(pass_fds),
    }
    request = _document(json.dumps(document).encode())
    status, status_end = os.pipe()
    end, end_end = os.pipe()
    lifeline_end, lifeline = os.pipe()
    theirs = (request, status_end, end_end, lifeline_end)
    try:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "fedlearn.sandbox.enter", *map(str, theirs)],
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
            env=_own_environment(),
            cwd="/",
            pass_fds=[*theirs, *pass_fds],
            start_new_session=True,
        )
    except BaseException:
        for descriptor in (status, end, lifeline):
            os.close(descriptor)
        raise
    finally:
        for descriptor in theirs:
            os.close(descriptor)
    try:
        found = _started(status)
    except SandboxError:
        os.close(lifeline)
        os.close(end)
        process.kill()
        process.wait()
        raise
    return SandboxedProcess(process, report=found, end=end, lifeline=lifeline)


@functools.cache
def report() -> SandboxReport:
    """Return which protections this kernel and this user permit, by starting a test sandbox.

    If this process is root's, another user is tried as well.

    :raises SandboxError: when no process can be started at all.
    """
    with tempfile.TemporaryDirectory(prefix="fl-") as folder:
        sandbox = Sandbox(writable=(Path(folder),), user=free_user())
        with spawn([sys.executable, "-I", "-S", "-c", ""], sandbox=sandbox, env={}) as process:
            return process.report


def free_user() -> int | None:
    """Return a user id without an account and without a process; None if it cannot be set."""
    if not kernel.may_change_user():
        return None
    used = set()
    for path in Path("/proc").iterdir():
        with contextlib.suppress(OSError):  # a process that has ended meanwhile
            used.add(path.stat().st_uid)
    with contextlib.suppress(OSError):
        lines = Path("/etc/passwd").read_text(errors="replace").splitlines()
        used |= {int(line.split(":")[2]) for line in lines if line.count(":") > 1}
    free = [user for user in _USERS if user not in used]
    return secrets.choice(free) if free else None


def protect_this_process() -> None:
    """Deny other processes of this user access to this one's memory, and disable core dumps.

    For processes that have keys; a program that they execute is not covered.
    """
    kernel.not_dumpable()
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def thread_environment(cpus: float) -> dict[str, str]:
    """Return the environment in which numerical libraries use ``cpus`` threads, at least one.

    The number of threads determines the order of additions, and so the last bits of sums.
    Therefore it is taken from the job and not from the machine.
    """
    count = str(max(1, int(cpus)))
    return {
        "MKL_NUM_THREADS": count,
        "NUMEXPR_NUM_THREADS": count,
        "OMP_NUM_THREADS": count,
        "OPENBLAS_NUM_THREADS": count,
    }


def _document(data: bytes) -> int:
    descriptor = os.memfd_create("sandbox")
    with os.fdopen(os.dup(descriptor), "wb") as target:
        target.write(data)
    os.lseek(descriptor, 0, os.SEEK_SET)
    return descriptor


def _own_environment() -> dict[str, str]:
    """Return the variables with which the supervisor's interpreter finds the packages."""
    names = ("LD_LIBRARY_PATH", "PATH", "PYTHONHOME", "PYTHONPATH", "VIRTUAL_ENV")
    return {name: os.environ[name] for name in names if name in os.environ}


def _started(status: int) -> SandboxReport:
    """Return what is in force, once the program runs."""
    text = b""
    end = time.monotonic() + _START_SECONDS
    with os.fdopen(status, "rb", buffering=0) as source:
        while len(text) < _MAX_STATUS:
            if not select.select([source], [], [], max(end - time.monotonic(), 0.0))[0]:
                raise SandboxError(f"the sandbox did not start within {_START_SECONDS:g} s")
            piece = source.read(_MAX_STATUS)
            if not piece:
                break
            text += piece
    documents: list[dict[str, Any]] = [json.loads(line) for line in text.splitlines()]
    for document in documents:
        if "error" in document:
            raise SandboxError(f"the process was not started: {document['error']}")
    if not documents:
        raise SandboxError("the sandbox's supervisor ended before the process started")
    found = documents[0]
    return SandboxReport(
        applied=frozenset(map(Protection, found["applied"])),
        missing={Protection(name): str(why) for name, why in found["missing"].items()},
        abi=int(found["abi"]),
    )


@functools.cache
def _interpreter_paths() -> tuple[tuple[Path, ...], tuple[Path, ...]]:
    """Return the folders that an import lists, and the paths that it reads."""
    readable = {Path(sys.prefix), Path(sys.base_prefix), Path(sys.executable).resolve().parent}
    listable: set[Path] = set()
    home = Path(__file__).resolve().parents[2]
    ours = [home / name for name in _PACKAGES]
    readable.update(ours)
    for entry in _absolute(sys.path):
        if any(entry.is_relative_to(known) for known in readable):
            continue
        # A folder with the packages may contain other files, such as a checkout or state.
        if any(package.parent == entry for package in ours):
            listable.add(entry)
        else:
            readable.add(entry)
    return tuple(sorted(listable)), tuple(sorted(readable))


def _absolute(entries: Iterable[str]) -> list[Path]:
    return [Path(entry) for entry in entries if entry.startswith("/") and Path(entry).exists()]
