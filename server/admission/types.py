"""What admission gives out, for how long, and what it needs of the ledger and of Flower."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Protocol

from server.admission.registry import Admission
from server.identity.pki import MAX_CLIENT_LIFETIME

__all__ = ["Admitted", "JobNodes", "Periods", "Record"]

Record = Callable[[str, Mapping[str, Any]], object]
"""Appends one entry to the ledger, durably: ``record(kind, body)``."""


class JobNodes(Protocol):
    """What admission needs of Flower."""

    def create_node(self, job: str, site: str, tls_key: bytes) -> int:
        """Create the node of a site and its key (DER SPKI) in the job; return its id."""
        ...

    def delete_node(self, job: str, site: str, tls_key: bytes) -> None:
        """Delete the node of a site, unless it has another key than ``tls_key`` by now.

        It is no error when the job or the node is gone.
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Periods:
    """``lifetime`` of a certificate, when to renew it, and when it is overdue."""

    lifetime: timedelta = MAX_CLIENT_LIFETIME
    renew_after: timedelta = timedelta(minutes=5)
    renew_by: timedelta = timedelta(minutes=10)

    def __post_init__(self) -> None:
        ordered = timedelta(0) < self.renew_after < self.renew_by <= self.lifetime
        if not ordered or self.lifetime > MAX_CLIENT_LIFETIME:
            raise ValueError("0 < renew_after < renew_by <= lifetime <= 30 minutes")


@dataclass(frozen=True, slots=True, kw_only=True)
class Admitted:
    """The answer to a client that was admitted or renewed.

    ``certificate_chain``  PEM, leaf first, then the root
    ``token``              the attestation result as ``sign_result`` encodes it
    """

    admission: Admission
    certificate_chain: bytes
    renew_after: datetime
    token: bytes
