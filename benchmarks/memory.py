"""Measures the memory and the processor time of each process of a job, in multiples of its model.

The job is that of ``round_overhead.py``: its training takes no time. While it runs, the processes
below this one are looked at 50 times a second, and counted by what they do: the coordinator, the
job's aggregator, its application, each site's client, and the app of each client.

``peak`` is the most resident memory of a process (``VmHWM``) above what it had when the job was
submitted, or above 0 where it was started by the job; ``anonymous`` and ``shared`` are the most
that ``RssAnon`` and ``RssShmem`` showed, at different times. Where a role has several processes,
the largest counts. ``cpu`` is the processor time of all of them in a round.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
import tempfile
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

sys.path.insert(0, str(Path(__file__).parent))

import round_overhead
from _processes import cpu_seconds

ROLES: Final = {
    "coordinator": ("fedlearn-server", "run"),
    "aggregator": ("server.flower.aggregation.aggregator",),
    "application": ("server.flower.application.app_main",),
    "client": ("edge.client.process_main",),
    "app": ("edge.client.flower.app_main",),
}
"""The words of a command line by which a process is recognised."""

MIB: Final = 1 << 20
_INTERVAL: Final = 0.02


@dataclass(slots=True)
class Seen:
    """What a process had when it was seen first and at most, in bytes and seconds."""

    first: int = 0
    peak: int = 0
    anonymous: int = 0
    shared: int = 0
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
        seen.anonymous = max(seen.anonymous, status["RssAnon"])
        seen.shared = max(seen.shared, status["RssShmem"])
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


def measured(*, sites: int, rounds: int, size: int) -> dict[str, Any]:
    """Run the job and return what each role took."""
    observer = Observer()
    thread = threading.Thread(target=observer.run, daemon=True)
    thread.start()
    with tempfile.TemporaryDirectory(prefix="fedlearn-bench-") as folder:
        found = round_overhead.ours(
            Path(folder) / "ours",
            sites=sites,
            rounds=rounds,
            size=size,
            tee="auto",
            submitting=observer.submitted,
        )
    observer.stop()
    thread.join()
    model = 4 * size
    roles = {}
    for role in ROLES:
        processes = list(observer.found.get(role, {}).values())
        if processes:
            roles[role] = {
                "processes": len(processes),
                "peak_models": round(max(p.peak - p.first for p in processes) / model, 2),
                "anonymous_models": round(max(p.anonymous for p in processes) / model, 2),
                "shared_models": round(max(p.shared for p in processes) / model, 2),
                "peak_mib": round(max(p.peak for p in processes) / MIB),
                "cpu_s_a_round": round(sum(p.cpu - p.began for p in processes) / rounds, 3),
            }
    return {
        "sites": sites,
        "rounds": rounds,
        "model_mib": round(model / MIB, 1),
        "round_s": round(found.median, 3),
        "roles": roles,
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sites", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--size", type=int, default=25_000_000, help="32-bit numbers in the model")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    found = measured(sites=arguments.sites, rounds=arguments.rounds, size=arguments.size)
    if arguments.json:
        print(json.dumps(found))
        return
    print(
        f"{found['sites']} sites, a model of {found['model_mib']} MiB, {found['rounds']} rounds "
        f"of {found['round_s']} s (median)"
    )
    for role, each in found["roles"].items():
        print(
            f"{role:>12} x {each['processes']}  peak {each['peak_models']:5.2f} models above the "
            f"start ({each['peak_mib']} MiB in all; anonymous {each['anonymous_models']:.2f}, "
            f"shared {each['shared_models']:.2f})   cpu {each['cpu_s_a_round']:.2f} s a round"
        )


if __name__ == "__main__":
    main()
