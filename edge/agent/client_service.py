"""The client service of an agent in a cluster: it answers the clients that the agent started.

A launch ticket is an HMAC over the assignment's id, under a key that is derived from the
site's key and exists in memory only. The ticket is in the pod's environment, where everyone who
may read pods can see it. Its holder may ask for a voucher and for the client's bootstrap
document; the coordinator admits the holder by evidence only. The seed of the commitment is sealed
to an admitted client (:mod:`edge.protocol.seed_release`).

Both keys here are derived from the site's key, so that tickets and the pinned TLS key stay the
same when the agent is restarted, and the site's own key signs nothing that others choose.
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
    """The keys that are derived from a site's key (HKDF, RFC 5869, SHA-256)."""

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
    :param report: ``report(assignment, phase, reason)``, called with what a client reports.
    """

    def __init__(
        self,
        keys: Keys,
        *,
        vouch_for: Callable[[Workload, bytes, bytes], bytes],
        seed_for: Callable[[Workload, bytes], bytes],
        charge_for: Callable[[Workload, str], None],
        report: Callable[[str, Phase, str], None],
    ) -> None:
        self.keys = keys
        self._vouch_for = vouch_for
        self._seed_for = seed_for
        self._charge_for = charge_for
        self._report = report
        self._lock = threading.Lock()
        self._clients: dict[str, _RegisteredClient] = {}

    def take(self, workload: Workload, bootstrap: Callable[[Workload], Bootstrap]) -> None:
        """Answer the client of ``workload`` from now on."""
        with self._lock:
            self._clients[workload.assignment.id] = _RegisteredClient(workload, bootstrap)

    def release(self, assignment: str) -> None:
        """Stop answering the client of ``assignment``."""
        with self._lock:
            self._clients.pop(assignment, None)

    def bootstrap(self, ticket: Ticket) -> bytes:
        """Return a client's bootstrap document, encoded.

        :raises LaunchError: for a ticket of another site.
        :raises Unreachable: when this agent does not know the assignment, which may arrive later.
        """
        client = self._registered(ticket)
        return client.bootstrap(client.workload).encode()

    def vouch(self, ticket: Ticket, nonce: bytes, tls_key: bytes) -> bytes:
        """Return the site's voucher for a client.

        :raises LaunchError: for a ticket of another site, or a malformed nonce or key.
        :raises Unreachable: when this agent does not know the assignment, which may arrive later.
        """
        client = self._registered(ticket)
        least, most = _NONCE_BYTES
        if not least <= len(nonce) <= most or not 0 < len(tls_key) <= _MAX_KEY_BYTES:
            raise LaunchError("the request for a voucher is malformed")
        return self._vouch_for(client.workload, nonce, tls_key)

    def grant_seed(self, ticket: Ticket, request: bytes) -> bytes:
        """Return the seed of a client's commitment, sealed to a client that was admitted.

        :raises LaunchError: for a ticket of another site, or when the client is not admitted.
        :raises Unreachable: when this agent does not know the assignment, which may arrive later.
        """
        client = self._registered(ticket)
        return self._seed_for(client.workload, request)

    def charge(self, ticket: Ticket, question: str) -> None:
        """Charge an update to the budget of the site's data.

        :raises LaunchError: for a ticket of another site.
        :raises Unreachable: when this agent does not know the assignment, which may arrive later.
        :raises PrivacyError: when the update does not fit into the budget.
        """
        client = self._registered(ticket)
        self._charge_for(client.workload, question)

    def report(self, ticket: Ticket, phase: Phase, reason: str) -> None:
        """Take a client's report of its phase.

        :raises LaunchError: for a ticket of another site.
        """
        self._registered(ticket)
        shown = "".join(c if c.isprintable() else " " for c in reason[:2000])
        self._report(ticket.assignment, phase, shown)

    def _registered(self, ticket: Ticket) -> _RegisteredClient:
        self.keys.check(ticket)
        with self._lock:
            client = self._clients.get(ticket.assignment)
        if client is None:
            raise Unreachable(
                f"assignment {ticket.assignment} is not known here yet",
                hint="an agent that was restarted receives it again from the coordinator",
            )
        return client


def _derive(secret: bytes, info: bytes, size: int) -> bytes:
    return HKDF(algorithm=hashes.SHA256(), length=size, salt=None, info=info).derive(secret)
