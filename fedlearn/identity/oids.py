"""Object identifiers of fedlearn's certificate extensions.

They are under a UUID-derived arc (ITU-T X.667), which needs no registration:
``2.25.<integer of ba09ffa1-4e0c-4870-a8a4-440e311918f5>``. Each extension is not critical
and its value is a DER OCTET STRING of 32 bytes.
"""

from __future__ import annotations

from typing import Final

from cryptography.x509 import ObjectIdentifier

__all__ = ["ARC", "EVIDENCE_DIGEST", "POLICY_DIGEST"]

ARC: Final = "2.25.247288322682058941745755653091611973877"

EVIDENCE_DIGEST: Final = ObjectIdentifier(f"{ARC}.1")
"""SHA-256 of the canonical encoding of the evidence that the certificate was issued for."""

POLICY_DIGEST: Final = ObjectIdentifier(f"{ARC}.2")
"""SHA-256 of the appraisal policy that found the evidence affirming."""
