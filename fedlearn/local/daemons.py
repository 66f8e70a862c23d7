"""Processes that stay when the command that started them ends.

Each has a file with its number and the time of its start, so that a later command finds it, and
takes no other process for it whose number is the same (proc_pid_stat(5), field 22).
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

from attestation.durable import write_durably
from fedlearn.errors import LaunchError
from fedlearn.local.children import LoggedProcess, run_to_end

__all__ = ["Daemon", "Daemons"]

_STOP_SECONDS: Final = 10.0


class Daemon(LoggedProcess):
    """One process that stays. Made by :class:`Daemons`."""

    def __init__(self, name: str, log: Path, *, pid: int, started: int) -> None:
        super().__init__(name, log)
        self.pid = pid
        self._started = started

    @property
    def ended(self) -> str:
        """How it ended, in words; empty while it runs."""
        return "" if _started(self.pid) == self._started else "has ended"

    def stop(self, seconds: float = _STOP_SECONDS) -> None:
        """End it by SIGTERM, and what is left of its session after ``seconds`` by SIGKILL.

        :raises LaunchError: when it is not this user's.
        """
        try:
            descriptor = os.pidfd_open(self.pid)
        except ProcessLookupError:
            return
        try:
            # The descriptor refers to one process, even if the number is used again.
            if self.ended:
                return
            signal.pidfd_send_signal(descriptor, signal.SIGTERM)
            if select.select([descriptor], [], [], seconds)[0]:
                return
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)
            select.select([descriptor], [], [], seconds)
        except ProcessLookupError:
            return
        except PermissionError:
            raise LaunchError(f"{self.name} (process {self.pid}) is another user's") from None
        finally:
            os.close(descriptor)


class Daemons:
    """The processes of one folder that stay, with their logs.

    :param folder: has ``run`` with their numbers, and ``logs``.
    :param environment: added to this process's own.
    """

    def __init__(self, folder: Path, environment: Mapping[str, str] | None = None) -> None:
        self._numbers = folder / "run"
        self._logs = folder / "logs"
        self._environment = {**os.environ, **(environment or {})}

    def start(self, name: str, command: Sequence[str | Path]) -> Daemon:
        """Start ``command`` in a session of its own, unless ``name`` runs, and return at once."""
        found = self.find(name)
        if found is not None and not found.ended:
            return found
        for folder in (self._numbers, self._logs):
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        with self._log(name).open("ab") as output:
            process = subprocess.Popen(
                list(map(str, command)),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=self._environment,
                start_new_session=True,
            )
        started = _started(process.pid) or 0
        write_durably(self._number(name), f"{process.pid} {started}\n".encode())
        # Its end is found by its number; this object waits for it no more.
        process.returncode = 0
        return Daemon(name, self._log(name), pid=process.pid, started=started)

    def run(self, name: str, command: Sequence[str | Path], *, seconds: float = 60.0) -> str:
        """Do :func:`fedlearn.local.children.run_to_end` in the environment of the processes."""
        return run_to_end(name, command, environment=self._environment, seconds=seconds)

    def find(self, name: str) -> Daemon | None:
        """Return the process that was started last as ``name``, whether it runs or has ended."""
        try:
            pid, started = map(int, self._number(name).read_text().split())
        except (OSError, ValueError):
            return None
        return Daemon(name, self._log(name), pid=pid, started=started) if pid > 1 else None

    def stop(self, name: str) -> bool:
        """End ``name`` and forget its number; return whether it ran."""
        found = self.find(name)
        running = found is not None and not found.ended
        if found is not None:
            found.stop()
        self._number(name).unlink(missing_ok=True)
        return running

    def check(self) -> None:
        """Return while every process that was started runs.

        :raises LaunchError: naming the first that has ended, with its last output.
        """
        for found in self._all():
            found.check()

    def _all(self) -> Iterator[Daemon]:
        for path in sorted(self._numbers.glob("*.pid")):
            if (found := self.find(path.stem)) is not None:
                yield found

    def _number(self, name: str) -> Path:
        return self._numbers / f"{name}.pid"

    def _log(self, name: str) -> Path:
        return self._logs / f"{name}.log"


def _started(pid: int) -> int | None:
    """Return when a process started, in clock ticks since boot; None if it has ended."""
    try:
        data = Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return None
    # The name of the program, in parentheses, may contain any characters.
    fields = data.rpartition(b")")[2].split()
    return None if fields[0] in (b"Z", b"X") else int(fields[19])
