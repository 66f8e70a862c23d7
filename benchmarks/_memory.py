"""The peak memory of each part of a federation, from /proc, so that no byte is counted nowhere.

The memory of a process is its anonymous memory (``RssAnon`` of proc_pid_status(5)). Model bytes
that processes share lie in memory files (memfd_create(2)), which belong to no process: the part
that holds one is charged with all of it, once, whether it is mapped or only a descriptor of it is
open. The coordinator passes descriptors on to the job's processes; files that only it holds, or
that it shares with the job, are charged to the job, whose data they are.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Final, Self

__all__ = ["AGENT", "COORDINATOR", "JOB", "MemoryWatch", "parts"]

AGENT: Final = "agent"
COORDINATOR: Final = "coordinator"
JOB: Final = "job"
_SAMPLE_SECONDS: Final = 0.02
_LIST_SECONDS: Final = 0.5
_MIB: Final = 1 << 20


@dataclass(slots=True)
class MemoryWatch:
    """Samples every part of the federation below this process, as a context.

    ``peak``  MiB of each part: ``coordinator``, ``job`` (aggregator and the app's process), and
              ``client N`` (the client and its app's process) of each client's process N
    ``idle``  MiB of the coordinator when the context was entered
    """

    peak: dict[str, float] = field(default_factory=dict)
    idle: float = 0.0
    samples: int = 0
    _over: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None

    def __enter__(self) -> Self:
        self.idle = _sample(parts()).get(COORDINATOR, 0.0)
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._over.set()
        if self._thread is not None:
            self._thread.join()

    @property
    def client(self) -> float:
        """The peak of the largest client, in MiB."""
        return max((v for name, v in self.peak.items() if name.startswith("client")), default=0.0)

    def _watch(self) -> None:
        found: Mapping[str, list[int]] = {}
        listed = 0.0
        while not self._over.is_set():
            if time.monotonic() - listed > _LIST_SECONDS:
                found, listed = parts(), time.monotonic()
            for name, mib in _sample(found).items():
                self.peak[name] = max(self.peak.get(name, 0.0), mib)
            self.samples += 1
            self._over.wait(_SAMPLE_SECONDS)


def _sample(found: Mapping[str, list[int]]) -> dict[str, float]:
    """Return the MiB of each part now."""
    anonymous: dict[str, int] = {}
    files: dict[str, dict[int, int]] = {}
    for name, pids in found.items():
        for pid in pids:
            with contextlib.suppress(OSError, StopIteration):
                anonymous[name] = anonymous.get(name, 0) + _anonymous(pid)
                owner = JOB if name == COORDINATOR else name
                files.setdefault(owner, {}).update(_memory_files(pid))
    sums = {name: size + sum(files.get(name, {}).values()) for name, size in anonymous.items()}
    return {name: size / _MIB for name, size in sums.items()}


def _anonymous(pid: int) -> int:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith("RssAnon"))) * 1024


def _memory_files(pid: int) -> Iterator[tuple[int, int]]:
    """Yield inode and bytes of the memory files that a process holds open or has mapped."""
    for folder in ("fd", "map_files"):
        with contextlib.suppress(OSError):
            for entry in Path(f"/proc/{pid}/{folder}").iterdir():
                with contextlib.suppress(OSError):
                    if str(entry.readlink()).startswith("/memfd:"):
                        found = entry.stat()
                        yield found.st_ino, found.st_blocks * 512


def parts() -> dict[str, list[int]]:
    """Return the processes of the federation below this process, by their part."""
    parents, commands = _table()
    found: dict[str, list[int]] = {}
    for pid, command in commands.items():
        if not _below(pid, os.getpid(), parents):
            continue
        if commands.get(parents[pid]) == command:  # a fork that has not become its own program yet
            continue
        words = command.split()
        if "server.flower." in command:
            found.setdefault(JOB, []).append(pid)
        elif len(words) > 2 and words[1].endswith("fedlearn-server") and words[2] == "run":
            found.setdefault(COORDINATOR, []).append(pid)
        elif len(words) > 2 and words[1].endswith("fedlearn-edge") and words[2] == "run":
            found.setdefault(AGENT, []).append(pid)
        elif "edge.client." in command:
            client = pid
            while "edge.client.process_main" not in commands.get(client, "") and client in parents:
                client = parents[client]
            found.setdefault(f"client {client}", []).append(pid)
    return found


def _table() -> tuple[dict[int, int], dict[int, str]]:
    """Return the parent of each process, and its command."""
    parents: dict[int, int] = {}
    commands: dict[int, str] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                state = (entry / "stat").read_bytes().rpartition(b")")[2].split()
                words = (entry / "cmdline").read_bytes().split(b"\0")
                parents[int(entry.name)] = int(state[1])
                commands[int(entry.name)] = b" ".join(words).decode(errors="replace")
    return parents, commands


def _below(pid: int, root: int, parents: Mapping[int, int]) -> bool:
    while pid in parents:
        pid = parents[pid]
        if pid == root:
            return True
    return False
