"""Measures the cost of connected sites for a coordinator, and of an agent for its site.

    python benchmarks/agents.py [--sites 1000] [--seconds 45] [--only sites|agent] [--json]

*Sites.* A real coordinator (``fedlearn-server``) runs with all threads on one core. The sites
enroll, each with its own key, and each opens its stream over mutual TLS, as an agent does:
greeting, report, a heartbeat every 15 seconds. A few processes simulate all of them. Memory and
processor time are those of the coordinator's process: before the sites connect, while they connect,
and while there are only heartbeats.

*Agent.* A real agent (``fedlearn-edge``) in a real Kubernetes control plane, connected to that
coordinator, idle. Its memory is read from the kernel, its requests from the API server's audit
log. This part is left out if the programs of Kubernetes are missing (``tools/get-kubernetes.sh``).

Everything uses the loopback interface. The status is 1 when a limit is exceeded.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import resource
import sys
import tempfile
import time
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Final

from _processes import cpu_seconds, pin, program_pid, resident_mib
from _simulated_sites import close, reported, simulator

from attestation.config import dumps
from attestation.evidence import Tee
from edge.protocol.identity import certification_request, key_pem, new_key
from edge.protocol.rpc import GateClient, enroll
from fedlearn.identity.join import JoinToken
from fedlearn.local.children import Children
from fedlearn.local.federation import Federation, program
from fedlearn.wire.channel import HEARTBEAT_SECONDS

ROOT: Final = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from tests.harness.cluster import Cluster  # noqa: E402
from tests.harness.cluster_site import ClusterSite  # noqa: E402

AGENT_MIB: Final = 80
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
            "sites": 10_000,
        }
        return {**super().server_table(), "limits": limits}


# --- the coordinator's side -------------------------------------------------------------------


def measure_sites(federation: Federation, pid: int, count: int, seconds: float) -> Sites:
    """Enroll and connect ``count`` sites; return what they cost."""
    before = resident_mib(pid)
    address, roots, identities = enrolled(federation, count)
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


def enrolled(federation: Federation, count: int) -> tuple[str, str, list[dict[str, str]]]:
    """Return the control address, the CA, and a chain and key for each of ``count`` sites."""
    found: list[dict[str, str]] = []
    gate: GateClient | None = None
    address = ""
    try:
        for number in range(count):
            invitation = federation.operator.create_token(
                f"site-{number}", lifetime=timedelta(hours=1), needs_approval=False
            )
            if gate is None:
                parsed = JoinToken.parse(invitation.token)
                gate = GateClient.connect(parsed.address, ca_pin=parsed.ca_pin)
            key = new_key()
            reply = gate.enroll(invitation.token, certification_request(key))
            address = reply.control_address
            chain = bytes(reply.certificate_chain).decode()
            found.append({"chain": chain, "key": key_pem(key).decode()})
        if gate is None:
            raise SystemExit("no sites, no measurement")
        return address, gate.pinned.ca_pem.decode(), found
    finally:
        if gate is not None:
            gate.close()


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


def main() -> int:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sites", type=int, default=1000)
    parser.add_argument("--seconds", type=float, default=45.0, help="how long to watch, idle")
    parser.add_argument("--only", choices=("sites", "agent"))
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, 65_536)), hard))
    sites: Sites | None = None
    agent: Agent | None = None
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
                if arguments.only != "agent":
                    sites = measure_sites(federation, pid, arguments.sites, arguments.seconds)
                if arguments.only != "sites":
                    agent = measure_agent(folder, federation, arguments.seconds)
            finally:
                federation.close()
    return show(sites, agent, as_json=arguments.json)


def show(sites: Sites | None, agent: Agent | None, *, as_json: bool) -> int:
    """Print each result with its limit; return 1 when a limit is exceeded."""
    kept: dict[str, bool] = {}
    figures: dict[str, float] = {}
    if sites is not None:
        kept |= {"streams": sites.held == sites.streams, "core": sites.core_share < CORES}
        figures |= {
            "streams": sites.held,
            "kib_per_stream": round(sites.kib_per_stream, 1),
            "connecting_cpu_ms_per_stream": round(1000 * sites.connecting_cpu_s / sites.streams, 2),
            "connecting_per_second": round(sites.streams / sites.connecting_s, 1),
            "idle_cpu_ms_per_stream_and_minute": round(
                60_000 * sites.core_share / sites.streams, 2
            ),
            "core_share": round(sites.core_share, 4),
        }
    if agent is not None:
        rate = agent.requests / agent.seconds
        kept |= {"agent_memory": agent.mib < AGENT_MIB, "requests": rate < REQUESTS_PER_SECOND}
        figures |= {
            "agent_mib": round(agent.mib, 1),
            "agent_memory_of_limit": round(agent.mib / AGENT_MIB, 3),
            "requests_per_second": round(rate, 4),
        }
    if as_json:
        print(json.dumps({**figures, "kept": kept}))
    else:
        lines(sites, agent, figures)
    return 0 if all(kept.values()) else 1


def lines(sites: Sites | None, agent: Agent | None, figures: dict[str, float]) -> None:
    """Print for people."""
    if sites is not None:
        print(f"streams held             {sites.held} of {sites.streams}, on one core")
        print(
            f"memory of a stream       {figures['kib_per_stream']:.1f} KiB "
            f"(coordinator: {sites.before_mib:.0f} MiB before, {sites.after_mib:.0f} MiB after)"
        )
        print(
            f"to connect               {figures['connecting_cpu_ms_per_stream']:.2f} ms of "
            f"processor time each, {figures['connecting_per_second']:.0f} a second"
        )
        print(
            f"idle                     {100 * sites.core_share:.1f} % of the core, "
            f"{figures['idle_cpu_ms_per_stream_and_minute']:.2f} ms a minute for each stream"
        )
    if agent is not None:
        print(
            f"agent in a cluster       {agent.mib:.1f} MiB, "
            f"{agent.mib / AGENT_MIB:.2f} of the {AGENT_MIB} MiB that are promised"
        )
        print(
            f"requests of an idle one  {figures['requests_per_second']:.3f} a second to the API "
            f"server ({agent.requests} in {agent.seconds:.0f} s); promised: under "
            f"{REQUESTS_PER_SECOND:g}"
        )


if __name__ == "__main__":
    sys.exit(main())
