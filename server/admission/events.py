"""What people hear of admission: ledger entries and changes of the register, as events.

And who causes an event: what a site or the job's own code may cause at will is kept as often as a
quota allows, so that neither fills a job's events.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from fedlearn.job.events import (
    ClientAdmitted,
    ClientLost,
    ClientQuarantined,
    ClientRefused,
    ClientRenewed,
    ClientStarting,
    Event,
    Log,
    OtherEvent,
    UpdateRejected,
)
from server.admission.registry import Admission, AdmissionEvent, Change

__all__ = ["spoken", "what_causes"]

_OF_A_SITE: Final = (
    ClientAdmitted,
    ClientLost,
    ClientQuarantined,
    ClientRefused,
    ClientRenewed,
    ClientStarting,
    Log,
    UpdateRejected,
)


def spoken(kind: str, subject: Mapping[str, Any] | AdmissionEvent) -> Event | None:
    """Return what to say about a ledger entry or a change; ``None`` when it is no news."""
    if isinstance(subject, AdmissionEvent):
        return _of_change(subject.change, subject.admission, subject.reason)
    if kind == "refusal":
        return ClientRefused(
            site=str(subject.get("site", "")),
            reason=str(subject.get("reason", "")),
            tee=str(subject.get("tee", "")),
            findings=tuple(subject.get("findings", ())),
        )
    if kind == "exclusion":
        client = subject.get("client")
        who = f"client {client}" if client else "every client"
        told = {"laid": "is kept out", "lifted": "may take part again"}
        what = told.get(str(subject.get("change")), "may take part again: the time is over")
        why = f": {subject.get('reason')}" if subject.get("change") == "laid" else ""
        return Log(line=f"{who} of the site {what}{why}", site=str(subject.get("site", "")))
    return None


def what_causes(event: Event) -> str | None:
    """Return the site whose doing an event is, ``""`` for the job's own code, or ``None``.

    ``None`` are the coordinator's own: the rounds of a job and what they consist of.
    """
    if isinstance(event, OtherEvent):
        return ""
    return event.site if isinstance(event, _OF_A_SITE) else None


def _of_change(change: Change, admission: Admission, reason: str) -> Event:
    site, expires = admission.site, int(admission.expires.timestamp() * 1000)
    match change:
        case Change.ADMITTED:
            return ClientAdmitted(
                site=site,
                tee=admission.result.tee,
                client=admission.client,
                expires_unix_ms=expires,
            )
        case Change.RENEWED:
            return ClientRenewed(site=site, expires_unix_ms=expires)
        case Change.QUARANTINED:
            return ClientQuarantined(site=site, reason=reason)
        case _:
            return ClientLost(site=site, reason=reason)
