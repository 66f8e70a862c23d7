"""The coordinator proves itself: evidence for a nonce that the caller chose.

The binding names the coordinator's role, its CA (which signs every certificate that the
caller will rely on), the key of the TLS connection, and the job. A caller that holds the
nonce, sees that key in its own TLS handshake and finds the evidence affirmed by the job's
policy talks to the attested coordinator, with no party in between.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime

from attestation.attesters import Attester
from attestation.binding import COORDINATOR_NODE, NONCE_BYTES, Binding, Role
from fedlearn.errors import AdmissionDenied
from server.admission.challenges import Limits, Rates
from server.admission.examiner import AdmittableJob, checked_names

__all__ = ["CoordinatorProof", "Proof"]

"""The node id in the coordinator's binding, and its name in the ``nodes`` of a policy."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Proof:
    """Encoded evidence, and the coordinator's HPKE key that it is bound to."""

    evidence: bytes
    hpke_key: bytes


class CoordinatorProof:
    """Makes evidence about this coordinator, at a bounded rate.

    ``tls_key``   DER SPKI of the server certificate of every listener
    ``hpke_key``  raw X25519 public key; may be empty
    """

    def __init__(
        self,
        *,
        attester: Attester,
        verifier_id: bytes,
        tls_key: bytes,
        hpke_key: bytes,
        jobs: Callable[[str], AdmittableJob | None],
        clock: Callable[[], datetime],
        limits: Limits | None = None,
    ) -> None:
        self._attester = attester
        self._verifier_id = verifier_id
        self._tls_key = tls_key
        self._hpke_key = hpke_key
        self._jobs = jobs
        self._clock = clock
        self._rates = Rates(limits=limits)

    def prove(self, job: str, nonce: bytes, peer: str) -> Proof:
        """Return evidence bound to ``nonce`` (32 bytes) and the workload of ``job``.

        :raises Throttled: beyond the limits.
        :raises AdmissionDenied: when the nonce is malformed or the job is not open.
        :raises AttesterError: when this machine cannot make evidence now.
        """
        self._rates.take(peer, now=self._clock())
        checked_names(job=job)
        if len(nonce) != NONCE_BYTES:
            raise AdmissionDenied(f"a nonce has {NONCE_BYTES} bytes, not {len(nonce)}")
        offered = self._jobs(job)
        if offered is None:
            raise AdmissionDenied(f"job {job} is not open for clients")
        evidence = self._attester.collect(
            Binding(
                role=Role.COORDINATOR,
                nonce=nonce,
                verifier_id=self._verifier_id,
                tls_key=self._tls_key,
                hpke_key=self._hpke_key,
                node_id=COORDINATOR_NODE,
                workload=offered.workload,
            )
        )
        return Proof(evidence=evidence.to_bytes(), hpke_key=self._hpke_key)
