"""How a client comes to be admitted, and stays so.

The client looks before it speaks: the coordinator's evidence is verified against what the
job's policy demands of a coordinator before anything about the client is sent. Then it
answers a challenge with evidence for keys that were made in this process and are never
written anywhere. Renewing is the same with the same keys, and needs nothing of the gate, which
anybody may crowd.
"""

from __future__ import annotations

import hmac
import secrets
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Self

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, x25519

from attestation.attesters import Attester
from attestation.binding import COORDINATOR_NODE, NONCE_BYTES, Binding, Role
from attestation.errors import UNREADABLE, AttestationError
from attestation.evidence import Evidence
from attestation.policy.appraise import appraise
from attestation.policy.model import AppraisalPolicy
from attestation.policy.result import AttestationResult, Tier
from attestation.trust import TrustAnchors
from attestation.verifiers import verify
from edge.protocol.identity import certification_request, key_pem, new_key
from edge.protocol.rpc import AdmittedClient, Challenge, ControlClient, GateClient
from fedlearn.errors import AdmissionDenied, TransportError
from fedlearn.identity.admission import AdmitRequest

__all__ = [
    "ClientKeys",
    "AdmissionParams",
    "Voucher",
    "control_of",
    "renew_admission",
    "seek_admission",
    "verify_coordinator",
]


Voucher = Callable[[bytes, bytes], bytes]
"""The site's agent signs for us: ``voucher(nonce, tls_key)``; see
:mod:`fedlearn.identity.voucher`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientKeys:
    """A client's keys: P-256 for TLS and as Flower node key, X25519 for wrapped secrets."""

    tls: ec.EllipticCurvePrivateKey = field(repr=False)
    hpke: x25519.X25519PrivateKey = field(repr=False)

    @classmethod
    def fresh(cls) -> Self:
        """Make both in this process."""
        return cls(tls=new_key(), hpke=x25519.X25519PrivateKey.generate())

    @property
    def tls_key(self) -> bytes:
        """DER SPKI of the TLS key."""
        return self.tls.public_key().public_bytes(
            serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
        )

    @property
    def hpke_key(self) -> bytes:
        """Raw X25519 public key, 32 bytes."""
        return self.hpke.public_key().public_bytes_raw()


@dataclass(frozen=True, slots=True, kw_only=True)
class AdmissionParams:
    """What a client seeks admission to, and with what.

    ``workload``  the workload digest that evidence is bound to; ``app`` and ``job`` are to be
                  measured (``attester.extend``) before admission is sought
    ``policy``    the job's policy; its ``coordinator`` part is what we demand
    """

    job: str
    site: str
    client: str
    workload: bytes
    keys: ClientKeys = field(repr=False)
    policy: AppraisalPolicy
    trust: TrustAnchors


def verify_coordinator(
    gate: GateClient, membership: AdmissionParams, *, now: Callable[[], datetime]
) -> AttestationResult:
    """Return an affirming result about the coordinator at the other end of ``gate``.

    :raises AdmissionDenied: when the policy demands nothing of a coordinator, or its evidence
        is not genuine, not for this channel's key, or not liked. Nothing was sent but a nonce.
    """
    demanded = membership.policy.coordinator
    if demanded is None:
        raise AdmissionDenied(
            "the job's policy does not say what a coordinator must prove",
            hint="add a [coordinator] table to the policy",
        )
    nonce = secrets.token_bytes(NONCE_BYTES)
    answer = gate.attest_coordinator(membership.job, nonce)
    try:
        evidence = Evidence.from_bytes(answer.evidence)
        claims = verify(
            evidence,
            binding=Binding(
                role=Role.COORDINATOR,
                nonce=nonce,
                verifier_id=gate.pinned.verifier_id,
                tls_key=gate.pinned.tls_key,
                hpke_key=answer.hpke_key,
                node_id=COORDINATOR_NODE,
                workload=membership.workload,
            ),
            trust=demanded.anchors_for(membership.trust, tee=evidence.tee, now=now()),
            now=now(),
        )
        if not claims.bound:
            raise AdmissionDenied("the coordinator's evidence is not bound to its key")
        result = appraise(
            demanded, claims, now=now(), node=COORDINATOR_NODE, key=gate.pinned.tls_key
        )
    except AttestationError as error:
        raise AdmissionDenied(
            f"the coordinator's evidence is not genuine: {error}", hint=error.hint
        ) from error
    if result.status is not Tier.AFFIRMING:
        findings = tuple(finding.to_json() for finding in result.refusals)
        first = result.refusals[0] if result.refusals else None
        raise AdmissionDenied(
            "this client's policy does not affirm the coordinator"
            + (f": {first.claim} is {first.actual}, expected {first.expected}" if first else ""),
            findings=findings,
            hint=first.remedy if first else "",
        )
    return result


def seek_admission(
    gate: GateClient,
    attester: Attester,
    membership: AdmissionParams,
    voucher: Voucher,
    *,
    now: Callable[[], datetime],
) -> AdmittedClient:
    """Verify the coordinator, then be admitted.

    :raises AdmissionDenied: by us, of the coordinator; or by it, of us, with its findings.
    :raises AttesterError: when evidence cannot be made.
    :raises TransportError: when the coordinator cannot be reached, or answers for another.
    """
    verify_coordinator(gate, membership, now=now)
    challenge = gate.challenge(membership.job, membership.site)
    request = _answer(challenge, gate, attester, membership, voucher)
    return _checked(gate.admit(request), membership)


def renew_admission(
    gate: GateClient, control: ControlClient, attester: Attester, membership: AdmissionParams
) -> AdmittedClient:
    """Attest again with the same keys, on the connection of the certificate in use.

    :raises AdmissionDenied: with findings; the coordinator has then put us in quarantine.
    """
    request = _answer(control.challenge(), gate, attester, membership, lambda nonce, tls_key: b"")
    return _checked(control.renew(request), membership)


def _answer(
    challenge: Challenge,
    gate: GateClient,
    attester: Attester,
    membership: AdmissionParams,
    voucher: Voucher,
) -> AdmitRequest:
    """Answer a fresh challenge."""
    keys = membership.keys
    if len(challenge.nonce) != NONCE_BYTES:
        raise TransportError(f"the coordinator's nonce has {len(challenge.nonce)} bytes")
    # The verifier is who we pinned, whatever the answer says: evidence cannot be relayed.
    if not hmac.compare_digest(challenge.verifier_id, gate.pinned.verifier_id):
        raise TransportError(
            "the challenge is not from the pinned coordinator",
            hint="somebody may be relaying it; report it to your coordinator's operator",
        )
    evidence = attester.collect(
        Binding(
            role=Role.CLIENT,
            nonce=challenge.nonce,
            verifier_id=gate.pinned.verifier_id,
            tls_key=keys.tls_key,
            hpke_key=keys.hpke_key,
            node_id=membership.site,
            workload=membership.workload,
        )
    )
    return AdmitRequest(
        job=membership.job,
        site=membership.site,
        client=membership.client,
        nonce=challenge.nonce,
        csr=certification_request(keys.tls),
        hpke_key=keys.hpke_key,
        evidence=evidence.to_bytes(),
        site_voucher=voucher(challenge.nonce, keys.tls_key),
    )


def _checked(admitted: AdmittedClient, membership: AdmissionParams) -> AdmittedClient:
    """A certificate for another key would let us speak as somebody else, or not at all."""
    try:
        leaf = x509.load_pem_x509_certificates(admitted.chain)[0]
        key = leaf.public_key().public_bytes(
            serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
        )
    except (IndexError, *UNREADABLE) as error:
        raise TransportError("the coordinator sent a malformed certificate") from error
    if key != membership.keys.tls_key:
        raise TransportError("the coordinator sent a certificate for another key")
    return admitted


def control_of(gate: GateClient, admitted: AdmittedClient, keys: ClientKeys) -> ControlClient:
    """Return a control channel of an admitted client, to the attested server only."""
    return ControlClient(
        admitted.control_address,
        roots=gate.pinned.leaf_pem,
        chain=admitted.chain,
        key=key_pem(keys.tls),
    )
