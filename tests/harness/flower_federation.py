"""A small federation with real parts: CA, register, front, a job's process, client processes.

Only attestation is left out: admissions are written into the register directly. A client is
this file run as a program; it gets its certificate and key over standard input.
"""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from fedlearn.compression.spec import CompressionSpec
from fedlearn.update.arrays import Array, decode
from server.flower.job_plan import Checkpoint

if TYPE_CHECKING:
    from server.flower.job_plan import JobPlan, Outcome
    from server.flower.job_runner import JobRunner

TRUST_DOMAIN = "test.example"

PYPROJECT = """
[project]
name = "tiny"
version = "1.0.0"
license = "Apache-2.0"
[tool.flwr.app]
publisher = "tests"
[tool.flwr.app.components]
serverapp = "tiny.server_app:app"
clientapp = "tiny.client_app:app"
[tool.flwr.app.config]
size = 64
strategy = "FedAvg"
pause = 0.0
fail-on = ""
num-server-rounds = 3
"""

SERVER_APP = """
import numpy as np
import flwr.serverapp.strategy as strategies
from flwr.app import ArrayRecord
from flwr.serverapp import ServerApp

app = ServerApp()

@app.main()
def main(grid, context):
    config = context.run_config
    strategy = getattr(strategies, config["strategy"])(
        min_available_nodes=1, min_train_nodes=1, min_evaluate_nodes=1
    )
    weights = np.random.rand(config["size"]).astype("float32")
    result = strategy.start(
        grid=grid,
        initial_arrays=ArrayRecord([weights, np.zeros((), "int64")]),
        num_rounds=config["num-server-rounds"],
    )
    print("final", [a.numpy().sum() for a in result.arrays.values()])
"""

CLIENT_APP = """
import os, time
import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

app = ClientApp()

@app.train()
def train(message, context):
    time.sleep(context.run_config["pause"])
    if context.run_config["fail-on"] == context.node_config["site"]:
        raise ValueError("planted failure")
    arrays = message.content["arrays"].to_numpy_ndarrays()
    count = context.state.get("count", ConfigRecord({"calls": 0}))["calls"] + 1
    context.state["count"] = ConfigRecord({"calls": count})
    noise = np.random.rand(*arrays[0].shape).astype("float32")
    new = [arrays[0] * np.float32(0.5) + noise * np.float32(count), arrays[1] + 1]
    new[1] = np.asarray(new[1], "int64")
    examples = 10 + context.node_config["index"]
    content = RecordDict({
        "arrays": ArrayRecord(new),
        "metrics": MetricRecord(
            {"num-examples": examples, "loss": float(noise.mean()), "calls": count}
        ),
    })
    return Message(content, reply_to=message)

@app.evaluate()
def evaluate(message, context):
    arrays = message.content["arrays"].to_numpy_ndarrays()
    metrics = MetricRecord({"num-examples": 10, "score": float(arrays[0].mean())})
    return Message(RecordDict({"metrics": metrics}), reply_to=message)
"""


def write_app(
    folder: Path, *, server: str = SERVER_APP, client: str = CLIENT_APP, project: str = PYPROJECT
) -> Path:
    (folder / "tiny").mkdir(parents=True)
    (folder / "pyproject.toml").write_text(project)
    (folder / "tiny" / "__init__.py").write_text("")
    (folder / "tiny" / "server_app.py").write_text(server)
    (folder / "tiny" / "client_app.py").write_text(client)
    return folder


class Channel:
    """A job's channel that remembers; checkpoints are kept in memory."""

    def __init__(self, live: Callable[[], Iterable[str]]) -> None:
        self.events: list[tuple[str, dict[str, Any]]] = []
        self.checkpoints: list[Any] = []
        self.charged: list[tuple[int, int, bytes]] = []
        self.files: list[dict[str, bytes]] = []
        self._live = live
        self.changed = threading.Condition()

    def event(self, kind: str, fields: Mapping[str, Any]) -> None:
        with self.changed:
            self.events.append((kind, dict(fields)))
            self.changed.notify_all()

    def take_events(self, events: Sequence[tuple[str, Mapping[str, Any]]]) -> None:
        for kind, fields in events:
            self.event(kind, fields)

    def charge(self, stage: int, round_: int, inputs: bytes) -> None:
        self.charged.append((stage, round_, inputs))

    def save_checkpoint(self, checkpoint: Checkpoint) -> None:
        with self.changed:
            self.checkpoints.append(checkpoint)
            self.changed.notify_all()

    @property
    def models(self) -> list[dict[str, Array]]:
        """The model of each checkpoint."""
        return [decode(each.model) for each in self.checkpoints]

    def settle(self) -> None:
        return None

    def keep_files(self, files: Mapping[str, memoryview]) -> None:
        self.files.append({name: bytes(data) for name, data in files.items()})

    def load_checkpoint(self) -> Any:
        return self.checkpoints[-1] if self.checkpoints else None

    def live_sites(self) -> dict[str, int]:
        return dict.fromkeys(self._live(), 0)

    def of(self, kind: str) -> list[dict[str, Any]]:
        return [fields for name, fields in self.events if name == kind]

    def wait_for(self, kind: str, count: int = 1, seconds: float = 30) -> None:
        with self.changed:
            found = self.changed.wait_for(lambda: len(self.of(kind)) >= count, seconds)
        assert found, f"no {kind} within {seconds} s: {self.events[-5:]}"


During = Callable[["JobRunner", Channel], object]
"""What a test does while a job runs."""


class FlowerFederation:
    """One coordinator with a Fleet server; jobs and clients are added to it."""

    def __init__(self, folder: Path, **limits: Any) -> None:
        from fedlearn.identity.tls import server_context
        from server.admission.registry import AdmissionRegistry
        from server.identity.pki import CertificateAuthority
        from server.rpc.fleet import FleetServer

        self.folder = folder
        now = datetime.now(UTC)
        self.ca = CertificateAuthority.create(TRUST_DOMAIN, now)
        self.root = x509.load_pem_x509_certificate(self.ca.certificate_pem)
        self.registry = AdmissionRegistry()
        self.hosts: dict[str, Any] = {}
        key = ec.generate_private_key(ec.SECP256R1())
        issued = self.ca.issue_server(_csr(key), ips=["127.0.0.1"], now=now)
        chain = x509.load_pem_x509_certificates(issued.chain_pem)
        self.fleet = FleetServer(
            tls=server_context(chain, key, [self.root]),
            registry=self.registry,
            link_of=lambda job: self.hosts[job].link if job in self.hosts else None,
            trust_domain=TRUST_DOMAIN,
            **limits,
        )
        self.address = self.fleet.start()
        self.clients: list[subprocess.Popen[bytes]] = []

    def host(
        self, plan: JobPlan, *, channel: Channel | None = None, app_host: Path | None = None
    ) -> tuple[JobRunner, Channel]:
        from server.flower.job_runner import JobRunner

        channel = channel or Channel(lambda: self.live(plan.spec.name))
        folder = self.folder / f"job-{plan.spec.name}"
        host = JobRunner(plan, channel, directory=folder, app_host=app_host)
        self.hosts[plan.spec.name] = host
        return host, channel

    def live(self, job: str) -> frozenset[str]:
        return frozenset(a.site for a in self.registry.of_job(job, now=datetime.now(UTC)))

    def admit(
        self, job: str, site: str, *, node_id: int | None = None, seconds: float = 1200
    ) -> dict[str, Any]:
        """Admit a site; return its certificate, key and thumbprint."""
        from attestation.policy.result import AttestationResult, Tier
        from server.admission.registry import Admission
        from server.identity.peer_certificates import spki, thumbprint

        now = datetime.now(UTC)
        key = ec.generate_private_key(ec.SECP256R1())
        issued = self.ca.issue_client(
            _csr(key),
            job=job,
            site=site,
            client="c1",
            evidence_digest=bytes(32),
            policy_digest=bytes(32),
            now=now,
            lifetime=timedelta(seconds=seconds),
        )
        tls_key = spki(key.public_key())
        if node_id is None:
            node_id = self.hosts[job].create_node(site, tls_key)
        result = AttestationResult(
            status=Tier.AFFIRMING,
            tee="sample",
            findings=(),
            policy=bytes(32),
            key_thumbprint=thumbprint(tls_key),
            expires=issued.expires,
        )
        admission = Admission(
            job=job,
            site=site,
            client="c1",
            thumbprint=thumbprint(tls_key),
            tls_key=tls_key,
            hpke_key=bytes(32),
            serial=issued.serial,
            node_id=node_id,
            evidence_digest=bytes(32),
            policy_digest=bytes(32),
            result=result,
            issued=now,
            expires=issued.expires,
        )
        self.registry.add(admission, now=now)
        pem = key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        return {
            "chain": issued.chain_pem.decode(),
            "key": pem.decode(),
            "root": self.ca.certificate_pem.decode(),
            "thumbprint": thumbprint(tls_key),
        }

    def client(
        self,
        plan: JobPlan,
        site: str,
        *,
        cheats: bool = False,
        filters: Sequence[Mapping[str, Any]] = (),
    ) -> subprocess.Popen[bytes]:
        """Admit a site and start its client process; one that ``cheats`` protects nothing.

        ``filters`` are those of its ``site.toml``.
        """
        plain = dataclasses.replace(plan.spec, privacy=None, compression=CompressionSpec())
        spec = plain if cheats else plan.spec
        identity = self.admit(plan.spec.name, site)
        self.identities = {**getattr(self, "identities", {}), site: identity}
        reported = {
            **{k: identity[k] for k in ("chain", "key", "root")},
            "address": f"{self.address[0]}:{self.address[1]}",
            "spec": spec.to_json(),
            "site": site,
            "bundle": base64.b64encode(plan.bundle).decode(),
            "filters": list(filters),
        }
        log = (self.folder / f"client-{site}.log").open("ab")
        process = subprocess.Popen(
            [sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=log,
            env={**os.environ, "PYTHONHASHSEED": "0"},
        )
        assert process.stdin is not None
        process.stdin.write(json.dumps(reported).encode())
        process.stdin.close()
        self.clients.append(process)
        return process

    def close(self) -> None:
        for process in self.clients:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            process.wait()
        for host in self.hosts.values():
            host.close()
        self.fleet.stop()


def _csr(key: ec.EllipticCurvePrivateKey) -> bytes:
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    return builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.DER)


def ended(host: JobRunner, seconds: float) -> Outcome:
    """Return how a job ended, which it does within some seconds."""
    outcome = host.wait(seconds)
    assert outcome is not None, f"the job still runs after {seconds} s"
    return outcome


def make_plan(bundle: bytes, *, job: str = "tiny", sites: int = 4, **more: Any) -> JobPlan:
    from tests.harness.job_plans import job_plan

    values: dict[str, Any] = {"rounds": 3, "quorum": sites, "seconds": 60.0, "seed": 7, **more}
    return job_plan(bundle, job=job, sites=[f"site-{i}" for i in range(sites)], **values)


def client_main() -> None:
    import logging

    from edge.client.flower.warm_client import ClientPlan, Identity, WarmClient
    from fedlearn.config.filters import FilterSpec
    from fedlearn.job.spec import JobSpec

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    reported = json.load(sys.stdin)
    bundle, spec = base64.b64decode(reported["bundle"]), JobSpec.from_json(reported["spec"])
    key = serialization.load_pem_private_key(reported["key"].encode(), None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    plan = ClientPlan(
        spec=spec,
        site=reported["site"],
        bundle=bundle,
        node_config={"site": reported["site"], "index": spec.sites.index(reported["site"])},
        patience=20,
        filters=tuple(FilterSpec(**each) for each in reported["filters"]),
    )
    with tempfile.TemporaryDirectory() as folder:
        client = WarmClient(
            plan,
            address=reported["address"],
            identity=Identity(
                chain=tuple(x509.load_pem_x509_certificates(reported["chain"].encode())),
                key=key,
                authorities=(x509.load_pem_x509_certificate(reported["root"].encode()),),
            ),
            charge=lambda question: None,
            directory=Path(folder) / "app",
        )
        started = time.monotonic()
        try:
            print("ended:", client.run(), f"{time.monotonic() - started:.1f}", flush=True)
        except Exception as error:
            print("raised:", type(error).__name__, error, flush=True)
            raise SystemExit(3) from error


if __name__ == "__main__":
    client_main()
