"""Drafts a policy from verified claims: it pins the values of one piece of evidence.

A person reads and edits the draft. It never accepts debugging. Where the evidence is weaker than
the defaults (an old TCB, a high VMPL, migration), a comment marks the line that accepts it, and
:attr:`Draft.notes` lists it.

The page is docs/how-to/write-a-policy.md.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Final

from attestation.config.writing import value_text
from attestation.evidence import Claims, Tee
from attestation.policy.launch import launch_errors, launch_warnings
from attestation.policy.model import (
    CLAIM_NAME,
    MAX_VALUE_BYTES,
    TCB_STATUSES,
    ReferenceValue,
    SnpRules,
    TdxRules,
)
from attestation.policy.nvidia import NVIDIA_CLAIMS
from attestation.policy.parse import parse_policy
from attestation.quotes.snp import PRODUCTS, TCB_COMPONENTS

__all__ = ["Draft", "draft_policy", "reference_text"]

_ABOUT: Final = {
    "app": "SHA-256 of the app bundle, measured by the client before it attested",
    "host_data": "HOST_DATA, set by the host at launch (initdata digest)",
    "initdata": "digest of the initdata document",
    "job": "digest of the job",
    "launch": "MEASUREMENT, the launch digest of firmware and initial state",
    "mrconfigid": "MRCONFIGID, configuration set by the host at creation",
    "mrenclave": "MRENCLAVE, the code and data of the enclave",
    "mrowner": "MROWNER, owner set by the host at creation",
    "mrownerconfig": "MROWNERCONFIG, owner configuration set by the host at creation",
    "mrseam": "MRSEAM, the TDX module",
    "mrsigner": "MRSIGNER, who signed the enclave",
    "mrservicetd": "MRSERVICETD, the service TD that is bound to this one",
    "mrtd": "MRTD, the initial contents of the TD (firmware)",
    "rtmr0": "RTMR0, firmware configuration",
    "rtmr1": "RTMR1, boot loader and kernel",
    "rtmr2": "RTMR2, command line, initrd and what the kernel measured",
    "rtmr3": "RTMR3, what software measured at run time",
}
_SNP_POLICY: Final = ("aes_256_xts", "rapl_disabled", "ciphertext_hiding", "page_swap_disable")
_SNP_PLATFORM: Final = ("alias_check",)
"""Settings that only protect a guest: a draft requires those that the evidence has."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Draft:
    """The text of a policy, and notes to read before using it."""

    text: str
    notes: tuple[str, ...]


def draft_policy(
    claims: Claims, *, source: str, now: datetime, name: str = "draft", node: str = ""
) -> Draft:
    """Return a policy that affirms ``claims``, unless a note states why it does not.

    When the evidence has components (GPUs), the policy requires them.

    ``source`` names the evidence in a comment. With ``node`` the hardware identity is pinned to
    that node, else it is written as a comment.
    """
    notes: list[str] = []
    lines = [
        f"# Drafted from {_comment(source)} at {now.isoformat(timespec='seconds')}.",
        "# It pins what that evidence shows. Read every line before you rely on it.",
        "version = 1",
        f"name = {value_text(_comment(name))}",
        f"accept = [{value_text(claims.tee.value)}]",
    ]
    if claims.tee is Tee.SAMPLE:
        lines += ["# Software evidence proves nothing about hardware: for development only."]
        notes.append("sample evidence proves nothing about hardware; insecure_sample is set")
    lines.append(f"insecure_sample = {value_text(claims.tee is Tee.SAMPLE)}")
    if claims.debug or any(item.debug for item in claims.components):
        lines.append("# The evidence is of an environment in debug mode, which stays refused.")
        notes.append("the environment is in debug mode; the policy refuses it")
    lines.append("insecure_debug = false")
    lines += _references(claims, notes)
    lines += _components(claims, notes)
    lines += _required(claims)
    lines += _nodes(claims, node)
    lines += _rules(claims, notes)
    text = "\n".join(lines) + "\n"
    policy = parse_policy(text.encode(), "draft")
    notes += [*launch_errors(policy), *launch_warnings(policy)]
    return Draft(text=text, notes=tuple(notes))


def reference_text(reference: ReferenceValue) -> str:
    """Return a reference value as a policy writes it."""
    lines = ["[[reference]]"]
    if reference.claim in _ABOUT:
        lines.append(f"# {_ABOUT[reference.claim]}")
    lines += [
        f"claim = {value_text(reference.claim)}",
        f"value = {value_text(reference.value.hex())}",
    ]
    if reference.name:
        lines.append(f"name = {value_text(_comment(reference.name))}")
    if reference.tee is not None:
        lines.append(f"tee = {value_text(reference.tee.value)}")
    return "\n".join(lines) + "\n"


def _references(claims: Claims, notes: list[str], tee: Tee | None = None) -> list[str]:
    lines: list[str] = []
    for claim, value in sorted(claims.measurements.items(), key=_natural):
        if claim in NVIDIA_CLAIMS:
            continue
        if not CLAIM_NAME.fullmatch(claim) or not 1 <= len(value) <= MAX_VALUE_BYTES:
            notes.append(f"{_comment(claim)} cannot be written in a policy, so it is not pinned")
            continue
        if claim in claims.unverified:
            lines += ["", f"# {claim} was not verified, so it is not pinned."]
            notes.append(f"{claim} was not verified, so it is not pinned")
            continue
        lines += ["", "[[reference]]"]
        if claim in _ABOUT:
            lines.append(f"# {_ABOUT[claim]}" + (" (all zero)" if not any(value) else ""))
        lines += [f"claim = {value_text(claim)}", f"value = {value_text(value.hex())}"]
        if tee is not None:
            lines.append(f"tee = {value_text(tee.value)}")
    return lines


def _required(claims: Claims) -> list[str]:
    """Require the checks that every GPU passed, instead of pinning values that change often."""
    gpus = [item for item in claims.components if item.tee is Tee.NVIDIA]
    found = [name for name in NVIDIA_CLAIMS if gpus and all(name in x.measurements for x in gpus)]
    return ["", "[require]", f"claims = {value_text(found)}"] if found else []


def _components(claims: Claims, notes: list[str]) -> list[str]:
    """Pin the values of each component, equal values once, and require the components."""
    lines: list[str] = []
    seen: set[tuple[Tee, str, bytes]] = set()
    for index, component in enumerate(claims.components):
        fresh = {
            claim: value
            for claim, value in component.measurements.items()
            if (component.tee, claim, value) not in seen
        }
        seen |= {(component.tee, claim, value) for claim, value in fresh.items()}
        lines += ["", f"# Component {index}: {component.tee.value}."]
        lines += _references(replace(component, measurements=fresh), notes, tee=component.tee)
    gpus = [item for item in claims.components if item.tee is Tee.NVIDIA]
    if any(gpu.unverified for gpu in gpus):
        lines += ["", "# A GPU was not verified, so none is required."]
        notes.append("a GPU was not verified, so the policy requires none")
    elif gpus:
        lines += ["", "[nvidia]", "# Evidence without a verified GPU is refused."]
        lines.append("required = true")
        number = sum(gpu.attributes.get("nvidia.kind") != "nvswitch" for gpu in gpus)
        if number > 1:
            lines.append(f"min_gpus = {number}")
    notes += [
        f"no policy can require a component of {kind.value}: evidence without one passes"
        for kind in sorted({item.tee for item in claims.components} - {Tee.NVIDIA})
    ]
    return lines


def _natural(item: tuple[str, bytes]) -> list[tuple[int, str]]:
    """Order ``pcr.2`` before ``pcr.14``."""
    return [
        (int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", item[0])
    ]


def _nodes(claims: Claims, node: str) -> list[str]:
    if not claims.hardware_id:
        return []
    entry = f"{node or 'site-a'} = [{value_text(claims.hardware_id.hex())}]"
    lines = ["", "# The hardware that each node may run on. With this table every node is listed."]
    return [*lines, *(["[nodes]", entry] if node else ["# [nodes]", f"# {entry}"])]


def _rules(claims: Claims, notes: list[str]) -> list[str]:
    lines: list[str] = []
    inside_td = any(name.startswith("td.") for name in claims.attributes)
    inside_snp = any(name.startswith("snp.") for name in claims.attributes)
    if claims.tee is Tee.TDX or (claims.tee is Tee.AZURE_VTPM and inside_td):
        lines += ["", "[tdx]", *_intel(claims, notes), *_td_attributes(claims, notes)]
    if any(claims.measurements.get("mrservicetd", b"")):
        notes.append("a service TD is bound to this domain; the policy names it")
    if claims.tee is Tee.SGX:
        lines += ["", "[sgx]", *_intel(claims, notes)]
        for key, attribute in (("isv_prod_id", "sgx.isv_prod_id"), ("min_isv_svn", "sgx.isv_svn")):
            if (number := _number(claims, attribute)) is not None:
                lines.append(f"{key} = {number}")
    if claims.tee is Tee.SNP or (claims.tee is Tee.AZURE_VTPM and inside_snp):
        lines += ["", "[snp]", *_snp(claims, notes)]
    if claims.tee in (Tee.TPM, Tee.AZURE_VTPM):
        lines += ["", "[tpm]", *_tpm(claims)]
    return lines


def _intel(claims: Claims, notes: list[str]) -> list[str]:
    lines = []
    if "tcb" in claims.unverified:
        notes.append("the TCB status is not known without collateral; the policy asks for UpToDate")
        return [f"tcb_status = {value_text(TdxRules().tcb_status)}", "advisories_allowed = []"]
    if claims.tcb not in TCB_STATUSES:
        notes.append(f"no policy can accept the TCB status {_comment(claims.tcb)}")
        return [f"tcb_status = {value_text(TdxRules().tcb_status)}", "advisories_allowed = []"]
    best = TdxRules().tcb_status
    if claims.tcb not in best:
        lines.append("# Weaker than the default, which accepts only UpToDate.")
        notes.append(f"the TCB status is {claims.tcb}; the policy accepts it")
        best = (*best, claims.tcb)
    lines.append(f"tcb_status = {value_text(best)}")
    advisories = claims.attributes.get("advisories", ())
    listed = advisories if isinstance(advisories, tuple) else ()
    if listed:
        lines.append("# Open on this platform; the default accepts none.")
        notes.append(f"{', '.join(listed)} are open on the platform; the policy accepts them")
    lines.append(f"advisories_allowed = {value_text([_comment(item) for item in listed])}")
    if (number := _number(claims, "tcb_evaluation")) is not None:
        lines.append(f"min_tcb_evaluation = {number}")
    return lines


def _td_attributes(claims: Claims, notes: list[str]) -> list[str]:
    default = TdxRules()
    lines = []
    for key, names, wanted in (
        ("require_attributes", default.require_attributes, True),
        ("forbid_attributes", default.forbid_attributes, False),
    ):
        kept = [name for name in names if claims.attributes.get(f"td.{name}") is wanted]
        if dropped := [name for name in names if name not in kept]:
            lines.append(f"# Weaker than the default, which has {', '.join(dropped)} here.")
            notes.append(f"[tdx] {key} leaves out {', '.join(dropped)}")
        lines.append(f"{key} = {value_text(kept)}")
    return lines


def _snp(claims: Claims, notes: list[str]) -> list[str]:
    default = SnpRules()
    lines = []
    vmpl = _number(claims, "snp.vmpl")
    if vmpl is not None:
        if vmpl > default.max_vmpl:
            lines.append(f"# Weaker than the default, which is {default.max_vmpl}.")
            notes.append(f"the report was made at VMPL {vmpl}; the policy accepts it")
        lines.append(f"max_vmpl = {vmpl}")
    migration = claims.attributes.get("snp.policy.migration") is True
    if migration:
        lines.append("# Weaker than the default: a migration agent may move this guest.")
        notes.append("the guest may be migrated; the policy accepts it")
    lines.append(f"allow_migration = {value_text(migration)}")
    lines.append(f"allow_smt = {value_text(claims.attributes.get('snp.policy.smt') is not False)}")
    socket = claims.attributes.get("snp.policy.single_socket") is True
    lines.append(f"require_single_socket = {value_text(socket)}")
    product = claims.attributes.get("snp.product")
    if isinstance(product, str) and product in PRODUCTS:
        lines.append(f"products = [{value_text(product)}]")
    signed = "id_key_digest" in claims.measurements
    if signed and (number := _number(claims, "snp.guest_svn")) is not None:
        lines.append(f"min_guest_svn = {number}")
    for key, prefix, names in (
        ("require_policy", "snp.policy.", _SNP_POLICY),
        ("require_platform", "snp.platform.", _SNP_PLATFORM),
    ):
        kept = [name for name in names if claims.attributes.get(prefix + name) is True]
        if kept:
            lines.append(f"{key} = {value_text(kept)}")
    for key, attribute in (
        ("require_launch_mitigations", "snp.launch_mit_vector"),
        ("require_current_mitigations", "snp.current_mit_vector"),
    ):
        if vector := _number(claims, attribute):
            lines.append(f"{key} = {[bit for bit in range(64) if vector >> bit & 1]}")
    for table, kind in (
        ("min_tcb", "reported_tcb"),
        ("min_committed_tcb", "committed_tcb"),
        ("min_launch_tcb", "launch_tcb"),
    ):
        versions = {item: _number(claims, f"snp.{kind}.{item}") for item in TCB_COMPONENTS}
        if any(number is not None for number in versions.values()):
            lines += ["", f"[snp.{table}]"]
            lines += [
                f"{item} = {number}" for item, number in versions.items() if number is not None
            ]
    return lines


def _tpm(claims: Claims) -> list[str]:
    lines = [f"require_safe_clock = {value_text(claims.attributes.get('tpm.safe') is True)}"]
    if (firmware := _number(claims, "tpm.firmware")) is not None:
        lines.append(f"firmware = [{firmware:#x}]")
    return lines


def _number(claims: Claims, name: str) -> int | None:
    value = claims.attributes.get(name)
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _comment(text: str) -> str:
    return "".join(char if char.isprintable() else "?" for char in text)
