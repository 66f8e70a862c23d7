"""The memory and tasks of a tree of processes, read from /proc, and the size of a folder."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final

__all__ = ["Usage", "children", "descendants", "disk", "parents", "tree"]

_KIB: Final = 1024
_BLOCK: Final = 512
_LISTED: Final = Path(f"/proc/self/task/{os.getpid()}/children").exists()


@dataclass(frozen=True, slots=True)
class Usage:
    """``tasks`` are processes and threads; ``memory_bytes`` is without pages of files."""

    tasks: int
    memory_bytes: int


def parents() -> dict[int, list[int]]:
    """Return the children of each visible process, from /proc/PID/stat."""
    found: dict[int, list[int]] = {}
    for path in Path("/proc").iterdir():
        if path.name.isdecimal():
            try:
                fields = (path / "stat").read_text().rpartition(")")[2].split()
            except OSError:  # it has ended
                continue
            found.setdefault(int(fields[1]), []).append(int(path.name))
    return found


def children(pid: int) -> list[int]:
    """Return the children of all threads of a process; none when it has ended.

    It reads the kernel's list of children if there is one (CONFIG_PROC_CHILDREN).
    """
    if not _LISTED:
        return parents().get(pid, [])
    found: list[int] = []
    try:
        threads = list(Path(f"/proc/{pid}/task").iterdir())
    except OSError:
        return found
    for thread in threads:
        try:
            text = (thread / "children").read_text()
        except OSError:
            continue
        found += map(int, text.split())
    return found


def descendants(pid: int) -> list[int]:
    """Return all processes below ``pid``, without itself."""
    known = None if _LISTED else parents()

    def below(each: int) -> list[int]:
        return children(each) if known is None else known.get(each, [])

    found: list[int] = []
    rest = below(pid)
    while rest:
        each = rest.pop()
        found.append(each)
        rest += below(each)
    return found


def tree(pid: int, *, bound: int) -> Usage:
    """Return what the processes below ``pid`` use.

    A page that several processes share is counted for each of them, which is fast. Only if the
    sum exceeds ``bound`` bytes, such pages are counted once.
    """
    found = _quickly(pid)
    if found.memory_bytes <= bound:
        return found
    shares = [_share(each) for each in descendants(pid)]
    if None in shares:
        return found
    return Usage(found.tasks, sum(share for share in shares if share is not None))


def _share(pid: int) -> int | None:
    """Return the proportional set size of a process (``Pss``); None if it is not readable."""
    try:
        text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    except PermissionError:
        return None
    except OSError:  # it has ended
        return 0
    wanted = ("Pss_Anon:", "Pss_Shmem:")
    return _KIB * sum(int(line.split()[1]) for line in text.splitlines() if line.startswith(wanted))


def _quickly(pid: int) -> Usage:
    tasks = memory = 0
    for each in descendants(pid):
        try:
            status = Path(f"/proc/{each}/status").read_text()
        except OSError:
            continue
        for line in status.splitlines():
            name, _, value = line.partition(":")
            if name in {"RssAnon", "RssShmem"}:
                memory += int(value.split()[0]) * _KIB
            elif name == "Threads":
                tasks += int(value)
    return Usage(tasks, memory)


def disk(folder: Path) -> int:
    """Return the bytes that the files of a folder use on disk; links are not followed."""
    total = 0
    for where, _, files, descriptor in os.fwalk(folder):
        del where
        for name in files:
            try:
                found = os.stat(name, dir_fd=descriptor, follow_symlinks=False)
            except OSError:
                continue
            total += found.st_blocks * _BLOCK
    return total
