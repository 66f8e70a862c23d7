"""Measures what a round of many clients costs the coordinator, and what a connected client holds.

    python benchmarks/scale.py [--clients 100 500 1000 2000] [--rounds 3] [--size 44000] [--json]

For each number of clients a real coordinator (``fedlearn-server``) runs a job of a model of
``--size`` random float32 with the built-in FedAvg. Simulated clients are admitted by its gate,
commit to data, connect to the fleet listener over mutual TLS, and answer each round with random
arrays. The processor time of the coordinator's process in the rounds is divided by their number and
that of the clients, that of the job's aggregator and application apart. The memory is that of the
coordinator's process with all clients connected, less that with all of them enrolled.

A row's peer is the fewest clients of the same run: a ratio of 1 is linear.
"""

from __future__ import annotations

import os
import resource
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from _crowd import crowd  # noqa: E402
from _processes import cpu_seconds, descendants, resident_mib  # noqa: E402
from _report import at_most, measured, options, show  # noqa: E402
from _simulated_clients import load_process  # noqa: E402

TARGET_MS: Final = 2.0
TARGET_KIB: Final = 100.0
TARGET_RATIO: Final = 1.5
AT_ONCE: Final = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What a number of clients cost: processor time in ms and memory in KiB, for each of them."""

    clients: int
    coordinator_ms: float
    job_ms: float
    round_s: float
    admission_ms: float
    admitted_kib: float
    connected_kib: float


def measure(count: int, *, rounds: int, size: int) -> Found:
    """Return what ``count`` clients cost."""
    with crowd(count, rounds=rounds, size=size) as found:
        pid, cores = found.pid, sorted(os.sched_getaffinity(0))
        with load_process(found.setting(found.sites), cores) as load:
            load.do("ready")
            idle_mib, idle_s = resident_mib(pid), cpu_seconds(pid)
            load.do("admit", at_once=AT_ONCE)
            admission_s = cpu_seconds(pid) - idle_s
            load.do("commit", at_once=AT_ONCE)
            admitted_mib = resident_mib(pid)
            # The round starts when the last one is connected.
            load.do("connect", at_once=AT_ONCE)
            connected_mib = resident_mib(pid)
            began = coordinator = job = ended = 0.0
            for change, number in found.rounds():
                if (change, number) == ("started", 1):
                    began = time.monotonic()
                    coordinator, job = cpu_seconds(pid), _below(pid)
                if (change, number) == ("finished", rounds):
                    coordinator, job = cpu_seconds(pid) - coordinator, _below(pid) - job
                    ended = time.monotonic()
            if load.do("wait")["rounds"] != [rounds]:
                raise SystemExit("a client did not answer every round")
    each = 1000 / (rounds * count)
    return Found(
        clients=count,
        coordinator_ms=coordinator * each,
        job_ms=job * each,
        round_s=(ended - began) / rounds,
        admission_ms=1000 * admission_s / count,
        admitted_kib=1024 * (admitted_mib - idle_mib) / count,
        connected_kib=1024 * (connected_mib - idle_mib) / count,
    )


def _below(pid: int) -> float:
    return sum(map(cpu_seconds, descendants(pid)))


def main() -> None:
    """Run the benchmark."""
    parser = options(__doc__)
    parser.add_argument("--clients", type=int, nargs="+", default=[100, 500, 1000, 2000])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--size", type=int, default=44_000, help="float32 values of the model")
    given = parser.parse_args()
    if given.quick:
        given.clients, given.rounds, given.size = [5, 10], 2, 1000
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, 65_536)), hard))
    every = [measure(count, rounds=given.rounds, size=given.size) for count in given.clients]
    first, rows = every[0], []
    for found in every:
        fewest = f"{first.clients} clients"
        rows.append(
            measured(
                f"coordinator in a round, {found.clients} clients",
                unit="ms of CPU a client",
                ours=found.coordinator_ms,
                peers={fewest: first.coordinator_ms},
                floor={"aggregator and application": found.job_ms},
                target=[at_most(TARGET_MS), at_most(TARGET_RATIO, of=fewest)],
                how=f"CPU of the coordinator's process; {given.rounds} rounds of "
                f"{given.size} random float32 over mutual TLS; a round took {found.round_s:.2f} s",
            )
        )
        rows.append(
            measured(
                f"memory of a connected client, {found.clients} clients",
                unit="KiB",
                ours=found.connected_kib,
                floor={"admitted, not connected": found.admitted_kib},
                target=[at_most(TARGET_KIB)],
                how="RSS of the coordinator's process, less that with all sites enrolled; one "
                "connection for each client; the admission cost "
                f"{found.admission_ms:.2f} ms of CPU",
            )
        )
    show(rows, as_json=given.json)


if __name__ == "__main__":
    main()
