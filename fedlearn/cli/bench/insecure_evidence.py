"""The evidence of the comparison's simulated machines, made and examined as in an admission.

Insecure: the nonce is fixed, so that it can be recorded and shown again. What is measured is the
work: making evidence, verifying and appraising it.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Final, Self

from attestation.binding import COORDINATOR_NODE, NONCE_BYTES, Binding, Role
from attestation.evidence import Evidence
from attestation.policy.appraise import appraise
from attestation.policy.model import AppraisalPolicy
from attestation.policy.parse import parse_policy
from attestation.policy.result import Tier
from attestation.trust import TrustAnchors
from attestation.verifiers import verify
from fedlearn.config.attester import open_attester
from fedlearn.config.attesterfile import AttesterSettings
from fedlearn.errors import AdmissionDenied
from fedlearn.identity.software import software_digest

__all__ = ["COORDINATOR", "Machine"]

COORDINATOR: Final = COORDINATOR_NODE


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """One end: its own attester, and what it expects of the other end.

    ``kind``, ``tcti``, ``state``  of its attester
    ``node``, ``other``            the names of both ends; one is :data:`COORDINATOR`
    ``app``                        SHA-256 of the bundle, which is measured
    ``anchor``                     SHA-256 of the other end's attestation key
    ``hardware``                   the hardware id of the other end, as its site proved it
    ``policy``                     the appraisal policy of the job, TOML
    """

    kind: str
    tcti: str
    state: str
    node: str
    other: str
    app: str
    anchor: str
    hardware: str
    policy: str

    @classmethod
    def of(cls, given: dict[str, Any]) -> Self:
        """Read one from JSON."""
        return cls(**{name: str(given[name]) for name in cls.__slots__})

    def collect(self) -> bytes:
        """Return evidence for this end.

        :raises AttesterError: when it cannot be made.
        """
        settings = AttesterSettings(kind=self.kind, tcti=self.tcti)
        attester = open_attester(settings, state=Path(self.state), scope=f"bench-{self.node}")
        attester.extend("software", software_digest())
        attester.extend("app", bytes.fromhex(self.app))
        attester.extend("job", bytes(32))
        return attester.collect(_binding(self.node)).to_bytes()

    def verify(self, evidence: bytes, *, now: datetime) -> None:
        """Verify and appraise the evidence of the other end.

        :raises AttestationError: when it is not genuine.
        :raises AdmissionDenied: when the policy does not affirm it.
        """
        policy = self._policy()
        found = Evidence.from_bytes(evidence)
        anchors = frozenset([bytes.fromhex(self.anchor)])
        sample = self.kind == "insecure-sample"
        trust = TrustAnchors(
            sample_keys=anchors if sample else frozenset(),
            tpm_aks=frozenset() if sample else anchors,
            tpm_ek_of={} if sample or self.other == COORDINATOR else self._proven(),
        )
        claims = verify(
            found,
            binding=_binding(self.other),
            trust=policy.anchors_for(trust, tee=found.tee, now=now),
            now=now,
        )
        key = _binding(self.other).tls_key
        result = appraise(policy, claims, now=now, node=self.other, key=key)
        if result.status is not Tier.AFFIRMING:
            first = result.refusals[0] if result.refusals else None
            why = "" if first is None else f": {first.claim} is {first.actual}"
            raise AdmissionDenied(f"the policy does not affirm {self.other}{why}")

    def _proven(self) -> dict[bytes, bytes]:
        return {bytes.fromhex(self.anchor): bytes.fromhex(self.hardware)}

    def _policy(self) -> AppraisalPolicy:
        policy = parse_policy(self.policy.encode())
        if self.other != COORDINATOR:
            return policy
        if policy.coordinator is None:
            raise AdmissionDenied("the policy has no [coordinator]")
        return policy.coordinator


def _binding(node: str) -> Binding:
    return Binding(
        role=Role.COORDINATOR if node == COORDINATOR else Role.CLIENT,
        nonce=bytes(NONCE_BYTES),
        verifier_id=bytes(32),
        tls_key=f"the key of {node}".encode(),
        hpke_key=bytes(32),
        node_id=node,
        workload=bytes(32),
    )
