"""Errors of :mod:`fedlearn.errors` as JSON, between the processes of a job."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from fedlearn import errors
from fedlearn.errors import FedlearnError

__all__ = ["failure_of", "raised"]

_MAX_TEXT: Final = 4000
_ERRORS: Final = {
    error.code: error
    for error in (
        errors.JobError,
        errors.PrivacyError,
        errors.QuorumNotReached,
        errors.RoundError,
        errors.StoreError,
        errors.TransportError,
        errors.UpdateRejected,
    )
}


def failure_of(error: FedlearnError) -> dict[str, str]:
    """Return an error as JSON; its texts are cut to 4,000 characters."""
    return {
        "code": error.code,
        "message": str(error)[:_MAX_TEXT],
        "hint": error.hint[:_MAX_TEXT],
    }


def raised(failure: Any) -> FedlearnError:
    """Return the error that :func:`failure_of` wrote; a malformed one is a JobError.

    ``failure`` may come from a process that is not trusted: the class of the error is one of
    seven, and its texts are bounded.
    """
    if not isinstance(failure, Mapping):
        return errors.JobError("a failure that is not an object")
    code, message, hint = (
        value if isinstance(value := failure.get(name), str) else ""
        for name in ("code", "message", "hint")
    )
    kind = _ERRORS.get(code, errors.JobError)
    return kind(message[:_MAX_TEXT] or "no reason was given", hint=hint[:_MAX_TEXT])
