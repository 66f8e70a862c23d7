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

__all__ = ["Site", "SiteStatus", "sample_key_entry", "status_change"]


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
    ``sample_key``     SHA-256 of the SPKI of a development key that may sign this site's sample
                       evidence, as an operator named it; empty: there is none. It proves nothing
                       about hardware, and counts only where the job's policy accepts such
                       evidence by name
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
    sample_key: bytes = b""
    last_seen: datetime | None = None
    capabilities: str = ""

    @property
    def key_thumbprint(self) -> bytes:
        """SHA-256 of the key; empty when there is none."""
        return thumbprint(self.key) if self.key else b""

    def changed_to(
        self,
        status: SiteStatus,
        *,
        now: datetime,
        tpm: SiteTpm | None = None,
        sample_key: bytes = b"",
    ) -> Self:
        """Return the site with another status, and with these keys where they are given.

        A removed site keeps no development key.
        """
        kept = b"" if status is SiteStatus.REMOVED else sample_key or self.sample_key
        return replace(self, status=status, changed=now, tpm=tpm or self.tpm, sample_key=kept)

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
            **sample_key_entry(self.sample_key),
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
                sample_key=bytes.fromhex(entry.get("insecure_sample_key", "")),
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
        **sample_key_entry(site.sample_key),
    }


def sample_key_entry(key: bytes) -> dict[str, str]:
    """Return the part of a ledger entry that names a development key; empty without one."""
    return {"insecure_sample_key": key.hex()} if key else {}
