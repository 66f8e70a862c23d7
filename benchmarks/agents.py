"""Measures the cost of connected sites for a coordinator, and of an agent for its site.

*Sites.* A real coordinator (``fedlearn-server``) runs with all threads on one core. The sites
enroll, each with its own key, and each opens its stream over mutual TLS, as an agent does:
greeting, report, a heartbeat every 15 seconds. A few processes simulate all of them. Memory and
processor time are those of the coordinator's process: before the sites connect, while they connect,
and while there are only heartbeats.

*Agent.* A real agent (``fedlearn-edge``) in a real Kubernetes control plane, connected to that
coordinator, idle. Its memory is read from the kernel, its requests from the API server's audit
log. This part is left out if the programs of Kubernetes are missing (``tools/get-kubernetes.sh``).

Everything uses the loopback interface.
"""

from __future__ import annotations

import contextlib
import os
import resource
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from _crowd import enrolled
from _processes import cpu_seconds, pin, program_pid, resident_mib
from _report import Row, at_most, measured, options, show
from _simulated_sites import close, reported, simulator

from attestation.config import dumps
from attestation.evidence import Tee
from edge.protocol.rpc import enroll
from fedlearn.local.children import Children
from fedlearn.local.federation import Federation, program
from fedlearn.wire.channel import HEARTBEAT_SECONDS

ROOT: Final = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from tests.harness.cluster import Cluster  # noqa: E402
from tests.harness.cluster_site import ClusterSite  # noqa: E402

AGENT_MIB: Final = 80
COORDINATOR_MIB: Final = 140
REQUESTS_PER_SECOND: Final = 1.0
CORES: Final = 1.0
PROCESSES: Final = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Sites:
    """The cost of streams. Memory in MiB, processor time in seconds of one core."""

    streams: int
    held: int
    before_mib: float
    after_mib: float
    connecting_s: float
    connecting_cpu_s: float
    idle_s: float
    idle_cpu_s: float

    @property
    def kib_per_stream(self) -> float:
        """Memory of one stream."""
        return (self.after_mib - self.before_mib) * 1024 / self.streams

    @property
    def core_share(self) -> float:
        """The part of a core that they take while there are only heartbeats."""
        return self.idle_cpu_s / self.idle_s


@dataclass(frozen=True, slots=True, kw_only=True)
class Agent:
    """The cost of an idle agent in a cluster; ``requests`` in ``seconds``."""

    mib: float
    requests: int
    seconds: float


class Coordinator(Federation):
    """The coordinator of the demo, with high limits at the gate."""

    def server_table(self) -> dict[str, object]:
        """Return ``server.toml`` with limits that the benchmark does not reach."""
        limits = {
            "requests_per_second": 100_000.0,
            "requests_per_second_per_peer": 10_000.0,
            "connections": 16_384,
            "connections_per_peer": 16_384,
            "sites": 4_000,  # four open files each
        }
        return {**super().server_table(), "limits": limits}


# --- the coordinator's side -------------------------------------------------------------------


def measure_sites(federation: Federation, pid: int, count: int, seconds: float) -> Sites:
    """Enroll and connect ``count`` sites; return what they cost."""
    before = resident_mib(pid)
    address, gate, identities = enrolled(federation, count)
    roots = gate.ca_pem.decode()
    cores = sorted(os.sched_getaffinity(0) - os.sched_getaffinity(pid)) or [0]
    began, cpu = time.monotonic(), cpu_seconds(pid)
    with contextlib.ExitStack() as stack:
        simulators = [
            stack.enter_context(simulator(address, roots, identities[index::PROCESSES], cores))
            for index in range(PROCESSES)
        ]
        for one in simulators:
            reported(one)
        connecting, connecting_cpu = time.monotonic() - began, cpu_seconds(pid) - cpu
        # The first heartbeats are sent at the same time; wait until they are spread.
        time.sleep(HEARTBEAT_SECONDS / 3)
        began, cpu = time.monotonic(), cpu_seconds(pid)
        time.sleep(seconds)
        idle, idle_cpu = time.monotonic() - began, cpu_seconds(pid) - cpu
        after = resident_mib(pid)
        connected = sum(site.connected for site in federation.operator.list_sites())
        held = 0
        for one in simulators:
            close(one)
            held += reported(one)
    if held != connected:
        raise SystemExit(f"{held} streams are open, but the coordinator reports {connected}")
    return Sites(
        streams=count,
        held=held,
        before_mib=before,
        after_mib=after,
        connecting_s=connecting,
        connecting_cpu_s=connecting_cpu,
        idle_s=idle,
        idle_cpu_s=idle_cpu,
    )


# --- an agent in a cluster --------------------------------------------------------------------


def measure_agent(folder: Path, federation: Federation, seconds: float) -> Agent:
    """Run an idle agent under its own account in a cluster; return what it costs."""
    with Cluster(folder / "cluster", audited=True) as cluster:
        site = ClusterSite(cluster, folder / "place")
        name, state = "in-a-cluster", folder / "agent"
        account = state / "account"
        account.mkdir(parents=True, mode=0o700)
        (account / "token").write_text(cluster.token(site.namespace, "fedlearn-edge"))
        (account / "ca.crt").write_bytes(cluster.authority.path.read_bytes())
        host, _, port = cluster.url.removeprefix("https://").rpartition(":")
        settings = site.settings()
        table = {
            "state": "state",
            "launcher": {"kind": "kubernetes"},
            "attester": {"kind": "insecure-sample"},
            "kubernetes": {
                "namespace": site.namespace,
                "workload": settings.workload,
                "image": settings.image,
                "sponsor_listen": "127.0.0.1:0",
            },
        }
        (state / "site.toml").write_text(dumps(table))
        enroll(federation.token(name)).save(state / "state")
        environment = {
            "KUBERNETES_SERVICE_HOST": host,
            "KUBERNETES_SERVICE_PORT": port,
            "FEDLEARN_ACCOUNT": str(account),
        }
        user = f"system:serviceaccount:{site.namespace}:fedlearn-edge"
        with Children(folder / "agent-logs", environment) as children:
            command: list[str | Path] = [program("fedlearn-edge"), "run"]
            child = children.start(name, [*command, "--config", state / "site.toml"])
            federation.await_connected([name])
            time.sleep(3.0)
            before = len(cluster.asked(user))
            if not before:
                raise SystemExit("the audit log has no request of the agent")
            time.sleep(seconds)
            children.check()
            asked = len(cluster.asked(user)) - before
            return Agent(mib=resident_mib(program_pid(child)), requests=asked, seconds=seconds)


# --- the command ------------------------------------------------------------------------------


def main() -> None:
    """Run the command."""
    parser = options(__doc__)
    parser.add_argument("--sites", type=int, default=1000)
    parser.add_argument("--seconds", type=float, default=10.0, help="how long to watch, idle")
    parser.add_argument("--only", choices=("sites", "agent"))
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.sites, arguments.seconds, arguments.only = 8, 1.0, "sites"
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, 65_536)), hard))
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="fedlearn-agents-") as scratch:
        folder = Path(scratch)
        with Children(folder / "logs") as children:
            federation = Coordinator(folder, children, tee=Tee.SAMPLE)
            try:
                federation.make_machines([])
                federation.start()
                if federation._process is None:
                    raise SystemExit("the coordinator does not run")
                pid = program_pid(federation._process)
                pin(pid, min(os.sched_getaffinity(0)))
                time.sleep(2.0)
                rows.append(
                    measured(
                        "memory of an idle coordinator",
                        unit="MiB",
                        ours=resident_mib(pid),
                        target=[at_most(COORDINATOR_MIB)],
                        how="VmRSS, no site connected",
                    )
                )
                if arguments.only != "agent":
                    found = measure_sites(federation, pid, arguments.sites, arguments.seconds)
                    rows += stream_rows(found)
                if arguments.only != "sites":
                    rows += agent_rows(measure_agent(folder, federation, arguments.seconds))
            finally:
                federation.close()
    show(rows, as_json=arguments.json)


def stream_rows(sites: Sites) -> list[Row]:
    """Return what a site's stream costs the coordinator."""
    how = (
        f"{sites.streams} streams over mutual TLS, {sites.held} held to the end, to a coordinator "
        f"on one core; {sites.idle_s:.0f} s with heartbeats only"
    )
    return [
        measured("memory of a site's stream", unit="KiB", ours=sites.kib_per_stream, how=how),
        measured(
            "to connect a site's stream",
            unit="ms of CPU",
            ours=1000 * sites.connecting_cpu_s / sites.streams,
            how=how,
        ),
        measured(
            f"one core for {sites.streams} idle streams",
            unit="cores",
            ours=sites.core_share,
            target=[at_most(CORES)],
            how=how,
        ),
    ]


def agent_rows(agent: Agent) -> list[Row]:
    """Return what an agent costs its site."""
    how = f"an idle agent in a real control plane, {agent.seconds:.0f} s"
    return [
        measured(
            "memory of an idle agent",
            unit="MiB",
            ours=agent.mib,
            target=[at_most(AGENT_MIB)],
            how=how,
        ),
        measured(
            "requests of an idle agent to the API server",
            unit="a second",
            ours=agent.requests / agent.seconds,
            target=[at_most(REQUESTS_PER_SECOND)],
            how=how,
        ),
    ]


if __name__ == "__main__":
    main()
