"""Appraisal policies, as data: which genuine evidence somebody is willing to rely on.

Distrust is the default. An absent claim is not a match, a claim that nobody verified is not
a match, and a policy admits nobody whose launch identity it does not pin
(:mod:`attestation.policy.launch`).
Terms are those of RFC 9334; :mod:`attestation.policy.appraise` applies a policy,
:mod:`attestation.policy.parse` reads one from TOML.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from datetime import datetime, timedelta
from types import MappingProxyType
from typing import Any, Final

from attestation.config.toml import MAX_TOML_BYTES
from attestation.errors import PolicyError
from attestation.evidence import Tee
from attestation.trust import TrustAnchors

__all__ = [
    "CLAIM_NAME",
    "CONTAINER_SERVER",
    "EVENT",
    "DEFAULT_LIFETIME",
    "MAX_POLICY_BYTES",
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
"""What a claim may be called in a policy."""

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
"""What a reference value is called that demands nothing: a digest that may stand in a log."""

DEFAULT_LIFETIME: Final = timedelta(minutes=30)
"""How long a result may be relied upon, unless the policy or the caller says less."""

_DOMAIN: Final = b"fedlearn-policy/1\0"


@dataclass(frozen=True, slots=True, kw_only=True)
class ReferenceValue:
    """A value that a claim may have, from ``not_before`` up to and without ``not_after``.

    Several values for one claim are alternatives, so that a rollout accepts the old and
    the new. ``tee`` limits the value to one kind of evidence; ``None`` applies to all.
    """

    claim: str
    value: bytes
    name: str = ""
    not_before: datetime | None = None
    not_after: datetime | None = None
    tee: Tee | None = None

    def valid_at(self, now: datetime) -> bool:
        """Say whether the value counts at ``now``."""
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

    tcb_status: tuple[str, ...] = ("UpToDate",)
    advisories_allowed: tuple[str, ...] = ()
    min_tcb_evaluation: int = 0
    require_attributes: tuple[str, ...] = ("sept_ve_disable",)
    forbid_attributes: tuple[str, ...] = ("migratable",)


@dataclass(frozen=True, slots=True, kw_only=True)
class SgxRules:
    """Minimums for Intel SGX; an empty list of enclaves or signers accepts any.

    ``isv_prod_id``, ``min_isv_svn``  ``None`` does not ask
    """

    tcb_status: tuple[str, ...] = ("UpToDate",)
    advisories_allowed: tuple[str, ...] = ()
    min_tcb_evaluation: int = 0
    mrenclave: tuple[bytes, ...] = ()
    mrsigner: tuple[bytes, ...] = ()
    isv_prod_id: int | None = None
    min_isv_svn: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SnpRules:
    """Minimums for AMD SEV-SNP, for a report alone or inside Azure's composite.

    ``min_tcb``            smallest reported security version of each component that is named
    ``min_committed_tcb``  the same of the TCB that the platform cannot go back behind
    ``min_launch_tcb``     the same of the TCB with which the guest was launched
    ``products``           accepted products (``Milan``, ``Genoa``, ``Turin``); empty accepts all
    ``min_guest_svn``      smallest GUEST_SVN, which the holder of the id key signs; ``None`` does
                           not ask
    ``require_policy``     bits of the guest policy that must be set
    ``require_platform``   bits of PLATFORM_INFO that must be set
    ``require_launch_mitigations``, ``require_current_mitigations``
                           numbers of the bits that must be set in LAUNCH_MIT_VECTOR and
                           CURRENT_MIT_VECTOR, which reports have from version 5 on
    """

    min_tcb: Mapping[str, int] = field(default_factory=dict)
    min_committed_tcb: Mapping[str, int] = field(default_factory=dict)
    min_launch_tcb: Mapping[str, int] = field(default_factory=dict)
    max_vmpl: int = 0
    allow_migration: bool = False
    allow_smt: bool = True
    require_single_socket: bool = False
    products: tuple[str, ...] = ()
    min_guest_svn: int | None = None
    require_policy: tuple[str, ...] = ()
    require_platform: tuple[str, ...] = ()
    require_launch_mitigations: tuple[int, ...] = ()
    require_current_mitigations: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        for name in ("min_tcb", "min_committed_tcb", "min_launch_tcb"):
            object.__setattr__(self, name, MappingProxyType(dict(getattr(self, name))))


@dataclass(frozen=True, slots=True, kw_only=True)
class TpmRules:
    """Minimums for a TPM, for a quote alone or inside Azure's composite.

    ``require_safe_clock``  the TPM says that its clock never ran backwards (TPM 2.0,
                            part 2, ``TPMS_CLOCK_INFO.safe``)
    ``firmware``            accepted ``firmwareVersion`` values; empty accepts any
    ``pcrs``                registers that the quote must cover
    """

    require_safe_clock: bool = False
    firmware: tuple[int, ...] = ()
    pcrs: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class NvidiaRules:
    """``required`` refuses evidence with fewer than ``min_gpus`` GPUs, or one not verified.

    An NVSwitch is no GPU; it has to be verified like one where it is there.
    """

    required: bool = False
    min_gpus: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class AppraisalPolicy:
    """Which claims are good enough, for one relying party.

    ``version``      the operator's number of this policy; grows with every change
    ``accept``       kinds of evidence; empty admits nobody
    ``require``      claims that must be present and verified, such as event log claims
    ``nodes``        hardware identities that each node may run on; ``None`` does not ask
    ``lifetime``     longest time that a result may be relied upon
    ``max_age``      oldest evidence that counts, where evidence carries a time
    ``coordinator``  what clients demand of the coordinator; ``None`` where nothing is said
    """

    version: int = 1
    name: str = "unnamed"
    accept: tuple[Tee, ...] = ()
    insecure_sample: bool = False
    insecure_debug: bool = False
    references: tuple[ReferenceValue, ...] = ()
    require: tuple[str, ...] = ()
    nodes: Mapping[str, frozenset[bytes]] | None = None
    lifetime: timedelta = DEFAULT_LIFETIME
    max_age: timedelta | None = None
    tdx: TdxRules = field(default_factory=TdxRules)
    sgx: SgxRules = field(default_factory=SgxRules)
    snp: SnpRules = field(default_factory=SnpRules)
    tpm: TpmRules = field(default_factory=TpmRules)
    nvidia: NvidiaRules = field(default_factory=NvidiaRules)
    coordinator: AppraisalPolicy | None = None

    def __post_init__(self) -> None:
        if self.nodes is not None:
            frozen = {node: frozenset(ids) for node, ids in self.nodes.items()}
            object.__setattr__(self, "nodes", MappingProxyType(frozen))
        if self.coordinator is not None and self.coordinator.coordinator is not None:
            raise PolicyError("the coordinator's policy has no coordinator of its own")

    def to_json(self) -> dict[str, Any]:
        """Return the policy as JSON-ready values, defaults spelled out."""
        return {item.name: _plain(getattr(self, item.name)) for item in fields(self)}

    @property
    def digest(self) -> bytes:
        """The SHA-256 (32 bytes) of what the policy means.

        It is taken over canonical JSON with every default spelled out, so that comments and
        the order of keys do not change it, and a changed default does.
        """
        canonical = json.dumps(self.to_json(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(_DOMAIN + canonical.encode()).digest()

    def with_references(self, *references: ReferenceValue) -> AppraisalPolicy:
        """Return this policy with more accepted values; its digest changes with it."""
        return replace(self, references=(*self.references, *references))

    def anchors_for(self, trust: TrustAnchors, *, tee: Tee, now: datetime) -> TrustAnchors:
        """Return ``trust`` with what this policy's reference values say about event logs.

        Whoever verifies evidence of ``tee`` for this policy passes the result to
        :func:`attestation.verifiers.verify`. Values outside of their window do not count, nor
        do those that are limited to another TEE.

        * References for ``container.server`` are digests of events that measure a server
          whose containers' registers may be believed. No other server's are.
        * Every reference value is a digest that a log may have; where a log does not replay,
          the error points at the first event that has none of them. ``event`` names digests
          for this, and for a launch that log events identify (:mod:`attestation.policy.launch`).
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


def _plain(value: object) -> Any:
    match value:
        case bytes():
            return value.hex()
        case datetime():
            return int(value.timestamp())
        case timedelta():
            return int(value.total_seconds())
        case Mapping():
            return {str(key): _plain(item) for key, item in value.items()}
        case frozenset():
            return sorted(_plain(item) for item in value)
        case tuple():
            return [_plain(item) for item in value]
        case Tee():
            return value.value
        case (
            ReferenceValue()
            | TdxRules()
            | SgxRules()
            | SnpRules()
            | TpmRules()
            | NvidiaRules()
            | AppraisalPolicy()
        ):
            return {item.name: _plain(getattr(value, item.name)) for item in fields(value)}
        case _:
            return value
