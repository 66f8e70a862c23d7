"""A site proves that its attestation key is in its TPM (credential activation).

Until then, the coordinator does not accept evidence that this key signed. The agent does it
after it has connected and before it takes any order; the proof does not expire.
"""

from __future__ import annotations

import logging
from typing import Protocol

from attestation.tpm.credential import TpmIdentity
from edge.protocol.rpc import ControlClient
from fedlearn.errors import TransportError

__all__ = ["OwnTpm", "prove_tpm"]

_LOG = logging.getLogger(__name__)


class OwnTpm(Protocol):
    """What is needed of :class:`attestation.attesters.tpm.TpmAttester`."""

    def identity(self) -> TpmIdentity:
        """Return the TPM's endorsement key and attestation key."""
        ...

    def activate(self, blob: bytes) -> bytes:
        """Open a challenge."""
        ...


def prove_tpm(control: ControlClient, tpm: OwnTpm, *, site: str) -> str:
    """Prove the TPM of this machine; return why the coordinator trusts its endorsement key.

    :raises AttesterError: when the TPM cannot be used, or does not open the challenge.
    :raises EnrollmentRefused: when the coordinator does not accept it.
    :raises TransportError: when the operator has to approve the endorsement key first.
    """
    identity = tpm.identity()
    asked = control.propose_tpm(identity.to_bytes())
    endorsement = control.prove_tpm(asked, tpm.activate(asked.blob))
    if not endorsement:
        ek = identity.ek_digest.hex()
        raise TransportError(
            f"site {site} waits until the endorsement key of its TPM is approved: {ek}",
            hint=f"the coordinator's operator runs `fedlearn site approve {site} --ek {ek}`",
        )
    _LOG.info("the TPM of site %s was proven; its endorsement key: %s", site, endorsement)
    return endorsement
