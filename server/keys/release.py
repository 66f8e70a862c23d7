"""Decides whether a client may receive a content key now. Pure: it reads its arguments only."""

from __future__ import annotations

import hashlib
from datetime import datetime
from typing import Final, Protocol

from attestation.policy.result import Tier
from fedlearn.errors import AdmissionDenied, KeyReleaseDenied
from fedlearn.sealing.keys import PUBLIC_KEY_BYTES
from server.admission.registry import Admission

__all__ = ["LiveAdmissions", "Releasable", "check_release"]

_AGAIN: Final = "attest again and ask with the new admission"


class Releasable(Protocol):
    """A sealed file whose content key may be released: what the store has of it."""

    @property
    def model(self) -> str:
        """The model."""
        ...

    @property
    def version(self) -> int:
        """Its version."""
        ...

    @property
    def file_id(self) -> bytes:
        """The file's id (16 bytes)."""
        ...

    @property
    def key(self) -> str:
        """The key service's name for the model key."""
        ...


class LiveAdmissions(Protocol):
    """The admission registry."""

    def live(self, thumbprint: bytes, *, now: datetime) -> Admission:
        """Return the live admission of a key, or raise AdmissionDenied."""
        ...


def check_release(
    admission: Admission,
    *,
    model: str,
    job: str | None,
    registry: LiveAdmissions,
    now: datetime,
) -> None:
    """Check every condition again, whatever the caller has checked before.

    :param job: the job that ``model`` belongs to; ``None`` when there is no such model.
    :raises KeyReleaseDenied: naming the condition that does not hold.
    """
    if admission.result.status is not Tier.AFFIRMING:
        raise _denied(f"its attestation result is {admission.result.status.name.lower()}")
    if hashlib.sha256(admission.tls_key).digest() != admission.thumbprint:
        raise _denied("its thumbprint is not that of its TLS key")
    if admission.result.key_thumbprint != admission.thumbprint:
        raise _denied("its attestation result is for another key")
    if not admission.issued <= now < admission.expires:
        raise _denied(f"its certificate is valid from {admission.issued} to {admission.expires}")
    if now >= admission.result.expires:
        raise _denied(f"its attestation result expired at {admission.result.expires}")
    if len(admission.hpke_key) != PUBLIC_KEY_BYTES:
        raise _denied("it attested no key to wrap to")
    if job is None:
        raise _denied(f"there is no model {model!r}")
    if admission.job != job:
        raise _denied(f"the model {model!r} belongs to the job {job!r}, not to {admission.job!r}")
    try:
        live = registry.live(admission.thumbprint, now=now)
    except AdmissionDenied as error:
        raise _denied(str(error)) from error
    if live != admission:
        raise _denied("the admission in force for its key is another one")


def _denied(reason: str) -> KeyReleaseDenied:
    return KeyReleaseDenied(f"no key is released: {reason}", hint=_AGAIN)
