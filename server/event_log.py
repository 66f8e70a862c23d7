"""What the coordinator logs of its decisions: one line for each entry of the ledger.

Only fields that are named here are logged. The reason why a job failed is not: it may have text
of the job's code. Renewals, updates and other entries that come often are logged at ``DEBUG``.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any, Final

from fedlearn.terminal.logs import log_event
from server.ledger import Entry

__all__ = ["log_entry"]

_LOG = logging.getLogger(__name__)
_FIELDS: Final = (
    *("job", "site", "client", "tee", "round", "operator", "by", "change", "status", "former"),
    *("outcome", "step", "model", "version", "epsilon", "delta", "seconds", "allowed", "left_out"),
)
_MAX_REASON: Final = 300
_OFTEN: Final = frozenset(
    {"challenge", "checkpoint", "commitment", "files", "key-release", "renewal", "update"}
)
_NOTABLE: Final = frozenset({"expiry", "quarantine", "refusal", "state"})


def log_entry(entry: Entry) -> None:
    """Log an entry that was appended to the ledger."""
    body = entry.body
    level = logging.INFO
    if entry.kind in _OFTEN and body.get("allowed", True):
        level = logging.DEBUG
    elif entry.kind in _NOTABLE or "refused" in (body.get("outcome"), body.get("change")):
        level = logging.WARNING
    if entry.kind == "job" and body.get("change") == "failed":
        level = logging.WARNING
    fields = {name: body[name] for name in _FIELDS if body.get(name) not in (None, "")}
    log_event(
        _LOG,
        _name(entry.kind, body),
        _text(entry.kind, body),
        level=level,
        entry=entry.sequence,
        **fields,
    )


def _name(kind: str, body: Mapping[str, Any]) -> str:
    """Return the name of the event: ``job.submitted``, ``round.finished``, ``refusal``."""
    change = body.get("change") or body.get("phase") or body.get("outcome")
    change = change or (body.get("status") if kind == "site" else "")
    return f"{kind}.{str(change).replace(' ', '-')}" if change else kind


def _text(kind: str, body: Mapping[str, Any]) -> str:
    get = body.get
    job, site, change = get("job"), get("site"), get("change")
    client = f"client {get('client')} of site {site}" if get("client") else f"site {site}"
    by = f" by operator {get('operator')}" if get("operator") else ""
    why = f": {str(get('reason'))[:_MAX_REASON]}" if get("reason") else ""
    match kind:
        case "job" if change == "failed":
            return f"job {job} failed; `fedlearn job status {job}` has the reason"
        case "job" if change == "finished":
            return f"job {job} finished with round {get('rounds')}"
        case "job":
            return f"job {job}: {change}{by}"
        case "policy" if job:
            return f"version {get('version')} of the policy {get('name')} is in force for job {job}"
        case "round" if get("phase") == "started":
            return f"round {get('round')} of job {job} started on {_count(get('participants'))}"
        case "round":
            return f"round {get('round')} of job {job} finished in {get('seconds')} s"
        case "update":
            what = "accepted" if get("accepted") else "rejected"
            return f"the update of site {site} in round {get('round')} of job {job} was {what}"
        case "privacy":
            return f"epsilon {get('epsilon')} of job {job} is spent with round {get('round')}"
        case "admission" | "renewal":
            verb = "was admitted to" if kind == "admission" else "attested again for"
            return f"{client} {verb} job {job} ({get('tee')})"
        case "refusal":
            return f"{client} was not admitted to job {job}{why}"
        case "expiry" | "quarantine" | "revocation":
            return f"the admission of {client} to job {job} ended ({kind}){why}"
        case "exclusion":
            until = f" until {get('until')}" if get("until") else ""
            return f"the exclusion of {client} from job {job}{until} was {change}{by}{why}"
        case "enrollment":
            return f"enrollment of site {site or '-'}: {get('outcome')}{why}"
        case "site":
            return f"site {site} is {get('status')}; it was {get('former')}"
        case "operator":
            return f"operator {get('operator')} was {change} by {get('by')}{why}"
        case "key-release":
            what = "was released" if get("allowed") else "was not released"
            return f"a key of model {get('model')} {what} to {client}{why}"
        case "checkpoint" | "files" | "export" | "model":
            return f"version {get('version')} of {get('model')}: {change or kind}"
        case _:
            return " ".join(str(part) for part in (kind, change, job, site) if part)


def _count(participants: object) -> str:
    count = len(participants) if isinstance(participants, list) else 0
    return f"{count} site{'' if count == 1 else 's'}"
