"""Child processes of a command, which end when the command ends, for any reason.

Each child waits on a pipe: when the process that started it ends, also by SIGKILL, the pipe is
closed and the child is asked to end (SIGTERM). The output of a child is written to a log. What a
child has started ends with it at the latest, in any session.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence, Set
from pathlib import Path
from types import FrameType, TracebackType
from typing import Final, Self

from attestation.attesters.child_process import until_input_closes
from fedlearn.errors import LaunchError

__all__ = ["Child", "Children", "LoggedProcess", "run_to_end", "terminate_as_interrupt"]

_STOP_SECONDS: Final = 8.0
_TAIL_BYTES: Final = 4096


class LoggedProcess(ABC):
    """A process whose output is written to ``log``."""

    def __init__(self, name: str, log: Path) -> None:
        self.name = name
        self.log = log

    @property
    @abstractmethod
    def ended(self) -> str:
        """How it ended, in words; empty while it runs."""

    def tail(self, lines: int = 12) -> str:
        """Return the last lines that the child wrote."""
        try:
            with self.log.open("rb") as file:
                file.seek(max(0, self.log.stat().st_size - _TAIL_BYTES))
                text = file.read().decode(errors="replace")
        except OSError:
            return ""
        return "\n".join(text.splitlines()[-lines:])

    def check(self) -> None:
        """Return while the child runs.

        :raises LaunchError: with its last output, when it has ended.
        """
        if how := self.ended:
            raise LaunchError(f"{self.name} {how}:\n{self.tail()}")


class Child(LoggedProcess):
    """One process. Made by :meth:`Children.start`."""

    def __init__(self, name: str, process: subprocess.Popen[bytes], log: Path) -> None:
        super().__init__(name, log)
        self._process = process

    @property
    def pid(self) -> int:
        """The number of the session of the child and of what it starts."""
        return self._process.pid

    @property
    def status(self) -> int | None:
        """The exit status; None while it runs."""
        return self._process.poll()

    @property
    def ended(self) -> str:
        """How it ended, in words; empty while it runs."""
        return "" if self.status is None else f"ended with status {self.status}"

    def wait(self, seconds: float) -> int | None:
        """Return the exit status, or None when it still runs after ``seconds``."""
        try:
            return self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            return None

    def ask_to_stop(self) -> None:
        """Ask the child to end, and do not wait."""
        if self._process.stdin is not None:
            with contextlib.suppress(BrokenPipeError):
                self._process.stdin.close()

    def stop(self, seconds: float = _STOP_SECONDS) -> None:
        """End the child by SIGTERM, and then by SIGKILL."""
        self.ask_to_stop()
        if self.wait(seconds) is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()


class Children:
    """All children of one command, as a context that ends them.

    :param logs: folder for their logs, created when needed.
    :param environment: added to this process's own.
    """

    def __init__(self, logs: Path, environment: Mapping[str, str] | None = None) -> None:
        self._logs = logs
        self._environment = {**os.environ, **(environment or {})}
        self._all: list[Child] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def start(self, name: str, command: Sequence[str | Path]) -> Child:
        """Start ``command`` in a session of its own and return at once."""
        self._logs.mkdir(parents=True, exist_ok=True, mode=0o700)
        log = self._logs / f"{name}.log"
        with log.open("ab") as output:
            process = subprocess.Popen(
                until_input_closes(name, list(map(str, command))),
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=self._environment,
                start_new_session=True,
            )
        child = Child(name, process, log)
        self._all.append(child)
        return child

    def run(self, name: str, command: Sequence[str | Path], *, seconds: float = 60.0) -> str:
        """Do :func:`run_to_end` in the environment of the children."""
        return run_to_end(name, command, environment=self._environment, seconds=seconds)

    def check(self) -> None:
        """Return while every child runs.

        :raises LaunchError: naming the first that has ended.
        """
        for child in self._all:
            child.check()

    def stop(self) -> None:
        """End all children, the last one first, and wait until they have ended.

        What they started and did not end is killed then.
        """
        started = [_opened(pid) for pid in _descendants({child.pid for child in self._all})]
        for child in reversed(self._all):
            child.ask_to_stop()
        until = time.monotonic() + _STOP_SECONDS
        for child in reversed(self._all):
            child.stop(max(0.1, until - time.monotonic()))
        self._all.clear()
        for descriptor in filter(None, started):
            # The descriptor refers to that process, even if its number was reused.
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(descriptor, signal.SIGKILL)
            os.close(descriptor)


def run_to_end(
    name: str, command: Sequence[str | Path], *, environment: Mapping[str, str], seconds: float
) -> str:
    """Run ``command`` to its end and return what it wrote to stdout.

    :raises LaunchError: with its output, when it fails or takes too long.
    """
    try:
        done = subprocess.run(
            [str(part) for part in command],
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=seconds,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise LaunchError(f"{name} did not end within {seconds:.0f} s") from None
    if done.returncode:
        wrote = (done.stderr or done.stdout).decode(errors="replace").strip()
        raise LaunchError(f"{name} ended with status {done.returncode}: {wrote}")
    return done.stdout.decode(errors="replace")


def _descendants(ancestors: Set[int]) -> tuple[int, ...]:
    """Return the processes below ``ancestors`` now, by /proc (proc_pid_stat(5))."""
    parents: dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                # The name of the program, in parentheses, may contain any characters.
                state = (entry / "stat").read_bytes().rpartition(b")")[2].split()
                parents[int(entry.name)] = int(state[1])
    found: set[int] = set(ancestors)
    while more := {pid for pid, parent in parents.items() if parent in found} - found:
        found |= more
    return tuple(found - set(ancestors))


def _opened(pid: int) -> int | None:
    try:
        return os.pidfd_open(pid)
    except ProcessLookupError:
        return None


@contextlib.contextmanager
def terminate_as_interrupt() -> Iterator[None]:
    """A context in which SIGTERM ends this process as Ctrl-C does, with all clean-up.

    Only in the main thread; elsewhere it changes nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
