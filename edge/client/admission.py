"""How a client is admitted, and stays admitted.

The client first verifies the coordinator's evidence against the coordinator part of the job's
policy; before that it sends nothing about itself. Then it answers a challenge with evidence for
keys that were made in this process and are never written to disk. A renewal does the same with the
same keys, on the control listener instead of the gate, which strangers may overload.
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
from attestation.errors import UNREADABLE, AttestationError, VerificationError
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
"""``voucher(nonce, tls_key)``: the signature of the site's agent for this client; see
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
    """The parameters of a client's admission.

    ``workload``  the workload digest that evidence is bound to; ``app`` and ``job`` must be
                  measured (``attester.extend``) before admission is requested
    ``policy``    the job's policy; the coordinator has to meet its ``coordinator`` part
    """

    job: str
    site: str
    client: str
    workload: bytes
    keys: ClientKeys = field(repr=False)
    policy: AppraisalPolicy
    trust: TrustAnchors


def verify_coordinator(
    gate: GateClient, params: AdmissionParams, *, now: Callable[[], datetime]
) -> AttestationResult:
    """Return an affirming result about the coordinator at the other end of ``gate``.

    :raises AdmissionDenied: when the policy has no ``coordinator`` part, or the evidence is not
        genuine, not for this channel's key, or not affirmed. Nothing but a nonce was sent.
    """
    demanded = params.policy.coordinator
    if demanded is None:
        raise AdmissionDenied(
            "the job's policy does not state what a coordinator must prove",
            hint="add a [coordinator] table to the policy",
        )
    nonce = secrets.token_bytes(NONCE_BYTES)
    answer = gate.attest_coordinator(params.job, nonce)
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
                workload=params.workload,
            ),
            trust=demanded.anchors_for(params.trust, tee=evidence.tee, now=now()),
            now=now(),
        )
        if not claims.bound:
            raise AdmissionDenied("the coordinator's evidence is not bound to its key")
        result = appraise(
            demanded, claims, now=now(), node=COORDINATOR_NODE, key=gate.pinned.tls_key
        )
    except AttestationError as error:
        hint = error.hint
        if isinstance(error, VerificationError) and error.key and error.step == "sample key":
            hint = (
                "if it is the coordinator's own, add it to insecure_sample_keys in [trust] of "
                "site.toml, and start the agent again"
            )
        raise AdmissionDenied(
            f"the coordinator's evidence is not genuine: {error}", hint=hint
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
    params: AdmissionParams,
    voucher: Voucher,
    *,
    now: Callable[[], datetime],
) -> AdmittedClient:
    """Verify the coordinator, then be admitted.

    :raises AdmissionDenied: when the client does not affirm the coordinator, or the coordinator
        refuses the client, with its findings.
    :raises AttesterError: when evidence cannot be made.
    :raises TransportError: when the coordinator cannot be reached, or its answer is not for this
        client.
    """
    verify_coordinator(gate, params, now=now)
    challenge = gate.challenge(params.job, params.site)
    request = _answer(challenge, gate, attester, params, voucher)
    return _checked(gate.admit(request), params)


def renew_admission(
    gate: GateClient, control: ControlClient, attester: Attester, params: AdmissionParams
) -> AdmittedClient:
    """Attest again with the same keys, on the connection of the certificate in use.

    :raises AdmissionDenied: with findings; the client is in quarantine then.
    """
    request = _answer(control.challenge(), gate, attester, params, lambda nonce, tls_key: b"")
    return _checked(control.renew(request), params)


def _answer(
    challenge: Challenge,
    gate: GateClient,
    attester: Attester,
    params: AdmissionParams,
    voucher: Voucher,
) -> AdmitRequest:
    """Answer a fresh challenge."""
    keys = params.keys
    if len(challenge.nonce) != NONCE_BYTES:
        raise TransportError(f"the coordinator's nonce has {len(challenge.nonce)} bytes")
    # The verifier is the pinned server, whatever the answer states: evidence cannot be relayed.
    if not hmac.compare_digest(challenge.verifier_id, gate.pinned.verifier_id):
        raise TransportError(
            "the challenge is not from the pinned coordinator",
            hint="the challenge may have been relayed; report it to your coordinator's operator",
        )
    evidence = attester.collect(
        Binding(
            role=Role.CLIENT,
            nonce=challenge.nonce,
            verifier_id=gate.pinned.verifier_id,
            tls_key=keys.tls_key,
            hpke_key=keys.hpke_key,
            node_id=params.site,
            workload=params.workload,
        )
    )
    return AdmitRequest(
        job=params.job,
        site=params.site,
        client=params.client,
        nonce=challenge.nonce,
        csr=certification_request(keys.tls),
        hpke_key=keys.hpke_key,
        evidence=evidence.to_bytes(),
        site_voucher=voucher(challenge.nonce, keys.tls_key),
    )


def _checked(admitted: AdmittedClient, params: AdmissionParams) -> AdmittedClient:
    """Return ``admitted`` if its certificate is for this client's key."""
    try:
        leaf = x509.load_pem_x509_certificates(admitted.chain)[0]
        key = leaf.public_key().public_bytes(
            serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
        )
    except (IndexError, *UNREADABLE) as error:
        raise TransportError("the coordinator sent a malformed certificate") from error
    if key != params.keys.tls_key:
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
