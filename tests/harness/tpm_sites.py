"""Sites with software TPMs."""

from __future__ import annotations

from attestation.attesters.tpm import TpmAttester
from attestation.tpm.credential import TpmIdentity
from server.identity.tpm_enrollment import TpmEnrollment
from tests.harness.deployment import Deployment, new_csr, new_key

Tpms = tuple[TpmAttester, TpmAttester]


Identities = tuple[TpmIdentity, TpmIdentity]


def invite(deployment: Deployment, name: str, ek: bytes = b"") -> None:
    """Enroll a site whose invitation names the endorsement key."""
    key = new_key()
    token = deployment.sites.invitations.create_token(name, needs_approval=False, ek=ek)
    deployment.sites.invitations.enroll(token.encode(), new_csr(key))
    deployment.site_keys[name] = key


def prove(deployment: Deployment, enrollment: TpmEnrollment, site: str, tpm: TpmAttester) -> None:
    asked = enrollment.propose(site, tpm.identity().to_bytes())
    assert enrollment.prove(site, asked.challenge, tpm.activate(asked.blob)).accepted
