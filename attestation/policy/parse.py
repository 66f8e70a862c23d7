"""Reads an appraisal policy from TOML, strictly: every mistake names its key and line.

::

    version = 1                    # the operator's number of this policy
    name = "hospitals"
    accept = ["tdx", "snp"]        # kinds of evidence; empty admits nobody
    insecure_sample = false        # sample evidence proves nothing about hardware
    insecure_debug = false
    [[reference]]                  # several for one claim are alternatives
    claim = "mrtd"
    value = "91eb…"                # hex
    name = "image 2.1"
    not_before = 2026-01-01T00:00:00Z
    not_after = 2026-07-01T00:00:00Z
    tee = "tdx"                    # only for this kind of evidence
    [require]
    claims = ["app", "job"]        # must be present and verified
    [freshness]
    lifetime_s = 1800              # of a result
    max_age_s = 60                 # of evidence that carries a time
    [nodes]                        # when present, every node must be listed
    site-a = ["811dca2a…"]         # chip id, PPID or SHA-256 of the EK
    [tdx] [sgx] [snp] [tpm] [nvidia]   # minimums; see the classes in attestation.policy.model
    [coordinator]                  # the same grammar: what clients demand of the coordinator
"""

from __future__ import annotations

import re
from dataclasses import replace
from datetime import timedelta
from typing import Final

from attestation.config.toml import TomlError, parse
from attestation.config.tomltable import Table
from attestation.errors import PolicyError
from attestation.evidence import MAX_COMPONENTS, Tee
from attestation.policy.model import (
    CLAIM_NAME,
    DEFAULT_LIFETIME,
    TCB_STATUSES,
    AppraisalPolicy,
    NvidiaRules,
    ReferenceValue,
    SgxRules,
    SnpRules,
    TdxRules,
    TpmRules,
)
from attestation.quotes.snp import PLATFORM_BITS, POLICY_BITS, PRODUCTS, TCB_COMPONENTS
from attestation.quotes.tdx import TD_ATTRIBUTES

__all__ = ["parse_policy"]

_NODE: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,62}")
_MAX_LIST: Final = 1024
_MAX_REFERENCES: Final = 4096
_MAX_VALUE_BYTES: Final = 64
_MAX_INT: Final = 2**63 - 1
_DIGEST_BYTES: Final = 32
_TD_ATTRIBUTES: Final = tuple(sorted(TD_ATTRIBUTES))
_MAX_PCR: Final = 23
_MAX_SVN: Final = 255
_MAX_BIT: Final = 63
_MAX_VMPL: Final = 3
_MAX_AGE_S: Final = 10**9
_MAX_LIFETIME_S: Final = int(DEFAULT_LIFETIME.total_seconds())


def parse_policy(data: bytes, where: str = "policy.toml") -> AppraisalPolicy:
    """Return the policy in ``data``; ``where`` names its source in messages.

    :raises PolicyError: naming file, line and key, for anything that is not in the grammar.
    """
    try:
        source = parse(data)
    except TomlError as error:
        line = f":{error.line}" if error.line else ""
        raise PolicyError(
            f"{where}{line}: {error}",
            hint="a policy is a TOML file; `fedlearn policy init` writes one",
        ) from None
    return _policy(Table(source, where), top=True)


def _policy(table: Table, *, top: bool, parent: AppraisalPolicy | None = None) -> AppraisalPolicy:
    name = parent.name if parent else "unnamed"
    version = parent.version if parent else 1
    lifetime, max_age = _freshness(table.table("freshness"))
    policy = AppraisalPolicy(
        version=table.integer("version", default=version, least=1, most=_MAX_INT),
        name=table.text("name", default=name, most=128),
        accept=tuple(
            sorted({Tee(item) for item in table.choices("accept", tuple(tee.value for tee in Tee))})
        ),
        insecure_sample=table.flag("insecure_sample", default=False),
        insecure_debug=table.flag("insecure_debug", default=False),
        references=tuple(_reference(item) for item in table.tables("reference", _MAX_REFERENCES)),
        require=_require(table.table("require")),
        nodes=_nodes(table.table("nodes")) if table.has("nodes") else None,
        tdx=_tdx(table.table("tdx")),
        sgx=_sgx(table.table("sgx")),
        snp=_snp(table.table("snp")),
        tpm=_tpm(table.table("tpm")),
        nvidia=_nvidia(table.table("nvidia")),
        lifetime=lifetime,
        max_age=max_age,
    )
    if top and table.has("coordinator"):
        inner = _policy(table.table("coordinator"), top=False, parent=policy)
        policy = replace(policy, coordinator=inner)
    table.finish()
    return policy


def _reference(table: Table) -> ReferenceValue:
    claim = table.text("claim", pattern=CLAIM_NAME, what='a claim name such as "mrtd" or "pcr.14"')
    value = table.hexadecimal("value", 1, _MAX_VALUE_BYTES)
    tee = table.choice("tee", tuple(tee.value for tee in Tee))
    reference = ReferenceValue(
        claim=claim,
        value=value,
        name=table.text("name", default="", most=128),
        not_before=table.moment("not_before"),
        not_after=table.moment("not_after"),
        tee=Tee(tee) if tee is not None else None,
    )
    if (
        reference.not_before is not None
        and reference.not_after is not None
        and reference.not_before >= reference.not_after
    ):
        raise table.error("not_after", "is not after not_before, so the value never counts")
    table.finish()
    return reference


def _require(table: Table) -> tuple[str, ...]:
    claims = table.texts("claims", _MAX_LIST, pattern=CLAIM_NAME, what="a claim name")
    table.finish()
    return claims


def _freshness(table: Table) -> tuple[timedelta, timedelta | None]:
    lifetime = table.integer("lifetime_s", default=_MAX_LIFETIME_S, least=1, most=_MAX_LIFETIME_S)
    age = None
    if table.has("max_age_s"):
        age = timedelta(seconds=table.integer("max_age_s", default=60, least=1, most=_MAX_AGE_S))
    table.finish()
    return timedelta(seconds=lifetime), age


def _nodes(table: Table) -> dict[str, frozenset[bytes]]:
    nodes = {}
    for name in table.names():
        if not _NODE.fullmatch(name):
            raise table.error(name, "is not a node name: letters, digits, '-', '_' and '.'")
        nodes[name] = frozenset(table.hexadecimals(name, 1, _MAX_VALUE_BYTES, _MAX_LIST))
    table.finish()
    return nodes


def _tdx(table: Table) -> TdxRules:
    default = TdxRules()
    rules = TdxRules(
        tcb_status=table.choices("tcb_status", TCB_STATUSES, default.tcb_status),
        advisories_allowed=table.texts("advisories_allowed", _MAX_LIST),
        min_tcb_evaluation=table.integer("min_tcb_evaluation", default=0, least=0, most=_MAX_INT),
        require_attributes=table.choices(
            "require_attributes", _TD_ATTRIBUTES, default.require_attributes
        ),
        forbid_attributes=table.choices(
            "forbid_attributes", _TD_ATTRIBUTES, default.forbid_attributes
        ),
    )
    if both := sorted({*rules.require_attributes} & {*rules.forbid_attributes}):
        raise table.error("forbid_attributes", f"{both[0]} is both required and forbidden")
    table.finish()
    return rules


def _sgx(table: Table) -> SgxRules:
    rules = SgxRules(
        tcb_status=table.choices("tcb_status", TCB_STATUSES, SgxRules().tcb_status),
        advisories_allowed=table.texts("advisories_allowed", _MAX_LIST),
        min_tcb_evaluation=table.integer("min_tcb_evaluation", default=0, least=0, most=_MAX_INT),
        mrenclave=table.hexadecimals("mrenclave", _DIGEST_BYTES, _DIGEST_BYTES, _MAX_LIST),
        mrsigner=table.hexadecimals("mrsigner", _DIGEST_BYTES, _DIGEST_BYTES, _MAX_LIST),
        isv_prod_id=table.integer("isv_prod_id", default=0, least=0, most=0xFFFF)
        if table.has("isv_prod_id")
        else None,
        min_isv_svn=table.integer("min_isv_svn", default=0, least=0, most=0xFFFF)
        if table.has("min_isv_svn")
        else None,
    )
    table.finish()
    return rules


def _snp(table: Table) -> SnpRules:
    rules = SnpRules(
        min_tcb=_versions(table.table("min_tcb")),
        min_committed_tcb=_versions(table.table("min_committed_tcb")),
        min_launch_tcb=_versions(table.table("min_launch_tcb")),
        max_vmpl=table.integer("max_vmpl", default=0, least=0, most=_MAX_VMPL),
        allow_migration=table.flag("allow_migration", default=False),
        allow_smt=table.flag("allow_smt", default=True),
        require_single_socket=table.flag("require_single_socket", default=False),
        products=table.choices("products", PRODUCTS),
        min_guest_svn=table.integer("min_guest_svn", default=0, least=0, most=0xFFFFFFFF)
        if table.has("min_guest_svn")
        else None,
        require_policy=table.choices("require_policy", tuple(POLICY_BITS)),
        require_platform=table.choices("require_platform", tuple(PLATFORM_BITS)),
        require_launch_mitigations=table.integers(
            "require_launch_mitigations", 0, _MAX_BIT, _MAX_LIST
        ),
        require_current_mitigations=table.integers(
            "require_current_mitigations", 0, _MAX_BIT, _MAX_LIST
        ),
    )
    table.finish()
    return rules


def _versions(table: Table) -> dict[str, int]:
    found = {
        component: table.integer(component, default=0, least=0, most=_MAX_SVN)
        for component in TCB_COMPONENTS
        if table.has(component)
    }
    table.finish(TCB_COMPONENTS)
    return found


def _tpm(table: Table) -> TpmRules:
    rules = TpmRules(
        require_safe_clock=table.flag("require_safe_clock", default=False),
        firmware=table.integers("firmware", 0, 2**64 - 1, _MAX_LIST),
        pcrs=table.integers("pcrs", 0, _MAX_PCR, _MAX_LIST),
    )
    table.finish()
    return rules


def _nvidia(table: Table) -> NvidiaRules:
    rules = NvidiaRules(
        required=table.flag("required", default=False),
        min_gpus=table.integer("min_gpus", default=1, least=1, most=MAX_COMPONENTS),
    )
    if table.has("min_gpus") and not rules.required:
        raise table.error("min_gpus", "is asked for only with required = true")
    table.finish()
    return rules
