"""A coordinator with many enrolled sites and a job of all of them, for benchmarks.

The sites have no agents; a load process (:mod:`_simulated_clients`) has their keys. One development
key signs the evidence of all of them, so that the coordinator verifies, appraises and records each
client as it does in production.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import tempfile
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any, ClassVar, Final

from _processes import program_pid

from attestation.config import dumps
from attestation.evidence import Tee
from edge.protocol.identity import certification_request, key_pem, new_key
from edge.protocol.rpc import GateClient
from fedlearn.config.development_key import DEVELOPMENT_KEY
from fedlearn.identity.join import JoinToken
from fedlearn.identity.software import software_digest
from fedlearn.job.spec import JobSpec, workload_digest
from fedlearn.local.children import Child, Children
from fedlearn.local.federation import Federation
from fedlearn.local.policy import policy_text
from fedlearn.wire.pinning import PinnedServer

APP: Final = Path(__file__).parent / "apps" / "vector"
NAME: Final = "crowd"
MACHINE: Final = "machine"


class OpenCoordinator(Federation):
    """The coordinator of the demo, with limits at the gate that a benchmark does not reach."""

    limits: ClassVar[dict[str, object]] = {
        "challenges": 100_000,
        "challenges_per_peer": 100_000,
        "requests_per_second": 100_000.0,
        "requests_per_second_per_peer": 10_000.0,
        "connections": 16_384,
        "connections_per_peer": 16_384,
        "sites": 4096,
    }
    certificates: ClassVar[dict[str, object]] = {}

    def server_table(self) -> dict[str, object]:
        """Return ``server.toml`` with these limits."""
        found = {**super().server_table(), "limits": self.limits}
        return {**found, **({"certificates": self.certificates} if self.certificates else {})}


def enrolled(federation: Federation, count: int) -> tuple[str, PinnedServer, list[dict[str, str]]]:
    """Return the control address, the gate, and name, chain and key of each of ``count`` sites."""
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
            found.append({"name": f"site-{number}", "chain": chain, "key": key_pem(key).decode()})
        if gate is None:
            raise SystemExit("no sites, no measurement")
        return address, gate.pinned, found
    finally:
        if gate is not None:
            gate.close()


class Crowd:
    """A running coordinator and a job that is open for ``sites``."""

    def __init__(self, federation: Federation, sites: int, *, rounds: int, size: int) -> None:
        from server.flower.application import bundle as bundles

        self.federation = federation
        if federation._process is None:
            raise SystemExit("the coordinator does not run")
        self.pid = program_pid(federation._process)
        _, self._pinned, self.sites = enrolled(federation, sites)
        names = [site["name"] for site in self.sites]
        bundle = bundles.build(APP)
        digest = hashlib.sha256(bundle).digest()
        machine = federation.machines[MACHINE]
        federation.machines |= dict.fromkeys(names, machine)
        policy = policy_text(federation, name=NAME, bundle=digest, app=NAME, sites=names)
        (federation.folder / "policy.toml").write_text(policy)
        job = {
            "name": NAME,
            "app": str(APP),
            "rounds": rounds,
            "sites": names,
            "policy": "policy.toml",
            "seed": 1,
            "deadline_s": 86_400,  # clients that only renew answer no round
            "strategy": {"name": "fedavg", "options": {"fraction_evaluate": 0.0}},
            "config": {"size": size, "min-sites": sites, "stamps": ""},
        }
        (federation.folder / "job.toml").write_text(dumps(job))
        spec = JobSpec.load(federation.folder / "job.toml")
        state = federation.operator.submit_job(
            job_toml=spec.to_toml(), bundle=bundle, policy_toml=policy
        )
        self.job = state.run_id
        self._measured = {
            "app": digest,
            "job": bytes.fromhex(state.id),
            "software": software_digest(),
        }

    def setting(self, sites: list[dict[str, str]]) -> dict[str, Any]:
        """Return the first line for a load process with these sites."""
        machine = self.federation.machines[MACHINE]
        return {
            "gate": self._pinned.address,
            "roots": self._pinned.ca_pem.decode(),
            "verifier_id": self._pinned.verifier_id.hex(),
            "job": self.job,
            "workload": workload_digest(self._measured["job"], self._measured["app"]).hex(),
            "hardware_id": machine.hardware_id.hex(),
            "tee_key": (machine.state / DEVELOPMENT_KEY).read_text(),
            "measured": {name: value.hex() for name, value in self._measured.items()},
            "sites": sites,
        }

    def stop(self) -> None:
        """Stop the coordinator; its state stays."""
        self.federation.close()
        if isinstance(self.federation._process, Child):
            self.federation._process.stop()

    def lost(self) -> list[str]:
        """Return the events of clients that lost their admission."""
        events = self.federation.operator.follow_job(NAME, past_only=True)
        return [e.json for e in events if e.kind in ("client.lost", "client.quarantined")]

    def rounds(self) -> Iterator[tuple[str, int]]:
        """Yield ``started`` and ``finished`` with the number of each round, until the job ends.

        :raises SystemExit: unless the job finishes.
        """
        for event in self.federation.operator.follow_job(NAME):
            self.federation.check()
            what, _, change = event.kind.partition(".")
            if what == "round" and change in ("started", "finished"):
                yield change, json.loads(event.json)["round"]
        state = self.federation.operator.get_job(NAME)
        if state.status != "finished":
            raise SystemExit(f"the job is {state.status}: {state.detail}")


@contextlib.contextmanager
def crowd(
    sites: int,
    *,
    rounds: int = 1,
    size: int = 1000,
    kind: type[OpenCoordinator] = OpenCoordinator,
) -> Iterator[Crowd]:
    """Run a coordinator with many sites and a job of them."""
    with tempfile.TemporaryDirectory(prefix="fedlearn-crowd-") as scratch:
        folder = Path(scratch)
        with Children(folder / "logs") as children:
            federation = kind(folder, children, tee=Tee.SAMPLE)
            try:
                federation.make_machines([MACHINE])
                federation.start()
                yield Crowd(federation, sites, rounds=rounds, size=size)
            finally:
                federation.close()
