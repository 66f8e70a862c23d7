"""A site as the coordinator knows it, and where it stands."""

from __future__ import annotations

import enum
import sqlite3
from dataclasses import dataclass
from datetime import UTC, datetime

from server.peers import thumbprint

__all__ = ["Site", "SiteStatus", "site_of_row"]


class SiteStatus(enum.StrEnum):
    """Where a site stands."""

    INVITED = "invited"
    PENDING = "pending"
    ACTIVE = "active"
    DRAINING = "draining"
    """Keeps its running clients; gets no new ones."""
    REMOVED = "removed"


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """One site. ``key`` is its DER SPKI, empty until a key redeemed the token."""

    name: str
    status: SiteStatus
    key: bytes
    changed: datetime
    last_seen: datetime | None
    capabilities: str

    @property
    def key_thumbprint(self) -> bytes:
        """SHA-256 of the key; empty when there is none."""
        return thumbprint(self.key) if self.key else b""


def site_of_row(row: sqlite3.Row) -> Site:
    """Return the site of a row of the register's table."""
    seen = float(row["last_seen"])
    return Site(
        name=row["name"],
        status=SiteStatus(row["status"]),
        key=row["key"],
        changed=datetime.fromtimestamp(row["changed"], UTC),
        last_seen=datetime.fromtimestamp(seen, UTC) if seen else None,
        capabilities=row["capabilities"],
    )
