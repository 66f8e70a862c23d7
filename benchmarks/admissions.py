"""Measures how many clients a coordinator admits a second, and where the time goes.

    python benchmarks/admissions.py [--clients 300] [--runs 3] [--json]

*The gate.* A real coordinator (``fedlearn-server``) runs with all threads on one core. Simulated
clients on the other cores are admitted by it as real ones are: a connection over TLS of their own,
a challenge, evidence over its nonce with a voucher of their site, a certificate. The processor time
of the coordinator's process for one admission bounds the admissions a second of a core.

*Floors.* The same challenge and the same admission by the gate of a coordinator in this process, in
one thread, without a network; and a bare gRPC server that answers the same two calls over a TLS
connection for each client. Their sum is what admission and network cost at least.
"""

from __future__ import annotations

import dataclasses
import os
import resource
import sys
import time
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

ROOT: Final = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from _bare_gate import bare_gate  # noqa: E402
from _crowd import Crowd, crowd  # noqa: E402
from _processes import cpu_seconds, pin  # noqa: E402
from _report import at_least, at_most, measured, options, show  # noqa: E402
from _simulated_clients import Client, Deployment, load_process  # noqa: E402

from fedlearn.identity.admission import AdmitRequest  # noqa: E402
from server.config import ServerConfig  # noqa: E402
from server.service import serve  # noqa: E402

TARGET: Final = 300.0
AT_ONCE: Final = 16


def over_the_wire(pid: int, setting: dict[str, Any], cores: Sequence[int]) -> float:
    """Admit a client of each site of ``setting``; return the ms of CPU of one for ``pid``."""
    with load_process(setting, cores) as load:
        load.do("ready")
        before = cpu_seconds(pid)
        load.do("admit", at_once=AT_ONCE)
        return 1000 * (cpu_seconds(pid) - before) / len(setting["sites"])


def in_process(found: Crowd, settings: Sequence[dict[str, Any]]) -> list[float]:
    """Return the ms of CPU of one admission by a gate in this process, for each setting."""
    found.stop()
    config = found.federation.server_config
    document = tomllib.loads(config.read_text())
    with serve(ServerConfig.load(config), document) as service:
        gate = service.coordinator.gate
        runs = []
        for setting in settings:
            deployment, seconds = Deployment.of(setting), 0.0
            for site in setting["sites"]:
                client = Client(deployment, site)
                before = time.thread_time()
                challenge = gate.challenge(deployment.job, client.site, "192.0.2.1")
                seconds += time.thread_time() - before
                sent = client.request(challenge.nonce, voucher=True)
                names = (field.name for field in dataclasses.fields(AdmitRequest))
                request = AdmitRequest(**{name: getattr(sent, name) for name in names})
                before = time.thread_time()
                gate.admit(request, peer="192.0.2.1")
                seconds += time.thread_time() - before
            runs.append(1000 * seconds / len(setting["sites"]))
        return runs


def main() -> None:
    """Run the benchmark."""
    parser = options(__doc__)
    parser.add_argument("--clients", type=int, default=300, help="in each run")
    parser.add_argument("--runs", type=int, default=3)
    given = parser.parse_args()
    clients, runs = (10, 1) if given.quick else (given.clients, given.runs)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, 65_536)), hard))
    core = min(os.sched_getaffinity(0))
    others = sorted(os.sched_getaffinity(0) - {core}) or [core]
    ours, bare = [], []
    with crowd(2 * clients * runs) as found, bare_gate() as (pid, place):
        pin(found.pid, core)
        pin(pid, core)
        settings = [
            found.setting(found.sites[start : start + clients])
            for start in range(0, 2 * clients * runs, clients)
        ]
        for setting in settings[:runs]:
            ours.append(over_the_wire(found.pid, setting, others))
            bare.append(over_the_wire(pid, {**setting, **place}, others))
        inside = in_process(found, settings[runs:])
    floors = {"in process, without a network": inside, "bare gRPC over TLS, two calls": bare}
    show(
        [
            measured(
                "one admission",
                unit="ms of CPU",
                ours=ours,
                floor=floors,
                target=[at_most(1000 / TARGET)],
                how=f"CPU of the coordinator's process on one core; {runs} runs of {clients} "
                "clients, sample evidence, one TLS connection for each client",
            ),
            measured(
                "admissions a second on one core",
                unit="1/s",
                ours=[1000 / each for each in ours],
                target=[at_least(TARGET)],
                how="one second divided by the CPU of one admission",
            ),
        ],
        as_json=given.json,
    )


if __name__ == "__main__":
    main()
