"""The process of a job's application: how it is started, and the interface of its host to it.

It runs in a sandbox with one folder and one socket, either as a child of the coordinator, or in
another container (:mod:`server.flower.application.app_host`).
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import IO, Final, Protocol

from fedlearn.sandbox import FULL, Sandbox, SandboxedProcess, SandboxReport, free_user, spawn
from fedlearn.sandbox.environment import app_environment

__all__ = ["Application", "environment", "start_application"]

_THREADS: Final = ("MKL_NUM_THREADS", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS")


class Application(Protocol):
    """A started application; as :class:`fedlearn.sandbox.SandboxedProcess` has it."""

    @property
    def report(self) -> SandboxReport:
        """The parts of its sandbox that are in force."""

    @property
    def pid(self) -> int:
        """The process id of its supervisor, in the PID namespace that started it."""

    @property
    def stdout(self) -> IO[bytes] | None:
        """What it prints, errors included."""

    @property
    def returncode(self) -> int | None:
        """Its exit status, negative for a signal; None while any of its processes runs."""

    @property
    def why(self) -> str:
        """The reason why it was ended; empty when it ended by itself."""

    def poll(self) -> int | None:
        """Return ``returncode``."""

    def wait(self, timeout: float | None = None) -> int:
        """Return the exit status; raise :class:`subprocess.TimeoutExpired` after ``timeout``."""

    def kill(self) -> int:
        """End all of its processes; return the exit status."""


def start_application(
    *,
    folder: Path,
    aggregator: int,
    stdout: int,
    memory_bytes: int,
    full_sandbox: bool,
) -> SandboxedProcess:
    """Start the process of an application, with access to its folder and one socket only.

    :param folder: an empty folder for it alone.
    :param aggregator: the descriptor of its socket to the aggregator.
    :param stdout: where its output goes, as for :class:`subprocess.Popen`.
    :param memory_bytes: the bound of its memory, and of its files.
    :param full_sandbox: demand every protection of :data:`fedlearn.sandbox.FULL`.
    :raises SandboxError: when it cannot be started, or a demanded protection is missing.
    """
    module = "server.flower.application.app_main"
    return spawn(
        [sys.executable, "-P", "-m", module, str(aggregator), str(folder)],
        sandbox=Sandbox(
            writable=(folder,),
            memory_bytes=memory_bytes,
            disk_bytes=memory_bytes,
            user=free_user(),
            required=FULL if full_sandbox else frozenset(),
        ),
        env=environment(folder),
        pass_fds=[aggregator],
        stdout=stdout,
        stderr=subprocess.STDOUT,
    )


def environment(home: Path) -> dict[str, str]:
    """Return the environment of a job's processes: variables of this process, without secrets."""
    return {**app_environment(home, *_THREADS), "PYTHONUNBUFFERED": "1"}
