"""Binding sites to their TPMs: what a site has shown or proven, and whether that is accepted."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import datetime

from attestation.tpm.credential import ProvenKey
from fedlearn.errors import EnrollmentRefused
from server.identity.site import Site, SiteStatus, status_change
from server.identity.site_records import SiteRecords

__all__ = ["TpmBindings"]


class TpmBindings:
    """The TPMs of sites. Safe to use from many threads."""

    def __init__(self, records: SiteRecords, *, clock: Callable[[], datetime]) -> None:
        self._records = records
        self._clock = clock

    def show(self, site: str, *, ek: bytes, certificate: str) -> None:
        """Note which endorsement key a site that waits for approval claims to have.

        The claim decides nothing and is kept in memory only: a site that waits repeats it with
        each request.
        """
        with self._records.exclusive():
            found = self._records.get(site)
            if found.status is SiteStatus.PENDING and ek not in (found.tpm.ek, found.tpm.shown_ek):
                shown = replace(found.tpm, shown_ek=ek, shown_ak=b"", certificate=certificate)
                self._records.check_tpm(shown)
                self._records.keep(replace(found, tpm=shown))

    def prove(self, site: str, proven: ProvenKey, *, certificate: str) -> Site:
        """Keep what the TPM of an active site has proven; return the site.

        When the endorsement key is not trusted yet, or is not the one known before, the site is
        pending from now on, and is returned as such.

        ``proven.endorsement`` is ``certificate`` when the certificate of the key was verified;
        ``certificate`` describes the result of that verification.

        :raises EnrollmentRefused: when the TPM is that of another site, or the site is not
            active or draining.
        """
        with self._records.exclusive():
            found = self._records.get(site)
            if found.status not in (SiteStatus.ACTIVE, SiteStatus.DRAINING):
                raise EnrollmentRefused(f"site {site} is {found.status}")
            known = found.tpm
            tpm = known.after(proven, certificate)
            status = found.status if known.trusts(proven) else SiteStatus.PENDING
            changed = found
            if tpm != known or status is not found.status:
                changed = found.changed_to(status, now=self._clock(), tpm=tpm)
                self._records.enter("site", changed, status_change(found, changed))
        if status is not found.status:
            self._records.publish(changed)
        return changed

    def refuse(self, site: str, proven: ProvenKey, reason: str) -> None:
        """Write to the ledger that a site did not prove the keys that it named."""
        self._records.enter_refusal(
            f"site {site}",
            {"site": site, "reason": reason, "ak": proven.ak.hex(), "ek": proven.ek.hex()},
        )
