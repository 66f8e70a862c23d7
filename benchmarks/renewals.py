"""Many admitted clients that attest again and again: none is lost, memory and descriptors are flat.

    python benchmarks/renewals.py [--clients 1000] [--renew-seconds 20] [--minutes 2] [--json]

A real coordinator admits the clients of one job. Each renews its admission every
``--renew-seconds``, over a connection of its own to the control listener, as a client in a TEE
does; certificates end after 60 seconds, so that a client that misses its renewals is lost and the
run fails. ``--renew-seconds 540 --minutes 60`` is the plain case: a client has ten minutes
(``renew_by_s``). The memory and the descriptors of the coordinator's process at the end are
compared with those at the end of the first third.
"""

from __future__ import annotations

import os
import resource
import sys
import threading
import time
from pathlib import Path
from typing import ClassVar, Final

ROOT: Final = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from _crowd import OpenCoordinator, crowd  # noqa: E402
from _processes import cpu_seconds, resident_mib  # noqa: E402
from _report import at_most, measured, options, show  # noqa: E402
from _simulated_clients import load_process  # noqa: E402

GROWTH_MIB: Final = 16.0
GROWTH_FILES: Final = 32.0


class BriefCertificates(OpenCoordinator):
    """A coordinator whose certificates end after a minute."""

    certificates: ClassVar[dict[str, object]] = {
        "client_s": 60,
        "renew_after_s": 10,
        "renew_by_s": 60,
    }


def open_files(pid: int) -> float:
    """Return how many descriptors a process has."""
    return float(len(list(Path(f"/proc/{pid}/fd").iterdir())))


def main() -> None:
    """Run the benchmark."""
    parser = options(__doc__)
    parser.add_argument("--clients", type=int, default=1000)
    parser.add_argument("--renew-seconds", type=float, default=20.0)
    parser.add_argument("--minutes", type=float, default=2.0)
    given = parser.parse_args()
    if given.quick:
        given.clients, given.renew_seconds, given.minutes = 10, 1.0, 0.1
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, 65_536)), hard))
    kind = BriefCertificates if given.renew_seconds <= 30 else OpenCoordinator
    samples: list[tuple[float, float]] = []
    over = threading.Event()

    def watch(pid: int) -> None:
        while not over.wait(60 * given.minutes / 60):
            samples.append((resident_mib(pid), open_files(pid)))

    with crowd(given.clients, kind=kind) as found:
        with load_process(found.setting(found.sites), sorted(os.sched_getaffinity(0))) as load:
            load.do("admit", at_once=16)
            watching = threading.Thread(target=watch, args=(found.pid,))
            began, cpu = time.monotonic(), cpu_seconds(found.pid)
            watching.start()
            renewed = load.do("renew", seconds=given.renew_seconds, minutes=given.minutes)
            over.set()
            watching.join()
            seconds, cpu = time.monotonic() - began, cpu_seconds(found.pid) - cpu
        lost = found.lost()
    if lost:
        raise SystemExit(f"{len(lost)} clients were lost: {lost[0]}")
    (first_mib, first_files), (last_mib, last_files) = samples[len(samples) // 3], samples[-1]
    count = renewed["renewed"]
    how = (
        f"{given.clients} clients renewed {count} times in {seconds:.0f} s, and none was lost; "
        f"{1000 * cpu / count:.2f} ms of CPU a renewal"
    )
    show(
        [
            measured(
                f"growth of memory over {given.clients} clients that renew",
                unit="MiB",
                ours=max(0.0, last_mib - first_mib),
                target=[at_most(GROWTH_MIB)],
                how=how,
            ),
            measured(
                f"growth of open files over {given.clients} clients that renew",
                unit="files",
                ours=max(0.0, last_files - first_files),
                target=[at_most(GROWTH_FILES)],
                how=how,
            ),
        ],
        as_json=given.json,
    )


if __name__ == "__main__":
    main()
