"""The errors of the attestation library, all below one root.

::

    AttestationError
    ├── AttesterError        evidence could not be produced here; may be retried
    ├── EvidenceError        bytes that are not what they claim to be; never retried
    ├── VerificationError    well-formed, but not genuine; names the failing step
    │   ├── SignatureError
    │   ├── EndorsementError
    │   ├── FreshnessError
    │   ├── BindingError
    │   └── EventLogError
    ├── PolicyError          an appraisal policy that cannot be used
    ├── config.SchemaError   a document does not match its schema
    ├── config.InconsistentValues    values that contradict each other
    └── UnsealError          ciphertext that does not open

An appraisal is a value (:class:`attestation.policy.result.AttestationResult`), not an error.
"""

from __future__ import annotations

from typing import Final

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm

__all__ = [
    "UNREADABLE",
    "AttestationError",
    "AttesterError",
    "BindingError",
    "EndorsementError",
    "EventLogError",
    "EvidenceError",
    "FreshnessError",
    "PolicyError",
    "SignatureError",
    "UnsealError",
    "VerificationError",
]

UNREADABLE: Final = (
    ValueError,
    TypeError,
    KeyError,
    UnsupportedAlgorithm,
    x509.InvalidVersion,
    x509.DuplicateExtension,
    x509.UnsupportedGeneralNameType,
)
"""What ``cryptography`` raises for keys and certificates that are not well-formed."""


class AttestationError(Exception):
    """Root of every error raised by ``attestation``.

    ``hint`` states what a person can do next; it is empty when nothing helps.
    """

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


class AttesterError(AttestationError):
    """Evidence could not be collected on this machine. Trying again may help."""


class EvidenceError(AttestationError):
    """Untrusted bytes are malformed. ``field`` and ``offset`` locate the fault."""

    def __init__(
        self, message: str, *, field: str = "", offset: int | None = None, hint: str = ""
    ) -> None:
        where = f"{field}" if field else ""
        if offset is not None:
            where = f"{where} at offset {offset}" if where else f"offset {offset}"
        super().__init__(f"{where}: {message}" if where else message, hint=hint)
        self.field = field
        self.offset = offset


class VerificationError(AttestationError):
    """Evidence is well-formed but not genuine. ``step`` names the check that failed.

    ``key`` is the SHA-256 of a key that would have to be trusted, where that is what is missing.
    """

    def __init__(self, message: str, *, step: str = "", hint: str = "", key: bytes = b"") -> None:
        super().__init__(f"{step}: {message}" if step else message, hint=hint)
        self.step = step
        self.key = key


class SignatureError(VerificationError):
    """A signature over evidence does not verify."""


class EndorsementError(VerificationError):
    """A certificate chain, collateral item or pinned key does not vouch for the signer."""


class FreshnessError(VerificationError):
    """Evidence, collateral or a nonce is outside of its validity window."""


class BindingError(VerificationError):
    """Report data is not the digest of this nonce, these keys and this role."""


class EventLogError(VerificationError):
    """A log does not replay to the quoted registers. ``register`` names the first."""

    def __init__(
        self, message: str, *, register: str = "", step: str = "event log", hint: str = ""
    ) -> None:
        super().__init__(message, step=step, hint=hint)
        self.register = register


class PolicyError(AttestationError):
    """An appraisal policy cannot be used as written."""


class UnsealError(AttestationError):
    """Sealed data did not open: wrong key, altered bytes, or a rolled-back version."""
