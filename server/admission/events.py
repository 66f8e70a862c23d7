"""Admission events for the job log, made of ledger entries and changes of the registry.

:func:`what_causes` names who causes an event: events that a site or the job's own code can cause
at will are bounded by a quota, so that neither fills the log of a job.
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
from server.admission.registry import AdmissionEvent, Change

__all__ = ["of_change", "of_entry", "what_causes"]

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


def of_entry(kind: str, body: Mapping[str, Any]) -> Event | None:
    """Return the event for a ledger entry; ``None`` for a kind that the job log does not have."""
    if kind == "refusal":
        return ClientRefused(
            site=str(body.get("site", "")),
            reason=str(body.get("reason", "")),
            tee=str(body.get("tee", "")),
            findings=tuple(body.get("findings", ())),
        )
    if kind == "exclusion":
        client = body.get("client")
        who = f"client {client}" if client else "every client"
        changes = {"laid": "is excluded", "lifted": "may take part again"}
        what = changes.get(str(body.get("change")), "may take part again: the time is over")
        why = f": {body.get('reason')}" if body.get("change") == "laid" else ""
        return Log(line=f"{who} of the site {what}{why}", site=str(body.get("site", "")))
    return None


def what_causes(event: Event) -> str | None:
    """Return the site that causes an event, or ``""`` for the job's own code.

    ``None`` for an event of the coordinator itself: the rounds of a job and their parts.
    """
    if isinstance(event, OtherEvent):
        return ""
    return event.site if isinstance(event, _OF_A_SITE) else None


def of_change(changed: AdmissionEvent) -> Event:
    """Return the event for a change of an admission."""
    admission, reason = changed.admission, changed.reason
    site, expires = admission.site, int(admission.expires.timestamp() * 1000)
    match changed.change:
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
