"""Sites: invited by a token, bound to a key, approved, drained, removed.

A token is good for one key. The key that redeems it may present it again (it asks whether
it was approved, or comes back after its certificate ran out); no other key can. Only a
digest of the token's secret is stored. A site's name stays bound to its key until the
operator removes the site and invites it anew.
"""

from __future__ import annotations

import enum
import json
import sqlite3
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

from fedlearn.errors import (
    AdmissionDenied,
    ConfigError,
    EnrollmentRefused,
    StoreError,
    TransportError,
)
from fedlearn.join import JoinToken, checked_address
from fedlearn.spiffe import SiteId, checked_name
from server.peers import PeerCertificate, csr_key, spki, thumbprint

__all__ = ["Site", "SiteRegister", "SiteStatus"]

MAX_SITES: Final = 10_000
MAX_CAPABILITIES_BYTES: Final = 256 * 1024
TOKEN_LIFETIME: Final = timedelta(hours=24)
MAX_TOKEN_LIFETIME: Final = timedelta(days=30)

_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS sites (
    name TEXT PRIMARY KEY,
    status TEXT NOT NULL,
    key BLOB NOT NULL,
    token BLOB NOT NULL UNIQUE,
    token_expires REAL NOT NULL,
    needs_approval INTEGER NOT NULL,
    changed REAL NOT NULL,
    last_seen REAL NOT NULL,
    capabilities TEXT NOT NULL
) STRICT;
"""


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


Subscriber = Callable[[Site], None]


class SiteRegister:
    """The sites of one coordinator, in one SQLite file. Safe to use from many threads.

    Every change is durable and in the ledger before it is told to anyone. Subscribers are
    called with the changed site, outside of the lock, in the thread that changed it.

    ``address``  where sites reach the gate; it is written into tokens
    ``ca_pin``   SHA-256 of the CA's SPKI; likewise
    """

    def __init__(
        self,
        path: Path,
        *,
        address: str,
        ca_pin: bytes,
        clock: Callable[[], datetime],
        record: Callable[[str, Mapping[str, Any]], object],
    ) -> None:
        """Open or create the register.

        :raises StoreError: when the file cannot be opened or is none of ours.
        """
        self._address = checked_address(address)
        self._ca_pin = ca_pin
        self._clock = clock
        self._record = record
        self._lock = threading.RLock()
        self._subscribers: list[Subscriber] = []
        self._seen: dict[str, datetime] = {}
        try:
            path.touch(mode=0o600)
            self._db = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
            self._db.row_factory = sqlite3.Row
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=FULL")
            self._db.executescript(_SCHEMA)
        except (sqlite3.Error, OSError) as error:
            raise StoreError(f"{path}: the register of sites cannot be opened: {error}") from error

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._db.close()

    def subscribe(self, callback: Subscriber) -> None:
        """Have ``callback`` called with every site whose status changed."""
        self._subscribers.append(callback)

    def create_token(
        self,
        site: str,
        *,
        lifetime: timedelta = TOKEN_LIFETIME,
        needs_approval: bool = True,
    ) -> JoinToken:
        """Invite ``site``. A former invitation that nobody took up is void.

        :raises ConfigError: when the name or lifetime is impossible, the site is enrolled
            already, or there are too many sites.
        """
        checked_name(site, "site")
        if not timedelta(minutes=1) <= lifetime <= MAX_TOKEN_LIFETIME:
            raise ConfigError(
                f"{lifetime} is no lifetime for a token",
                key="lifetime",
                hint=f"use one minute to {MAX_TOKEN_LIFETIME.days} days",
            )
        now = self._clock()
        token = JoinToken.fresh(address=self._address, site=site, ca_pin=self._ca_pin)
        with self._transaction() as db:
            known = self._find(site)
            if known is not None and known.status not in (SiteStatus.INVITED, SiteStatus.REMOVED):
                raise ConfigError(
                    f"site {site} is {known.status} already",
                    key="site",
                    hint=f"`fedlearn site remove {site}` first, if it is to get a new key",
                )
            if known is None and self._count() >= MAX_SITES:
                raise ConfigError(f"there are {MAX_SITES} sites already", key="site")
            db.execute(
                "INSERT OR REPLACE INTO sites VALUES (?, ?, x'', ?, ?, ?, ?, 0, '')",
                (
                    site,
                    SiteStatus.INVITED.value,
                    token.digest(),
                    (now + lifetime).timestamp(),
                    int(needs_approval),
                    now.timestamp(),
                ),
            )
            self._record(
                "enrollment",
                {
                    "site": site,
                    "outcome": "invited",
                    "expires": (now + lifetime).isoformat(),
                    "needs_approval": needs_approval,
                },
            )
        return token

    def enroll(self, token: str, csr: bytes, *, peer: str = "") -> Site:
        """Redeem ``token`` for the key of ``csr``; return the site, pending or active.

        :raises ConfigError: when the token was mistyped.
        :raises EnrollmentRefused: when it is forged, void, expired, or another key's.
        :raises TransportError: when the CSR is unusable.
        """
        parsed = JoinToken.parse(token)
        key = spki(csr_key(csr))
        try:
            with self._transaction():
                site, fresh = self._redeem(parsed, key)
        except EnrollmentRefused as error:
            self._record(
                "enrollment",
                {
                    "site": parsed.site,
                    "outcome": "refused",
                    "reason": str(error),
                    "key_thumbprint": thumbprint(key).hex(),
                    "peer": peer,
                },
            )
            raise
        if fresh:
            self._tell(site)
        return site

    def approve(self, site: str) -> Site:
        """Let a pending site in, or a draining one take new clients again."""
        return self._change(site, SiteStatus.ACTIVE, (SiteStatus.PENDING, SiteStatus.DRAINING))

    def reject(self, site: str) -> Site:
        """Turn a pending site away; its token is void."""
        return self._change(site, SiteStatus.REMOVED, (SiteStatus.INVITED, SiteStatus.PENDING))

    def drain(self, site: str) -> Site:
        """Give the site no new clients; those it has go on."""
        return self._change(site, SiteStatus.DRAINING, (SiteStatus.ACTIVE,))

    def remove(self, site: str) -> Site:
        """Cut the site off at once, with all its clients. Its key and token are void."""
        former = tuple(status for status in SiteStatus if status is not SiteStatus.REMOVED)
        return self._change(site, SiteStatus.REMOVED, former)

    def list(self) -> tuple[Site, ...]:
        """Return all sites by name."""
        with self._lock:
            rows = self._db.execute("SELECT * FROM sites ORDER BY name").fetchall()
        return tuple(_site(row) for row in rows)

    def show(self, site: str) -> Site:
        """Return one site.

        :raises ConfigError: when there is none of this name.
        """
        with self._lock:
            found = self._find(site)
        if found is None:
            raise ConfigError(
                f"there is no site {site[:64]!a}",
                key="site",
                hint="`fedlearn site list` names them all",
            )
        return found

    def key_of(self, site: str, *, admitting: bool) -> bytes:
        """Return the key of a site whose clients may be served.

        :raises AdmissionDenied: when the site is unknown, not active, or draining while
            ``admitting``.
        """
        with self._lock:
            found = self._find(site)
        if found is None:
            raise AdmissionDenied(f"site {site} is not enrolled")
        allowed = {SiteStatus.ACTIVE} if admitting else {SiteStatus.ACTIVE, SiteStatus.DRAINING}
        if found.status not in allowed:
            raise AdmissionDenied(f"site {site} is {found.status}, not active")
        return found.key

    def authenticate(self, peer: PeerCertificate) -> Site:
        """Return the site that a certificate belongs to, if it may talk to us now.

        :raises TransportError: when it is no site, was removed, or has another key now.
        """
        if not isinstance(peer.id, SiteId):
            raise TransportError(f"{peer.id} is not a site")
        with self._lock:
            found = self._find(peer.id.site)
        if found is None or found.status not in (SiteStatus.ACTIVE, SiteStatus.DRAINING):
            standing = "unknown" if found is None else str(found.status)
            raise TransportError(
                f"site {peer.id.site} is {standing}",
                hint="ask the coordinator's operator for a new join token",
            )
        if found.key_thumbprint != peer.thumbprint:
            raise TransportError(f"site {peer.id.site} is enrolled with another key")
        return found

    def report_capabilities(self, site: str, capabilities: str) -> None:
        """Keep what a site says it can do: a JSON object of at most 256 KiB.

        :raises ConfigError: when it is not.
        """
        if len(capabilities.encode()) > MAX_CAPABILITIES_BYTES:
            raise ConfigError(
                f"a report has at most {MAX_CAPABILITIES_BYTES} bytes", key="capabilities"
            )
        try:
            document = json.loads(capabilities)
        except (ValueError, RecursionError):
            raise ConfigError("not JSON", key="capabilities") from None
        if not isinstance(document, dict):
            raise ConfigError("not a JSON object", key="capabilities")
        with self._transaction() as db:
            db.execute("UPDATE sites SET capabilities=? WHERE name=?", (capabilities, site))

    def seen(self, site: str) -> None:
        """Note that the site is in touch, to the minute: a heartbeat costs no disk write."""
        now = self._clock()
        with self._lock:
            last = self._seen.get(site)
            if last is not None and now - last < timedelta(minutes=1):
                return
            self._seen[site] = now
        with self._transaction() as db:
            db.execute("UPDATE sites SET last_seen=? WHERE name=?", (now.timestamp(), site))

    def _redeem(self, token: JoinToken, key: bytes) -> tuple[Site, bool]:
        """Return the site and whether its status changed. Inside of a transaction."""
        row = self._db.execute(
            "SELECT * FROM sites WHERE token=? AND name=?", (token.digest(), token.site)
        ).fetchone()
        if row is None or row["status"] == SiteStatus.REMOVED:
            raise EnrollmentRefused(
                "the join token is not one of this coordinator, or void",
                hint=f"ask its operator for `fedlearn site token {token.site}`",
            )
        site = _site(row)
        if site.key:
            if site.key != key:
                raise EnrollmentRefused(
                    f"the join token of site {site.name} was used before, by another key",
                    hint="if that was not you, ask the operator to remove the site at once",
                )
            return site, False
        now = self._clock()
        if now.timestamp() >= row["token_expires"]:
            raise EnrollmentRefused(
                f"the join token of site {site.name} has expired",
                hint=f"ask for a new one: `fedlearn site token {site.name}`",
            )
        taken = self._db.execute(
            "SELECT name FROM sites WHERE key=? AND status<>?", (key, SiteStatus.REMOVED.value)
        ).fetchone()
        if taken is not None:
            raise EnrollmentRefused(f"this key belongs to site {taken['name']} already")
        status = SiteStatus.PENDING if row["needs_approval"] else SiteStatus.ACTIVE
        self._db.execute(
            "UPDATE sites SET status=?, key=?, changed=? WHERE name=?",
            (status.value, key, now.timestamp(), site.name),
        )
        self._record(
            "enrollment",
            {
                "site": site.name,
                "outcome": status.value,
                "key_thumbprint": thumbprint(key).hex(),
            },
        )
        return self.show(site.name), True

    def _change(self, name: str, to: SiteStatus, former: tuple[SiteStatus, ...]) -> Site:
        with self._transaction() as db:
            site = self.show(name)
            if site.status not in former:
                expected = " or ".join(former)
                raise ConfigError(f"site {name} is {site.status}, not {expected}", key="site")
            db.execute(
                "UPDATE sites SET status=?, changed=? WHERE name=?",
                (to.value, self._clock().timestamp(), name),
            )
            self._record(
                "site",
                {
                    "site": name,
                    "status": to.value,
                    "former": site.status.value,
                    "key_thumbprint": site.key_thumbprint.hex(),
                },
            )
            changed = self.show(name)
        self._tell(changed)
        return changed

    def _tell(self, site: Site) -> None:
        for subscriber in list(self._subscribers):
            subscriber(site)

    def _find(self, name: str) -> Site | None:
        row = self._db.execute("SELECT * FROM sites WHERE name=?", (name,)).fetchone()
        return None if row is None else _site(row)

    def _count(self) -> int:
        return int(self._db.execute("SELECT count(*) FROM sites").fetchone()[0])

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        """Run a block as one durable change, or none when it raises."""
        with self._lock:
            try:
                self._db.execute("BEGIN IMMEDIATE")
                try:
                    yield self._db
                except BaseException:
                    self._db.execute("ROLLBACK")
                    raise
                self._db.execute("COMMIT")
            except sqlite3.Error as error:
                raise StoreError(
                    f"the register of sites cannot be written: {error}",
                    hint="see that its disk is neither full nor read-only",
                ) from error


def _site(row: sqlite3.Row) -> Site:
    seen = float(row["last_seen"])
    return Site(
        name=row["name"],
        status=SiteStatus(row["status"]),
        key=row["key"],
        changed=datetime.fromtimestamp(row["changed"], UTC),
        last_seen=datetime.fromtimestamp(seen, UTC) if seen else None,
        capabilities=row["capabilities"],
    )
