"""Measures the memory and the processor time of each process of a job, in multiples of its model.

The job is that of ``round_overhead.py``: its training takes no time. While it runs, the processes
below this one are looked at 50 times a second, and counted by what they do: the coordinator, the
job's aggregator, its application, each site's client, and the app of each client.

The peak is the most resident memory of a process (``VmHWM``) above what it had when the job was
submitted, or above 0 where it was started by the job. Pages that processes share count in each.
Where a role has several processes, the largest counts; processor time is that of all of them.
"""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

sys.path.insert(0, str(Path(__file__).parent))

from _deployment import deployment
from _processes import cpu_seconds
from _report import Row, measured, options, show

from fedlearn.local.machines import TeeChoice

ROLES: Final = {
    "coordinator": ("fedlearn-server", "run"),
    "aggregator": ("server.flower.aggregation.aggregator",),
    "application": ("server.flower.application.app_main",),
    "client": ("edge.client.process_main",),
    "app": ("edge.client.flower.app_main",),
}
"""The words of a command line by which a process is recognised."""

_INTERVAL: Final = 0.02


@dataclass(slots=True)
class Seen:
    """What a process had when it was seen first and at most, in bytes and seconds."""

    first: int = 0
    peak: int = 0
    began: float = 0.0
    cpu: float = 0.0


@dataclass(slots=True)
class Observer:
    """Looks at the processes below this one until it is stopped."""

    found: dict[str, dict[int, Seen]] = field(default_factory=dict)
    _known: dict[int, str] = field(default_factory=dict)
    _stop: threading.Event = field(default_factory=threading.Event)

    def run(self) -> None:
        """Look until :meth:`stop`."""
        while not self._stop.wait(_INTERVAL):
            for pid in _below(os.getpid()):
                with contextlib.suppress(OSError, KeyError):  # it has ended
                    self._look(pid)

    def stop(self) -> None:
        """End :meth:`run`."""
        self._stop.set()

    def submitted(self) -> None:
        """Take the present memory and processor time of all processes as what they began with."""
        for seen in self.found.values():
            for pid, each in seen.items():
                with contextlib.suppress(OSError, KeyError):
                    each.first, each.began = _status(pid)["VmRSS"], cpu_seconds(pid)

    def _look(self, pid: int) -> None:
        role = self._known.get(pid) or _role(pid)
        if not role:
            return
        self._known[pid] = role
        seen = self.found.setdefault(role, {}).setdefault(pid, Seen())
        status = _status(pid)
        seen.peak = max(seen.peak, status["VmHWM"])
        seen.cpu = cpu_seconds(pid)


def _below(pid: int) -> list[int]:
    found, waiting = list[int](), [pid]
    while waiting:
        with contextlib.suppress(OSError):
            for task in Path(f"/proc/{waiting.pop()}/task").iterdir():
                below = [int(each) for each in (task / "children").read_text().split()]
                found += below
                waiting += below
    return found


def _role(pid: int) -> str:
    words = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
    if not Path(words[0]).name.startswith("python"):
        return ""
    names = {Path(word).name for word in words} | set(words)
    return next((role for role, wanted in ROLES.items() if names.issuperset(wanted)), "")


def _status(pid: int) -> dict[str, int]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    pairs = (line.split(":", 1) for line in lines)
    return {name: 1024 * int(rest.split()[0]) for name, rest in pairs if rest.endswith(" kB")}


def rows_of(*, sites: int, rounds: int, size: int, tee: TeeChoice) -> list[Row]:
    """Run the job and return what each role took."""
    observer = Observer()
    thread = threading.Thread(target=observer.run, daemon=True)
    thread.start()
    with tempfile.TemporaryDirectory(prefix="fedlearn-bench-") as folder:
        with deployment(Path(folder), sites=sites, tee=tee) as federation:
            observer.submitted()
            federation.run("memory", rounds=rounds, size=size)
    observer.stop()
    thread.join()
    model = 4 * size
    title = f"{model / 1e6:.0f} MB model, {sites} updates in a round"
    how = f"{rounds} rounds; the largest of the processes; their CPU together"
    rows = []
    for role in ROLES:
        processes = list(observer.found.get(role, {}).values())
        if processes:
            rows += [
                measured(
                    f"peak of the {role}, {title}",
                    unit="models",
                    ours=max(0, *(p.peak - p.first for p in processes)) / model,
                    how="VmHWM above that at submission, or above 0 where the job started the "
                    f"process; {how}",
                ),
                measured(
                    f"CPU of the {role} in a round, {title}",
                    unit="s",
                    ours=max(0.0, sum(p.cpu - p.began for p in processes)) / rounds,
                    how=f"user and system time; {how}",
                ),
            ]
    return rows


def main() -> None:
    """Measure and print."""
    parser = options(__doc__)
    parser.add_argument("--sites", type=int, nargs="+", default=[2, 4])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--size", type=int, default=25_000_000, help="32-bit numbers in the model")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.sites, arguments.rounds, arguments.size = [2], 2, 250_000
    rows: list[Row] = []
    for sites in arguments.sites:
        rows += rows_of(
            sites=sites,
            rounds=arguments.rounds,
            size=arguments.size,
            tee="sample" if arguments.quick else "auto",
        )
    show(rows, as_json=arguments.json)


if __name__ == "__main__":
    main()
