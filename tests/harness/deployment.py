"""A coordinator's admission side with real parts; only the ledger, Flower and time are ours.

Everything is decided by the real CA, registers, gate, verifier and policy. Time stands at
the real present unless a test moves it, because TLS looks at the machine's clock.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, x25519

from attestation.attesters import Attester
from attestation.attesters.sample import SampleAttester
from attestation.binding import Binding, Role
from attestation.policy.model import AppraisalPolicy
from attestation.policy.parse import parse_policy
from attestation.trust import TrustAnchors
from fedlearn.identity.admission import AdmitRequest
from fedlearn.identity.voucher import sign_voucher
from server.admission.challenges import Limits
from server.admission.coordinator_evidence import CoordinatorProof
from server.admission.examiner import AdmittableJob
from server.admission.gate import AdmissionGate
from server.admission.registry import AdmissionRegistry
from server.admission.types import Admitted, Periods
from server.identity.operators import OperatorRegistry
from server.identity.pki import CertificateAuthority, spki
from server.identity.site_registry import SiteRegistry

TRUST_DOMAIN = "test.example"
BUNDLE = hashlib.sha256(b"bundle").digest()
JOB = hashlib.sha256(b"job").digest()
WORKLOAD = hashlib.sha256(b"workload").digest()
LAUNCH = hashlib.sha256(b"what firmware would have measured").digest()
COORDINATOR_APP = hashlib.sha256(b"coordinator").digest()


def new_key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


def new_csr(key: ec.EllipticCurvePrivateKey) -> bytes:
    return (
        x509.CertificateSigningRequestBuilder()
        .subject_name(x509.Name([]))
        .sign(key, hashes.SHA256())
        .public_bytes(serialization.Encoding.DER)
    )


def key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )


def raw_hpke() -> bytes:
    return x25519.X25519PrivateKey.generate().public_key().public_bytes_raw()


class Clock:
    """The present, until it is moved."""

    def __init__(self) -> None:
        self.offset = timedelta(0)

    def __call__(self) -> datetime:
        return datetime.now(UTC) + self.offset

    def advance(self, **by: float) -> None:
        self.offset += timedelta(**by)


class Nodes:
    """Flower's nodes, as admission sees them: a site has one in a job, with one number."""

    def __init__(self) -> None:
        self.alive: dict[int, tuple[str, bytes]] = {}
        self._numbers: dict[tuple[str, str], int] = {}

    def create_node(self, job: str, site: str, tls_key: bytes) -> int:
        number = self._numbers.setdefault((job, site), len(self._numbers) + 1)
        self.alive[number] = (job, tls_key)
        return number

    def delete_node(self, job: str, site: str, tls_key: bytes) -> None:
        number = self._numbers.get((job, site), 0)
        if self.alive.get(number) == (job, tls_key):
            del self.alive[number]


@dataclass
class Client:
    """One client with its keys and its attester."""

    job: str
    site: str
    name: str
    attester: Attester
    key: ec.EllipticCurvePrivateKey = field(default_factory=new_key)
    hpke_key: bytes = field(default_factory=raw_hpke)

    @property
    def tls_key(self) -> bytes:
        return spki(self.key.public_key())


class Deployment:
    """A coordinator with sites ``site-a`` and ``site-b``, and the jobs ``alpha`` and ``beta``.

    A test may replace ``clock``, ``job`` (by which the gate reads a job) and ``before_entry``,
    which is called with each entry before it is in the ledger, and may raise.
    """

    def __init__(self, state: Path, *, limits: Limits | None = None) -> None:
        self.clock = Clock()
        self.before_entry: Callable[[str, Mapping[str, object]], object] = lambda kind, body: None
        self.entries: list[tuple[str, dict[str, Any]]] = []
        self.nodes = Nodes()
        self.ca = CertificateAuthority.create(TRUST_DOMAIN, self.clock())
        self.tee_key = new_key()
        self.trust = TrustAnchors(
            sample_keys=frozenset({hashlib.sha256(spki(self.tee_key.public_key())).digest()})
        )
        self.policy = self.make_policy()
        self.jobs = {
            name: AdmittableJob(
                name=name,
                job_digest=JOB,
                bundle_digest=BUNDLE,
                workload=WORKLOAD,
                policy=self.policy,
                trust=self.trust,
                sites=sites,
            )
            for name, sites in (
                ("alpha", frozenset({"site-a", "site-b"})),
                ("beta", frozenset({"site-b"})),
            )
        }
        self.sites = SiteRegistry(
            address="127.0.0.1:9443",
            ca_pin=self.ca.key_digest,
            clock=self.clock,
            record=self.record,
        )
        self.operators = OperatorRegistry(
            ca=self.ca, entries=(), record=self.record, clock=self.clock
        )
        self.site_keys = {name: self.enroll(name) for name in ("site-a", "site-b")}
        self.registry = AdmissionRegistry()
        self.gate = AdmissionGate(
            ca=self.ca,
            registry=self.registry,
            jobs=lambda name: self.job(name),
            sites=self.sites,
            nodes=self.nodes,
            record=self.record,
            clock=lambda: self.clock(),
            periods=Periods(),
            limits=limits,
        )
        self.server_key = new_key()
        self.server = self.ca.issue_server(
            new_csr(self.server_key), dns_names=["localhost"], ips=["127.0.0.1"], now=self.clock()
        )
        self.proof = self.make_proof()

    def make_policy(
        self,
        extra: str = "",
        coordinator: bytes | None = COORDINATOR_APP,
        coordinator_extra: str = "",
    ) -> AppraisalPolicy:
        text = f"""
version = 1
name = "test"
accept = ["sample"]
insecure_sample = true
{extra}
[[reference]]
claim = "app"
value = "{BUNDLE.hex()}"
[[reference]]
claim = "job"
value = "{JOB.hex()}"
[[reference]]
claim = "launch"
value = "{LAUNCH.hex()}"
"""
        if coordinator is not None:
            text += f"""
[coordinator]
accept = ["sample"]
insecure_sample = true
[[coordinator.reference]]
claim = "app"
value = "{coordinator.hex()}"
[[coordinator.reference]]
claim = "launch"
value = "{LAUNCH.hex()}"
{coordinator_extra}
"""
        return parse_policy(text.encode())

    def make_proof(self, app: bytes = COORDINATOR_APP) -> CoordinatorProof:
        return CoordinatorProof(
            attester=SampleAttester(
                self.tee_key, b"coordinator-chip", {"app": app, "launch": LAUNCH}
            ),
            verifier_id=self.ca.key_digest,
            tls_key=spki(self.server_key.public_key()),
            hpke_key=b"",
            jobs=self.jobs.get,
            clock=self.clock,
        )

    def job(self, name: str) -> AdmittableJob | None:
        return self.jobs.get(name)

    def record(self, kind: str, body: Mapping[str, object]) -> None:
        self.before_entry(kind, body)
        self.entries.append((kind, json.loads(json.dumps(body))))

    def site_entries(self) -> list[dict[str, Any]]:
        return [body for kind, body in self.entries if kind in ("enrollment", "site")]

    def kinds(self) -> list[str]:
        return [kind for kind, _ in self.entries]

    def last(self, kind: str) -> dict[str, Any]:
        return next(body for found, body in reversed(self.entries) if found == kind)

    def enroll(self, name: str) -> ec.EllipticCurvePrivateKey:
        key = new_key()
        token = self.sites.invitations.create_token(name, needs_approval=False)
        self.sites.invitations.enroll(token.encode(), new_csr(key))
        return key

    def operator(self, name: str = "alice") -> tuple[bytes, ec.EllipticCurvePrivateKey]:
        """Let an operator in; return its chain (PEM) and its key."""
        key = new_key()
        return self.operators.add(name, new_csr(key))[1].chain_pem, key

    def client(
        self,
        site: str = "site-a",
        job: str = "alpha",
        name: str = "c1",
        measurements: dict[str, bytes] | None = None,
    ) -> Client:
        measured = {"app": BUNDLE, "job": JOB} if measurements is None else measurements
        attester = SampleAttester(
            self.tee_key, f"chip-{site}".encode(), {"launch": LAUNCH, **measured}
        )
        return Client(job, site, name, attester)

    def request(
        self, client: Client, *, nonce: bytes | None = None, **changes: object
    ) -> AdmitRequest:
        """An honest request of ``client``, but for ``changes`` of its fields or binding."""
        if nonce is None:
            nonce = self.gate.challenge(client.job, client.site, "ip:test").nonce
        bound: dict[str, Any] = {
            "role": Role.CLIENT,
            "nonce": nonce,
            "verifier_id": self.ca.key_digest,
            "tls_key": client.tls_key,
            "hpke_key": client.hpke_key,
            "node_id": client.site,
            "workload": WORKLOAD,
        }
        bound |= {name: changes.pop(name) for name in list(changes) if name in bound}
        voucher = sign_voucher(
            self.site_keys[client.site],
            job=client.job,
            site=client.site,
            client=client.name,
            nonce=nonce,
            tls_key=client.tls_key,
        )
        fields: dict[str, Any] = {
            "job": client.job,
            "site": client.site,
            "client": client.name,
            "nonce": nonce,
            "csr": new_csr(client.key),
            "hpke_key": client.hpke_key,
            "evidence": client.attester.collect(Binding(**bound)).to_bytes(),
            "site_voucher": voucher,
        }
        return AdmitRequest(**(fields | changes))

    def admit(self, client: Client) -> Admitted:
        return self.gate.admit(self.request(client), peer="ip:test")
