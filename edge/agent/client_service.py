"""How an agent in a cluster sponsors the clients that it started there.

A launch ticket is an HMAC over the assignment's id, under a key that is derived from the
site's key and exists in memory only. It stands in the pod's environment, where whoever may
read pods can see it. It lets its holder ask for a voucher and for the client's bootstrap
document; whether the holder is admitted is decided by evidence. The seed of the commitment is for
the admitted only, and sealed (:mod:`edge.protocol.seed_release`).

Both keys here are derived, so that tickets and the pinned TLS key outlive the agent: clients
go on when it is restarted, and the site's own key signs nothing that others choose.
"""

from __future__ import annotations

import hmac
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from attestation.ecdsa import P256_ORDER
from edge.protocol.bootstrap import Bootstrap
from edge.protocol.workload import Workload
from fedlearn.errors import LaunchError
from fedlearn.job.phase import Phase
from fedlearn.wire.client_service import Ticket, key_pin
from fedlearn.wire.failure import Unreachable

__all__ = ["Keys", "WorkloadService"]

_TICKET: Final = b"fedlearn-ticket/1\0"
_TLS: Final = b"fedlearn-sponsor-tls/1\0"
_NONCE_BYTES: Final = (16, 64)
_MAX_KEY_BYTES: Final = 1024


class Keys:
    """What is derived from a site's key (HKDF, RFC 5869, SHA-256)."""

    def __init__(self, site_key: ec.EllipticCurvePrivateKey) -> None:
        secret = site_key.private_numbers().private_value.to_bytes(32, "big")
        self._ticket = _derive(secret, _TICKET, 32)
        # 48 bytes reduced by the order: close to uniform (FIPS 186-5, appendix A.4.1).
        scalar = int.from_bytes(_derive(secret, _TLS, 48), "big") % (P256_ORDER - 1) + 1
        self.tls = ec.derive_private_key(scalar, ec.SECP256R1())

    @property
    def pin(self) -> bytes:
        """SHA-256 of the TLS key's SPKI."""
        return key_pin(self.tls.public_key())

    def tag(self, assignment: str) -> bytes:
        """Return the tag of the ticket for ``assignment``."""
        return hmac.digest(self._ticket, _TICKET + assignment.encode(), "sha256")

    def check(self, ticket: Ticket) -> None:
        """Check a ticket.

        :raises LaunchError: when it was not issued by this site for its assignment.
        """
        if not hmac.compare_digest(self.tag(ticket.assignment), ticket.tag):
            raise LaunchError(
                "this launch ticket was not issued by this site for this assignment",
                hint="clients are started by their agent only",
            )


@dataclass(frozen=True, slots=True)
class _RegisteredClient:
    workload: Workload
    bootstrap: Callable[[Workload], Bootstrap]


class WorkloadService:
    """Answers clients; implements :class:`fedlearn.wire.client_service.Host`.

    :param vouch_for: ``vouch_for(workload, nonce, tls_key)``, the site's signature.
    :param seed_for: ``seed_for(workload, request)``, the seed of its commitment, sealed.
    :param charge_for: ``charge_for(workload, question)``, which charges an update to the budget
        of the site's data.
    :param told: ``told(assignment, phase, reason)``, a client's own words.
    """

    def __init__(
        self,
        keys: Keys,
        *,
        vouch_for: Callable[[Workload, bytes, bytes], bytes],
        seed_for: Callable[[Workload, bytes], bytes],
        charge_for: Callable[[Workload, str], None],
        told: Callable[[str, Phase, str], None],
    ) -> None:
        self.keys = keys
        self._vouch_for = vouch_for
        self._seed_for = seed_for
        self._charge_for = charge_for
        self._told = told
        self._lock = threading.Lock()
        self._charges: dict[str, _RegisteredClient] = {}

    def take(self, workload: Workload, bootstrap: Callable[[Workload], Bootstrap]) -> None:
        """Answer the client of ``workload`` from now on."""
        with self._lock:
            self._charges[workload.assignment.id] = _RegisteredClient(workload, bootstrap)

    def release(self, assignment: str) -> None:
        """Answer it no more."""
        with self._lock:
            self._charges.pop(assignment, None)

    def bootstrap(self, ticket: Ticket) -> bytes:
        """Return what a client is told.

        :raises LaunchError: for a ticket that is not ours.
        :raises Unreachable: when this agent does not know the assignment (yet).
        """
        charge = self._charge(ticket)
        return charge.bootstrap(charge.workload).encode()

    def vouch(self, ticket: Ticket, nonce: bytes, tls_key: bytes) -> bytes:
        """Return the site's voucher for a client.

        :raises LaunchError: for a ticket that is not ours, or a malformed question.
        :raises Unreachable: when this agent does not know the assignment (yet).
        """
        charge = self._charge(ticket)
        least, most = _NONCE_BYTES
        if not least <= len(nonce) <= most or not 0 < len(tls_key) <= _MAX_KEY_BYTES:
            raise LaunchError("the question for a voucher is malformed")
        return self._vouch_for(charge.workload, nonce, tls_key)

    def grant_seed(self, ticket: Ticket, request: bytes) -> bytes:
        """Return the seed of a client's commitment, sealed to a client that was admitted.

        :raises LaunchError: for a ticket that is not ours, or when the client was not.
        :raises Unreachable: when this agent does not know the assignment (yet).
        """
        charge = self._charge(ticket)
        return self._seed_for(charge.workload, request)

    def charge(self, ticket: Ticket, question: str) -> None:
        """Charge an update to the budget of the site's data.

        :raises LaunchError: for a ticket that is not ours.
        :raises Unreachable: when this agent does not know the assignment (yet).
        :raises PrivacyError: when the budget does not pay for it.
        """
        charge = self._charge(ticket)
        self._charge_for(charge.workload, question)

    def tell(self, ticket: Ticket, phase: Phase, reason: str) -> None:
        """Hear where a client says that it stands.

        :raises LaunchError: for a ticket that is not ours.
        """
        self._charge(ticket)
        shown = "".join(c if c.isprintable() else " " for c in reason[:2000])
        self._told(ticket.assignment, phase, shown)

    def _charge(self, ticket: Ticket) -> _RegisteredClient:
        self.keys.check(ticket)
        with self._lock:
            charge = self._charges.get(ticket.assignment)
        if charge is None:
            raise Unreachable(
                f"assignment {ticket.assignment} is not known here yet",
                hint="an agent that was restarted hears of it from the coordinator",
            )
        return charge


def _derive(secret: bytes, info: bytes, size: int) -> bytes:
    return HKDF(algorithm=hashes.SHA256(), length=size, salt=None, info=info).derive(secret)
