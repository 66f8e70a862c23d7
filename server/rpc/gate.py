"""The Gate service: enrollment, the coordinator's proof, challenges and admission."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from datetime import timedelta

from fedlearn.errors import AdmissionDenied, Throttled
from fedlearn.identity.admission import AdmitRequest
from fedlearn.wire import fedlearn_pb2 as pb
from server.admission.challenges import Challenge
from server.admission.coordinator_evidence import CoordinatorProof
from server.admission.gate import AdmissionGate
from server.admission.types import Admitted
from server.identity.pki import CertificateAuthority
from server.identity.site import Site, SiteStatus
from server.identity.site_registry import SiteRegistry
from server.identity.tpm_enrollment import TpmEnrollment
from server.rpc.guard import Caller

__all__ = [
    "GateService",
    "Welcome",
    "admit_reply",
    "admit_request",
    "challenge_reply",
    "refused_reply",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Welcome:
    """What a site gets on enrollment: the next addresses, and the key that signs orders.

    ``order_key``      DER SPKI of the key that signs assignments
    ``site_lifetime``  of the certificates that sites get
    """

    fleet_address: str
    control_address: str
    order_key: bytes
    site_lifetime: timedelta = timedelta(days=1)


class GateService:
    """Bodies of ``fedlearn.v1.Gate``."""

    def __init__(
        self,
        *,
        gate: AdmissionGate,
        proof: CoordinatorProof,
        sites: SiteRegistry,
        tpms: TpmEnrollment,
        ca: CertificateAuthority,
        welcome: Welcome,
    ) -> None:
        self._gate = gate
        self._proof = proof
        self._sites = sites
        self._tpms = tpms
        self._ca = ca
        self._welcome = welcome

    def Enroll(self, request: pb.EnrollRequest, caller: Caller) -> pb.EnrollReply:  # noqa: N802
        """Redeem a join token; the operator sees which TPM the site claims to have."""
        self._gate.count(caller.peer)
        site = self._sites.invitations.enroll(request.token, request.csr, peer=caller.peer)
        if request.tpm_identity and site.status is SiteStatus.PENDING:
            self._tpms.show(site.name, request.tpm_identity)
        return enroll_reply(site, request.csr, self._ca, self._gate, self._welcome)

    def AttestCoordinator(  # noqa: N802
        self, request: pb.AttestCoordinatorRequest, caller: Caller
    ) -> pb.AttestCoordinatorReply:
        """Prove the coordinator."""
        proof = self._proof.prove(request.job, request.nonce, caller.peer)
        return pb.AttestCoordinatorReply(evidence=proof.evidence, hpke_key=proof.hpke_key)

    def Challenge(self, request: pb.ChallengeRequest, caller: Caller) -> pb.ChallengeReply:  # noqa: N802
        """Give out a nonce."""
        return challenge_reply(self._gate.challenge(request.job, request.site, caller.peer))

    def Admit(self, request: pb.AdmitRequest, caller: Caller) -> pb.AdmitReply:  # noqa: N802
        """Admit a client; a refusal is a reply, with its findings."""
        try:
            admitted = self._gate.admit(admit_request(request), peer=caller.peer)
        except Throttled:
            raise
        except AdmissionDenied as denied:
            return refused_reply(denied)
        return admit_reply(admitted, self._welcome)


def challenge_reply(challenge: Challenge) -> pb.ChallengeReply:
    """Put a challenge on the wire."""
    return pb.ChallengeReply(
        nonce=challenge.nonce,
        expires_unix_ms=int(challenge.expires.timestamp() * 1000),
        verifier_id=challenge.verifier_id,
    )


def enroll_reply(
    site: Site,
    csr: bytes,
    ca: CertificateAuthority,
    gate: AdmissionGate,
    welcome: Welcome,
) -> pb.EnrollReply:
    """Return a certificate for an active site, or that it has to wait."""
    if site.status not in (SiteStatus.ACTIVE, SiteStatus.DRAINING):
        return pb.EnrollReply(status=pb.EnrollReply.PENDING, site=site.name)
    issued = ca.issue_site(csr, site=site.name, now=gate.now(), lifetime=welcome.site_lifetime)
    return pb.EnrollReply(
        status=pb.EnrollReply.ACCEPTED,
        site=site.name,
        certificate_chain=issued.chain_pem,
        order_key=welcome.order_key,
        control_address=welcome.control_address,
    )


def admit_request(request: pb.AdmitRequest) -> AdmitRequest:
    """Take a request off the wire."""
    names = (field.name for field in dataclasses.fields(AdmitRequest))
    return AdmitRequest(**{name: getattr(request, name) for name in names})


def admit_reply(admitted: Admitted, welcome: Welcome) -> pb.AdmitReply:
    """Put an admission on the wire."""
    return pb.AdmitReply(
        admitted=pb.Admitted(
            certificate_chain=admitted.certificate_chain,
            expires_unix_ms=int(admitted.admission.expires.timestamp() * 1000),
            renew_after_unix_ms=int(admitted.renew_after.timestamp() * 1000),
            fleet_address=welcome.fleet_address,
            control_address=welcome.control_address,
            node_id=admitted.admission.node_id,
            result=admitted.token,
        )
    )


def refused_reply(denied: AdmissionDenied) -> pb.AdmitReply:
    """Put a refusal on the wire."""
    return pb.AdmitReply(
        refused=pb.Refused(
            reason=str(denied),
            findings_json=json.dumps(list(denied.findings)),
            code=denied.code,
            hint=denied.hint,
        )
    )
