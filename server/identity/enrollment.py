"""Sites: invited by a token, bound to a key, approved, drained, removed.

A token is good for one key. The key that redeems it may present it again (it asks whether
it was approved, or comes back after its certificate ran out); no other key can. Only a
digest of the token's secret is stored. A site's name stays bound to its key until the
operator removes the site and invites it anew.

The memory of all this is the ledger, which cannot be altered unseen: each entry about a site
holds the whole of what the coordinator acts on (:meth:`server.identity.site.Site.entry`), and the
register is replayed from them when it is opened. What a site reports about itself and when it
was last in touch is kept in memory only; agents report anew when they connect.

A site with a TPM is bound to its endorsement key as well (:mod:`server.identity.site_tpm`): when
another one is proven, the site waits for approval again, and its clients end.
"""

from __future__ import annotations

import heapq
import hmac
import json
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any, Final

from attestation.tpm.credential import ProvenKey
from fedlearn.errors import (
    AdmissionDenied,
    ConfigError,
    EnrollmentRefused,
    NotEnrolled,
    TransportError,
)
from fedlearn.identity.join import JoinToken, checked_address
from fedlearn.identity.spiffe import SiteId, checked_name
from server.identity.peer_certificates import PeerCertificate, csr_key, spki, thumbprint
from server.identity.site import Site, SiteStatus
from server.identity.site_tpm import SiteTpm, check_digest
from server.ledger import LedgerReader
from server.quota import Quota

__all__ = ["Site", "SiteRegistry", "SiteStatus", "site_entries"]

MAX_SITES: Final = 10_000
_REFUSALS_AT_ONCE: Final = 16
_SECONDS_FOR_EACH: Final = 10.0
MAX_CAPABILITIES_BYTES: Final = 256 * 1024
TOKEN_LIFETIME: Final = timedelta(hours=24)
MAX_TOKEN_LIFETIME: Final = timedelta(days=30)

Subscriber = Callable[[Site], None]


def site_entries(ledger: LedgerReader) -> Iterator[Mapping[str, Any]]:
    """Yield the bodies of the ledger's entries about sites, oldest first.

    :raises LedgerError: when the ledger is damaged.
    """
    kinds = (ledger.entries(kind="enrollment"), ledger.entries(kind="site"))
    for entry in heapq.merge(*kinds, key=lambda entry: entry.sequence):
        yield entry.body


class SiteRegistry:
    """The sites of one coordinator. Safe to use from many threads.

    Every change is in the ledger, durably, before it counts and is told to anyone. Subscribers
    are called with the changed site, outside of the lock, in the thread that changed it.

    ``entries``  the bodies of the ledger's entries about sites (:func:`site_entries`)
    ``record``   appends to the ledger, durably: ``record(kind, body)``
    ``address``  where sites reach the gate; it is written into tokens
    ``ca_pin``   SHA-256 of the CA's SPKI; likewise
    ``limit``    how many sites there may be, those that were removed included
    ``token_lifetime``  how long a token may be redeemed, where nothing else is asked for

    :raises LedgerError: when an entry is none that this class wrote.
    """

    def __init__(
        self,
        *,
        entries: Iterable[Mapping[str, Any]] = (),
        address: str,
        ca_pin: bytes,
        clock: Callable[[], datetime],
        record: Callable[[str, Mapping[str, Any]], object],
        limit: int = MAX_SITES,
        token_lifetime: timedelta = TOKEN_LIFETIME,
    ) -> None:
        self._address = checked_address(address)
        self._ca_pin = ca_pin
        self._clock = clock
        self._record = record
        self._limit = limit
        self.token_lifetime = token_lifetime
        self._refusals = Quota(burst=_REFUSALS_AT_ONCE, every=_SECONDS_FOR_EACH)
        self._lock = threading.RLock()
        self._subscribers: list[Subscriber] = []
        self._known: dict[str, Site] = {}
        for body in entries:
            # A refusal changes nothing about its site, and says nothing of it.
            if (state := body.get("state")) is not None:
                name = str(body.get("site"))
                self._known[name] = Site.of_entry(name, state)

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
        with self._lock:
            known = self._known.get(site)
            if known is not None and known.status not in (SiteStatus.INVITED, SiteStatus.REMOVED):
                raise ConfigError(
                    f"site {site} is {known.status} already",
                    key="site",
                    hint=f"`fedlearn site remove {site}` first, if it is to get a new key",
                )
            if known is None and len(self._known) >= self._limit:
                raise ConfigError(
                    f"there are {self._limit} sites already",
                    key="site",
                    hint="raise limits.sites in server.toml",
                )
            invited = Site(
                name=site,
                status=SiteStatus.INVITED,
                token=token.digest(),
                token_expires=now + lifetime,
                needs_approval=needs_approval,
                changed=now,
                tpm=SiteTpm(site=site, ek=ek, endorsement="invitation" if ek else ""),
            )
            self._enter(
                "enrollment",
                invited,
                {
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
            with self._lock:
                site, fresh = self._redeem(parsed, key)
        except EnrollmentRefused as error:
            self._enter_refusal(
                f"address {peer}",
                {
                    "site": parsed.site,
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
            return tuple(site for _, site in sorted(self._known.items()))

    def show(self, site: str) -> Site:
        """Return one site.

        :raises ConfigError: when there is none of this name.
        """
        with self._lock:
            found = self._known.get(site)
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
            found = self._known.get(site)
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
            found = self._known.get(peer.id.site)
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
            found = self._known.get(site)
            return SiteTpm(site=site) if found is None else found.tpm

    def tpm_of(self, site: str) -> ProvenKey | None:
        """Return the keys that the TPM of an enrolled site has proven, if it has."""
        return self.tpm(site).proven

    def site_of_ak(self, ak: bytes) -> str | None:
        """Return the site whose TPM holds the attestation key ``ak`` (SHA-256), if any does."""
        with self._lock:
            return self._holder(ak=ak)

    def show_tpm(self, site: str, *, ek: bytes, certificate: str) -> None:
        """Note which endorsement key a site that waits for approval says it has.

        It is a word of the site that decides nothing, and is kept in memory only: a site that
        waits says it again each time it asks.
        """
        with self._lock:
            found = self.show(site)
            if found.status is SiteStatus.PENDING and ek not in (found.tpm.ek, found.tpm.shown_ek):
                shown = replace(found.tpm, shown_ek=ek, shown_ak=b"", certificate=certificate)
                self._check_alone(shown)
                self._known[site] = replace(found, tpm=shown)

    def prove_tpm(self, site: str, proven: ProvenKey, *, certificate: str) -> Site:
        """Keep what the TPM of an active site has proven; return the site.

        When the endorsement key is not believed, or is another than before, the site waits
        for approval from now on: it is returned as pending.

        ``proven.endorsement`` is ``certificate`` where the key's certificate was verified;
        ``certificate`` says in words what was found of it.

        :raises EnrollmentRefused: when the TPM is that of another site, or the site may not
            talk to us.
        """
        with self._lock:
            found = self.show(site)
            if found.status not in (SiteStatus.ACTIVE, SiteStatus.DRAINING):
                raise EnrollmentRefused(f"site {site} is {found.status}")
            known = found.tpm
            tpm = known.after(proven, certificate)
            status = found.status if known.believes(proven) else SiteStatus.PENDING
            changed = found
            if tpm != known or status is not found.status:
                changed = found.changed_to(status, now=self._clock(), tpm=tpm)
                self._enter("site", changed, _change_of(found, changed))
        if status is not found.status:
            self._tell(changed)
        return changed

    def refuse_tpm(self, site: str, proven: ProvenKey, reason: str) -> None:
        """Enter into the ledger that a site did not prove the keys that it named."""
        self._enter_refusal(
            f"site {site}",
            {"site": site, "reason": reason, "ak": proven.ak.hex(), "ek": proven.ek.hex()},
        )

    def settle(self) -> None:
        """Enter how many refusals were not entered, once they have stopped.

        To be called about once a second by the owner.
        """
        for source, left_out in self._refusals.settle().items():
            body = {"site": "", "reason": f"{left_out} more of {source}", "left_out": left_out}
            self._record("enrollment", {"outcome": "refused", **body})

    def _enter_refusal(self, source: str, body: Mapping[str, Any]) -> None:
        """Enter a refusal that ``source`` may cause at will, as often as it may."""
        left_out = self._refusals.take(source)
        if left_out is not None:
            more = {"left_out": left_out} if left_out else {}
            self._record("enrollment", {"outcome": "refused", **body, **more})

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
        with self._lock:
            found = self._known.get(site)
            if found is not None:
                self._known[site] = replace(found, capabilities=capabilities)

    def seen(self, site: str) -> None:
        """Note that the site is in touch."""
        with self._lock:
            found = self._known.get(site)
            if found is not None:
                self._known[site] = replace(found, last_seen=self._clock())

    def _redeem(self, token: JoinToken, key: bytes) -> tuple[Site, bool]:
        """Return the site and whether its status changed. The caller holds the lock."""
        site = self._known.get(token.site)
        if (
            site is None
            or site.status is SiteStatus.REMOVED
            or not hmac.compare_digest(site.token, token.digest())
        ):
            raise EnrollmentRefused(
                "the join token is not one of this coordinator, or void",
                hint=f"ask its operator for `fedlearn site token {token.site}`",
            )
        if site.key:
            if site.key != key:
                raise EnrollmentRefused(
                    f"the join token of site {site.name} was used before, by another key",
                    hint="if that was not you, ask the operator to remove the site at once",
                )
            return site, False
        now = self._clock()
        if now >= site.token_expires:
            raise EnrollmentRefused(
                f"the join token of site {site.name} has expired",
                hint=f"ask for a new one: `fedlearn site token {site.name}`",
            )
        for other in self._known.values():
            if other.key == key and other.status is not SiteStatus.REMOVED:
                raise EnrollmentRefused(f"this key belongs to site {other.name} already")
        status = SiteStatus.PENDING if site.needs_approval else SiteStatus.ACTIVE
        enrolled = replace(site.changed_to(status, now=now), key=key)
        body = {"outcome": status.value, "key_thumbprint": enrolled.key_thumbprint.hex()}
        self._enter("enrollment", enrolled, body)
        return enrolled, True

    def _change(
        self, name: str, to: SiteStatus, former: tuple[SiteStatus, ...], *, ek: bytes = b""
    ) -> Site:
        with self._lock:
            site = self.show(name)
            if site.status not in former:
                expected = " or ".join(former)
                raise ConfigError(f"site {name} is {site.status}, not {expected}", key="site")
            tpm = site.tpm
            if to is SiteStatus.REMOVED:
                tpm = SiteTpm(site=name)
            elif to is SiteStatus.ACTIVE:
                tpm = site.tpm.approved(ek)
            changed = site.changed_to(to, now=self._clock(), tpm=tpm)
            self._enter("site", changed, _change_of(site, changed))
        self._tell(changed)
        return changed

    def _enter(self, kind: str, site: Site, body: Mapping[str, Any]) -> None:
        """Put the new state of a site into the ledger, then into force. The caller holds the lock.

        :raises EnrollmentRefused: when its TPM is that of another site.
        """
        self._check_alone(site.tpm)
        self._record(kind, {"site": site.name, **body, "state": site.entry()})
        self._known[site.name] = site

    def _check_alone(self, tpm: SiteTpm) -> None:
        """One machine speaks for one site."""
        eks, aks = (tpm.ek, tpm.shown_ek), (tpm.ak, tpm.shown_ak)
        for holder in (*(self._holder(ek=ek) for ek in eks), *(self._holder(ak=ak) for ak in aks)):
            if holder not in (None, tpm.site):
                raise EnrollmentRefused(
                    f"this TPM belongs to site {holder} already",
                    hint=f"one machine serves one site; remove {holder} first if it has moved",
                )

    def _holder(self, *, ek: bytes = b"", ak: bytes = b"") -> str | None:
        """Return the site that is bound to ``ek``, or whose proven key ``ak`` is."""
        held = (name for name, site in self._known.items() if site.tpm.holds(ek=ek, ak=ak))
        return next(held, None)

    def _tell(self, site: Site) -> None:
        for subscriber in list(self._subscribers):
            subscriber(site)


def _change_of(former: Site, site: Site) -> dict[str, Any]:
    return {
        "status": site.status.value,
        "former": former.status.value,
        "key_thumbprint": former.key_thumbprint.hex(),
        **({"tpm": site.tpm.entry()} if site.tpm.ek or site.tpm.shown_ek else {}),
    }
