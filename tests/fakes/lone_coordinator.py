"""A coordinator's control port without a coordinator: real TLS, real gRPC, jobs in memory."""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Self

import grpc
from click.testing import CliRunner, Result
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
)

from attestation.policy.parse import parse_policy
from fedlearn.cli import main
from fedlearn.identity.login import OperatorLogin
from fedlearn.job import events
from fedlearn.job.run import RunName
from fedlearn.job.spec import JobSpec
from fedlearn.wire import fedlearn_pb2 as pb
from fedlearn.wire import fedlearn_pb2_grpc as stubs
from server.identity.pki import CertificateAuthority


@dataclass
class Coordinator(stubs.OperatorServicer):
    """Keeps jobs in memory and tells a story about each.

    With ``goes_on`` the story has no end: whoever follows a job waits, and ``waits`` is set.
    ``cut`` bytes are missing in the bundles that it returns. Without ``answers`` a cancellation
    takes place, and its answer is lost.
    """

    jobs: dict[str, pb.JobState] = field(default_factory=dict)
    story: list[events.Event] = field(default_factory=list)
    submitted: list[pb.SubmitJobRequest] = field(default_factory=list)
    goes_on: bool = False
    started_unix_ms: int = 1000
    waits: threading.Event = field(default_factory=threading.Event)
    revoked: list[pb.RevokeClientRequest] = field(default_factory=list)
    deleted: list[pb.DeleteJobRequest] = field(default_factory=list)
    cut: int = 0
    cancelled: int = 0
    answers: bool = True
    app_logs: list[pb.AppLog] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def RevokeClient(
        self, request: pb.RevokeClientRequest, context: grpc.ServicerContext
    ) -> pb.Empty:
        self.GetJob(pb.JobName(name=request.job), context)
        self.revoked.append(request)
        return pb.Empty()

    def SubmitJob(self, request: pb.SubmitJobRequest, context: grpc.ServicerContext) -> pb.JobState:
        self.submitted.append(request)
        policy = parse_policy(request.policy_toml.encode())
        spec = JobSpec.from_toml(request.job_toml, policy=policy)
        state = pb.JobState(
            name=spec.name,
            status="running",
            rounds=spec.rounds,
            sites=list(spec.sites),
            notes=self.notes,
        )
        self.jobs[spec.name] = state
        return state

    def ListJobs(self, request: pb.Empty, context: grpc.ServicerContext) -> pb.JobList:
        return pb.JobList(jobs=list(self.jobs.values()))

    def GetJob(self, request: pb.JobName, context: grpc.ServicerContext) -> pb.JobState:
        name = request.name.removesuffix("@1")
        if name not in self.jobs:
            context.abort(grpc.StatusCode.NOT_FOUND, f"there is no job {name}")
        return self.jobs[name]

    def CancelJob(self, request: pb.JobName, context: grpc.ServicerContext) -> pb.JobState:
        state = self.GetJob(request, context)
        state.status = "cancelled"
        self.cancelled += 1
        if not self.answers:
            context.abort(grpc.StatusCode.UNAVAILABLE, "Socket closed")
        return state

    def ResumeJob(self, request: pb.JobName, context: grpc.ServicerContext) -> pb.JobState:
        state = self.GetJob(request, context)
        state.status = "running"
        return state

    def DeleteJob(self, request: pb.DeleteJobRequest, context: grpc.ServicerContext) -> pb.JobState:
        state = self.GetJob(pb.JobName(name=request.name), context)
        self.deleted.append(request)
        return state

    def GetSubmission(self, request: pb.JobName, context: grpc.ServicerContext) -> pb.JobSubmission:
        self.GetJob(request, context)
        submitted = self.submitted[0]
        policy = parse_policy(submitted.policy_toml.encode())
        spec = JobSpec.from_toml(submitted.job_toml, policy=policy)
        run = RunName(spec.name, 2)
        return pb.JobSubmission(
            name=run.name,
            run_id=run.id,
            job_json=spec.as_run(run).to_json(),
            bundle=submitted.bundle[self.cut :],
            policy_toml=submitted.policy_toml,
            policy_signature=submitted.policy_signature,
            bundle_sha256=hashlib.sha256(submitted.bundle).digest(),
        )

    def FetchAppLogs(
        self, request: pb.AppLogsRequest, context: grpc.ServicerContext
    ) -> Iterator[pb.AppLog]:
        self.GetJob(pb.JobName(name=request.job), context)
        yield from self.app_logs

    def FollowJob(
        self, request: pb.FollowJobRequest, context: grpc.ServicerContext
    ) -> Iterator[pb.Event]:
        state = self.GetJob(pb.JobName(name=request.name), context)
        for number, event in enumerate(self.story, 1):
            if event is self.story[-1] and event.final:
                state.status = event.kind.removeprefix("job.")
            if number > request.after:
                at = self.started_unix_ms
                yield pb.Event(sequence=number, unix_ms=at, kind=event.kind, json=event.encode())
        self.waits.set()
        while self.goes_on and not request.past_only and context.is_active():
            time.sleep(0.02)


@dataclass(frozen=True)
class LoneCoordinator:
    """A running one: its jobs, the login of an operator, and where it listens."""

    coordinator: Coordinator
    login: Path
    address: str

    def run(self, *arguments: object) -> Result:
        return CliRunner().invoke(
            main, [*map(str, arguments), "--operator", str(self.login)], catch_exceptions=False
        )

    @classmethod
    @contextmanager
    def started(cls, folder: Path) -> Iterator[Self]:
        """One that answers on loopback; the operator's login is below ``folder``."""
        ca = CertificateAuthority.create("test.example", datetime.now(UTC))
        coordinator = Coordinator()
        server = grpc.server(ThreadPoolExecutor(4))
        stubs.add_OperatorServicer_to_server(coordinator, server)
        credentials = grpc.ssl_server_credentials(
            [new_identity(ca, server=True)], ca.certificate_pem, require_client_auth=True
        )
        address = f"127.0.0.1:{server.add_secure_port('127.0.0.1:0', credentials)}"
        server.start()
        key, chain = new_identity(ca, server=False)
        login = folder / "operator"
        OperatorLogin(address=address, ca=ca.certificate_pem, chain=chain, key=key).save(login)
        try:
            yield cls(coordinator, login, address)
        finally:
            server.stop(0).wait()


def new_identity(ca: CertificateAuthority, *, server: bool) -> tuple[bytes, bytes]:
    """A fresh key and its chain, both PEM: of a server on loopback, or of an operator."""
    key = ec.generate_private_key(ec.SECP256R1())
    csr = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    der = csr.sign(key, hashes.SHA256()).public_bytes(Encoding.DER)
    now = datetime.now(UTC)
    if server:
        issued = ca.issue_server(der, ips=["127.0.0.1"], now=now)
    else:
        issued = ca.issue_operator(der, name="ada", now=now)
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    return pem, issued.chain_pem
