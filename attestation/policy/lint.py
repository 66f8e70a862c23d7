"""Warns about settings of a policy that are valid and perhaps not intended.

A launch identity that is not pinned makes a policy useless. That is an error and not a warning:
:func:`attestation.policy.launch.launch_errors`.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import Final

from attestation.evidence import Tee
from attestation.policy.launch import launch_warnings
from attestation.policy.model import EVENT, AppraisalPolicy, SnpRules, TdxRules

__all__ = ["lint_policy"]

_SOON: Final = timedelta(days=14)
_WEAK_TCB: Final = frozenset({"OutOfDate", "OutOfDateConfigurationNeeded"})


def lint_policy(policy: AppraisalPolicy, *, now: datetime) -> tuple[str, ...]:
    """Return one sentence for each warning."""
    found = list(_look(policy, now))
    if policy.coordinator is not None:
        found += [f"coordinator: {text}" for text in _look(policy.coordinator, now)]
    return tuple(found)


def _look(policy: AppraisalPolicy, now: datetime) -> Iterator[str]:
    if not policy.accept:
        yield "accept is empty, so nobody is admitted"
    if policy.insecure_debug:
        yield "insecure_debug admits environments that their host can look into"
    if policy.insecure_sample:
        yield "insecure_sample admits software that proves nothing about hardware"
    if Tee.SAMPLE in policy.accept and not policy.insecure_sample:
        yield "sample is accepted, but refused for want of insecure_sample = true"
    yield from launch_warnings(policy)
    yield from _references(policy, now)
    if policy.nodes is None:
        yield "without [nodes] evidence from any genuine machine will do, also from elsewhere"
    else:
        for node, identities in policy.nodes.items():
            if not identities:
                yield f"nodes.{node} lists no hardware, so it admits nobody"
    yield from _rules(policy)


def _references(policy: AppraisalPolicy, now: datetime) -> Iterator[str]:
    seen = set()
    for index, item in enumerate(policy.references):
        where = f"reference[{index}] ({item.claim})"
        if item.tee not in (None, Tee.NVIDIA, *policy.accept):
            yield f"{where} is for {item.tee}, which is not accepted"
        if item.tee is Tee.NVIDIA and not policy.nvidia.required:
            yield (
                f"{where} is for a GPU that nvidia.required does not ask for, so evidence "
                "without one passes"
            )
        if item.not_after is not None and now >= item.not_after:
            yield f"{where} ended at {item.not_after.isoformat()}"
        elif item.not_after is not None and now >= item.not_after - _SOON:
            yield f"{where} ends soon, at {item.not_after.isoformat()}"
        key = (item.claim, item.value, item.tee)
        if key in seen and item.not_before is None and item.not_after is None:
            yield f"{where} is listed twice"
        seen.add(key)


def _rules(policy: AppraisalPolicy) -> Iterator[str]:
    gpu = "nvidia.rim" in policy.require or any(
        item.tee is Tee.NVIDIA and item.claim != EVENT for item in policy.references
    )
    if policy.nvidia.required and not gpu:
        yield "nvidia.required has no reference value for the GPU, so all evidence is refused"
    for name, statuses in (("tdx", policy.tdx.tcb_status), ("sgx", policy.sgx.tcb_status)):
        for status in sorted(_WEAK_TCB.intersection(statuses)):
            yield f"{name}.tcb_status accepts {status}: known flaws are open"
        if not statuses:
            yield f"{name}.tcb_status is empty, so this kind of evidence is refused"
    for key, names, wanted in (
        ("require_attributes", policy.tdx.require_attributes, TdxRules().require_attributes),
        ("forbid_attributes", policy.tdx.forbid_attributes, TdxRules().forbid_attributes),
    ):
        if dropped := sorted(set(wanted).difference(names)):
            yield f"tdx.{key} leaves out {', '.join(dropped)}"
    if policy.snp.max_vmpl > SnpRules().max_vmpl:
        yield f"snp.max_vmpl accepts reports of levels up to {policy.snp.max_vmpl}"
    if policy.snp.allow_migration:
        yield "snp.allow_migration lets a migration agent move the guest"
    if Tee.SNP in policy.accept and not policy.snp.min_tcb:
        yield "without [snp.min_tcb] any genuine firmware version will do"
