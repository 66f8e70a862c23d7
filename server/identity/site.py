"""A site as the coordinator knows it, and its status."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any, Self

from fedlearn.errors import LedgerError
from server.identity.peer_certificates import thumbprint
from server.identity.site_tpm import SiteTpm

__all__ = ["Site", "SiteStatus", "status_change"]


class SiteStatus(enum.StrEnum):
    """The status of a site."""

    INVITED = "invited"
    PENDING = "pending"
    ACTIVE = "active"
    DRAINING = "draining"
    """Its running clients continue; it gets no new ones."""
    REMOVED = "removed"


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """One site.

    ``key``            its DER SPKI, empty until a key redeemed the token
    ``token``          SHA-256 of the secret of its join token, good until ``token_expires``
    ``needs_approval`` whether an operator has to let it in once it has redeemed the token
    ``changed``        when its status changed last
    ``tpm``            what is known of its TPM
    ``last_seen``      when it was in touch since the coordinator started
    ``capabilities``   the JSON object that it reported since then, or empty
    """

    name: str
    status: SiteStatus
    key: bytes = b""
    token: bytes = field(repr=False)
    token_expires: datetime
    needs_approval: bool
    changed: datetime
    tpm: SiteTpm
    last_seen: datetime | None = None
    capabilities: str = ""

    @property
    def key_thumbprint(self) -> bytes:
        """SHA-256 of the key; empty when there is none."""
        return thumbprint(self.key) if self.key else b""

    def changed_to(self, status: SiteStatus, *, now: datetime, tpm: SiteTpm | None = None) -> Self:
        """Return the site with another status, and what is then known of its TPM."""
        return replace(self, status=status, changed=now, tpm=tpm or self.tpm)

    def entry(self) -> dict[str, Any]:
        """Return what the ledger keeps: all that the coordinator acts on."""
        return {
            "status": self.status.value,
            "key": self.key.hex(),
            "token": self.token.hex(),
            "token_expires": self.token_expires.isoformat(),
            "needs_approval": self.needs_approval,
            "changed": self.changed.isoformat(),
            "tpm": self.tpm.entry(),
        }

    @classmethod
    def of_entry(cls, name: str, entry: Mapping[str, Any]) -> Self:
        """Return what :meth:`entry` wrote.

        :raises LedgerError: when it was not written by this version.
        """
        try:
            return cls(
                name=name,
                status=SiteStatus(entry["status"]),
                key=bytes.fromhex(entry["key"]),
                token=bytes.fromhex(entry["token"]),
                token_expires=datetime.fromisoformat(entry["token_expires"]).astimezone(UTC),
                needs_approval=entry["needs_approval"] is True,
                changed=datetime.fromisoformat(entry["changed"]).astimezone(UTC),
                tpm=SiteTpm.of_entry(name, entry["tpm"]),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise LedgerError(
                "an entry about a site is not one that this version can read",
                hint="use the version that wrote it, or a newer one",
            ) from error


def status_change(former: Site, site: Site) -> dict[str, Any]:
    """Return the body of the ledger entry for a change of a site, without its state."""
    return {
        "status": site.status.value,
        "former": former.status.value,
        "key_thumbprint": former.key_thumbprint.hex(),
        **({"tpm": site.tpm.entry()} if site.tpm.ek or site.tpm.shown_ek else {}),
    }
