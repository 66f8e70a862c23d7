"""The result of an appraisal, with its reasons.

Tiers are those of AR4SI (draft-ietf-rats-ar4si, section 2.3.2). ``NONE`` is a smaller number than
``AFFIRMING`` but a worse result, so compare with ``is Tier.AFFIRMING``.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from attestation.evidence import Origin

__all__ = ["AttestationResult", "Finding", "Tier"]


class Tier(enum.IntEnum):
    """AR4SI trust tiers."""

    NONE = 0
    AFFIRMING = 2
    WARNING = 32
    CONTRAINDICATED = 96


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One claim, the value that the policy expects, and the value in the evidence.

    ``category`` is the member of the AR4SI trust vector that the claim belongs to:
    ``instance-identity``, ``configuration``, ``executables``, ``file-system``,
    ``hardware``, ``runtime-opaque``, ``storage-opaque`` or ``sourced-data``.
    ``remedy`` is what a person can do; empty when the finding is affirming.
    ``origin`` is who is responsible for ``actual``.
    """

    claim: str
    tier: Tier
    expected: str
    actual: str
    category: str = "executables"
    remedy: str = ""
    origin: Origin = Origin.VERIFIER

    def to_json(self) -> dict[str, Any]:
        """Return the finding as JSON-ready values."""
        return {
            "claim": self.claim,
            "tier": self.tier.name.lower(),
            "expected": self.expected,
            "actual": self.actual,
            "category": self.category,
            "remedy": self.remedy,
            "origin": self.origin.value,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class AttestationResult:
    """Whether one policy affirms one set of claims, with the reasons.

    ``status``          the worst tier of any finding; ``NONE`` when there are none
    ``policy``          SHA-256 of the policy that was applied (32 bytes)
    ``key_thumbprint``  SHA-256 of the TLS SPKI that the evidence was bound to; empty when
                        the evidence was appraised without a binding
    ``expires``         until when the result may be relied upon (aware, UTC)
    """

    status: Tier
    tee: str
    findings: tuple[Finding, ...]
    policy: bytes
    key_thumbprint: bytes
    expires: datetime

    @property
    def refusals(self) -> tuple[Finding, ...]:
        """The findings because of which the result is not affirming.

        Findings of tier ``NONE`` are notes in an affirming result, and reasons in one of
        status ``NONE``.
        """
        notes = () if self.status is Tier.NONE else (Tier.NONE,)
        return tuple(f for f in self.findings if f.tier not in (Tier.AFFIRMING, *notes))

    def to_json(self) -> dict[str, Any]:
        """Return the result as JSON-ready values."""
        return {
            "status": self.status.name.lower(),
            "tee": self.tee,
            "findings": [finding.to_json() for finding in self.findings],
            "policy": self.policy.hex(),
            "key_thumbprint": self.key_thumbprint.hex(),
            "expires": self.expires.isoformat(),
        }
