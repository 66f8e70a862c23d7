"""Drafted policies: they affirm what they were drafted from, and never more than is safe."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest

from attestation.evidence import Claims, Tee
from attestation.policy.appraise import appraise
from attestation.policy.draft import Draft, draft_policy
from attestation.policy.lint import lint_policy
from attestation.policy.model import AppraisalPolicy
from attestation.policy.parse import parse_policy
from attestation.policy.result import Tier

NOW = datetime(2026, 3, 1, tzinfo=UTC)
CLAIMS = Claims(
    tee=Tee.TDX,
    measurements={
        "boot.10": b"\x02" * 48,
        "boot.2": b"\x05" * 48,
        "mrtd": b"\x01" * 48,
        "rtmr1": b"\x06" * 48,
        "rtmr2": b"\x03" * 48,
    },
    debug=False,
    tcb="UpToDate",
    hardware_id=b"\x04" * 16,
    bound=True,
    attributes={
        "advisories": (),
        "tcb_evaluation": 17,
        "td.sept_ve_disable": True,
        "td.migratable": False,
    },
)
REGISTERS = {name: CLAIMS.measurements[name] for name in ("mrtd", "rtmr1", "rtmr2")}
LAUNCHED: dict[str, Any] = {"tee": Tee.SNP, "measurements": {"launch": b"\x07" * 48}}
SNP: dict[str, Any] = {
    "snp.vmpl": 0,
    "snp.policy.migration": False,
    "snp.policy.smt": True,
    "snp.policy.single_socket": False,
    "snp.product": "Milan",
    "snp.reported_tcb.bootloader": 3,
    "snp.reported_tcb.microcode": 115,
}


def draft(claims: Claims, **options: str) -> tuple[Draft, AppraisalPolicy]:
    made = draft_policy(claims, source="quote.bin", now=NOW, **options)
    return made, parse_policy(made.text.encode())


def affirms(claims: Claims) -> Draft:
    made, policy = draft(claims)
    result = appraise(policy, claims, now=NOW)
    assert result.status is Tier.AFFIRMING, result.refusals
    return made


def test_what_is_as_it_should_be_is_pinned_without_a_note() -> None:
    made = affirms(CLAIMS)
    assert made.notes == ()
    assert made.text.index('"boot.2"') < made.text.index('"boot.10"')
    assert "# [nodes]" in made.text


@pytest.mark.parametrize(
    ("changes", "attributes", "note"),
    [
        ({"tcb": "OutOfDate"}, {}, "OutOfDate"),
        ({}, {"advisories": ("INTEL-SA-1",)}, "INTEL-SA-1"),
        ({}, {"td.sept_ve_disable": False}, "sept_ve_disable"),
        ({}, {"td.migratable": True}, "migratable"),
        (LAUNCHED, {**SNP, "snp.vmpl": 1}, "VMPL 1"),
        (LAUNCHED, {**SNP, "snp.policy.migration": True}, "migrated"),
        ({**LAUNCHED, "tee": Tee.SAMPLE}, {}, "proves nothing"),
        ({"unverified": ("boot.2",)}, {}, "boot.2"),
        ({"tee": Tee.TPM, "measurements": {"pcr.0": bytes(32)}}, {}, "nothing measured"),
    ],
)
def test_what_is_weaker_than_the_default_is_accepted_and_reported(
    changes: dict[str, Any], attributes: dict[str, Any], note: str
) -> None:
    claims = replace(CLAIMS, attributes={**CLAIMS.attributes, **attributes}, **changes)
    assert any(note in item for item in affirms(claims).notes)


@pytest.mark.parametrize(
    ("changes", "note"),
    [
        ({"debug": True}, "debug"),
        ({"tcb": "unknown", "unverified": ("tcb",)}, "not known"),
        ({"tcb": "Revoked"}, "Revoked"),
        ({"unverified": ("rtmr2",)}, "rtmr2"),
        ({"measurements": {**REGISTERS, "rtmr1": bytes(48)}}, "nothing pins the kernel"),
        ({"tee": Tee.NVIDIA}, "cannot be accepted alone"),
    ],
)
def test_what_no_policy_should_accept_stays_refused(changes: dict[str, Any], note: str) -> None:
    claims = replace(CLAIMS, **changes)
    made, policy = draft(claims)
    assert any(note in item for item in made.notes)
    assert appraise(policy, claims, now=NOW).status is not Tier.AFFIRMING


def test_components_are_pinned_by_their_kind() -> None:
    gpu = Claims(
        tee=Tee.NVIDIA,
        measurements={"measurement.2": b"\x05" * 48},
        debug=False,
        tcb="",
        hardware_id=b"gpu",
        bound=True,
    )
    claims = replace(CLAIMS, components=(gpu,))
    affirms(claims)
    other = replace(gpu, measurements={"measurement.2": b"\x06" * 48})
    _, policy = draft(claims)
    for components in ((other,), (), (gpu, other), (replace(gpu, unverified=("report",)),)):
        changed = replace(claims, components=components)
        assert appraise(policy, changed, now=NOW).status is not Tier.AFFIRMING
    twice = draft(replace(claims, components=(gpu, gpu)))[1]
    assert twice.references == policy.references
    assert (policy.nvidia.min_gpus, twice.nvidia.min_gpus) == (1, 2)
    assert appraise(twice, claims, now=NOW).status is not Tier.AFFIRMING


def test_what_no_policy_can_require_of_others_is_reported() -> None:
    other = Claims(
        tee=Tee.TPM, measurements={}, debug=False, tcb="", hardware_id=b"t", attributes={}
    )
    unverified = replace(other, tee=Tee.NVIDIA, unverified=("report",))
    made = affirms(replace(CLAIMS, components=(other, unverified)))
    assert [note.split(":")[0] for note in made.notes] == [
        "a GPU was not verified, so the policy requires none",
        "no policy can require a component of tpm",
    ]


def test_a_machine_that_is_patched_is_still_affirmed() -> None:
    old = replace(CLAIMS, tcb="OutOfDate")
    _, policy = draft(old)
    assert set(policy.tdx.tcb_status) == {"UpToDate", "OutOfDate"}
    for claims in (old, CLAIMS):
        assert appraise(policy, claims, now=NOW).status is Tier.AFFIRMING
    worse = replace(CLAIMS, tcb="OutOfDateConfigurationNeeded")
    assert appraise(policy, worse, now=NOW).status is Tier.CONTRAINDICATED


def test_names_cannot_break_out_of_their_line() -> None:
    hostile = {"app": b"\x01", "x\ny": b"\x02", 'z"': b"\x03", "empty": b"", "long": bytes(65)}
    made, policy = draft(replace(CLAIMS, measurements=hostile), name='a"b', node="site-a")
    assert [item.claim for item in policy.references] == ["app"]
    assert "nothing pins" in made.notes[-1]
    assert policy.name == 'a"b'
    assert policy.nodes == {"site-a": frozenset({b"\x04" * 16})}
    assert len(made.notes) == 5
    text = draft_policy(CLAIMS, source="a\naccept = []", now=NOW).text
    assert parse_policy(text.encode()).accept == (Tee.TDX,)


def test_lint_finds_what_may_not_be_meant() -> None:
    text = b"""
accept = ["tdx", "sgx", "snp", "sample"]
insecure_debug = true
[[reference]]
claim = "app"
value = "00"
tee = "tpm"
not_after = 2026-02-01T00:00:00Z
[[reference]]
claim = "mrtd"
value = "00"
tee = "tdx"
not_after = 2026-03-05T00:00:00Z
[nodes]
a = []
[tdx]
tcb_status = ["OutOfDate"]
forbid_attributes = []
[sgx]
tcb_status = []
[snp]
max_vmpl = 1
allow_migration = true
[coordinator]
accept = []
"""
    found = "\n".join(lint_policy(parse_policy(text), now=NOW))
    for word in (
        "insecure_debug",
        "sample is accepted, but",
        "is for tpm, which is not accepted",
        "ended at",
        "ends soon",
        "nodes.a lists no hardware",
        "accepts OutOfDate",
        "leaves out migratable",
        "sgx.tcb_status is empty",
        "levels up to 1",
        "allow_migration",
        "any genuine firmware",
        "coordinator: accept is empty",
    ):
        assert word in found
    _, tidy = draft(CLAIMS, node="site-a")
    assert lint_policy(tidy, now=NOW) == ()
