"""The program that makes a sandbox and runs a command in it: ``python -m fedlearn.sandbox.enter``.

It consists of three processes. The *supervisor* stays outside, with the privileges of its parent:
it counts memory, processes and disk, and ends all processes when its parent has ended or sends
SIGTERM. The *init* is the first process of the new PID namespace: when it ends, the kernel
ends all others in that namespace. The *command* (:mod:`fedlearn.sandbox.command`) is user code.
Without a PID namespace the command is a child of the supervisor, which is the subreaper of what
the command starts, and ends it.

Only :mod:`fedlearn.sandbox.spawn` starts this program. Its arguments are the descriptors of the
request (read), of the status (written until the command runs), of the end (written when all
processes have ended), and of the lifeline (its end of file means that the parent has ended).
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
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final

from fedlearn.sandbox import kernel, usage, view
from fedlearn.sandbox.command import Command
from fedlearn.sandbox.request import DEVICES, FAILED, Applied, Request, send_status
from fedlearn.sandbox.spec import Protection

__all__ = ["main"]

_ALL: Final = kernel.CLONE_NEWPID | kernel.CLONE_NEWNS | kernel.CLONE_NEWNET | kernel.CLONE_NEWIPC
_TICK_MS: Final = 100
_DISK_EVERY_S: Final = 2.0
_LONGEST_TEMPORARY: Final = 70
_NO_USER_MAP: Final = 97


def main(arguments: list[str]) -> int:
    """Run one command; return 0 when its end was reported, however the command ended."""
    request_fd, status, end, lifeline = map(int, arguments)
    for descriptor in (status, end, lifeline):
        os.set_inheritable(descriptor, False)  # the command does not get them
    request = Request.read(request_fd)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    supervisor = _Supervisor(request, status=status, end=end, lifeline=lifeline)
    try:
        return supervisor.run()
    finally:
        supervisor.clean()


class _Supervisor:
    def __init__(self, request: Request, *, status: int, end: int, lifeline: int) -> None:
        self._request = request
        self._status = status
        self._end = end
        self._lifeline = lifeline
        self._parent = os.getppid()
        self._temporary = request.sandbox.writable[0] / "tmp"
        self._outside: Path | None = None
        self._end_requested = False
        self._namespace = False
        self._first = 0

    def run(self) -> int:
        signal.signal(signal.SIGTERM, self._request_end)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        self._temporary.mkdir(mode=0o700, exist_ok=True)
        if len(str(self._temporary)) > _LONGEST_TEMPORARY:
            with contextlib.suppress(OSError):  # the long name is used then
                self._outside = Path(tempfile.mkdtemp(prefix="fl-"))
        results, result = os.pipe()
        self._first = self._start(result)
        os.close(result)
        kernel.not_dumpable()
        self._close_command_files()
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
        """Start the first process, in new namespaces where the kernel permits them."""
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
        mapped, signal_mapped = os.pipe()
        user, group = os.geteuid(), os.getegid()
        first = kernel.clone(_ALL | extra)
        if first == 0:
            _guarded(self._status, lambda: self._init(extra, user, group, signal_mapped, result))
        os.close(signal_mapped)
        with os.fdopen(mapped, "rb") as source:
            usable = source.read(1) == b"1"
        if usable:
            return first
        os.waitpid(first, 0)
        return 0

    def _start_plain(self, reason: str, result: int) -> int:
        _subreaper()
        applied = Applied()
        for name in (Protection.PROCESSES, Protection.NETWORK, Protection.FILES):
            applied.missing[name] = f"no namespace: {reason}"
        first = os.fork()
        if first == 0:
            os.close(result)
            kernel.end_with_parent()
            temporary = self._outside or self._temporary
            _guarded(self._status, lambda: self._execute(applied, temporary, self._outer()))
        return first

    def _execute(
        self,
        applied: Applied,
        temporary: Path,
        protected: tuple[int, ...] = (),
        *,
        own_proc: bool = False,
    ) -> None:
        """Become the command, in a child; the descriptors of the supervisor are closed first."""
        os.close(self._lifeline)
        os.close(self._end)
        Command(
            self._request, applied, status=self._status, temporary=temporary, own_proc=own_proc
        ).run(protected=protected)

    def _outer(self) -> tuple[int, ...]:
        """Return the supervisor, its parent, and the parent's group."""
        group = 0
        with contextlib.suppress(ProcessLookupError):
            group = os.getpgid(self._parent)
        return tuple(each for each in (os.getppid(), self._parent, group) if each > 0)

    def _close_command_files(self) -> None:
        """Close the files of the command, whose readers wait for the last copy to be closed."""
        os.close(self._status)
        for descriptor in self._request.keep:
            os.close(descriptor)
        _silence()

    # --- in the namespace -------------------------------------------------------------

    def _init(self, extra: int, user: int, group: int, mapped: int, result: int) -> None:
        kernel.end_with_parent()
        if extra:
            try:
                Path("/proc/self/setgroups").write_text("deny")
                Path("/proc/self/uid_map").write_text(f"{user} {user} 1")
                Path("/proc/self/gid_map").write_text(f"{group} {group} 1")
            except OSError:
                os._exit(_NO_USER_MAP)
        kernel.not_dumpable()
        os.write(mapped, b"1")
        os.close(mapped)
        applied = Applied()
        applied.applied += [Protection.PROCESSES, Protection.NETWORK]
        sandbox = self._request.sandbox
        shown = view.View(
            readable=[*self._request.system, *self._request.listable, *sandbox.readable],
            writable=sandbox.writable,
            devices=[*DEVICES, *sandbox.devices],
            temporary=self._temporary,
            shared_memory=max(sandbox.memory_bytes // 2, 1 << 20),
            thread_names=sandbox.thread_names,
        )
        whole = applied.attempt(Protection.FILES, lambda: view.enter(shown))
        temporary = view.TEMPORARY if whole else self._outside or self._temporary
        command = os.fork()
        if command == 0:
            os.close(result)
            kernel.end_with_parent()
            self._execute(applied, temporary, own_proc=whole)
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

    # --- while it runs ----------------------------------------------------------------

    def _request_end(self, *_: object) -> None:
        self._end_requested = True

    def _watch(self) -> str:
        """Return why the command must be ended; empty when it ended or its end was requested."""
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
            if self._over() or self._end_requested:
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
            # A stopped process starts no other: once all are stopped, all can be ended.
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


def _guarded(status: int, action: Callable[[], None]) -> None:
    """Run ``action`` in a child and exit: no exception may return into the supervisor's code."""
    try:
        action()
    except BaseException as error:  # noqa: BLE001  reported to the parent
        with contextlib.suppress(OSError):
            send_status(status, {"error": f"{type(error).__name__}: {error}"})
    finally:
        os._exit(FAILED)


def _silence() -> None:
    null = os.open(os.devnull, os.O_RDWR) if Path(os.devnull).exists() else -1
    for descriptor in range(3):
        if null >= 0:
            os.dup2(null, descriptor)
        else:
            os.close(descriptor)


def _subreaper() -> None:
    kernel.prctl(kernel.PR_SET_CHILD_SUBREAPER, 1)


def _signal(pids: Iterable[int], number: int) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def _reap_others(first: int) -> None:
    """Reap the processes that this subreaper inherited, except the command itself."""
    for pid in usage.children(os.getpid()):
        if pid != first:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, os.WNOHANG)


def _mib(count: int) -> str:
    return f"{count / (1 << 20):.0f} MiB"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
