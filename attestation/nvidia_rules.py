"""What a policy may require of the NVIDIA devices in evidence, each of them.

==================== ===========================================================================
``nvidia.rim``        measured as the reference manifests of its driver and VBIOS demand
``nvidia.revocation`` no certificate was revoked, by OCSP answers that count now
``nvidia.topology``   in Protected PCIe mode, with a report of every GPU and NVSwitch
==================== ===========================================================================
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final

from attestation.evidence import Claims, Tee
from attestation.result import Finding, Tier

__all__ = ["NVIDIA_CLAIMS", "device_findings"]

NVIDIA_CLAIMS: Final = ("nvidia.rim", "nvidia.revocation", "nvidia.topology")
"""The claims above, which no other evidence has."""

_REMEDY: Final = {
    "nvidia.rim": "give the RIMs of this driver and VBIOS as collateral",
    "nvidia.revocation": "give current OCSP answers as collateral",
    "nvidia.topology": "send a report of every GPU and NVSwitch of a machine in that mode",
}


def device_findings(required: Iterable[str], claims: Claims) -> Iterator[Finding]:
    """Yield a finding for each of :data:`NVIDIA_CLAIMS` among ``required``, for each device.

    Evidence without a device does not have the claim.
    """
    devices = {
        f"component[{index}].": item
        for index, item in enumerate(claims.components)
        if item.tee is Tee.NVIDIA
    }
    for claim in required:
        if claim not in NVIDIA_CLAIMS:
            continue
        if not devices:
            yield _finding(claim, "", present=False, actual="absent: the evidence has no GPU")
        for prefix, item in devices.items():
            present = claim in item.measurements and claim not in item.unverified
            words = item.attributes.get(claim, "absent")
            yield _finding(claim, prefix, present=present, actual=str(words))


def _finding(claim: str, prefix: str, *, present: bool, actual: str) -> Finding:
    return Finding(
        claim=f"require.{prefix}{claim}",
        tier=Tier.AFFIRMING if present else Tier.CONTRAINDICATED,
        expected="checked",
        actual=actual,
        category="hardware",
        remedy="" if present else _REMEDY[claim],
    )
