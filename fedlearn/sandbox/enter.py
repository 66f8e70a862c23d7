"""The program that makes a sandbox and runs a command in it: ``python -m fedlearn.sandbox.enter``.

Three processes come of it. The *supervisor* stays outside, with the rights that it was started
with: it counts memory, processes and disk, and ends everything when its parent is gone or says so
(SIGTERM). The *init* is the first process of the new PID namespace: when it ends, the kernel
ends all others in there. The *command* is user code. Where there is no PID namespace the command
is the supervisor's child, and the supervisor, as subreaper, finds and ends what it started.

Only :mod:`fedlearn.sandbox.spawn` starts this. Arguments: descriptors of the request (read), of
the status (written until the command runs), of the end (written when all is over), and of the
lifeline (its end of file says that the parent is gone).
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import select
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from fedlearn.sandbox import kernel, landlock, seccomp, usage, user, view
from fedlearn.sandbox.spec import Protection, Sandbox

__all__ = ["main"]

_ALL: Final = kernel.CLONE_NEWPID | kernel.CLONE_NEWNS | kernel.CLONE_NEWNET | kernel.CLONE_NEWIPC
_TICK_MS: Final = 100
_DISK_EVERY_S: Final = 2.0
_LONGEST_TEMPORARY: Final = 70
_NO_USER_MAP: Final = 97
_FAILED: Final = 98
_DEVICES: Final = tuple(map(Path, ("/dev/null", "/dev/zero", "/dev/full", "/dev/random")))
_RANDOM: Final = Path("/dev/urandom")


@dataclass(slots=True)
class _Request:
    argv: list[str]
    env: dict[str, str]
    cwd: str
    sandbox: Sandbox
    system: list[Path]
    listable: list[Path]
    keep: list[int]


@dataclass(slots=True)
class _Applied:
    """What was applied so far, by name, and why the rest was not."""

    applied: list[Protection] = field(default_factory=list)
    missing: dict[Protection, str] = field(default_factory=dict)

    def attempt(self, name: Protection, action: Callable[[], object]) -> bool:
        try:
            action()
        except OSError as error:
            self.missing[name] = error.strerror or str(error)
            return False
        self.applied.append(name)
        return True


def main(arguments: list[str]) -> int:
    """Run one command; return 0 when the sandbox did its part."""
    request_fd, status, end, lifeline = map(int, arguments)
    for descriptor in (status, end, lifeline):
        os.set_inheritable(descriptor, False)  # the command does not get them
    with os.fdopen(request_fd, "rb") as source:
        document = json.load(source)
    request = _Request(
        argv=document["argv"],
        env=document["env"],
        cwd=document["cwd"],
        sandbox=Sandbox.from_json(document["sandbox"]),
        system=list(map(Path, document["system"])),
        listable=list(map(Path, document["listable"])),
        keep=document["keep"],
    )
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    supervisor = _Supervisor(request, status=status, end=end, lifeline=lifeline)
    try:
        return supervisor.run()
    finally:
        supervisor.clean()


class _Supervisor:
    def __init__(self, request: _Request, *, status: int, end: int, lifeline: int) -> None:
        self._request = request
        self._status = status
        self._end = end
        self._lifeline = lifeline
        self._parent = os.getppid()
        self._temporary = request.sandbox.writable[0] / "tmp"
        self._outside: Path | None = None
        self._asked = False
        self._namespace = False
        self._own_proc = False
        self._first = 0

    def run(self) -> int:
        signal.signal(signal.SIGTERM, self._ask)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        self._temporary.mkdir(mode=0o700, exist_ok=True)
        if len(str(self._temporary)) > _LONGEST_TEMPORARY:
            with contextlib.suppress(OSError):  # then the long name has to do
                self._outside = Path(tempfile.mkdtemp(prefix="fl-"))
        results, result = os.pipe()
        self._first = self._start(result)
        os.close(result)
        kernel.not_dumpable()
        self._let_go()
        why = self._watch()
        status = self._end_all()
        with os.fdopen(results, "rb") as source:
            written = source.read()
        if self._namespace:
            status = int(written) if written else status
        code = os.waitstatus_to_exitcode(status)
        end = {"code": code, "why": why}
        with contextlib.suppress(OSError):  # the parent is gone
            os.write(self._end, json.dumps(end).encode())
        return 0

    def clean(self) -> None:
        if self._outside is not None:
            shutil.rmtree(self._outside, ignore_errors=True)

    # --- start ------------------------------------------------------------------------

    def _start(self, result: int) -> int:
        """Start the first process, with as many namespaces as there may be."""
        reason = ""
        for extra in (0, kernel.CLONE_NEWUSER):
            if extra == 0 and os.geteuid() != 0:
                continue
            try:
                first = self._start_in(extra, result)
            except OSError as error:
                reason = error.strerror or str(error)
                continue
            if first:
                self._namespace = True
                return first
            reason = "the user namespace may not map this user"
        return self._start_plain(reason, result)

    def _start_in(self, extra: int, result: int) -> int:
        mapped, tell = os.pipe()
        user, group = os.geteuid(), os.getegid()
        first = kernel.clone(_ALL | extra)
        if first == 0:
            _guarded(self._status, lambda: self._init(extra, user, group, tell, result))
        os.close(tell)
        with os.fdopen(mapped, "rb") as source:
            usable = source.read(1) == b"1"
        if usable:
            return first
        os.waitpid(first, 0)
        return 0

    def _start_plain(self, reason: str, result: int) -> int:
        _subreaper()
        applied = _Applied()
        for name in (Protection.PROCESSES, Protection.NETWORK, Protection.FILES):
            applied.missing[name] = f"no namespace: {reason}"
        if self._outside is not None:
            self._temporary = self._outside
        first = os.fork()
        if first == 0:
            os.close(result)
            kernel.end_with_parent()
            _guarded(self._status, lambda: self._command(applied, protected=self._outer()))
        return first

    def _outer(self) -> tuple[int, ...]:
        """Return the supervisor, its parent, and the parent's group."""
        group = 0
        with contextlib.suppress(ProcessLookupError):
            group = os.getpgid(self._parent)
        return tuple(each for each in (os.getppid(), self._parent, group) if each > 0)

    def _let_go(self) -> None:
        """Close what belongs to the command, so that its end can be seen from outside."""
        os.close(self._status)
        for descriptor in self._request.keep:
            os.close(descriptor)
        _silence()

    # --- in the namespace -------------------------------------------------------------

    def _init(self, extra: int, user: int, group: int, tell: int, result: int) -> None:
        kernel.end_with_parent()
        if extra:
            try:
                Path("/proc/self/setgroups").write_text("deny")
                Path("/proc/self/uid_map").write_text(f"{user} {user} 1")
                Path("/proc/self/gid_map").write_text(f"{group} {group} 1")
            except OSError:
                os._exit(_NO_USER_MAP)
        kernel.not_dumpable()
        os.write(tell, b"1")
        os.close(tell)
        applied = _Applied()
        applied.applied += [Protection.PROCESSES, Protection.NETWORK]
        sandbox = self._request.sandbox
        shown = view.View(
            readable=[*self._request.system, *self._request.listable, *sandbox.readable],
            writable=sandbox.writable,
            devices=[*_DEVICES, _RANDOM, *sandbox.devices],
            temporary=self._temporary,
            shared_memory=max(sandbox.memory_bytes // 2, 1 << 20),
        )
        whole = applied.attempt(Protection.FILES, lambda: view.enter(shown))
        if whole:
            self._temporary = view.TEMPORARY
        elif self._outside is not None:
            self._temporary = self._outside
        command = os.fork()
        if command == 0:
            os.close(result)
            kernel.end_with_parent()
            self._own_proc = whole
            self._command(applied, protected=())
        os.close(self._status)
        for descriptor in (*self._request.keep, self._lifeline, self._end):
            os.close(descriptor)
        _silence()
        kernel.drop_capabilities()
        status = 0
        while True:
            found, status = os.waitpid(-1, 0)
            if found == command:
                break
        os.write(result, str(status).encode())
        os._exit(0)

    # --- the command ------------------------------------------------------------------

    def _command(self, applied: _Applied, *, protected: tuple[int, ...]) -> None:
        request, sandbox = self._request, self._request.sandbox
        os.close(self._lifeline)
        os.close(self._end)
        os.setsid()
        os.umask(0o077)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGPIPE, signal.SIGXFSZ):
            signal.signal(number, signal.SIG_DFL)
        with contextlib.suppress(OSError):  # a file system that is read-only, as in a view
            Path("/proc/self/oom_score_adj").write_text("1000")
        self._limit()
        ruleset = -1
        with contextlib.suppress(OSError):  # reported below
            ruleset = landlock.build(self._rules())
        self._change_user(applied)
        kernel.end_with_parent()
        applied.attempt(Protection.CAPABILITIES, _without_privileges)
        self._restrict(ruleset, applied)
        applied.attempt(Protection.SECCOMP, lambda: seccomp.install(protected=protected))
        environment = request.env | {"TMPDIR": str(self._temporary)}
        lacking = sorted(sandbox.required - set(applied.applied))
        if lacking:
            why = "; ".join(f"{name}: {applied.missing[name]}" for name in lacking)
            _say(self._status, {"error": f"the sandbox that is required is not possible: {why}"})
            os._exit(_FAILED)
        report = {"applied": applied.applied, "missing": applied.missing, "abi": landlock.abi()}
        _say(self._status, report)
        try:
            os.chdir(request.cwd)
            os.execve(request.argv[0], request.argv, environment)  # noqa: S606
        except OSError as error:
            _say(self._status, {"error": f"{request.argv[0]}: {error.strerror}"})
            os._exit(_FAILED)

    def _change_user(self, applied: _Applied) -> None:
        number = self._request.sandbox.user
        if not kernel.may_change_user():
            if number is not None:
                why = "needs CAP_SETUID, CAP_SETGID and CAP_CHOWN"
                applied.missing[Protection.USER] = why
            else:
                applied.missing[Protection.USER] = "not asked for"
            return
        hidden = "" if number is None else self._hidden_from(number)
        if number is None or hidden:
            why = f"{hidden} is not readable for another user" if hidden else "not asked for"
            applied.missing[Protection.USER] = why
        owner = os.geteuid() if number is None or hidden else number
        for folder in (*self._request.sandbox.writable, self._temporary):
            user.give(folder, owner)
        if owner == number:
            applied.attempt(Protection.USER, lambda: user.become(number))

    def _hidden_from(self, number: int) -> str:
        """Return a path that the user could not read, or not reach; empty when there is none."""
        sandbox = self._request.sandbox
        return user.hidden(
            number,
            readable=[Path(self._request.argv[0]), *self._request.system],
            wholly=sandbox.readable,
            reachable=sandbox.writable,
        )

    def _limit(self) -> None:
        sandbox = self._request.sandbox
        limits = {
            resource.RLIMIT_CORE: 0,
            # Address space that is only reserved counts here as well; what is really used
            # is counted by the supervisor, over all processes.
            resource.RLIMIT_DATA: 2 * sandbox.memory_bytes + (1 << 30),
            resource.RLIMIT_FSIZE: sandbox.disk_bytes,
            resource.RLIMIT_NOFILE: sandbox.open_files,
        }
        if sandbox.cpu_seconds is not None:
            limits[resource.RLIMIT_CPU] = sandbox.cpu_seconds
        if sandbox.user is not None and kernel.may_change_user():
            limits[resource.RLIMIT_NPROC] = sandbox.processes
        for kind, value in limits.items():
            hard = resource.getrlimit(kind)[1]
            bound = value if hard == resource.RLIM_INFINITY else min(value, hard)
            resource.setrlimit(kind, (bound, bound))

    def _rules(self) -> landlock.Rules:
        request, sandbox = self._request, self._request.sandbox
        # In a view there is nothing whose name would tell something.
        proc = [Path("/proc")] if self._own_proc else _COMMON_PROC
        listable = [Path("/")] if self._own_proc else request.listable
        return landlock.Rules(
            readable=[*request.system, *sandbox.readable, *proc],
            listable=listable,
            writable=[*sandbox.writable, self._temporary, Path("/dev/shm")],  # noqa: S108
            devices=[*_DEVICES, _RANDOM, *sandbox.devices],
        )

    def _restrict(self, ruleset: int, applied: _Applied) -> None:
        version = landlock.abi()
        if ruleset < 0:
            reason = "the kernel has no Landlock, or it is not enabled (lsm=)"
            for name in _LANDLOCK:
                applied.missing[name] = reason
            return
        if not applied.attempt(Protection.LANDLOCK, lambda: landlock.restrict(ruleset)):
            for name in _LANDLOCK:
                applied.missing.setdefault(name, applied.missing[Protection.LANDLOCK])
            return
        for name, first in (
            (Protection.LANDLOCK_NETWORK, landlock.NETWORK_ABI),
            (Protection.LANDLOCK_SCOPE, landlock.SCOPE_ABI),
        ):
            if version >= first:
                applied.applied.append(name)
            else:
                applied.missing[name] = f"Landlock ABI {version}, needs {first}"

    # --- while it runs ----------------------------------------------------------------

    def _ask(self, *_: object) -> None:
        self._asked = True

    def _watch(self) -> str:
        """Return why it is to end: a bound that was passed, or nothing when it ended itself."""
        sandbox = self._request.sandbox
        poll = select.poll()
        poll.register(self._lifeline, select.POLLHUP)
        with contextlib.suppress(OSError):  # before Linux 5.3; then each tick looks
            poll.register(os.pidfd_open(self._first), select.POLLIN)
        looked_at_disk = time.monotonic()
        pause = _TICK_MS // 10
        while True:
            gone = {descriptor for descriptor, _ in poll.poll(pause)}
            pause = _TICK_MS
            if self._over() or self._asked:
                return ""
            if self._lifeline in gone or os.getppid() != self._parent:
                return "the process that started it is gone"
            if not self._namespace:
                _reap_others(self._first)
            top = self._first if self._namespace else os.getpid()
            used = usage.tree(top, bound=sandbox.memory_bytes)
            if used.tasks > sandbox.processes:
                return f"{used.tasks} processes and threads, at most {sandbox.processes}"
            if used.memory_bytes > sandbox.memory_bytes:
                return f"{_mib(used.memory_bytes)} of memory, at most {_mib(sandbox.memory_bytes)}"
            if time.monotonic() - looked_at_disk > _DISK_EVERY_S:
                size = sum(map(usage.disk, sandbox.writable))
                if size > sandbox.disk_bytes:
                    return f"{_mib(size)} on disk, at most {_mib(sandbox.disk_bytes)}"
                looked_at_disk = time.monotonic()

    def _over(self) -> bool:
        found = os.waitid(os.P_PID, self._first, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        return found is not None

    def _end_all(self) -> int:
        """End every process inside; return the status of the first."""
        if self._namespace:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._first, signal.SIGKILL)
            return os.waitpid(self._first, 0)[1]
        status = 0
        while True:
            stopped: set[int] = set()
            # What is stopped starts nothing any more; then all of it is there to be ended.
            while new := set(usage.descendants(os.getpid())) - stopped:
                _signal(new, signal.SIGSTOP)
                stopped |= new
            _signal(stopped, signal.SIGKILL)
            try:
                while (found := os.waitpid(-1, os.WNOHANG))[0]:
                    if found[0] == self._first:
                        status = found[1]
            except ChildProcessError:
                return status
            time.sleep(0.002)


_LANDLOCK: Final = (
    Protection.LANDLOCK,
    Protection.LANDLOCK_NETWORK,
    Protection.LANDLOCK_SCOPE,
)
_COMMON_PROC: Final = [
    Path("/proc", name)
    for name in ("cpuinfo", "filesystems", "loadavg", "meminfo", "self", "stat", "sys", "version")
]


def _guarded(status: int, action: Callable[[], None]) -> None:
    """Run a child's part; whatever happens, it does not return into the supervisor's."""
    try:
        action()
    except BaseException as error:  # noqa: BLE001  told to the parent
        with contextlib.suppress(OSError):
            _say(status, {"error": f"{type(error).__name__}: {error}"})
    finally:
        os._exit(_FAILED)


def _say(status: int, document: Mapping[str, Any]) -> None:
    os.write(status, json.dumps(document).encode() + b"\n")


def _silence() -> None:
    null = os.open(os.devnull, os.O_RDWR) if Path(os.devnull).exists() else -1
    for descriptor in range(3):
        if null >= 0:
            os.dup2(null, descriptor)
        else:
            os.close(descriptor)


def _subreaper() -> None:
    kernel.prctl(kernel.PR_SET_CHILD_SUBREAPER, 1)


def _without_privileges() -> None:
    kernel.no_new_privileges()
    kernel.drop_capabilities()


def _signal(pids: Iterable[int], number: int) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def _reap_others(first: int) -> None:
    """Reap what was reparented to us, as the subreaper; the command itself is left."""
    for pid in usage.children(os.getpid()):
        if pid != first:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, os.WNOHANG)


def _mib(count: int) -> str:
    return f"{count / (1 << 20):.0f} MiB"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
