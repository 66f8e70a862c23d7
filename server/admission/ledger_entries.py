"""What admission writes to the ledger, as JSON-ready bodies. No secret is among it."""

from __future__ import annotations

import hashlib
from typing import Any

from attestation.evidence import Claims
from fedlearn.errors import AdmissionDenied
from server.admission.challenges import Challenge
from server.admission.examiner import Attempt
from server.admission.registry import Admission, AdmissionEvent

__all__ = [
    "admission_entry",
    "challenge_entry",
    "ending_entry",
    "left_out_entry",
    "refusal_entry",
]


def challenge_entry(challenge: Challenge) -> dict[str, Any]:
    """A nonce was given out. Its digest is written: an unused nonce stays between two."""
    return {
        "job": challenge.job,
        "site": challenge.site,
        "peer": challenge.peer,
        "nonce_sha256": hashlib.sha256(challenge.nonce).hexdigest(),
    }


def admission_entry(admission: Admission, claims: Claims) -> dict[str, Any]:
    """A client was admitted or renewed: with which measurements, under which policy."""
    return {
        "job": admission.job,
        "site": admission.site,
        "client": admission.client,
        "key_thumbprint": admission.thumbprint.hex(),
        "serial": f"{admission.serial:x}",
        "node_id": str(admission.node_id),
        "tee": claims.tee.value,
        "hardware_id": claims.hardware_id.hex(),
        "measurements": {name: value.hex() for name, value in claims.measurements.items()},
        "evidence": admission.evidence_digest.hex(),
        "policy": admission.policy_digest.hex(),
        "result": admission.result.to_json(),
        "expires": admission.expires.isoformat(),
    }


def refusal_entry(attempt: Attempt, denied: AdmissionDenied) -> dict[str, Any]:
    """A request was refused: at which step, and why."""
    request = attempt.request
    return {
        "job": _shown(request.job),
        "site": _shown(request.site),
        "client": _shown(request.client),
        "peer": attempt.peer,
        "step": attempt.step,
        "reason": str(denied),
        "findings": list(denied.findings),
        **attempt.body,
    }


def left_out_entry(kind: str, peer: str, count: int) -> dict[str, Any]:
    """So many entries of a kind that one address caused were not made one by one."""
    body: dict[str, Any] = {"job": "", "site": "", "peer": peer, "left_out": count}
    if kind == "refusal":
        body |= {"client": "", "step": "", "reason": f"{count} more of this address"}
    return body


def ending_entry(event: AdmissionEvent) -> dict[str, Any]:
    """An admission ended."""
    admission = event.admission
    return {
        "job": admission.job,
        "site": admission.site,
        "client": admission.client,
        "key_thumbprint": admission.thumbprint.hex(),
        "node_id": str(admission.node_id),
        "reason": event.reason,
    }


def _shown(name: str) -> str:
    """A name from outside: printable and short, marked where it was cut."""
    return ascii(name)[1:-1] if len(name) <= 63 else f"{ascii(name[:60])[1:-1]}..."
