"""The cost of a process, as the kernel counts it."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from fedlearn.local.children import Child


def program_pid(child: Child) -> int:
    """Return the process of a command below ``child``, which is a shell: the largest there."""
    return max([child.pid, *descendants(child.pid)], key=resident_mib)


def descendants(pid: int) -> list[int]:
    """Return the processes that a process started, and that these started."""
    found: list[int] = []
    waiting = [pid]
    while waiting:
        for task in Path(f"/proc/{waiting.pop()}/task").iterdir():
            with contextlib.suppress(OSError):
                below = [int(each) for each in (task / "children").read_text().split()]
                found += below
                waiting += below
    return found


def pin(pid: int, core: int) -> None:
    """Bind all threads of a process to one core; new threads inherit it."""
    for task in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(ProcessLookupError):
            os.sched_setaffinity(int(task.name), {core})


def resident_mib(pid: int) -> float:
    """Return VmRSS."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith("VmRSS"))) / 1024


def cpu_seconds(pid: int) -> float:
    """Return the processor time of a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
