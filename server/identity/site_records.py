"""The records of sites: what the ledger keeps of each, replayed when the coordinator starts.

Each entry of the ledger about a site holds all that the coordinator acts on
(:meth:`server.identity.site.Site.entry`). What a site reports about itself and when it was last
connected is kept in memory only; agents report again when they connect.
"""

from __future__ import annotations

import heapq
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final

from fedlearn.errors import ConfigError, EnrollmentRefused
from server.identity.site import Site
from server.identity.site_tpm import SiteTpm
from server.ledger import LedgerReader
from server.quota import Quota

__all__ = ["Record", "SiteRecords", "Subscriber", "site_entries"]

_REFUSALS_AT_ONCE: Final = 16
_SECONDS_FOR_EACH: Final = 10.0

Subscriber = Callable[[Site], None]
Record = Callable[[str, Mapping[str, Any]], object]


def site_entries(ledger: LedgerReader) -> Iterator[Mapping[str, Any]]:
    """Yield the bodies of the ledger's entries about sites, oldest first.

    :raises LedgerError: when the ledger is damaged.
    """
    kinds = (ledger.entries(kind="enrollment"), ledger.entries(kind="site"))
    for entry in heapq.merge(*kinds, key=lambda entry: entry.sequence):
        yield entry.body


class SiteRecords:
    """The sites by name. Safe to use from many threads.

    ``entries``  the bodies of the ledger's entries about sites (:func:`site_entries`)
    ``record``   appends to the ledger, durably: ``record(kind, body)``

    :raises LedgerError: when an entry is not one of this version.
    """

    def __init__(self, entries: Iterable[Mapping[str, Any]], *, record: Record) -> None:
        self._record = record
        self._refusals = Quota(burst=_REFUSALS_AT_ONCE, every=_SECONDS_FOR_EACH)
        self._lock = threading.RLock()
        self._subscribers: list[Subscriber] = []
        self._known: dict[str, Site] = {}
        for body in entries:
            # The entry of a refusal has no state of its site.
            if (state := body.get("state")) is not None:
                name = str(body.get("site"))
                self._known[name] = Site.of_entry(name, state)

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """Keep other threads from reading or changing records; may be nested."""
        with self._lock:
            yield

    def __len__(self) -> int:
        with self._lock:
            return len(self._known)

    def all(self) -> tuple[Site, ...]:
        """Return all sites by name."""
        with self._lock:
            return tuple(site for _, site in sorted(self._known.items()))

    def find(self, site: str) -> Site | None:
        """Return one site, or ``None``."""
        with self._lock:
            return self._known.get(site)

    def get(self, site: str) -> Site:
        """Return one site.

        :raises ConfigError: when there is none of this name.
        """
        found = self.find(site)
        if found is None:
            raise ConfigError(
                f"there is no site {site[:64]!a}",
                key="site",
                hint="`fedlearn site list` names them all",
            )
        return found

    def enter(self, kind: str, site: Site, body: Mapping[str, Any]) -> None:
        """Write the new state of a site to the ledger; it is in force when that is durable.

        :raises EnrollmentRefused: when its TPM is that of another site.
        """
        with self._lock:
            self.check_tpm(site.tpm)
            self._record(kind, {"site": site.name, **body, "state": site.entry()})
            self._known[site.name] = site

    def keep(self, site: Site) -> None:
        """Keep the new state of a known site in memory only."""
        with self._lock:
            if site.name in self._known:
                self._known[site.name] = site

    def check_tpm(self, tpm: SiteTpm) -> None:
        """Check that no other site has a key of this TPM: one machine serves one site.

        :raises EnrollmentRefused: when another site has.
        """
        eks, aks = (tpm.ek, tpm.shown_ek), (tpm.ak, tpm.shown_ak)
        for holder in (*(self.holder(ek=ek) for ek in eks), *(self.holder(ak=ak) for ak in aks)):
            if holder not in (None, tpm.site):
                raise EnrollmentRefused(
                    f"this TPM belongs to site {holder} already",
                    hint=f"one machine serves one site; remove {holder} first if it has moved",
                )

    def holder(self, *, ek: bytes = b"", ak: bytes = b"") -> str | None:
        """Return the site that is bound to ``ek``, or whose proven key ``ak`` is."""
        with self._lock:
            held = (name for name, site in self._known.items() if site.tpm.holds(ek=ek, ak=ak))
            return next(held, None)

    def enter_refusal(self, source: str, body: Mapping[str, Any]) -> None:
        """Write a refusal to the ledger, as often as the quota of ``source`` allows."""
        left_out = self._refusals.take(source)
        if left_out is not None:
            more = {"left_out": left_out} if left_out else {}
            self._record("enrollment", {"outcome": "refused", **body, **more})

    def settle(self) -> None:
        """Write to the ledger how many refusals were left out, once they have stopped."""
        for source, left_out in self._refusals.settle().items():
            body = {"site": "", "reason": f"{left_out} more of {source}", "left_out": left_out}
            self._record("enrollment", {"outcome": "refused", **body})

    def subscribe(self, callback: Subscriber) -> None:
        """Have ``callback`` called with every site whose status changed."""
        self._subscribers.append(callback)

    def publish(self, site: Site) -> None:
        """Call the subscribers. The caller holds no lock."""
        for subscriber in list(self._subscribers):
            subscriber(site)
