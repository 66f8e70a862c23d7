"""An SNP guest that asks for admission, with GPUs where a test wants some."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import replace

from attestation.binding import Binding, Role
from attestation.evidence import Evidence, Tee
from attestation.logs.accumulator import RUNTIME, runtime_digest
from attestation.logs.eventlog import EventLog
from attestation.logs.runtime_events import Measurement, record
from attestation.policy.parse import parse_policy
from attestation.trust import TrustAnchors
from fedlearn.identity.admission import AdmitRequest
from tests.harness.deployment import Deployment
from tests.vectors import keys
from tests.vectors.amd import Amd

BOOTED = b"\xee" * 48
SOFTWARE = b"\x5a" * 32
ACCEPT = 'version = 1\nname = "p"\naccept = ["snp"]\n'
LAUNCH = f'[[reference]]\nclaim = "launch"\nvalue = "{BOOTED.hex()}"\n'


class Guest:
    """An SNP guest whose owner booted what they liked and lets it state what is expected."""

    def __init__(
        self,
        deployment: Deployment,
        policy: str,
        *,
        devices: Callable[[bytes], tuple[Evidence, ...]] = lambda _: (),
        trust: TrustAnchors | None = None,
    ) -> None:
        """``devices`` makes the evidence of GPUs for a nonce."""
        self.amd = Amd()
        self.devices = devices
        self.deployment = deployment
        self.job = replace(
            deployment.jobs["alpha"],
            policy=parse_policy(policy.encode()),
            trust=replace(trust or TrustAnchors(), amd_ark_keys=frozenset({self.amd.root_key})),
        )
        deployment.jobs["alpha"] = self.job

    def request(self) -> AdmitRequest:
        client = self.deployment.client()
        request = self.deployment.request(client)
        log = EventLog.create(("sha384",))
        for claim, digest in (
            ("app", self.job.bundle_digest),
            ("job", self.job.job_digest),
            ("software", SOFTWARE),
        ):
            log = record(log, Measurement(claim=claim, digest=digest), RUNTIME)
        bound = Binding(
            role=Role.CLIENT,
            nonce=request.nonce,
            verifier_id=self.deployment.ca.key_digest,
            tls_key=client.tls_key,
            hpke_key=client.hpke_key,
            node_id=client.site,
            workload=self.job.workload,
        )
        register = log.replay("sha384", ccel=True)[RUNTIME]
        evidence = Evidence(
            tee=Tee.SNP,
            quote=self._report(runtime_digest(bound.report_data(), register)),
            endorsements=(self.amd.leaf(), self.amd.authorities()),
            event_log=log.to_bytes(),
            components=self.devices(hashlib.sha256(bound.report_data()).digest()),
        )
        return replace(request, evidence=evidence.to_bytes())

    def _report(self, report_data: bytes) -> bytes:
        signed = bytearray(self.amd.report(3, report_data=report_data)[:0x2A0])
        signed[0x90:0xC0] = BOOTED
        key = keys.ec_key(f"{self.amd.seed}/{self.amd.product}/vcek", "P-384")
        r, s = keys.sign_raw(key, bytes(signed))
        return bytes(signed) + r.to_bytes(72, "little") + s.to_bytes(72, "little") + bytes(368)
