"""The sites of one coordinator: approved, drained, removed, and looked up.

A site is invited by a join token (:mod:`server.identity.invitations`) and bound to a key. A site
with a TPM is bound to its endorsement key as well (:mod:`server.identity.site_tpm`): when another
one is proven, the site needs a new approval, and its clients are ended. All this is kept in the
ledger, which cannot be altered unnoticed (:mod:`server.identity.site_records`).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any, Final

from attestation.tpm.credential import ProvenKey
from fedlearn.errors import (
    AdmissionDenied,
    ConfigError,
    NotApproved,
    NotEnrolled,
    TransportError,
)
from fedlearn.identity.spiffe import SiteId
from fedlearn.job.placement import MAX_SITES
from server.identity.invitations import TOKEN_LIFETIME, Invitations
from server.identity.peer_certificates import PeerCertificate
from server.identity.site import Site, SiteStatus, status_change
from server.identity.site_records import Record, SiteRecords, Subscriber
from server.identity.site_tpm import SiteTpm, check_digest
from server.identity.tpm_bindings import TpmBindings

__all__ = ["SiteRegistry"]

MAX_CAPABILITIES_BYTES: Final = 256 * 1024


class SiteRegistry:
    """The sites of one coordinator. Safe to use from many threads.

    Every change is in the ledger, durably, before it takes effect. Subscribers are called with
    the changed site, without a lock, in the thread that changed it.

    ``invitations``  creates and redeems join tokens
    ``tpms``         binds sites to their TPMs

    The parameters are those of :class:`server.identity.site_records.SiteRecords` and
    :class:`server.identity.invitations.Invitations`.

    :raises LedgerError: when an entry is not one of this version.
    """

    def __init__(
        self,
        *,
        entries: Iterable[Mapping[str, Any]] = (),
        address: str,
        ca_pin: bytes,
        clock: Callable[[], datetime],
        record: Record,
        limit: int = MAX_SITES,
        token_lifetime: timedelta = TOKEN_LIFETIME,
    ) -> None:
        self._clock = clock
        self._records = SiteRecords(entries, record=record)
        self.invitations = Invitations(
            self._records,
            address=address,
            ca_pin=ca_pin,
            clock=clock,
            limit=limit,
            lifetime=token_lifetime,
        )
        self.tpms = TpmBindings(self._records, clock=clock)

    def subscribe(self, callback: Subscriber) -> None:
        """Have ``callback`` called with every site whose status changed."""
        self._records.subscribe(callback)

    def settle(self) -> None:
        """Write to the ledger how many refusals were left out; to be called once a second."""
        self._records.settle()

    def approve(self, site: str, *, ek: bytes = b"", sample_key: bytes = b"") -> Site:
        """Make a pending or draining site active.

        This binds the site to the endorsement key that it has shown. ``ek`` is the key that the
        operator means; it is required when the site was bound to another key before.
        ``sample_key`` is insecure: a development key that may sign its evidence from now on; an
        active site may get one, too.

        :raises ConfigError: when the site has shown another key, or changed it and ``ek`` is
            not given.
        """
        check_digest(ek)
        check_digest(sample_key, what="a development key", key="insecure_sample_key")
        former: tuple[SiteStatus, ...] = (SiteStatus.PENDING, SiteStatus.DRAINING)
        if sample_key:
            former = (*former, SiteStatus.ACTIVE)
        return self._change(site, SiteStatus.ACTIVE, former, ek=ek, sample_key=sample_key)

    def reject(self, site: str) -> Site:
        """Remove a site that is not active yet; its token is void."""
        return self._change(site, SiteStatus.REMOVED, (SiteStatus.INVITED, SiteStatus.PENDING))

    def drain(self, site: str) -> Site:
        """Give the site no new clients; its running clients continue."""
        return self._change(site, SiteStatus.DRAINING, (SiteStatus.ACTIVE,))

    def remove(self, site: str) -> Site:
        """End the site and all its clients at once. Its key and token are void."""
        former = tuple(status for status in SiteStatus if status is not SiteStatus.REMOVED)
        return self._change(site, SiteStatus.REMOVED, former)

    def list(self) -> tuple[Site, ...]:
        """Return all sites by name."""
        return self._records.all()

    def show(self, site: str) -> Site:
        """Return one site.

        :raises ConfigError: when there is none of this name.
        """
        return self._records.get(site)

    def key_of(self, site: str, *, admitting: bool) -> bytes:
        """Return the key of a site whose clients may be served.

        :raises AdmissionDenied: when the site is unknown, not active, or draining while
            ``admitting``.
        """
        found = self._records.find(site)
        if found is None:
            raise AdmissionDenied(f"site {site} is not enrolled")
        allowed = {SiteStatus.ACTIVE} if admitting else {SiteStatus.ACTIVE, SiteStatus.DRAINING}
        if found.status not in allowed:
            raise AdmissionDenied(f"site {site} is {found.status}, not active")
        return found.key

    def authenticate(self, peer: PeerCertificate) -> Site:
        """Return the site that a certificate belongs to, if it is active or draining.

        :raises NotEnrolled: when it is unknown, was removed, or has another key now.
        :raises TransportError: when the certificate is not of a site, or the site is pending.
        """
        if not isinstance(peer.id, SiteId):
            raise TransportError(f"{peer.id} is not a site")
        name = peer.id.site
        found = self._records.find(name)
        if found is None or found.status in (SiteStatus.REMOVED, SiteStatus.INVITED):
            raise NotEnrolled(
                f"site {name} is {'unknown' if found is None else found.status}",
                hint="ask the coordinator's operator for a new join token",
            )
        if found.key_thumbprint != peer.thumbprint:
            raise NotEnrolled(f"site {name} is enrolled with another key")
        if found.status is SiteStatus.PENDING:
            raise NotApproved(
                f"site {name} is pending",
                hint=f"the coordinator's operator runs `fedlearn site approve {name}`",
            )
        return found

    def tpm(self, site: str) -> SiteTpm:
        """Return what is known of a site's TPM; empty when nothing is known."""
        found = self._records.find(site)
        return SiteTpm(site=site) if found is None else found.tpm

    def tpm_of(self, site: str) -> ProvenKey | None:
        """Return the keys that the TPM of an enrolled site has proven, if it has."""
        return self.tpm(site).proven

    def sample_key_of(self, site: str) -> bytes:
        """Return the development key (SHA-256) that may sign a site's evidence, or nothing."""
        found = self._records.find(site)
        return b"" if found is None else found.sample_key

    def site_of_ak(self, ak: bytes) -> str | None:
        """Return the site whose TPM holds the attestation key ``ak`` (SHA-256), if any does."""
        return self._records.holder(ak=ak)

    def report_capabilities(self, site: str, capabilities: str) -> None:
        """Keep the capabilities that a site reports: a JSON object of at most 256 KiB.

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
        with self._records.exclusive():
            found = self._records.find(site)
            if found is not None:
                self._records.keep(replace(found, capabilities=capabilities))

    def seen(self, site: str) -> None:
        """Note that the site is connected now."""
        with self._records.exclusive():
            found = self._records.find(site)
            if found is not None:
                self._records.keep(replace(found, last_seen=self._clock()))

    def _change(
        self,
        name: str,
        to: SiteStatus,
        former: tuple[SiteStatus, ...],
        *,
        ek: bytes = b"",
        sample_key: bytes = b"",
    ) -> Site:
        with self._records.exclusive():
            site = self.show(name)
            if site.status not in former:
                expected = " or ".join(former)
                raise ConfigError(f"site {name} is {site.status}, not {expected}", key="site")
            tpm = site.tpm
            if to is SiteStatus.REMOVED:
                tpm = SiteTpm(site=name)
            elif to is SiteStatus.ACTIVE:
                tpm = site.tpm.approved(ek)
            changed = site.changed_to(to, now=self._clock(), tpm=tpm, sample_key=sample_key)
            self._records.enter("site", changed, status_change(site, changed))
        self._records.publish(changed)
        return changed
