"""What a command costs with everything that it starts: processor time and memory of all processes.

The processor time is that of the kernel's accounting for children, so it is exact for every process
whose end its parent waited for. This process becomes the reaper of orphans (prctl(2),
PR_SET_CHILD_SUBREAPER), so that daemons which a command leaves behind are counted and ended.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import signal
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from _processes import cpu_seconds, descendants

__all__ = ["Cost", "run"]

_SUBREAPER: Final = 36
_SAMPLE_SECONDS: Final = 0.25
_GRACE_SECONDS: Final = 15.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """What a command took.

    ``cpu_s``     processor time, user and system, of all processes
    ``wall_s``    from its start to its end
    ``peak_mib``  the largest sum of the proportional set sizes (PSS) of all processes at one time,
                  of samples every quarter of a second
    ``processes`` the most at one time
    """

    cpu_s: float
    wall_s: float
    peak_mib: float
    processes: int


def run(
    command: Sequence[str], *, env: Mapping[str, str], folder: Path, timeout_s: float, log: Path
) -> Cost:
    """Run a command to its end, and end what it leaves behind.

    :raises RuntimeError: when it fails or takes longer than ``timeout_s``, with the end of its log.
    """
    ctypes.CDLL(None, use_errno=True).prctl(_SUBREAPER, 1, 0, 0, 0)
    before = _reaped()
    started = time.monotonic()
    with log.open("wb") as output:
        child = subprocess.Popen(
            list(command), env=dict(env), cwd=folder, stdout=output, stderr=subprocess.STDOUT
        )
        watch = _Watch(child.pid)
        watch.start()
        try:
            status: int | None = child.wait(timeout_s)
        except subprocess.TimeoutExpired:
            status = None
        wall = time.monotonic() - started
        _end_all(0.0 if status is None else _GRACE_SECONDS)
        watch.over.set()
        watch.join()
    if status != 0:
        reason = "took too long" if status is None else f"failed with {status}"
        tail = log.read_text(errors="replace")[-2000:]
        raise RuntimeError(f"{' '.join(command)} {reason}:\n{tail}")
    return Cost(
        cpu_s=max(_reaped() - before, watch.cpu_s),
        wall_s=wall,
        peak_mib=watch.peak_mib,
        processes=watch.processes,
    )


class _Watch(threading.Thread):
    """Samples the processes below this one. ``cpu_s`` is what each had at its last sample."""

    def __init__(self, first: int) -> None:
        super().__init__(daemon=True)
        self.over = threading.Event()
        self.peak_mib = 0.0
        self.processes = 0
        self._first = first
        self._cpu: dict[int, float] = {}

    @property
    def cpu_s(self) -> float:
        return sum(self._cpu.values())

    def run(self) -> None:
        while not self.over.wait(_SAMPLE_SECONDS):
            total = 0.0
            found = descendants(os.getpid())
            for pid in found:
                with contextlib.suppress(OSError, StopIteration, IndexError):
                    self._cpu[pid] = cpu_seconds(pid)
                    total += _pss_mib(pid)
            self.peak_mib = max(self.peak_mib, total)
            self.processes = max(self.processes, len(found))


def _pss_mib(pid: int) -> float:
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith("Pss:"))) / 1024


def _reaped() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _end_all(grace_s: float) -> None:
    """Wait for what the command left behind, and end it after a while."""
    deadline = time.monotonic() + grace_s
    while (left := descendants(os.getpid())) and time.monotonic() < deadline:
        _reap()
        time.sleep(0.1)
    for pid in left:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    while descendants(os.getpid()):
        _reap()
        time.sleep(0.05)


def _reap() -> None:
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            continue
