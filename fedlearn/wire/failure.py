"""Errors on the wire: a status code, a message, and a hint.

The status carries the message. Trailing metadata carries ``fedlearn-code`` (the stable code
of :mod:`fedlearn.errors`, or ``attestation/<class>``), ``fedlearn-hint-bin`` and
``fedlearn-findings-bin`` (UTF-8 and JSON). No traceback and no path of the server is sent.
"""

from __future__ import annotations

import json
from typing import Any, Final

import grpc

from attestation import errors as attestation_errors
from attestation.errors import AttestationError
from fedlearn import errors
from fedlearn.errors import (
    AdmissionDenied,
    ConfigError,
    DiskError,
    FedlearnError,
    JobError,
    KeyReleaseDenied,
    Throttled,
    TransportError,
)
from fedlearn.wire.unreachable import (
    Cause,
    Unreachable,
    cause_of_details,
    failed_to_connect,
    unreachable,
)

__all__ = ["ERRORS_BY_CODE", "UNANSWERED", "Unreachable", "failure_of", "status_of", "trailing_of"]

MAX_MESSAGE_CHARS: Final = 2000
MAX_HINT_BYTES: Final = 1000
MAX_FINDINGS_BYTES: Final = 3500
"""gRPC limits all metadata of a call to 8 KiB."""


UNANSWERED: Final = (Unreachable, Throttled)
"""The failures after which a call that may be made twice is repeated: it was not processed."""


_STATUS: Final = (
    (Throttled, grpc.StatusCode.RESOURCE_EXHAUSTED),
    (ConfigError, grpc.StatusCode.INVALID_ARGUMENT),
    (JobError, grpc.StatusCode.FAILED_PRECONDITION),
    (AdmissionDenied, grpc.StatusCode.PERMISSION_DENIED),
    (KeyReleaseDenied, grpc.StatusCode.PERMISSION_DENIED),
    (TransportError, grpc.StatusCode.UNAUTHENTICATED),
    (AttestationError, grpc.StatusCode.INVALID_ARGUMENT),
    (DiskError, grpc.StatusCode.UNAVAILABLE),
    (FedlearnError, grpc.StatusCode.INTERNAL),
)


def status_of(error: FedlearnError | AttestationError) -> grpc.StatusCode:
    """Return the gRPC status that stands for ``error``."""
    return next(status for kind, status in _STATUS if isinstance(error, kind))


def trailing_of(error: FedlearnError | AttestationError) -> tuple[tuple[str, str | bytes], ...]:
    """Return the trailing metadata that lets the caller rebuild ``error``."""
    if isinstance(error, AttestationError):
        code = f"attestation/{type(error).__name__}"
    else:
        code = error.code
    trailing: list[tuple[str, str | bytes]] = [("fedlearn-code", code)]
    if error.hint:
        trailing.append(("fedlearn-hint-bin", error.hint.encode()[:MAX_HINT_BYTES]))
    findings = getattr(error, "findings", ())
    if findings:
        kept: list[Any] = []
        for finding in findings:
            if len(json.dumps([*kept, finding]).encode()) > MAX_FINDINGS_BYTES:
                break
            kept.append(finding)
        trailing.append(("fedlearn-findings-bin", json.dumps(kept).encode()))
    return tuple(trailing)


def failure_of(error: grpc.RpcError, what: str) -> FedlearnError | AttestationError:
    """Return the error that a failed call stands for. ``what`` names the peer, for people."""
    call: Any = error if hasattr(error, "trailing_metadata") else None
    code = call.code() if call else grpc.StatusCode.UNKNOWN
    details = (call.details() if call else "") or ""
    trailing = (call.trailing_metadata() if call else ()) or ()
    metadata: dict[str, Any] = {str(key): value for key, value in trailing}
    ours = metadata.get("fedlearn-code")
    if isinstance(ours, str):
        return _rebuilt(ours, details[:MAX_MESSAGE_CHARS], metadata)
    match code:
        case grpc.StatusCode.UNAVAILABLE:
            sent = not failed_to_connect(details)
            return unreachable(what, cause_of_details(details), sent=sent)
        case _ if cause_of_details(details) is Cause.NOT_GRPC:
            return unreachable(what, Cause.NOT_GRPC)
        case grpc.StatusCode.DEADLINE_EXCEEDED:
            return TransportError(f"{what} did not answer in time", hint="try again")
        case grpc.StatusCode.RESOURCE_EXHAUSTED:
            return TransportError(
                f"{what} refused the message: it is too large, or there are too many",
                hint="see the limits in the documentation",
            )
        case grpc.StatusCode.UNIMPLEMENTED:
            return TransportError(
                f"{what} does not know this call: it is another listener, or of another release",
                hint="check the port: operators use the control listener, enrollment the gate; if "
                "it is right, use the same release on both sides",
            )
        case grpc.StatusCode.CANCELLED:
            return TransportError(f"the call to {what} was cancelled")
        case _:
            return TransportError(f"{what} failed: {_plain(details)}")


def _rebuilt(code: str, message: str, metadata: dict[str, Any]) -> FedlearnError | AttestationError:
    # Several faults of one request are one line each.
    message = "\n".join(filter(None, map(_plain, message.splitlines())))
    raw = metadata.get("fedlearn-hint-bin", b"")
    hint = _plain(raw.decode("utf-8", "replace")) if isinstance(raw, bytes) else ""
    if code.startswith("attestation/"):
        known = getattr(attestation_errors, code.removeprefix("attestation/"), None)
        if isinstance(known, type) and issubclass(known, AttestationError):
            return known(message, hint=hint)
        return AttestationError(message, hint=hint)
    if code == DiskError.code:
        # It is the peer's disk: the call may be made again.
        return Unreachable(message, hint=hint)
    kind = ERRORS_BY_CODE.get(code, TransportError)
    if issubclass(kind, AdmissionDenied):
        return kind(message, findings=findings_of(metadata.get("fedlearn-findings-bin")), hint=hint)
    return kind(message, hint=hint)


def findings_of(raw: object) -> tuple[dict[str, object], ...]:
    """Return the findings in ``raw`` (JSON); none, if it is not a list of objects."""
    if not isinstance(raw, bytes | str) or not raw:
        return ()
    try:
        document = json.loads(raw)
    except (ValueError, RecursionError):
        return ()
    if not isinstance(document, list):
        return ()
    return tuple(item for item in document if isinstance(item, dict))


def denied_of(reason: str, *, findings_json: str, code: str, hint: str) -> AdmissionDenied:
    """Return the refusal in a reply."""
    kind = ERRORS_BY_CODE.get(code, AdmissionDenied)
    if not issubclass(kind, AdmissionDenied):
        kind = AdmissionDenied
    return kind(_plain(reason), findings=findings_of(findings_json), hint=_plain(hint))


def _plain(text: str) -> str:
    """Return text of a peer for a terminal: printable, on one line, bounded."""
    shown = "".join(c if c.isprintable() else " " for c in text[: MAX_MESSAGE_CHARS + 1])
    return shown if len(shown) <= MAX_MESSAGE_CHARS else shown[: MAX_MESSAGE_CHARS - 3] + "..."


ERRORS_BY_CODE: Final[dict[str, type[FedlearnError]]] = {
    kind.code: kind
    for kind in (getattr(errors, name) for name in errors.__all__)
    if issubclass(kind, FedlearnError) and kind is not FedlearnError
}
"""Each error of :mod:`fedlearn.errors` by its stable code."""
