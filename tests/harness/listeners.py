"""The gRPC listeners of a deployment, with a coordinator that only records calls."""

from __future__ import annotations

import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from fedlearn.errors import ConfigError, JobError, KeyReleaseDenied
from fedlearn.job.app_log import SealedAppLog
from fedlearn.job.phase import Phase
from fedlearn.job.run import RunName, checked_reference
from fedlearn.job.state import JobEvent, JobState, JobStatus
from server.admission.registry import Admission
from server.jobs.records.job_store import JobRecord
from server.keys.key_protectors import InsecurePlainKeyFile
from server.keys.service import KeyService
from server.rpc import Listeners, RpcConfig, Welcome
from server.rpc.ports import Orders
from tests.harness.bound_state import bound_state
from tests.harness.deployment import Deployment, key_pem


class RecordingCoordinator:
    """Implements the port of the services; the real one is tested end to end."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, Any]] = []
        self.orders: dict[str, Any] = {}
        self.signatures: list[bytes] = []
        self.bundle = b"bundle" * 400_000
        self.owner_key = b""
        self.waiting = threading.Event()
        self.stopped = threading.Event()
        self.connected = threading.Event()

    def submit_job(
        self,
        operator: str,
        *,
        job_toml: str,
        bundle: bytes,
        policy_toml: str,
        policy_signature: bytes = b"",
    ) -> JobState:
        self.signatures.append(policy_signature)
        self.calls.append(("submit", (operator, job_toml, len(bundle), policy_toml)))
        if job_toml == "broken":
            raise ConfigError("is not a number", where="job.toml:3", key="rounds", hint="write 5")
        if job_toml == "crash":
            raise RuntimeError("a secret path /srv/state")
        return JobState(name="alpha", id="1", status=JobStatus.PENDING, rounds=3, sites=("site-a",))

    def resolve_job(self, reference: str, *, kept: bool = False) -> str:
        name, number = checked_reference(reference)
        return RunName(name, number or 1).id

    def delete_job(self, operator: str, name: str, *, keep_model: bool = False) -> JobState:
        self.calls.append(("delete", (operator, name, keep_model)))
        return JobState(name=name, id="1", status=JobStatus.FINISHED)

    def submission(self, name: str) -> JobRecord:
        raise JobError(f"there is no job {name}")

    def list_jobs(self) -> list[JobState]:
        sites = ("site-a", "site-b")
        return [
            JobState(name="alpha", id="1", status=JobStatus.RUNNING, round=1, rounds=3, sites=sites)
        ]

    def get_job(self, name: str) -> JobState:
        if name != "alpha":
            raise JobError(f"there is no job {name}", hint="`fedlearn job status` lists them")
        return self.list_jobs()[0]

    def follow_job(
        self, name: str, *, after: int, past_only: bool, stop: threading.Event
    ) -> Iterator[JobEvent]:
        for sequence in range(after + 1, 4):
            yield JobEvent(sequence=sequence, unix_ms=5, kind="log", json='{"line":"x"}')
        if not past_only:
            self.waiting.set()
            while not stop.wait(0.05):
                time.sleep(0)
        self.stopped.set()

    def cancel_job(self, operator: str, name: str) -> JobState:
        return JobState(name=name, id="1", status=JobStatus.CANCELLED)

    def resume_job(self, operator: str, name: str) -> JobState:
        return JobState(name=name, id="1", status=JobStatus.RUNNING)

    def replace_policy(
        self, operator: str, name: str, policy_toml: str, policy_signature: bytes = b""
    ) -> None:
        self.signatures.append(policy_signature)
        self.calls.append(("policy", (operator, name, policy_toml)))

    def fetch_bundle(self, site: str, sha256: bytes) -> bytes:
        return self.bundle

    def commit_data(self, admission: Admission, *, root: bytes, records: int, examples: int) -> int:
        self.calls.append(("commit", (admission.site, root, records)))
        return 42

    def release_key(
        self, admission: Admission, *, model: str, version: int, file_id: bytes
    ) -> bytes:
        if model != "alpha":
            raise KeyReleaseDenied(f"the model {model} is not for {admission.job}", hint="ask")
        return b"wrapped for " + admission.hpke_key

    def release_state_secret(self, admission: Admission) -> bytes:
        return b"secret for " + admission.hpke_key

    def deliver_app_log(self, admission: Admission, log: SealedAppLog) -> None:
        self.calls.append(("app log", (admission.job, admission.site, log)))

    def app_logs(self, name: str, site: str) -> Iterator[SealedAppLog]:
        for kind, what in self.calls:
            if kind == "app log" and what[:2] == (name, site):
                yield what[2]

    def app_logs_of_owner(
        self, name: str, site: str, owner_key: bytes
    ) -> tuple[str, bytes, Iterator[SealedAppLog]]:
        if name != "alpha" or owner_key != self.owner_key:
            raise JobError(f"no logs of site {site} in a job {name} are sealed for this key")
        return name, bytes(32), self.app_logs(name, site)

    def site_connected(
        self, site: str, orders: Orders, *, version: str, running: tuple[str, ...]
    ) -> None:
        self.calls.append(("connected", (site, version, running)))
        self.orders[site] = orders
        self.connected.set()

    def site_disconnected(self, site: str, orders: Orders) -> None:
        self.calls.append(("disconnected", site))

    def workload_changed(self, site: str, *, assignment: str, phase: Phase, reason: str) -> None:
        self.calls.append(("workload", (site, assignment, phase, reason)))

    def site_assignments(self, site: str) -> tuple[str, ...]:
        return ("assignment-1",) if site == "site-a" else ()


class DeploymentListeners:
    """Listeners of a deployment on free ports of this machine."""

    def __init__(
        self, deployment: Deployment, *, welcome: Welcome | None = None, **config: Any
    ) -> None:
        self.deployment = deployment
        self.coordinator = RecordingCoordinator()
        welcome = welcome or Welcome(
            fleet_address="127.0.0.1:1", control_address="", order_key=b"order"
        )
        self._state = ExitStack()
        folder = Path(self._state.enter_context(tempfile.TemporaryDirectory()))
        keys = KeyService.create(
            folder / "keys", [InsecurePlainKeyFile(folder / "keys")], allow_insecure_key_file=True
        )
        self.state = folder
        self.ledger, self.store = self._state.enter_context(
            bound_state(folder, keys, signer=deployment.ca.file_signer)
        )
        self.running = Listeners(
            config=RpcConfig(**({"gate": "127.0.0.1:0", "control": "127.0.0.1:0"} | config)),
            server_chain=deployment.server.chain_pem,
            server_key=key_pem(deployment.server_key),
            ca=deployment.ca,
            gate=deployment.gate,
            proof=deployment.proof,
            sites=deployment.sites,
            operators=deployment.operators,
            coordinator=self.coordinator,
            welcome=welcome,
            clock=deployment.clock,
            store=self.store,
            ledger=self.ledger,
        )
        try:
            self.running.start()
        except BaseException:
            self._state.close()
            raise
        self.gate = f"127.0.0.1:{self.running.gate_port}"
        self.control = f"127.0.0.1:{self.running.control_port}"

    def stop(self) -> None:
        self.running.stop(0.0)
        self._state.close()
