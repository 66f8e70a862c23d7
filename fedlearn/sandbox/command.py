"""The process that becomes the command: it restricts itself, step by step, and executes it."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
from pathlib import Path
from typing import Final

from fedlearn.sandbox import kernel, landlock, seccomp, user
from fedlearn.sandbox.request import DEVICES, FAILED, Applied, Request, send_status
from fedlearn.sandbox.spec import Protection

__all__ = ["Command"]

_LANDLOCK: Final = (
    Protection.LANDLOCK,
    Protection.LANDLOCK_NETWORK,
    Protection.LANDLOCK_SCOPE,
)
_COMMON_PROC: Final = [
    Path("/proc", name)
    for name in ("cpuinfo", "filesystems", "loadavg", "meminfo", "self", "stat", "sys", "version")
]


class Command:
    """One command, to be run in the process that calls :meth:`run`.

    :param applied: the protections that are in force already.
    :param status: descriptor of the status; it is closed when the command is executed.
    :param temporary: the folder for temporary files.
    :param own_proc: whether ``/`` and ``/proc`` are those of the sandbox's own namespaces.
    """

    def __init__(
        self,
        request: Request,
        applied: Applied,
        *,
        status: int,
        temporary: Path,
        own_proc: bool = False,
    ) -> None:
        self._request = request
        self._applied = applied
        self._status = status
        self._temporary = temporary
        self._own_proc = own_proc

    def run(self, *, protected: tuple[int, ...] = ()) -> None:
        """Restrict this process and execute the command; it does not return.

        :param protected: processes and groups that the command may not signal.
        """
        request, sandbox, applied = self._request, self._request.sandbox, self._applied
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
        self._change_user()
        kernel.end_with_parent()
        applied.attempt(Protection.CAPABILITIES, _without_privileges)
        self._restrict(ruleset)
        applied.attempt(Protection.SECCOMP, lambda: seccomp.install(protected=protected))
        environment = request.env | {"TMPDIR": str(self._temporary)}
        lacking = sorted(sandbox.required - set(applied.applied))
        if lacking:
            why = "; ".join(f"{name}: {applied.missing[name]}" for name in lacking)
            send_status(
                self._status, {"error": f"the sandbox that is required is not possible: {why}"}
            )
            os._exit(FAILED)
        report = {"applied": applied.applied, "missing": applied.missing, "abi": landlock.abi()}
        send_status(self._status, report)
        try:
            os.chdir(request.cwd)
            os.execve(request.argv[0], request.argv, environment)  # noqa: S606
        except OSError as error:
            send_status(self._status, {"error": f"{request.argv[0]}: {error.strerror}"})
            os._exit(FAILED)

    def _change_user(self) -> None:
        applied = self._applied
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
        """Return a path that the user could not read or reach; empty if there is none."""
        sandbox = self._request.sandbox
        return user.hidden(
            number,
            readable=[Path(self._request.argv[0]), *self._request.system],
            # Files of the kernel are read as far as their modes let.
            wholly=[path for path in sandbox.readable if not path.is_relative_to("/sys")],
            reachable=sandbox.writable,
        )

    def _limit(self) -> None:
        sandbox = self._request.sandbox
        limits = {
            resource.RLIMIT_CORE: 0,
            # Includes address space that is only reserved; the supervisor counts the memory
            # in use, over all processes.
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
        # The names in a view disclose nothing about the machine.
        proc = [Path("/proc")] if self._own_proc else _COMMON_PROC
        listable = [Path("/")] if self._own_proc else request.listable
        # In a view, /proc has the processes of the sandbox only, and the rest of it is read-only.
        threads = Path("/proc") if self._own_proc else Path("/proc/self/task")
        return landlock.Rules(
            readable=[*request.system, *sandbox.readable, *proc],
            listable=listable,
            writable=[*sandbox.writable, self._temporary, Path("/dev/shm")],  # noqa: S108
            devices=[*DEVICES, *sandbox.devices],
            changeable=[threads] if sandbox.thread_names else [],
        )

    def _restrict(self, ruleset: int) -> None:
        applied = self._applied
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


def _without_privileges() -> None:
    kernel.no_new_privileges()
    kernel.drop_capabilities()
