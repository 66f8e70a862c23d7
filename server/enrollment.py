"""Sites: invited by a token, bound to a key, approved, drained, removed.

A token is good for one key. The key that redeems it may present it again (it asks whether
it was approved, or comes back after its certificate ran out); no other key can. Only a
digest of the token's secret is stored. A site's name stays bound to its key until the
operator removes the site and invites it anew.

A site with a TPM is bound to its endorsement key as well (:mod:`server.sitetpm`): when another
one is proven, the site waits for approval again, and its clients end.
"""

from __future__ import annotations

import json
import sqlite3
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Final

from attestation.tpm_credential import ProvenKey
from fedlearn.errors import (
    AdmissionDenied,
    ConfigError,
    EnrollmentRefused,
    NotEnrolled,
    StoreError,
    TransportError,
)
from fedlearn.join import JoinToken, checked_address
from fedlearn.spiffe import SiteId, checked_name
from server.peers import PeerCertificate, csr_key, spki, thumbprint
from server.site import Site, SiteStatus, site_of_row
from server.sitetpm import SCHEMA as TPM_SCHEMA
from server.sitetpm import SiteTpm, TpmTable, check_digest

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


Subscriber = Callable[[Site], None]


class SiteRegister:
    """The sites of one coordinator, in one SQLite file. Safe to use from many threads.

    Every change is durable and in the ledger before it is told to anyone. Subscribers are
    called with the changed site, outside of the lock, in the thread that changed it.

    ``address``  where sites reach the gate; it is written into tokens
    ``ca_pin``   SHA-256 of the CA's SPKI; likewise
    ``limit``    how many sites there may be, those that were removed included
    ``token_lifetime``  how long a token may be redeemed, where nothing else is asked for
    """

    def __init__(
        self,
        path: Path,
        *,
        address: str,
        ca_pin: bytes,
        clock: Callable[[], datetime],
        record: Callable[[str, Mapping[str, Any]], object],
        limit: int = MAX_SITES,
        token_lifetime: timedelta = TOKEN_LIFETIME,
    ) -> None:
        """Open or create the register.

        :raises StoreError: when the file cannot be opened or is none of ours.
        """
        self._address = checked_address(address)
        self._ca_pin = ca_pin
        self._clock = clock
        self._record = record
        self._limit = limit
        self.token_lifetime = token_lifetime
        self._lock = threading.RLock()
        self._subscribers: list[Subscriber] = []
        self._seen: dict[str, datetime] = {}
        try:
            path.touch(mode=0o600)
            self._db = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
            self._db.row_factory = sqlite3.Row
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=FULL")
            self._db.executescript(_SCHEMA + TPM_SCHEMA)
        except (sqlite3.Error, OSError) as error:
            raise StoreError(f"{path}: the register of sites cannot be opened: {error}") from error
        self._tpms = TpmTable(self._db)

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
        lifetime: timedelta | None = None,
        needs_approval: bool = True,
        ek: bytes = b"",
    ) -> JoinToken:
        """Invite ``site``. A former invitation that nobody took up is void.

        ``ek`` is the SHA-256 of the endorsement key that its TPM must have, where it is known.

        :raises ConfigError: when the name or lifetime is impossible, the site is enrolled
            already, or there are too many sites.
        """
        checked_name(site, "site")
        check_digest(ek)
        lifetime = self.token_lifetime if lifetime is None else lifetime
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
            if known is None and self._count() >= self._limit:
                raise ConfigError(
                    f"there are {self._limit} sites already",
                    key="site",
                    hint="raise limits.sites in server.toml",
                )
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
            self._tpms.drop(site)
            if ek:
                self._tpms.put(SiteTpm(site=site, ek=ek, endorsement="invitation"))
            self._record(
                "enrollment",
                {
                    "site": site,
                    "outcome": "invited",
                    "expires": (now + lifetime).isoformat(),
                    "needs_approval": needs_approval,
                    **({"ek": ek.hex()} if ek else {}),
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

    def approve(self, site: str, *, ek: bytes = b"") -> Site:
        """Let a pending site in, or a draining one take new clients again.

        It binds the site to the endorsement key that it has shown. ``ek`` says which one the
        operator means; where the site had another one before, it must be named.

        :raises ConfigError: when the site has shown another key, or changed it and ``ek`` is
            not given.
        """
        check_digest(ek)
        former = (SiteStatus.PENDING, SiteStatus.DRAINING)
        return self._change(site, SiteStatus.ACTIVE, former, ek=ek)

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
        return tuple(site_of_row(row) for row in rows)

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

        :raises NotEnrolled: when it is unknown, was removed, or has another key now.
        :raises TransportError: when it is no site, or waits for approval.
        """
        if not isinstance(peer.id, SiteId):
            raise TransportError(f"{peer.id} is not a site")
        with self._lock:
            found = self._find(peer.id.site)
        name = peer.id.site
        if found is None or found.status in (SiteStatus.REMOVED, SiteStatus.INVITED):
            raise NotEnrolled(
                f"site {name} is {'unknown' if found is None else found.status}",
                hint="ask the coordinator's operator for a new join token",
            )
        if found.key_thumbprint != peer.thumbprint:
            raise NotEnrolled(f"site {name} is enrolled with another key")
        if found.status is SiteStatus.PENDING:
            raise TransportError(
                f"site {name} is pending",
                hint=f"the coordinator's operator runs `fedlearn site approve {name}`",
            )
        return found

    def tpm(self, site: str) -> SiteTpm:
        """Return what is known of a site's TPM, an empty value when that is nothing."""
        with self._lock:
            return self._tpms.get(site)

    def tpm_of(self, site: str) -> ProvenKey | None:
        """Return the keys that the TPM of an enrolled site has proven, if it has."""
        return self.tpm(site).proven

    def site_of_ak(self, ak: bytes) -> str | None:
        """Return the site whose TPM holds the attestation key ``ak`` (SHA-256), if any does."""
        with self._lock:
            return self._tpms.holder(ak=ak)

    def show_tpm(self, site: str, *, ek: bytes, certificate: str) -> None:
        """Note which endorsement key a site that waits for approval says it has."""
        with self._transaction():
            known = self._tpms.get(site)
            if self.show(site).status is SiteStatus.PENDING and ek not in (
                known.ek,
                known.shown_ek,
            ):
                self._tpms.put(replace(known, shown_ek=ek, shown_ak=b"", certificate=certificate))

    def prove_tpm(self, site: str, proven: ProvenKey, *, certificate: str) -> Site:
        """Keep what the TPM of an active site has proven; return the site.

        When the endorsement key is not believed, or is another than before, the site waits
        for approval from now on: it is returned as pending.

        ``proven.endorsement`` is ``certificate`` where the key's certificate was verified;
        ``certificate`` says in words what was found of it.

        :raises EnrollmentRefused: when the TPM is that of another site, or the site may not
            talk to us.
        """
        with self._transaction() as db:
            found = self.show(site)
            if found.status not in (SiteStatus.ACTIVE, SiteStatus.DRAINING):
                raise EnrollmentRefused(f"site {site} is {found.status}")
            known = self._tpms.get(site)
            tpm = known.after(proven, certificate)
            status = found.status if known.believes(proven) else SiteStatus.PENDING
            if tpm != known or status is not found.status:
                self._tpms.put(tpm)
                db.execute(
                    "UPDATE sites SET status=?, changed=? WHERE name=?",
                    (status.value, self._clock().timestamp(), site),
                )
                self._record(
                    "site",
                    {
                        "site": site,
                        "status": status.value,
                        "former": found.status.value,
                        "key_thumbprint": found.key_thumbprint.hex(),
                        "tpm": tpm.entry(),
                    },
                )
            changed = self.show(site)
        if status is not found.status:
            self._tell(changed)
        return changed

    def refuse_tpm(self, site: str, proven: ProvenKey, reason: str) -> None:
        """Enter into the ledger that a site did not prove the keys that it named."""
        self._record(
            "enrollment",
            {
                "site": site,
                "outcome": "refused",
                "reason": reason,
                "ak": proven.ak.hex(),
                "ek": proven.ek.hex(),
            },
        )

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
        site = site_of_row(row)
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

    def _change(
        self, name: str, to: SiteStatus, former: tuple[SiteStatus, ...], *, ek: bytes = b""
    ) -> Site:
        with self._transaction() as db:
            site = self.show(name)
            if site.status not in former:
                expected = " or ".join(former)
                raise ConfigError(f"site {name} is {site.status}, not {expected}", key="site")
            known = tpm = self._tpms.get(name)
            if to is SiteStatus.REMOVED:
                self._tpms.drop(name)
            elif to is SiteStatus.ACTIVE:
                tpm = known.approved(ek)
            if tpm != known:
                self._tpms.put(tpm)
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
                    **({"tpm": tpm.entry()} if tpm.ek else {}),
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
        return None if row is None else site_of_row(row)

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
