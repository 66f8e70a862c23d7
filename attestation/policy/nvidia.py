"""The requirements of a policy for every NVIDIA device in evidence.

==================== ===========================================================================
``nvidia.rim``        measured as the reference manifests of its driver and VBIOS demand
``nvidia.revocation`` no certificate was revoked, by OCSP answers that count now
``nvidia.topology``   in Protected PCIe mode, with a report of every GPU and NVSwitch
==================== ===========================================================================
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

from attestation.evidence import Claims, Origin, Tee
from attestation.policy.model import EVENT, AppraisalPolicy
from attestation.policy.result import Finding, Tier

__all__ = ["NVIDIA_CLAIMS", "SWITCH_PREFIX", "concerns", "device_findings"]

NVIDIA_CLAIMS: Final = ("nvidia.rim", "nvidia.revocation", "nvidia.topology")
"""The claims of the table, which no other evidence has."""

SWITCH_PREFIX: Final = "nvswitch."
"""Prefix of the measurements of an NVSwitch; those of a GPU have none."""

_REMEDY: Final = {
    "nvidia.rim": "give the RIMs of this driver and VBIOS as collateral",
    "nvidia.revocation": "give current OCSP answers as collateral",
    "nvidia.topology": "send a report of every GPU and NVSwitch of a machine in that mode",
}


def concerns(claim: str, device: Claims) -> bool:
    """Return whether a reference value for ``claim`` applies to this kind of device."""
    return claim in NVIDIA_CLAIMS or claim.startswith(SWITCH_PREFIX) == _is_switch(device)


def device_findings(policy: AppraisalPolicy, claims: Claims) -> Iterator[Finding]:
    """Yield a finding for each requirement of ``policy`` for the devices.

    There is one for each required claim of :data:`NVIDIA_CLAIMS` and each device; evidence without
    a device does not have the claim.
    """
    devices = {
        f"component[{index}].": item
        for index, item in enumerate(claims.components)
        if item.tee is Tee.NVIDIA
    }
    if policy.nvidia.required:
        yield from _required(policy, list(devices.values()))
    for claim in policy.require:
        if claim not in NVIDIA_CLAIMS:
            continue
        if not devices:
            yield _claim(claim, "", present=False, actual="absent: the evidence has no GPU")
        for prefix, item in devices.items():
            present = claim in item.measurements and claim not in item.unverified
            words = item.attributes.get(claim, "absent")
            yield _claim(claim, prefix, present=present, actual=str(words))


def _required(policy: AppraisalPolicy, devices: Sequence[Claims]) -> Iterator[Finding]:
    gpus = [item for item in devices if not _is_switch(item)]
    least = policy.nvidia.min_gpus
    genuine = not any(item.unverified for item in devices)
    verified = genuine and len(gpus) >= least
    seen = f"{len(gpus)}, " + ("verified" if genuine else "a report is not verified")
    yield Finding(
        claim="nvidia",
        tier=_tier(verified),
        expected="a verified GPU" if least == 1 else f"{least} verified GPUs",
        actual=seen if devices else "absent",
        category="hardware",
        remedy=""
        if verified
        else "send each GPU's report with its certificate chain, or relax [nvidia]",
    )
    named = [
        item.claim for item in policy.references if item.tee is Tee.NVIDIA and item.claim != EVENT
    ]
    unpinned = {
        "NVSwitch" if _is_switch(item) else "GPU"
        for item in devices
        if not any(concerns(claim, item) for claim in named)
    }
    if "nvidia.rim" not in policy.require and (unpinned or not named):
        yield Finding(
            claim="nvidia.reference",
            tier=Tier.WARNING,
            expected=f"a reference value for {' and '.join(sorted(unpinned)) or 'the GPU'}",
            actual="none in the policy, so any firmware would do",
            remedy='add a [[reference]] with tee = "nvidia", or require nvidia.rim',
        )


def _is_switch(device: Claims) -> bool:
    return device.attributes.get("nvidia.kind") == "nvswitch"


def _claim(claim: str, prefix: str, *, present: bool, actual: str) -> Finding:
    return Finding(
        claim=f"require.{prefix}{claim}",
        tier=_tier(present),
        expected="checked",
        actual=actual,
        category="hardware",
        remedy="" if present else _REMEDY[claim],
        origin=Origin.QUOTE,
    )


def _tier(good: bool) -> Tier:
    return Tier.AFFIRMING if good else Tier.CONTRAINDICATED
