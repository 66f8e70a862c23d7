"""Applies a policy to claims. Every check gives a finding, also a check that passes.

A finding of tier ``NONE`` is a note about something that was not appraised. Notes never make a
result affirming, and a result without an affirming finding has status ``NONE``.

Evidence whose launch identity the policy does not pin (:mod:`attestation.policy.launch`) is never
affirmed: claims that software makes about itself count only as far as its launch is pinned.

The page is docs/reference/api/policy.md.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import Final

from attestation.evidence import Claims, Origin, Tee
from attestation.policy.hardware import hardware_findings
from attestation.policy.launch import PCR_BANKS, applicable, launch_finding
from attestation.policy.model import (
    CONTAINER_SERVER,
    DEFAULT_LIFETIME,
    AppraisalPolicy,
    ReferenceValue,
)
from attestation.policy.nvidia import NVIDIA_CLAIMS, concerns, device_findings
from attestation.policy.result import AttestationResult, Finding, Tier

__all__ = ["appraise"]

_SEVERITY: Final = {Tier.AFFIRMING: 0, Tier.NONE: 1, Tier.WARNING: 2, Tier.CONTRAINDICATED: 3}

_CONFIGURED: Final = ("mrconfigid", "mrowner", "mrownerconfig", "host_data", "initdata", "job")


def appraise(
    policy: AppraisalPolicy,
    claims: Claims,
    *,
    now: datetime,
    node: str | None = None,
    key: bytes = b"",
    extra: tuple[Finding, ...] = (),
    lifetime: timedelta = DEFAULT_LIFETIME,
    require_binding: bool = True,
) -> AttestationResult:
    """Return the verdict of ``policy`` on ``claims`` that a verifier found genuine.

    ``now``              an aware time; validity windows are judged by it
    ``node``             the node at which the prover claims to run
    ``key``              DER SPKI of the TLS key that the evidence was bound to
    ``extra``            findings of the caller, which count like those made here
    ``lifetime``         the caller's bound on the result; the policy may only shorten it
    ``require_binding``  refuse claims whose report data was not compared. Only the inspection of
                         stored evidence passes ``False``; admission never does.

    :raises ValueError: when ``now`` is naive.

    >>> from datetime import UTC
    >>> from cryptography.hazmat.primitives.asymmetric import ec
    >>> from attestation.attesters.sample import SampleAttester
    >>> from attestation.binding import ReportData
    >>> from attestation.policy.parse import parse_policy
    >>> from attestation.trust import TrustAnchors, key_digest
    >>> from attestation.verifiers import verify
    >>> signing = ec.generate_private_key(ec.SECP256R1())
    >>> attester = SampleAttester(signing, hardware_id=b"board 1")
    >>> attester.extend("software", bytes(32))
    >>> bound = ReportData(value=bytes(64))
    >>> trust = TrustAnchors(sample_keys=frozenset({key_digest(signing.public_key())}))
    >>> at = datetime.now(UTC)
    >>> claims = verify(attester.collect(bound), binding=bound, trust=trust, now=at)
    >>> source = b'''
    ... version = 1
    ... accept = ["sample"]
    ... insecure_sample = true
    ... [[reference]]
    ... claim = "software"
    ... value = "c0de"
    ... '''
    >>> result = appraise(parse_policy(source, where="policy.toml"), claims, now=at)
    >>> result.status.name
    'CONTRAINDICATED'
    >>> for finding in result.findings:
    ...     if finding.tier is result.status:
    ...         print(f"{finding.claim}: expected {finding.expected}")
    launch_identity: expected the software that it reports (software or launch)
    software: expected c0de
    """
    if now.tzinfo is None:
        raise ValueError("the time of an appraisal must be aware")
    found = [
        *_environment(policy, claims),
        *_binding(claims, require_binding),
        *_age(policy, claims, now),
        *_node(policy, claims, node, strict=require_binding),
        *hardware_findings(policy, claims),
        launch_finding(policy, claims, now),
        *_references(policy, claims, now),
        *_required(policy, claims),
    ]
    for index, component in enumerate(claims.components):
        found += _component(policy, component, now, f"component[{index}].")
    found += device_findings(policy, claims)
    notes = tuple(item for item in found if item.tier is Tier.NONE)
    checks = [item for item in found if item.tier is not Tier.NONE] + list(extra)
    status = max((item.tier for item in checks), key=_SEVERITY.__getitem__, default=Tier.NONE)
    return AttestationResult(
        status=status,
        tee=claims.tee.value,
        findings=(*checks, *notes),
        policy=policy.digest,
        key_thumbprint=hashlib.sha256(key).digest() if key else b"",
        expires=now + min(lifetime, policy.lifetime),
    )


def _environment(policy: AppraisalPolicy, claims: Claims) -> Iterator[Finding]:
    accepted = ", ".join(tee.value for tee in policy.accept) or "nothing: the policy accepts no TEE"
    yield Finding(
        claim="tee",
        tier=_tier(claims.tee in policy.accept),
        expected=accepted,
        actual=claims.tee.value,
        category="hardware",
        remedy=""
        if claims.tee in policy.accept
        else f'add "{claims.tee.value}" to accept, if this kind of evidence is good enough',
    )
    if claims.tee is Tee.SAMPLE:
        yield Finding(
            claim="insecure_sample",
            tier=_tier(policy.insecure_sample),
            expected="evidence from hardware"
            if not policy.insecure_sample
            else "software evidence, which the policy allows by name",
            actual="software evidence, which proves nothing about hardware",
            category="hardware",
            remedy=""
            if policy.insecure_sample
            else "set insecure_sample = true, for development only",
        )
    yield _debug(policy, claims, "")


def _debug(policy: AppraisalPolicy, claims: Claims, prefix: str) -> Finding:
    allowed = policy.insecure_debug or not claims.debug
    return Finding(
        claim=f"{prefix}debug",
        tier=_tier(allowed),
        expected="false" if not policy.insecure_debug else "any, which the policy allows by name",
        actual=str(claims.debug).lower(),
        category="configuration",
        remedy="" if allowed else "start the environment without debugging",
        origin=_stated(claims),
    )


def _binding(claims: Claims, required: bool) -> Iterator[Finding]:
    unchecked = Tier.CONTRAINDICATED if required else Tier.NONE
    yield Finding(
        claim="binding",
        tier=Tier.AFFIRMING if claims.bound else unchecked,
        expected="report data over this nonce and these keys",
        actual="matches" if claims.bound else "not compared: no report data was given",
        category="instance-identity",
        remedy="" if claims.bound else "give the expected report data (--report-data HEX)",
    )


def _age(policy: AppraisalPolicy, claims: Claims, now: datetime) -> Iterator[Finding]:
    if policy.max_age is None:
        return
    issued = claims.attributes.get("issued")
    seconds = policy.max_age.total_seconds()
    known = isinstance(issued, int) and not isinstance(issued, bool)
    age = now.timestamp() - issued if known and isinstance(issued, int) else 0.0
    fresh = known and age <= seconds
    yield Finding(
        claim="age",
        tier=_tier(fresh),
        expected=f"at most {seconds:.0f} s",
        actual=f"{age:.0f} s" if known else "absent: this evidence carries no time",
        category="instance-identity",
        remedy="" if fresh else "collect new evidence, or drop freshness.max_age_s",
        origin=_stated(claims),
    )


def _node(
    policy: AppraisalPolicy, claims: Claims, node: str | None, *, strict: bool
) -> Iterator[Finding]:
    if policy.nodes is None:
        return
    identity = claims.hardware_id
    if node is None and not strict:
        nodes = sorted(name for name, ids in policy.nodes.items() if identity and identity in ids)
        listed, expected = bool(nodes), "hardware of a listed node"
        actual = f"{identity.hex()} ({', '.join(nodes) or 'no node'})"
    else:
        listed = bool(identity) and identity in policy.nodes.get(node or "", frozenset())
        known = node in policy.nodes
        expected = f"hardware of {node}" if known else "a node that the policy lists"
        actual = identity.hex() if known else f"node {node!r}, hardware {identity.hex()}"
    yield Finding(
        claim="hardware_id",
        tier=_tier(listed),
        expected=expected,
        actual=actual if identity else "absent",
        category="instance-identity",
        remedy="" if listed else "add the hardware id to [nodes], if the machine belongs there",
        origin=_stated(claims),
    )


def _references(
    policy: AppraisalPolicy, claims: Claims, now: datetime, prefix: str = ""
) -> Iterator[Finding]:
    groups: dict[str, list[ReferenceValue]] = {}
    for reference in applicable(policy, claims.tee):
        # A component is compared only with reference values for its kind.
        if not prefix or (reference.tee is not None and _concerns(reference.claim, claims)):
            groups.setdefault(reference.claim, []).append(reference)
    for claim, references in groups.items():
        yield _reference(claim, references, claims, now, prefix)


def _concerns(claim: str, component: Claims) -> bool:
    return component.tee is not Tee.NVIDIA or concerns(claim, component)


def _reference(
    claim: str, references: list[ReferenceValue], claims: Claims, now: datetime, prefix: str
) -> Finding:
    value = claims.measurements.get(claim)
    unverified = claim in claims.unverified
    usable = None if unverified else value
    equal = [item for item in references if usable is not None and item.value == usable]
    matching = [item for item in equal if item.valid_at(now)]
    if matching:
        tier, remedy = Tier.AFFIRMING, ""
    elif equal:
        tier, remedy = Tier.WARNING, "the value is outside of its validity window; renew it"
    else:
        tier, remedy = Tier.CONTRAINDICATED, _mend(claim, claims)
    if value is None:
        actual = "absent"
    else:
        known = next(iter(matching or equal), None)
        actual = value.hex() + (f" ({known.name})" if known and known.name else "")
        actual += " (claimed, not verified)" if unverified else ""
    return Finding(
        claim=prefix + claim,
        tier=tier,
        expected=" or ".join(_describe(item, now) for item in (matching[:1] or references)),
        actual=actual,
        category="configuration" if claim in _CONFIGURED else "executables",
        remedy=remedy,
        origin=claims.origin_of(claim),
    )


def _describe(reference: ReferenceValue, now: datetime) -> str:
    text = reference.value.hex() + (f" ({reference.name})" if reference.name else "")
    if reference.not_before is not None and now < reference.not_before:
        text += f" from {reference.not_before.isoformat()}"
    elif not reference.valid_at(now) and reference.not_after is not None:
        text += f" until {reference.not_after.isoformat()}"
    return text


def _mend(claim: str, claims: Claims) -> str:
    value = claims.measurements.get(claim)
    if claim in claims.unverified and value is not None:
        return f"{claim} is only claimed; it counts when the evidence binds it" + (
            f", and the log measures a server that a reference for {CONTAINER_SERVER} names"
            if claim == "container.imr"
            else ""
        )
    if value is not None:
        return "run the expected software, or add a reference value if this one is good"
    register = claim.removesuffix(".sha384").removesuffix(".sha512")
    if others := [register + bank for bank in PCR_BANKS if register + bank in claims.measurements]:
        return f"the quote has {', '.join(others)}: name the register with the bank that was quoted"
    return f"run what measures {claim}, or send its event log"


def _required(policy: AppraisalPolicy, claims: Claims) -> Iterator[Finding]:
    for claim in policy.require:
        if claim in NVIDIA_CLAIMS:
            continue
        value = claims.measurements.get(claim)
        present = value is not None and claim not in claims.unverified
        if value is None:
            actual = "absent"
        else:
            actual = value.hex() if present else f"{value.hex()} (claimed, not verified)"
        yield Finding(
            claim=f"require.{claim}",
            tier=_tier(present),
            expected="present",
            actual=actual,
            category="runtime-opaque",
            remedy="" if present else _mend(claim, claims),
            origin=claims.origin_of(claim),
        )


def _component(
    policy: AppraisalPolicy, component: Claims, now: datetime, prefix: str
) -> Iterator[Finding]:
    if component.unverified:
        yield Finding(
            claim=f"{prefix}{component.tee.value}",
            tier=Tier.NONE,
            expected="verified",
            actual=f"not verified: {', '.join(component.unverified)}",
            category="hardware",
            remedy="a policy that needs it refuses; see the documentation of this TEE",
        )
    yield _debug(policy, component, prefix)
    yield from _references(policy, component, now, prefix)


def _stated(claims: Claims) -> Origin:
    """Return who is responsible for the claims of the evidence that are no measurements."""
    return Origin.SELF if claims.tee is Tee.SAMPLE else Origin.QUOTE


def _tier(good: bool) -> Tier:
    return Tier.AFFIRMING if good else Tier.CONTRAINDICATED
