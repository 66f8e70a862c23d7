"""A site without an agent: the test itself is its client, and does what clients must not do."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import httpx
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_pem_private_key,
)

from attestation.attesters.sample import SampleAttester
from attestation.binding import Binding, Role
from attestation.policy.parse import parse_policy
from attestation.trust import TrustAnchors
from edge.client.admission import AdmissionParams, ClientKeys, control_of, seek_admission
from edge.client.flower.fleet import Fleet, Identity
from edge.protocol.identity import certification_request, new_key
from edge.protocol.rpc import AdmittedClient, ControlClient, GateClient, enroll
from fedlearn.identity.admission import AdmitRequest
from fedlearn.identity.software import software_digest
from fedlearn.identity.spiffe import COORDINATOR_DNS
from fedlearn.identity.tls import client_context
from fedlearn.job.spec import workload_digest
from fedlearn.local.federation import COORDINATOR
from tests.harness.federation import FederationHarness, Job


@dataclass
class HeldAdmission:
    """An admission of a misbehaving client, with what is needed to use it."""

    gate: GateClient
    admitted: AdmittedClient
    keys: ClientKeys

    @property
    def chain(self) -> tuple[x509.Certificate, ...]:
        return tuple(x509.load_pem_x509_certificates(self.admitted.chain))

    @property
    def identity(self) -> Identity:
        roots = tuple(x509.load_pem_x509_certificates(self.gate.pinned.ca_pem))
        return Identity(chain=self.chain, key=self.keys.tls, authorities=roots)

    @functools.cached_property
    def fleet(self) -> Fleet:
        """Its calls, on one connection: without any it would be taken for lost."""
        return Fleet(self.admitted.fleet_address, self.identity, max_message_bytes=1 << 24)

    @property
    def control(self) -> ControlClient:
        return control_of(self.gate, self.admitted, self.keys)


class MisbehavingClient:
    """A site of ``harness`` that is enrolled, with a machine that may run clients."""

    def __init__(self, harness: FederationHarness, site: str = "misbehaving") -> None:
        self.harness, self.site = harness, site
        self.machine = harness.federation.machines[site]
        self.identity = enroll(harness.federation.token(site))
        self.ca = x509.load_pem_x509_certificate(self.identity.ca_pem)

    def gate(self) -> GateClient:
        return GateClient.connect(self.identity.gate_address, ca_pin=self.identity.ca_pin)

    def attester(self, job: Job, measured: Mapping[str, bytes] | None = None) -> SampleAttester:
        key = load_pem_private_key(
            (self.machine.state / "insecure-development.key").read_bytes(), None
        )
        honest = {
            "software": software_digest(),
            "app": hashlib.sha256(job.bundle).digest(),
            "job": job.spec.digest(),
        }
        return SampleAttester(key, self.machine.hardware_id, {**honest, **(measured or {})})  # type: ignore[arg-type]

    def workload(self, job: Job) -> bytes:
        return workload_digest(job.spec.digest(), hashlib.sha256(job.bundle).digest())

    def params(self, job: Job, keys: ClientKeys) -> AdmissionParams:
        anchors = self.harness.federation.anchors([COORDINATOR])
        return AdmissionParams(
            job=job.name,
            site=self.site,
            client="c1",
            workload=self.workload(job),
            keys=keys,
            policy=parse_policy(job.policy.encode()),
            trust=TrustAnchors(sample_keys=frozenset(map(bytes.fromhex, anchors))),
        )

    def admit(self, job: Job) -> HeldAdmission:
        """Be admitted as an honest client is."""
        keys, gate = ClientKeys.fresh(), self.gate()

        def voucher(nonce: bytes, tls_key: bytes) -> bytes:
            return self.identity.vouch(job=job.name, client="c1", nonce=nonce, tls_key=tls_key)

        admitted = seek_admission(
            gate,
            self.attester(job),
            self.params(job, keys),
            voucher,
            now=lambda: datetime.now(UTC),
        )
        return HeldAdmission(gate, admitted, keys)

    def request(self, job: Job, gate: GateClient, keys: ClientKeys, **changes: Any) -> AdmitRequest:
        """An honest request to ``gate``, but for ``changes``.

        They are fields of the binding or of the request; ``measured`` for the attester, and
        ``voucher_by``, the identity of the site that signs.
        """
        nonce = changes.pop("nonce", None) or gate.challenge(job.name, self.site).nonce
        bound: dict[str, Any] = {
            "role": Role.CLIENT,
            "nonce": nonce,
            "verifier_id": gate.pinned.verifier_id,
            "tls_key": keys.tls_key,
            "hpke_key": keys.hpke_key,
            "node_id": self.site,
            "workload": self.workload(job),
        }
        bound |= {
            name.removeprefix("bound_"): changes.pop(name)
            for name in list(changes)
            if name.startswith("bound_")
        }
        evidence = self.attester(job, changes.pop("measured", None)).collect(Binding(**bound))
        by = changes.pop("voucher_by", self.identity)
        fields: dict[str, Any] = {
            "job": job.name,
            "site": self.site,
            "client": "c1",
            "nonce": nonce,
            "csr": certification_request(keys.tls),
            "hpke_key": keys.hpke_key,
            "evidence": evidence.to_bytes(),
            "site_voucher": by.vouch(job=job.name, client="c1", nonce=nonce, tls_key=keys.tls_key),
        }
        return AdmitRequest(**(fields | changes))


class Stranger:
    """Speaks HTTP to the Fleet front with any certificate, key and header."""

    def __init__(
        self,
        address: str,
        ca: x509.Certificate,
        *,
        chain: tuple[x509.Certificate, ...] = (),
        key: ec.EllipticCurvePrivateKey | None = None,
        header_key: ec.EllipticCurvePrivateKey | None = None,
    ) -> None:
        context = client_context(chain or (self_made(new := new_key()),), key or new, (ca,))
        if not chain:
            import ssl

            context = ssl.create_default_context(cadata=ca.public_bytes(Encoding.PEM).decode())
        self._url = f"https://{address}"
        self.client = httpx.Client(verify=context, trust_env=False, timeout=10)
        import base64

        shown = header_key or key or new_key()
        pem = shown.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
        self._headers = {"flwr-public-key": base64.b64encode(pem).decode()}

    def post(self, path: str, content: bytes = b"") -> httpx.Response:
        return self.client.post(
            self._url + path,
            content=content,
            headers=self._headers,
            extensions={"sni_hostname": COORDINATOR_DNS},
        )


def self_made(key: ec.EllipticCurvePrivateKey) -> x509.Certificate:
    """A certificate that nobody but its owner signed, with the names of a client."""
    from datetime import timedelta

    from cryptography.hazmat.primitives import hashes
    from cryptography.x509.oid import NameOID

    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "c1")])
    now = datetime.now(UTC)
    uri = x509.UniformResourceIdentifier("spiffe://demo.fedlearn/job/j/site/misbehaving/client/c1")
    return (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(minutes=1))
        .not_valid_after(now + timedelta(minutes=20))
        .add_extension(x509.SubjectAlternativeName([uri]), critical=False)
        .sign(key, hashes.SHA256())
    )
