"""Invitations: a join token binds the name of a site to one key.

A token is good for one key. The key that redeems it may present it again (to ask whether it was
approved, or after its certificate expired); no other key can. Only a digest of the token's secret
is stored. The name of a site stays bound to its key until the operator removes the site and
invites it again.
"""

from __future__ import annotations

import hmac
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Final

from fedlearn.errors import ConfigError, EnrollmentRefused
from fedlearn.identity.join import JoinToken, checked_address
from fedlearn.identity.spiffe import checked_name
from fedlearn.job.placement import MAX_SITES
from server.identity.peer_certificates import csr_key, spki, thumbprint
from server.identity.site import Site, SiteStatus, sample_key_entry
from server.identity.site_records import SiteRecords
from server.identity.site_tpm import SiteTpm, check_digest

__all__ = ["TOKEN_LIFETIME", "Invitations"]

TOKEN_LIFETIME: Final = timedelta(hours=24)
MAX_TOKEN_LIFETIME: Final = timedelta(days=30)


class Invitations:
    """Creates join tokens and redeems them. Safe to use from many threads.

    ``address``  where sites reach the gate; it is written into tokens
    ``ca_pin``   SHA-256 of the CA's SPKI; likewise
    ``limit``    how many sites there may be, removed ones included
    ``lifetime`` how long a token may be redeemed, unless another lifetime is asked for
    """

    def __init__(
        self,
        records: SiteRecords,
        *,
        address: str,
        ca_pin: bytes,
        clock: Callable[[], datetime],
        limit: int = MAX_SITES,
        lifetime: timedelta = TOKEN_LIFETIME,
    ) -> None:
        self._records = records
        self._address = checked_address(address)
        self._ca_pin = ca_pin
        self._clock = clock
        self._limit = limit
        self.lifetime = lifetime

    def create_token(
        self,
        site: str,
        *,
        lifetime: timedelta | None = None,
        needs_approval: bool = True,
        ek: bytes = b"",
        sample_key: bytes = b"",
    ) -> JoinToken:
        """Invite ``site``. An earlier invitation that was not redeemed is void.

        ``ek`` is the SHA-256 of the endorsement key that its TPM must have, where it is known.
        ``sample_key`` is insecure: that of a development key that may sign its evidence.

        :raises ConfigError: when the name or lifetime is out of bounds, the site is enrolled
            already, or there are too many sites.
        """
        checked_name(site, "site")
        check_digest(ek)
        check_digest(sample_key, what="a development key", key="insecure_sample_key")
        lifetime = self.lifetime if lifetime is None else lifetime
        if not timedelta(minutes=1) <= lifetime <= MAX_TOKEN_LIFETIME:
            raise ConfigError(
                f"a token cannot be valid for {lifetime}",
                key="lifetime",
                hint=f"use one minute to {MAX_TOKEN_LIFETIME.days} days",
            )
        now = self._clock()
        token = JoinToken.fresh(address=self._address, site=site, ca_pin=self._ca_pin)
        with self._records.exclusive():
            known = self._records.find(site)
            if known is not None and known.status not in (SiteStatus.INVITED, SiteStatus.REMOVED):
                raise ConfigError(
                    f"site {site} is {known.status} already",
                    key="site",
                    hint=f"to give it a new key, run `fedlearn site remove {site}` first",
                )
            if known is None and len(self._records) >= self._limit:
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
                sample_key=sample_key,
            )
            self._records.enter(
                "enrollment",
                invited,
                {
                    "outcome": "invited",
                    "expires": (now + lifetime).isoformat(),
                    "needs_approval": needs_approval,
                    **({"ek": ek.hex()} if ek else {}),
                    **sample_key_entry(sample_key),
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
            with self._records.exclusive():
                site, fresh = self._redeem(parsed, key)
        except EnrollmentRefused as error:
            self._records.enter_refusal(
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
            self._records.publish(site)
        return site

    def _redeem(self, token: JoinToken, key: bytes) -> tuple[Site, bool]:
        """Return the site and whether its status changed. The caller has exclusive access."""
        site = self._records.find(token.site)
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
        for other in self._records.all():
            if other.key == key and other.status is not SiteStatus.REMOVED:
                raise EnrollmentRefused(f"this key belongs to site {other.name} already")
        status = SiteStatus.PENDING if site.needs_approval else SiteStatus.ACTIVE
        enrolled = replace(site.changed_to(status, now=now), key=key)
        body = {"outcome": status.value, "key_thumbprint": enrolled.key_thumbprint.hex()}
        self._records.enter("enrollment", enrolled, body)
        return enrolled, True
