# ruff: noqa: RUF009 (an option is a field specifier; each makes a new field)
"""Appraisal policies, as data: which genuine evidence a relying party accepts.

The default is to refuse. An absent or unverified claim never matches, and a policy admits no
evidence whose launch identity it does not pin (:mod:`attestation.policy.launch`).
Terms are those of RFC 9334; :mod:`attestation.policy.appraise` applies a policy,
:mod:`attestation.policy.parse` reads one from TOML.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from functools import cached_property
from types import MappingProxyType
from typing import Any, Final, cast

from attestation.config import (
    FieldType,
    InconsistentValues,
    ReadContext,
    choice,
    each,
    flag,
    hexadecimal,
    line,
    mapped,
    matching,
    model_at,
    octets,
    option,
    seq,
    sorted_set,
    table,
    tables,
    timestamp,
    to_plain,
    whole,
)
from attestation.config.toml import MAX_TOML_BYTES, Path
from attestation.errors import PolicyError
from attestation.evidence import MAX_COMPONENTS, Tee
from attestation.quotes.snp import PLATFORM_BITS, POLICY_BITS, PRODUCTS, TCB_COMPONENTS
from attestation.quotes.tdx import TD_ATTRIBUTES
from attestation.trust import TrustAnchors

__all__ = [
    "CLAIM_NAME",
    "CONTAINER_SERVER",
    "EVENT",
    "DEFAULT_LIFETIME",
    "MAX_POLICY_BYTES",
    "MAX_VALUE_BYTES",
    "TCB_STATUSES",
    "AppraisalPolicy",
    "NvidiaRules",
    "ReferenceValue",
    "SgxRules",
    "SnpRules",
    "TdxRules",
    "TpmRules",
]

MAX_POLICY_BYTES: Final = MAX_TOML_BYTES
"""Upper bound of a policy file, checked before it is parsed."""

CLAIM_NAME: Final = re.compile(r"[a-z][A-Za-z0-9_.:/@-]{0,127}")
"""The names that a claim may have in a policy."""

TCB_STATUSES: Final = (
    "UpToDate",
    "SWHardeningNeeded",
    "ConfigurationNeeded",
    "ConfigurationAndSWHardeningNeeded",
    "OutOfDate",
    "OutOfDateConfigurationNeeded",
    "TDRelaunchAdvised",
    "TDRelaunchAdvisedConfigurationNeeded",
)
"""TCB statuses of Intel that a policy may accept. ``Revoked`` is not one of them."""

CONTAINER_SERVER: Final = "container.server"
"""The claim that a container server is measured; see :meth:`AppraisalPolicy.anchors_for`."""

EVENT: Final = "event"
"""The claim of a reference value that requires nothing: a digest that a log may have."""

DEFAULT_LIFETIME: Final = timedelta(minutes=30)
"""How long a result may be relied upon, unless the policy or the caller sets a shorter time."""

MAX_VALUE_BYTES: Final = 64
"""Upper bound of a reference value and of a hardware identity."""

_DOMAIN: Final = b"fedlearn-policy/1\0"
_NODE: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,62}")
_MAX_LIST: Final = 1024
_MAX_REFERENCES: Final = 4096
_MAX_NODES: Final = 200_000
_MAX_INT: Final = 2**63 - 1


def _claim() -> FieldType[str]:
    return matching(CLAIM_NAME, 'a claim name such as "mrtd" or "pcr.14"')


def _tee() -> FieldType[Tee]:
    return mapped(choice(*Tee), Tee)


def _choices(*values: str) -> FieldType[tuple[str, ...]]:
    return sorted_set(choice(*values), most=_MAX_LIST)


def _advisories() -> FieldType[tuple[str, ...]]:
    return sorted_set(line(most=128), most=_MAX_LIST)


def _digests() -> FieldType[tuple[bytes, ...]]:
    return sorted_set(hexadecimal(32), most=_MAX_LIST)


def _bits(most: int) -> FieldType[tuple[int, ...]]:
    return sorted_set(whole(0, most), most=_MAX_LIST)


def _seconds(most: int) -> FieldType[timedelta]:
    return mapped(whole(1, most), lambda value: timedelta(seconds=value))


def _versions() -> FieldType[Mapping[str, int]]:
    return each(whole(0, 255), key=tuple(TCB_COMPONENTS))


@dataclass(frozen=True, slots=True, kw_only=True)
class ReferenceValue:
    """A value that a claim may have, from ``not_before`` up to and without ``not_after``.

    Several values for one claim are alternatives, so that a rollout accepts the old and
    the new.

    ``claim``       what is compared; ``event`` demands nothing, and names a digest of a log
    ``value``       what it may be
    ``name``        what people call the value
    ``not_before``  when the value starts to count; from the first by default
    ``not_after``   when it no longer counts; never by default
    ``tee``         the kind of evidence that the value is for; every kind by default
    """

    claim: str = option(_claim())
    value: bytes = option(octets(1, MAX_VALUE_BYTES))
    name: str = option(line(most=128), default="")
    not_before: datetime | None = option(timestamp(), default=None)
    not_after: datetime | None = option(timestamp(), default=None)
    tee: Tee | None = option(_tee(), default=None)

    def __post_init__(self) -> None:
        start, end = self.not_before, self.not_after
        if start is not None and end is not None and start >= end:
            fault = "is not after not_before, so the value never counts"
            raise InconsistentValues((("not_after",), fault))

    def valid_at(self, now: datetime) -> bool:
        """Return whether the value counts at ``now``."""
        if self.not_before is not None and now < self.not_before:
            return False
        return self.not_after is None or now < self.not_after


@dataclass(frozen=True, slots=True, kw_only=True)
class TdxRules:
    """Minimums for Intel TDX.

    ``tcb_status``          accepted TCB statuses, in Intel's words
    ``advisories_allowed``  advisory ids that may be open on the platform
    ``min_tcb_evaluation``  smallest ``tcbEvaluationDataNumber`` of the collateral
    ``require_attributes``  TD attributes that must be set, without their ``td.``
    ``forbid_attributes``   TD attributes that must not be set
    """

    tcb_status: tuple[str, ...] = option(_choices(*TCB_STATUSES), default=("UpToDate",))
    advisories_allowed: tuple[str, ...] = option(_advisories(), default=())
    min_tcb_evaluation: int = option(whole(0, _MAX_INT), default=0)
    require_attributes: tuple[str, ...] = option(
        _choices(*TD_ATTRIBUTES), default=("sept_ve_disable",)
    )
    forbid_attributes: tuple[str, ...] = option(_choices(*TD_ATTRIBUTES), default=("migratable",))

    def __post_init__(self) -> None:
        if both := sorted({*self.require_attributes} & {*self.forbid_attributes}):
            fault = f"{both[0]} is both required and forbidden"
            raise InconsistentValues((("forbid_attributes",), fault))


@dataclass(frozen=True, slots=True, kw_only=True)
class SgxRules:
    """Minimums for Intel SGX.

    ``tcb_status``          accepted TCB statuses, in Intel's words
    ``advisories_allowed``  advisory ids that may be open on the platform
    ``min_tcb_evaluation``  smallest ``tcbEvaluationDataNumber`` of the collateral
    ``mrenclave``           accepted enclaves; empty accepts any
    ``mrsigner``            accepted signers of enclaves; empty accepts any
    ``isv_prod_id``         the signer's number of the product; not asked by default
    ``min_isv_svn``         smallest security version of the product; not asked by default
    """

    tcb_status: tuple[str, ...] = option(_choices(*TCB_STATUSES), default=("UpToDate",))
    advisories_allowed: tuple[str, ...] = option(_advisories(), default=())
    min_tcb_evaluation: int = option(whole(0, _MAX_INT), default=0)
    mrenclave: tuple[bytes, ...] = option(_digests(), default=())
    mrsigner: tuple[bytes, ...] = option(_digests(), default=())
    isv_prod_id: int | None = option(whole(0, 0xFFFF), default=None)
    min_isv_svn: int | None = option(whole(0, 0xFFFF), default=None)


@dataclass(frozen=True, slots=True, kw_only=True)
class SnpRules:
    """Minimums for AMD SEV-SNP, for a report alone or inside Azure's composite.

    ``min_tcb``            smallest reported security version of each component that is named
    ``min_committed_tcb``  the same of the TCB that the platform cannot go back behind
    ``min_launch_tcb``     the same of the TCB with which the guest was launched
    ``max_vmpl``           highest VM privilege level number that a report may be made at
    ``allow_migration``    whether a migration agent may move the guest
    ``allow_smt``          whether the guest may run where SMT is enabled
    ``require_single_socket``
                           whether the guest must be limited to one socket
    ``products``           accepted products (``Milan``, ``Genoa``, ``Turin``); empty accepts all
    ``min_guest_svn``      smallest GUEST_SVN, which the holder of the id key signs; not asked
                           by default
    ``require_policy``     bits of the guest policy that must be set
    ``require_platform``   bits of PLATFORM_INFO that must be set
    ``require_launch_mitigations``, ``require_current_mitigations``
                           numbers of the bits that must be set in LAUNCH_MIT_VECTOR and
                           CURRENT_MIT_VECTOR; a report before version 5 has neither and is
                           refused
    """

    min_tcb: Mapping[str, int] = option(_versions(), factory=dict)
    min_committed_tcb: Mapping[str, int] = option(_versions(), factory=dict)
    min_launch_tcb: Mapping[str, int] = option(_versions(), factory=dict)
    max_vmpl: int = option(whole(0, 3), default=0)
    allow_migration: bool = option(flag(), default=False)
    allow_smt: bool = option(flag(), default=True)
    require_single_socket: bool = option(flag(), default=False)
    products: tuple[str, ...] = option(_choices(*PRODUCTS), default=())
    min_guest_svn: int | None = option(whole(0, 0xFFFFFFFF), default=None)
    require_policy: tuple[str, ...] = option(_choices(*POLICY_BITS), default=())
    require_platform: tuple[str, ...] = option(_choices(*PLATFORM_BITS), default=())
    require_launch_mitigations: tuple[int, ...] = option(_bits(63), default=())
    require_current_mitigations: tuple[int, ...] = option(_bits(63), default=())

    def __post_init__(self) -> None:
        for name in ("min_tcb", "min_committed_tcb", "min_launch_tcb"):
            object.__setattr__(self, name, MappingProxyType(dict(getattr(self, name))))


@dataclass(frozen=True, slots=True, kw_only=True)
class TpmRules:
    """Minimums for a TPM, for a quote alone or inside Azure's composite.

    ``require_safe_clock``  the TPM reports that its clock never ran backwards (TPM 2.0,
                            part 2, ``TPMS_CLOCK_INFO.safe``)
    ``firmware``            accepted ``firmwareVersion`` values; empty accepts any
    ``pcrs``                registers that the quote must cover, of any bank but SHA-1
    """

    require_safe_clock: bool = option(flag(), default=False)
    firmware: tuple[int, ...] = option(_bits(2**64 - 1), default=())
    pcrs: tuple[int, ...] = option(_bits(23), default=())


@dataclass(frozen=True, slots=True, kw_only=True)
class NvidiaRules:
    """What is demanded of GPUs. An NVSwitch is no GPU; where it is there, it must be verified.

    ``required``  refuse evidence with fewer than ``min_gpus`` GPUs, or one not verified; there must
                  be a reference value for the GPU, or ``nvidia.rim`` in ``require``
    ``min_gpus``  how many GPUs there must be; only with ``required``
    """

    required: bool = option(flag(), default=False)
    min_gpus: int = option(whole(1, MAX_COMPONENTS), default=1)


def _nvidia() -> FieldType[NvidiaRules]:
    rules = table(NvidiaRules)

    def convert(value: object, path: Path, context: ReadContext) -> NvidiaRules:
        found = rules.convert(value, path, context)
        if isinstance(value, dict) and "min_gpus" in value and not value.get("required"):
            context.add((*path, "min_gpus"), "is asked for only with required = true")
        return found

    return replace(rules, convert=convert)


def _coordinator() -> FieldType[AppraisalPolicy]:
    def convert(value: object, path: Path, context: ReadContext) -> AppraisalPolicy:
        found = model_at(AppraisalPolicy, value, path, context, without=("coordinator",))
        return cast("AppraisalPolicy", found)

    return FieldType("a table with the keys of a policy", convert)


@dataclass(frozen=True, kw_only=True)
class AppraisalPolicy:
    """Which claims are good enough, for one relying party.

    ``version``      the operator's number of this policy; grows with every change
    ``name``         what people call the policy
    ``accept``       kinds of evidence; empty admits nobody
    ``insecure_sample``
                     whether sample evidence counts, which proves nothing about hardware
    ``insecure_debug``
                     whether environments count that their host can look into
    ``require``      claims that must be present and verified, such as event log claims
    ``nodes``        hardware identities that each node may run on; not asked by default
    ``lifetime``     longest time that a result may be relied upon
    ``max_age``      oldest evidence that counts, where evidence carries a time
    ``coordinator``  what clients demand of the coordinator; nothing by default
    """

    version: int = option(whole(1, _MAX_INT), default=1)
    name: str = option(line(most=128), default="unnamed")
    accept: tuple[Tee, ...] = option(sorted_set(_tee(), most=_MAX_LIST), default=())
    insecure_sample: bool = option(flag(), default=False)
    insecure_debug: bool = option(flag(), default=False)
    references: tuple[ReferenceValue, ...] = option(
        tables(ReferenceValue, most=_MAX_REFERENCES), default=(), key="reference"
    )
    require: tuple[str, ...] = option(
        sorted_set(_claim(), most=_MAX_LIST), default=(), key="require.claims"
    )
    nodes: Mapping[str, frozenset[bytes]] | None = option(
        each(
            mapped(seq(octets(1, MAX_VALUE_BYTES), most=_MAX_LIST), frozenset),
            key=_NODE,
            what="a node name: letters, digits, '-', '_' and '.'",
            most=_MAX_NODES,
        ),
        default=None,
    )
    lifetime: timedelta = option(
        _seconds(int(DEFAULT_LIFETIME.total_seconds())),
        default=DEFAULT_LIFETIME,
        key="freshness.lifetime_s",
    )
    max_age: timedelta | None = option(_seconds(10**9), default=None, key="freshness.max_age_s")
    tdx: TdxRules = option(table(TdxRules), factory=TdxRules)
    sgx: SgxRules = option(table(SgxRules), factory=SgxRules)
    snp: SnpRules = option(table(SnpRules), factory=SnpRules)
    tpm: TpmRules = option(table(TpmRules), factory=TpmRules)
    nvidia: NvidiaRules = option(_nvidia(), factory=NvidiaRules)
    coordinator: AppraisalPolicy | None = option(_coordinator(), default=None)

    def __post_init__(self) -> None:
        if self.nodes is not None:
            frozen = {node: frozenset(ids) for node, ids in self.nodes.items()}
            object.__setattr__(self, "nodes", MappingProxyType(frozen))
        if self.coordinator is not None and self.coordinator.coordinator is not None:
            raise PolicyError("the coordinator's policy has no coordinator of its own")

    def to_json(self) -> dict[str, Any]:
        """Return the policy as JSON-ready values, defaults spelled out."""
        values: dict[str, Any] = to_plain(self)
        return values

    @cached_property
    def digest(self) -> bytes:
        """The SHA-256 (32 bytes) of what the policy means.

        It is computed over canonical JSON with every default spelled out, so that comments and
        the order of keys do not change it, but a changed default does.
        """
        canonical = json.dumps(self.to_json(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(_DOMAIN + canonical.encode()).digest()

    def anchors_for(self, trust: TrustAnchors, *, tee: Tee, now: datetime) -> TrustAnchors:
        """Return ``trust`` with the digests of log events that this policy's references name.

        A caller that verifies evidence of ``tee`` for this policy passes the result to
        :func:`attestation.verifiers.verify`. Values outside of their window, and those that are
        limited to another TEE, are left out.

        * References for ``container.server`` are digests of events that measure a trusted
          container server. Registers of containers count only under such a server.
        * Every reference value is a digest that a log may have. When a log does not replay, the
          error names the first event that has none of them. ``event`` names digests for this, and
          for a launch that log events identify (:mod:`attestation.policy.launch`).
        """
        current = [
            item for item in self.references if item.valid_at(now) and item.tee in (None, tee)
        ]
        if not current:
            return trust
        servers = {item.value for item in current if item.claim == CONTAINER_SERVER}
        return replace(
            trust,
            container_servers=trust.container_servers | servers,
            known_events=trust.known_events | {item.value for item in current},
        )
