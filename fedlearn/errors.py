"""The errors of fedlearn, one tree.

::

    FedlearnError (.code, .hint)
    ├── ConfigError          a file or flag is wrong; names the place and what is expected
    ├── JobError             a job cannot be accepted, found or continued
    ├── LaunchError          a workload could not be started at a site
    ├── TransportError       a peer cannot be reached or does not prove who it is
    │   ├── NotEnrolled          the coordinator does not know this site (any more)
    │   └── NotApproved          an operator has to approve this site first
    ├── AdmissionDenied      evidence was refused; carries the findings
    │   ├── NonceRefused         the nonce is unknown, used, stale or of another purpose
    │   ├── EnrollmentRefused    a join token or a site's key is not accepted
    │   └── Throttled            too many requests; nothing was decided
    ├── KeyReleaseDenied     a key is not for this party
    ├── ModelNotAuthentic    a sealed file is not of the party that must have sealed it
    ├── StoreError           sealed state cannot be read or written
    │   └── DiskError            the disk failed; nothing is damaged, it may work later
    │       └── LedgerDiskError      the same of the ledger; it is a LedgerError, too
    ├── LedgerError          the ledger is damaged; names the entry
    ├── CommitmentError      records are not those that a client committed to
    ├── PrivacyError         a budget would be exceeded, or parameters are invalid
    └── RoundError
        ├── QuorumNotReached
        └── UpdateRejected

    KeyboardInterrupt
    └── Interrupted          Ctrl-C while a command waits; states what goes on

``code`` is stable and machine-readable; ``hint`` states what to do next. The command line prints
both on one line and never a traceback.
"""

from __future__ import annotations

from typing import ClassVar

__all__ = [
    "AdmissionDenied",
    "CommitmentError",
    "ConfigError",
    "DiskError",
    "EnrollmentRefused",
    "FedlearnError",
    "Interrupted",
    "JobError",
    "KeyReleaseDenied",
    "LaunchError",
    "LedgerDiskError",
    "LedgerError",
    "ModelNotAuthentic",
    "NonceRefused",
    "NotApproved",
    "NotEnrolled",
    "PrivacyError",
    "QuorumNotReached",
    "RoundError",
    "StoreError",
    "Throttled",
    "TransportError",
    "UpdateRejected",
]


class FedlearnError(Exception):
    """Root of every error that fedlearn raises on purpose."""

    code: ClassVar[str] = "error"

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


class Interrupted(KeyboardInterrupt):
    """The user interrupted a wait, by Ctrl-C or in a notebook; the text states what goes on.

    ``hint`` states how to continue. It is no :class:`FedlearnError`, so that ``except Exception``
    does not catch it.
    """

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(f"{message}; {hint}" if hint else message)
        self.message = message
        self.hint = hint


class ConfigError(FedlearnError):
    """A configuration file or flag is wrong.

    ``where`` is ``file:line`` or the flag; ``key`` the dotted key at fault.
    """

    code = "config"

    def __init__(self, message: str, *, where: str = "", key: str = "", hint: str = "") -> None:
        prefix = ": ".join(part for part in (where, key) if part)
        super().__init__(f"{prefix}: {message}" if prefix else message, hint=hint)
        self.where = where
        self.key = key


class JobError(FedlearnError):
    """A job cannot be accepted, found or continued."""

    code = "job"


class LaunchError(FedlearnError):
    """A workload could not be started at a site."""

    code = "launch"


class TransportError(FedlearnError):
    """A peer cannot be reached, or does not prove who it is."""

    code = "transport"


class NotEnrolled(TransportError):
    """The coordinator does not know this site: it was removed, or never enrolled."""

    code = "not-enrolled"


class NotApproved(TransportError):
    """The site waits for an operator's approval; the same call succeeds after it."""

    code = "not-approved"


class AdmissionDenied(FedlearnError):
    """Evidence was refused. ``findings`` are JSON-ready and state the reasons."""

    code = "admission-denied"

    def __init__(
        self, message: str, *, findings: tuple[dict[str, object], ...] = (), hint: str = ""
    ) -> None:
        super().__init__(message, hint=hint)
        self.findings = findings


class NonceRefused(AdmissionDenied):
    """The nonce is unknown, used, stale, or was issued for another purpose."""

    code = "nonce-refused"


class EnrollmentRefused(AdmissionDenied):
    """A join token or a site's key is not accepted."""

    code = "enrollment-refused"


class Throttled(AdmissionDenied):
    """Too many requests. Nothing was decided about the caller; it may try again later."""

    code = "throttled"


class KeyReleaseDenied(FedlearnError):
    """A content key is not for this party, or not now."""

    code = "key-release-denied"


class ModelNotAuthentic(FedlearnError):
    """A sealed file was not made by the party that must have sealed it."""

    code = "model-not-authentic"


class StoreError(FedlearnError):
    """Sealed state cannot be read or written."""

    code = "store"


class LedgerError(FedlearnError):
    """The ledger is damaged. ``entry`` is the sequence number of the first bad entry."""

    code = "ledger"

    def __init__(self, message: str, *, entry: int | None = None, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.entry = entry


class DiskError(StoreError):
    """The disk is full, read-only or failing. Nothing is damaged; the same may succeed later."""

    code = "disk"


class LedgerDiskError(LedgerError, DiskError):
    """An entry of the ledger could not be written to disk."""

    code = "disk"


class CommitmentError(FedlearnError):
    """Records are not those that a client committed to, or cannot be committed to."""

    code = "commitment"


class PrivacyError(FedlearnError):
    """A privacy budget would be exceeded, or its parameters are invalid."""

    code = "privacy"


class RoundError(FedlearnError):
    """A round could not be completed."""

    code = "round"


class QuorumNotReached(RoundError):
    """Too few sites answered before the deadline."""

    code = "quorum"


class UpdateRejected(RoundError):
    """An update may not enter the sum."""

    code = "update-rejected"
