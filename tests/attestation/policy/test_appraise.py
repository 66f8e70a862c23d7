"""Appraisal: what a policy likes, and that it likes nothing else."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from attestation.evidence import Claims, Tee
from attestation.policy.appraise import appraise as appraise_claims
from attestation.policy.model import (
    AppraisalPolicy,
    NvidiaRules,
    ReferenceValue,
    SgxRules,
    SnpRules,
    TdxRules,
    TpmRules,
)
from attestation.policy.result import AttestationResult, Finding, Tier

NOW = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
APP = hashlib.sha256(b"app").digest()
OTHER = hashlib.sha256(b"other").digest()
CHIP = b"\x01" * 16
LAUNCH: dict[Tee, dict[str, bytes]] = {
    Tee.TDX: {"mrtd": b"\x11" * 48, "rtmr1": b"\x12" * 48, "rtmr2": b"\x13" * 48},
    Tee.SGX: {"mrenclave": b"\x21" * 32},
    Tee.SNP: {"launch": b"\x31" * 48},
    Tee.TPM: {"pcr.0": b"\x41" * 32, "pcr.4": b"\x42" * 32, "pcr.9": b"\x43" * 32},
    Tee.AZURE_VTPM: {"launch": b"\x31" * 48, "pcr.4": b"\x42" * 32, "pcr.9": b"\x43" * 32},
    Tee.SAMPLE: {"software": b"\x51" * 32},
    Tee.NVIDIA: {},
}
"""What was started, in the evidence of these tests and in the policies that affirm it."""


def claims(tee: Tee = Tee.TPM, **changes: Any) -> Claims:
    attributes: dict[str, Any] = {}
    if tee in (Tee.TDX, Tee.SGX):
        attributes |= {"advisories": (), "tcb_evaluation": 17}
    if tee is Tee.TDX:
        attributes |= {"td.sept_ve_disable": True, "td.migratable": False}
    if tee in (Tee.SNP, Tee.AZURE_VTPM):
        attributes |= {
            "snp.vmpl": 0,
            "snp.policy.migration": False,
            "snp.policy.smt": True,
            "snp.policy.single_socket": False,
            "snp.product": "Milan",
            "snp.reported_tcb.microcode": 115,
            "snp.reported_tcb.snp": 8,
        }
    if tee in (Tee.TPM, Tee.AZURE_VTPM):
        attributes |= {"tpm.safe": True, "tpm.firmware": 0x20240001}
    measured = changes.pop("measurements", {"app": APP})
    base = Claims(
        tee=tee,
        measurements={**LAUNCH[tee], **measured},
        debug=False,
        tcb="UpToDate",
        hardware_id=CHIP,
        bound=True,
        attributes=attributes | changes.pop("attributes", {}),
    )
    return replace(base, **changes)


def policy(*tees: Tee, **changes: Any) -> AppraisalPolicy:
    named = changes.pop("references", (ReferenceValue(claim="app", value=APP, name="1.0"),))
    pinned = [
        ReferenceValue(claim=claim, value=value, tee=tee)
        for tee in tees or (Tee.TPM,)
        for claim, value in LAUNCH[tee].items()
    ]
    base = AppraisalPolicy(accept=tees or (Tee.TPM,), references=(*named, *pinned))
    return replace(base, **changes)


def referring(rules: AppraisalPolicy, *references: ReferenceValue) -> AppraisalPolicy:
    """Return a policy with more accepted values."""
    return replace(rules, references=(*rules.references, *references))


def appraise(rules: AppraisalPolicy, subject: Claims, **options: Any) -> AttestationResult:
    return appraise_claims(rules, subject, now=options.pop("now", NOW), **options)


def refused(result: AttestationResult, claim: str) -> Finding:
    assert result.status is not Tier.AFFIRMING
    [finding] = [item for item in result.refusals if item.claim == claim]
    assert finding.remedy
    return finding


@pytest.mark.parametrize("tee", [Tee.TDX, Tee.SGX, Tee.SNP, Tee.TPM, Tee.AZURE_VTPM])
def test_good_evidence_is_affirmed_and_every_check_states_it(tee: Tee) -> None:
    result = appraise(policy(tee), claims(tee), key=b"spki")
    assert result.status is Tier.AFFIRMING
    assert result.refusals == ()
    assert {"tee", "debug", "binding", "app"} <= {item.claim for item in result.findings}
    assert all(item.tier is Tier.AFFIRMING for item in result.findings)
    assert result.key_thumbprint == hashlib.sha256(b"spki").digest()
    assert result.policy == policy(tee).digest
    assert result.expires == NOW + timedelta(minutes=30)


def test_an_empty_policy_admits_nobody() -> None:
    for tee in Tee:
        result = appraise(AppraisalPolicy(), claims(tee))
        assert result.status is Tier.CONTRAINDICATED
        refused(result, "tee")


@pytest.mark.parametrize("tier", [Tier.NONE, Tier.WARNING, Tier.CONTRAINDICATED])
def test_findings_of_the_caller_count(tier: Tier) -> None:
    extra = Finding(claim="x", tier=tier, expected="", actual="", category="hardware")
    result = appraise(policy(), claims(), extra=(extra,))
    assert result.status is tier
    assert extra in result.refusals


def test_a_tee_that_is_not_accepted_is_refused() -> None:
    assert refused(appraise(policy(Tee.TDX), claims()), "tee").actual == "tpm"


def test_sample_evidence_needs_to_be_allowed_by_name() -> None:
    subject = claims(Tee.SAMPLE)
    refused(appraise(policy(Tee.SAMPLE), subject), "insecure_sample")
    allowed = policy(Tee.SAMPLE, insecure_sample=True)
    assert appraise(allowed, subject).status is Tier.AFFIRMING
    refused(appraise(policy(Tee.TPM, insecure_sample=True), subject), "tee")


def test_debug_needs_to_be_allowed_by_name() -> None:
    subject = claims(debug=True)
    refused(appraise(policy(), subject), "debug")
    assert appraise(policy(insecure_debug=True), subject).status is Tier.AFFIRMING


def test_unbound_claims_are_refused_unless_a_person_looks() -> None:
    subject = claims(bound=False)
    refused(appraise(policy(), subject), "binding")
    result = appraise(policy(), subject, require_binding=False)
    assert result.status is Tier.AFFIRMING
    assert result.refusals == ()
    [note] = [item for item in result.findings if item.tier is Tier.NONE]
    assert note.claim == "binding"


def test_only_a_verifier_that_states_it_has_compared_the_binding() -> None:
    silent = Claims(tee=Tee.TPM, measurements={}, debug=False, tcb="", hardware_id=CHIP)
    refused(appraise(policy(), silent), "binding")
    # No fact of the evidence is called so.
    refused(appraise(policy(), replace(silent, attributes={"bound": True})), "binding")


def test_an_absent_claim_is_not_a_match() -> None:
    assert refused(appraise(policy(), claims(measurements={})), "app").actual == "absent"


def test_another_value_is_not_a_match() -> None:
    finding = refused(appraise(policy(), claims(measurements={"app": OTHER})), "app")
    assert finding.tier is Tier.CONTRAINDICATED
    assert finding.actual == OTHER.hex()
    assert APP.hex() in finding.expected
    assert "1.0" in finding.expected


@pytest.mark.parametrize("value", [b"", APP[:-1], APP + b"\0"])
def test_a_prefix_or_extension_of_the_value_is_not_a_match(value: bytes) -> None:
    refused(appraise(policy(), claims(measurements={"app": value})), "app")


def test_a_claim_that_nobody_verified_is_not_a_match() -> None:
    finding = refused(appraise(policy(), claims(unverified=("app",))), "app")
    assert "not verified" in finding.actual
    required = appraise(policy(require=("app",)), claims(unverified=("app",)))
    refused(required, "require.app")


def test_a_rollout_accepts_the_old_and_the_new_value() -> None:
    rollout = referring(policy(), ReferenceValue(claim="app", value=OTHER, name="1.1"))
    for value in (APP, OTHER):
        assert appraise(rollout, claims(measurements={"app": value})).status is Tier.AFFIRMING
    third = hashlib.sha256(b"third").digest()
    finding = refused(appraise(rollout, claims(measurements={"app": third})), "app")
    assert "1.0" in finding.expected
    assert "1.1" in finding.expected


def test_a_value_counts_only_inside_of_its_window() -> None:
    start, end = NOW, NOW + timedelta(days=1)
    windowed = policy(
        references=(ReferenceValue(claim="app", value=APP, not_before=start, not_after=end),)
    )
    for moment in (start, end - timedelta(seconds=1)):
        assert appraise(windowed, claims(), now=moment).status is Tier.AFFIRMING
    for moment in (start - timedelta(seconds=1), end):
        finding = refused(appraise(windowed, claims(), now=moment), "app")
        assert finding.tier is Tier.WARNING


def test_a_value_for_one_tee_states_nothing_about_another() -> None:
    only = ReferenceValue(claim="app", value=APP, tee=Tee.TDX)
    both = policy(Tee.TPM, Tee.TDX, references=(only,))
    other = {"measurements": {"app": OTHER}}
    assert appraise(both, claims(Tee.TDX)).status is Tier.AFFIRMING
    refused(appraise(both, claims(Tee.TDX, **other)), "app")
    assert appraise(both, claims(Tee.TPM, **other)).status is Tier.AFFIRMING


def test_required_claims_must_be_there() -> None:
    asking = policy(require=("app", "job"))
    assert refused(appraise(asking, claims()), "require.job").actual == "absent"
    subject = claims(measurements={"app": APP, "job": OTHER})
    assert appraise(asking, subject).status is Tier.AFFIRMING


def test_hardware_must_be_listed_for_its_node() -> None:
    listed = policy(nodes={"site-a": {CHIP}, "site-b": {b"\x02" * 16}})
    assert appraise(listed, claims(), node="site-a").status is Tier.AFFIRMING
    for node in ("site-b", "site-c", "", None):
        refused(appraise(listed, claims(), node=node), "hardware_id")
    refused(appraise(listed, claims(hardware_id=b""), node="site-a"), "hardware_id")
    empty = policy(nodes={"site-a": {b""}})
    refused(appraise(empty, claims(hardware_id=b""), node="site-a"), "hardware_id")
    refused(appraise(policy(nodes={}), claims(), node="site-a"), "hardware_id")


def test_a_person_who_looks_may_leave_the_node_open() -> None:
    listed = policy(nodes={"site-a": {CHIP}})
    assert appraise(listed, claims(), require_binding=False).status is Tier.AFFIRMING
    stranger = claims(hardware_id=b"\x09" * 16)
    refused(appraise(listed, stranger, require_binding=False), "hardware_id")


def test_old_evidence_is_refused_where_the_policy_asks() -> None:
    asking = policy(max_age=timedelta(seconds=60))
    fresh = claims(attributes={"issued": int(NOW.timestamp()) - 60})
    assert appraise(asking, fresh).status is Tier.AFFIRMING
    refused(appraise(asking, claims(attributes={"issued": int(NOW.timestamp()) - 61})), "age")
    assert "absent" in refused(appraise(asking, claims()), "age").actual


def test_the_result_lives_as_long_as_the_stricter_side_states() -> None:
    short = policy(lifetime=timedelta(minutes=5))
    assert appraise(short, claims()).expires == NOW + timedelta(minutes=5)
    result = appraise(short, claims(), lifetime=timedelta(minutes=1))
    assert result.expires == NOW + timedelta(minutes=1)


TDX_REFUSALS: list[tuple[TdxRules, dict[str, Any], str]] = [
    (TdxRules(), {"tcb": "OutOfDate"}, "tcb_status"),
    (TdxRules(), {"tcb": ""}, "tcb_status"),
    (TdxRules(), {"unverified": ("tcb",)}, "tcb_status"),
    (TdxRules(tcb_status=()), {}, "tcb_status"),
    (TdxRules(), {"attributes": {"advisories": ("INTEL-SA-1",)}}, "advisories"),
    (
        TdxRules(advisories_allowed=("INTEL-SA-1",)),
        {"attributes": {"advisories": ("INTEL-SA-1", "INTEL-SA-2")}},
        "advisories",
    ),
    (TdxRules(min_tcb_evaluation=18), {}, "tcb_evaluation"),
    (TdxRules(min_tcb_evaluation=1), {"attributes": {"tcb_evaluation": True}}, "tcb_evaluation"),
    (TdxRules(), {"attributes": {"td.sept_ve_disable": False}}, "td.sept_ve_disable"),
    (TdxRules(), {"attributes": {"td.migratable": True}}, "td.migratable"),
    (TdxRules(forbid_attributes=("pks",)), {}, "td.pks"),
]


@pytest.mark.parametrize(("rules", "changes", "claim"), TDX_REFUSALS)
def test_tdx_minimums(rules: TdxRules, changes: dict[str, Any], claim: str) -> None:
    refused(appraise(policy(Tee.TDX, tdx=rules), claims(Tee.TDX, **changes)), claim)


def test_tdx_minimums_can_be_met() -> None:
    rules = TdxRules(
        tcb_status=("SWHardeningNeeded",), advisories_allowed=("A",), min_tcb_evaluation=17
    )
    subject = claims(Tee.TDX, tcb="SWHardeningNeeded", attributes={"advisories": ("A",)})
    assert appraise(policy(Tee.TDX, tdx=rules), subject).status is Tier.AFFIRMING


SNP_REFUSALS: list[tuple[SnpRules, dict[str, Any], str]] = [
    (SnpRules(), {"snp.vmpl": 1}, "snp.vmpl"),
    (SnpRules(max_vmpl=2), {"snp.vmpl": 3}, "snp.vmpl"),
    (SnpRules(), {"snp.vmpl": False}, "snp.vmpl"),
    (SnpRules(), {"snp.policy.migration": True}, "snp.policy.migration"),
    (SnpRules(allow_smt=False), {}, "snp.policy.smt"),
    (SnpRules(require_single_socket=True), {}, "snp.policy.single_socket"),
    (SnpRules(min_tcb={"microcode": 116}), {}, "snp.reported_tcb.microcode"),
    (SnpRules(min_tcb={"fmc": 0}), {}, "snp.reported_tcb.fmc"),
    (SnpRules(products=("Genoa", "Turin")), {}, "snp.product"),
    (SnpRules(min_guest_svn=3), {"snp.guest_svn": 2}, "snp.guest_svn"),
    (SnpRules(min_guest_svn=0), {}, "snp.guest_svn"),
]


@pytest.mark.parametrize("tee", [Tee.SNP, Tee.AZURE_VTPM])
@pytest.mark.parametrize(("rules", "attributes", "claim"), SNP_REFUSALS)
def test_snp_minimums(tee: Tee, rules: SnpRules, attributes: dict[str, Any], claim: str) -> None:
    subject = claims(tee, attributes=attributes)
    refused(appraise(policy(tee, snp=rules), subject), claim)


def test_snp_minimums_can_be_met() -> None:
    rules = SnpRules(
        min_tcb={"microcode": 115, "snp": 8}, max_vmpl=1, allow_migration=True, products=("Milan",)
    )
    rules = replace(rules, min_guest_svn=3)
    attributes = {"snp.vmpl": 1, "snp.policy.migration": True, "snp.guest_svn": 3}
    subject = claims(Tee.SNP, attributes=attributes)
    assert appraise(policy(Tee.SNP, snp=rules), subject).status is Tier.AFFIRMING


def test_claims_without_the_attributes_of_their_tee_are_refused() -> None:
    bare: dict[str, Any] = {}
    refused(appraise(policy(Tee.SNP), replace(claims(Tee.SNP), attributes=bare)), "snp.vmpl")
    for claim in ("td.migratable", "advisories"):
        refused(appraise(policy(Tee.TDX), replace(claims(Tee.TDX), attributes=bare)), claim)
    azure = replace(claims(Tee.AZURE_VTPM), attributes=bare)
    refused(appraise(policy(Tee.AZURE_VTPM), azure), "report")


def test_tpm_minimums() -> None:
    rules = TpmRules(require_safe_clock=True, firmware=(0x20240001,), pcrs=(7,))
    subject = claims(measurements={"app": APP, "pcr.7": OTHER})
    assert appraise(policy(tpm=rules), subject).status is Tier.AFFIRMING
    refused(appraise(policy(tpm=rules), claims()), "require.pcr.7")
    unsafe = replace(subject, attributes={**subject.attributes, "tpm.safe": False})
    refused(appraise(policy(tpm=rules), unsafe), "tpm.safe")
    old = replace(subject, attributes={**subject.attributes, "tpm.firmware": 1})
    refused(appraise(policy(tpm=rules), old), "tpm.firmware")


def test_sgx_minimums() -> None:
    rules = SgxRules(mrenclave=(OTHER,), mrsigner=(APP,), isv_prod_id=3, min_isv_svn=2)
    subject = claims(
        Tee.SGX,
        measurements={"mrenclave": OTHER, "mrsigner": APP},
        attributes={"sgx.isv_prod_id": 3, "sgx.isv_svn": 2},
    )
    asking = AppraisalPolicy(accept=(Tee.SGX,), sgx=rules)
    assert appraise(asking, subject).status is Tier.AFFIRMING
    for changes, claim in (
        ({"measurements": {"mrenclave": APP, "mrsigner": APP}}, "sgx.mrenclave"),
        ({"measurements": {"mrenclave": OTHER}}, "sgx.mrsigner"),
        ({"attributes": {**subject.attributes, "sgx.isv_svn": 1}}, "sgx.isv_svn"),
        ({"attributes": {**subject.attributes, "sgx.isv_prod_id": 4}}, "sgx.isv_prod_id"),
        ({"tcb": "Revoked"}, "tcb_status"),
    ):
        refused(appraise(asking, replace(subject, **changes)), claim)


def gpu(**changes: Any) -> Claims:
    return replace(
        Claims(
            tee=Tee.NVIDIA,
            measurements={"vbios": APP},
            debug=False,
            tcb="",
            hardware_id=b"gpu",
            bound=True,
        ),
        **changes,
    )


def test_a_required_gpu_must_be_there_and_verified() -> None:
    needing = policy(nvidia=NvidiaRules(required=True))
    refused(appraise(needing, claims(components=(gpu(),))), "nvidia.reference")
    needing = referring(needing, ReferenceValue(claim="vbios", value=APP, tee=Tee.NVIDIA))
    assert refused(appraise(needing, claims()), "nvidia").actual == "absent"
    unverified = claims(components=(gpu(unverified=("report",)),))
    assert "not verified" in refused(appraise(needing, unverified), "nvidia").actual
    two = claims(components=(gpu(), gpu(unverified=("report",))))
    refused(appraise(needing, two), "nvidia")
    switch = gpu(
        measurements={"nvswitch.vbios": APP},
        attributes={"nvidia.kind": "nvswitch"},
    )
    assert (
        "0, verified" in refused(appraise(needing, claims(components=(switch,))), "nvidia").actual
    )
    both = claims(components=(switch, gpu()))
    assert "NVSwitch" in refused(appraise(needing, both), "nvidia.reference").expected
    needing = referring(needing, ReferenceValue(claim="nvswitch.vbios", value=APP, tee=Tee.NVIDIA))
    assert appraise(needing, both).status is Tier.AFFIRMING
    more = replace(needing, nvidia=NvidiaRules(required=True, min_gpus=2))
    refused(appraise(more, both), "nvidia")
    assert appraise(more, claims(components=(gpu(), gpu()))).status is Tier.AFFIRMING
    assert appraise(needing, claims(components=(gpu(),))).status is Tier.AFFIRMING


def test_an_unverified_gpu_is_a_note_where_nobody_needs_it() -> None:
    result = appraise(policy(), claims(components=(gpu(unverified=("report",)),)))
    assert result.status is Tier.AFFIRMING
    assert [item.claim for item in result.findings if item.tier is Tier.NONE] == [
        "component[0].nvidia"
    ]


def test_a_component_is_appraised_by_its_own_reference_values() -> None:
    pinned = referring(
        policy(),
        ReferenceValue(claim="vbios", value=APP, tee=Tee.NVIDIA),
    )
    assert appraise(pinned, claims(components=(gpu(),))).status is Tier.AFFIRMING
    wrong = claims(components=(gpu(measurements={"vbios": OTHER}),))
    refused(appraise(pinned, wrong), "component[0].vbios")
    refused(appraise(policy(), claims(components=(gpu(debug=True),))), "component[0].debug")


def test_reference_values_of_a_component_do_not_stand_in_for_the_environment() -> None:
    only_gpu = AppraisalPolicy(
        accept=(Tee.TPM,), references=(ReferenceValue(claim="vbios", value=APP, tee=Tee.NVIDIA),)
    )
    refused(appraise(only_gpu, claims(components=(gpu(),))), "launch_identity")


def test_an_event_states_nothing_about_a_gpu() -> None:
    event = ReferenceValue(claim="event", value=APP, tee=Tee.NVIDIA)
    needing = referring(policy(nvidia=NvidiaRules(required=True)), event)
    refused(appraise(needing, claims(components=(gpu(),))), "nvidia.reference")


def test_a_claim_of_gpus_that_is_required_is_shown_by_each() -> None:
    asking = policy(require=("nvidia.rim",))
    checked = gpu(measurements={"nvidia.rim": APP})
    assert appraise(asking, claims(components=(checked, checked))).status is Tier.AFFIRMING
    for components in ((), (checked, gpu()), (replace(checked, unverified=("nvidia.rim",)),)):
        assert appraise(asking, claims(components=components)).status is Tier.CONTRAINDICATED


def test_a_naive_time_is_a_fault_of_the_caller() -> None:
    with pytest.raises(ValueError, match="aware"):
        appraise(policy(), claims(), now=datetime(2026, 3, 1))  # noqa: DTZ001
