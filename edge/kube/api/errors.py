"""The errors of calls to an API server, each with a hint."""

from __future__ import annotations

import json

from fedlearn.errors import LaunchError

__all__ = [
    "Exists",
    "Forbidden",
    "Gone",
    "KubeError",
    "Missing",
    "Unavailable",
    "cause_of",
    "refusal",
]


class KubeError(LaunchError):
    """The API server refused a call, or cannot be reached; ``status`` is HTTP's, or 0."""

    def __init__(self, message: str, *, status: int = 0, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.status = status


class Missing(KubeError):
    """The object does not exist, or the server does not know its kind."""


class Exists(KubeError):
    """An object of this name exists already."""


class Forbidden(KubeError):
    """This account may not make the call, or a quota or policy forbids it."""


class Unavailable(KubeError):
    """The server does not answer, or refuses for now. The same call may succeed later."""


class Gone(KubeError):
    """The version from which to watch is too old; list again."""


def refusal(status: int, body: object, what: str) -> KubeError:
    document = body
    if isinstance(body, bytes):
        try:
            document = json.loads(body)
        except (ValueError, RecursionError):
            document = {}
    found = document if isinstance(document, dict) else {}
    message = _plain(str(found.get("message") or f"status {status}"))
    reason = str(found.get("reason") or "")
    if status == 410:
        return Gone(message, status=status)
    if status == 404:
        return Missing(message, status=status, hint="check that namespace and kind exist")
    if status == 409 and reason == "AlreadyExists":
        return Exists(message, status=status)
    if status == 401:
        return Forbidden(
            "the API server does not accept this account's credentials",
            status=status,
            hint="renew the kubeconfig; in a cluster, check that the service account exists",
        )
    if status == 403:
        quota = "exceeded quota" in message
        hint = (
            "raise the namespace's ResourceQuota, or wait for other clients to end"
            if quota
            else "grant the permission: the fedlearn-edge chart has the Role that is needed"
        )
        return Forbidden(message, status=status, hint=hint)
    if status in (429, 500, 502, 503, 504):
        return Unavailable(f"{what}: {message}", status=status, hint="try again")
    return KubeError(f"{what}: {message}", status=status)


def cause_of(error: BaseException) -> str:
    reason = getattr(error, "reason", None) or error
    text = str(reason)
    # "<urllib3.connection.HTTPSConnection object at 0x...>: Failed to establish ..."
    return _plain(text.rpartition(">: ")[2] or text)[:300]


def _plain(text: str) -> str:
    return "".join(c if c.isprintable() else " " for c in text[:1000])
