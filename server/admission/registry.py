"""The live admissions. All that serves a client checks this registry first.

An admission begins in :mod:`server.admission.gate` and ends by expiry, by revocation, or by
quarantine when attesting again failed or is overdue. The registry is in memory only: after a
restart every client attests again. Time is always an argument.
"""

from __future__ import annotations

import enum
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Final

from attestation.policy.result import AttestationResult
from fedlearn.errors import AdmissionDenied

__all__ = ["Admission", "AdmissionEvent", "AdmissionRegistry", "Change"]

_REMEMBERED: Final = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class Admission:
    """One client's admission: its evidence was affirmed for these keys and this job.

    ``thumbprint``  SHA-256 of the DER SPKI of its TLS key, which is its Flower node key
    ``hpke_key``    raw X25519 public key to which secrets are wrapped
    ``serial``      of its current certificate
    ``node_id``     its Flower node
    ``issued``, ``expires``  validity of the certificate (aware, UTC)
    ``renew_by``    when it must have attested again; ``None`` means ``expires``
    """

    job: str
    site: str
    client: str
    thumbprint: bytes
    tls_key: bytes
    hpke_key: bytes
    serial: int
    node_id: int
    evidence_digest: bytes
    policy_digest: bytes
    result: AttestationResult
    issued: datetime
    expires: datetime
    renew_by: datetime | None = None


class Change(enum.StrEnum):
    """What happened to an admission. The values are kinds of ledger entries."""

    ADMITTED = "admission"
    RENEWED = "renewal"
    QUARANTINED = "quarantine"
    REVOKED = "revocation"
    EXPIRED = "expiry"


@dataclass(frozen=True, slots=True, kw_only=True)
class AdmissionEvent:
    """One change of one admission. ``reason`` is text for operators.

    ``superseded``  it ended only because the same client, affirmed again, took its place
    """

    change: Change
    admission: Admission
    reason: str
    at: datetime
    superseded: bool = False

    @property
    def part_stays(self) -> bool:
        """Whether the updates of the client count, and its next admission continues its part.

        This is so when its successor took its place, and when only the date of its certificate came
        before it had to attest again: the coordinator's date was moved.
        """
        return self.superseded or self.change is Change.EXPIRED


Subscriber = Callable[[AdmissionEvent], None]


class AdmissionRegistry:
    """The live admissions, by key thumbprint. Safe to use from many threads.

    Subscribers are called in the thread that made the change, after the change is in
    force and outside of the lock. When one raises, the others are still called and the
    first error is raised to the caller who made the change.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._live: dict[bytes, Admission] = {}
        self._of_job: dict[str, dict[str, set[bytes]]] = {}
        self._ended: OrderedDict[bytes, AdmissionEvent] = OrderedDict()
        self._subscribers: list[Subscriber] = []

    def subscribe(self, callback: Subscriber) -> Callable[[], None]:
        """Have ``callback`` called on every change; return what ends the subscription."""
        with self._lock:
            self._subscribers.append(callback)

        def unsubscribe() -> None:
            with self._lock:
                if callback in self._subscribers:
                    self._subscribers.remove(callback)

        return unsubscribe

    def add(self, admission: Admission, *, now: datetime) -> None:
        """Put a new admission in force.

        :raises AdmissionDenied: when its key is admitted already.
        """
        with self._lock:
            if admission.thumbprint in self._live:
                raise AdmissionDenied(
                    "this key is admitted already", hint="renew it, or make a fresh key"
                )
            self._live[admission.thumbprint] = admission
            of_job = self._of_job.setdefault(admission.job, {})
            of_job.setdefault(admission.site, set()).add(admission.thumbprint)
            self._ended.pop(admission.thumbprint, None)
        self._publish([_event(Change.ADMITTED, admission, "the evidence was affirmed", now)])

    def renew(self, admission: Admission, *, now: datetime) -> None:
        """Replace the live admission of the same key by ``admission``.

        :raises AdmissionDenied: when there is none, or none any more: what was revoked while
            the evidence was verified stays revoked.
        """
        with self._lock:
            self._check_live(admission.thumbprint, now)
            self._live[admission.thumbprint] = admission
        self._publish([_event(Change.RENEWED, admission, "the evidence was affirmed again", now)])

    def live(self, thumbprint: bytes, *, now: datetime) -> Admission:
        """Return the admission of the key with this thumbprint.

        :raises AdmissionDenied: stating why there is none: unknown, expired, revoked or
            quarantined.
        """
        with self._lock:
            return self._check_live(thumbprint, now)

    def holds(self, thumbprint: bytes, *, now: datetime) -> bool:
        """Return whether the key with this thumbprint is admitted."""
        with self._lock:
            admission = self._live.get(thumbprint)
            return admission is not None and not _lapsed(admission, now)

    def of_site(self, job: str, site: str, *, now: datetime) -> tuple[Admission, ...]:
        """Return the live admissions of ``site`` to ``job``, ordered by client."""
        with self._lock:
            found = self._found(self._of_job.get(job, {}).get(site, ()), now)
        return tuple(sorted(found, key=lambda a: a.client))

    def of_job(self, job: str, *, now: datetime) -> tuple[Admission, ...]:
        """Return the live admissions of ``job``, ordered by site and client."""
        with self._lock:
            sites = self._of_job.get(job, {}).values()
            found = self._found((key for keys in sites for key in keys), now)
        return tuple(sorted(found, key=lambda a: (a.site, a.client)))

    def revoke(
        self, thumbprint: bytes, reason: str, *, now: datetime, superseded: bool = False
    ) -> Admission | None:
        """End an admission for good; return it, or ``None`` when it had ended before."""
        return self._end(thumbprint, Change.REVOKED, reason, now, superseded=superseded)

    def ended(self, thumbprint: bytes) -> AdmissionEvent | None:
        """Return how the admission of a key ended, or ``None`` when it has not, so far as known."""
        with self._lock:
            return None if thumbprint in self._live else self._ended.get(thumbprint)

    def quarantine(self, thumbprint: bytes, reason: str, *, now: datetime) -> Admission | None:
        """End an admission whose client did not prove itself again.

        Its updates of the running round are to be dropped. It may seek a new admission.
        """
        return self._end(thumbprint, Change.QUARANTINED, reason, now)

    def revoke_site(self, site: str, reason: str, *, now: datetime) -> tuple[Admission, ...]:
        """Revoke every admission of ``site`` in all jobs; return what was revoked."""
        return self._end_where(lambda a: a.site == site, reason, now)

    def revoke_job(self, job: str, reason: str, *, now: datetime) -> tuple[Admission, ...]:
        """Revoke every admission of ``job``; return what was revoked."""
        return self._end_where(lambda a: a.job == job, reason, now)

    def shift(self, by: timedelta) -> None:
        """Move the time by which each client has to attest again: the date was moved."""
        with self._lock:
            for key, admission in self._live.items():
                if admission.renew_by is not None:
                    self._live[key] = replace(admission, renew_by=admission.renew_by + by)

    def sweep(self, *, now: datetime) -> tuple[AdmissionEvent, ...]:
        """End what has lapsed at ``now``; return what was ended.

        To be called about once a second. :meth:`live` refuses an expired admission whether
        or not it was swept.
        """
        with self._lock:
            events = []
            for admission in [a for a in self._live.values() if _lapsed(a, now)]:
                if admission.renew_by is not None and now >= admission.renew_by:
                    reason = "it did not attest again in time"
                    event = _event(Change.QUARANTINED, admission, reason, now)
                else:
                    event = _event(Change.EXPIRED, admission, "its certificate expired", now)
                self._forget(event)
                events.append(event)
        self._publish(events)
        return tuple(events)

    def _found(self, thumbprints: Iterable[bytes], now: datetime) -> list[Admission]:
        """Return the admissions of keys that have not lapsed. The caller holds the lock."""
        return [a for a in map(self._live.__getitem__, thumbprints) if not _lapsed(a, now)]

    def _check_live(self, thumbprint: bytes, now: datetime) -> Admission:
        """The caller holds the lock."""
        admission = self._live.get(thumbprint)
        ended = self._ended.get(thumbprint)
        if admission is not None:
            if admission.renew_by is not None and now >= admission.renew_by:
                raise _denied("quarantined", f"it had to attest again by {admission.renew_by}")
            if now >= admission.expires:
                raise _denied("expired", f"its certificate expired at {admission.expires}")
            return admission
        if ended is not None:
            raise _denied(_PAST[ended.change], ended.reason)
        raise _denied("unknown", "this key was never admitted, or before a restart")

    def _end(
        self,
        thumbprint: bytes,
        change: Change,
        reason: str,
        now: datetime,
        *,
        superseded: bool = False,
    ) -> Admission | None:
        with self._lock:
            admission = self._live.get(thumbprint)
            if admission is None:
                return None
            event = _event(change, admission, reason, now, superseded=superseded)
            self._forget(event)
        self._publish([event])
        return admission

    def _end_where(
        self, chosen: Callable[[Admission], bool], reason: str, now: datetime
    ) -> tuple[Admission, ...]:
        with self._lock:
            events = [
                _event(Change.REVOKED, admission, reason, now)
                for admission in self._live.values()
                if chosen(admission)
            ]
            for event in events:
                self._forget(event)
        self._publish(events)
        return tuple(event.admission for event in events)

    def _forget(self, event: AdmissionEvent) -> None:
        """Move an admission from the living to the ended. The caller holds the lock."""
        job, site, thumbprint = (
            event.admission.job,
            event.admission.site,
            event.admission.thumbprint,
        )
        if self._live.pop(thumbprint, None) is not None:
            at_site = self._of_job[job][site]
            at_site.discard(thumbprint)
            if not at_site:
                del self._of_job[job][site]
            if not self._of_job[job]:
                del self._of_job[job]
        self._ended[thumbprint] = event
        while len(self._ended) > _REMEMBERED:
            self._ended.popitem(last=False)

    def _publish(self, events: list[AdmissionEvent]) -> None:
        with self._lock:
            subscribers = list(self._subscribers)
        first: Exception | None = None
        for event in events:
            for subscriber in subscribers:
                try:
                    subscriber(event)
                except Exception as error:  # noqa: BLE001 - raised below, after the others ran
                    first = first or error
        if first is not None:
            raise first


_PAST: Final = {
    Change.REVOKED: "revoked",
    Change.QUARANTINED: "quarantined",
    Change.EXPIRED: "expired",
}


def _event(
    change: Change, admission: Admission, reason: str, now: datetime, *, superseded: bool = False
) -> AdmissionEvent:
    return AdmissionEvent(
        change=change, admission=admission, reason=reason, at=now, superseded=superseded
    )


def _lapsed(admission: Admission, now: datetime) -> bool:
    overdue = admission.renew_by is not None and now >= admission.renew_by
    return overdue or now >= admission.expires


def _denied(status: str, reason: str) -> AdmissionDenied:
    finding: dict[str, object] = {
        "claim": "admission",
        "tier": "contraindicated",
        "expected": "live",
        "actual": status,
        "category": "instance-identity",
        "remedy": "seek a new admission with fresh evidence",
    }
    return AdmissionDenied(
        f"the admission is {status}: {reason}",
        findings=(finding,),
        hint="seek a new admission with fresh evidence",
    )
