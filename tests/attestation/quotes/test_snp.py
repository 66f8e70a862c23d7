"""The further fields of reports of version 5: mitigations, and the TCBs of launch and commitment.

Offsets and bits: AMD publication 56860, table ``ATTESTATION_REPORT Structure``.
"""

from __future__ import annotations

import struct
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from attestation.decoded import decode_file
from attestation.errors import EndorsementError
from attestation.evidence import Claims, Evidence, Tee
from attestation.policy.appraise import appraise
from attestation.policy.draft import draft_policy
from attestation.policy.model import AppraisalPolicy, ReferenceValue, SnpRules
from attestation.policy.parse import parse_policy
from attestation.policy.result import Tier
from attestation.quotes.snp import SnpReport
from attestation.trust import TrustAnchors
from attestation.verifiers import verify
from tests.vectors import keys
from tests.vectors.amd import TCB, Amd
from tests.vectors.cases import binding

REPORTED = Path(__file__).parents[1] / "reported" / "report_v5_made.bin"
SWAP_DISABLED = 3 << 16 | 1 << 25
OLDER = {**TCB, "snp": TCB["snp"] - 1}


def claims(version: int = 5, product: str = "Turin", **options: Any) -> Claims:
    amd = Amd(product=product)
    report = amd.report(version, report_data=binding().report_data(), **options)
    trust = TrustAnchors(
        amd_ark_keys=frozenset({amd.root_key}), endorsements=(amd.leaf(), amd.authorities())
    )
    evidence = Evidence(tee=Tee.SNP, quote=report)
    return verify(evidence, binding=binding(), trust=trust, now=keys.AT)


def refused(found: Claims, rules: SnpRules) -> set[str]:
    launch = ReferenceValue(claim="launch", value=found.measurements["launch"])
    policy = AppraisalPolicy(accept=(Tee.SNP,), references=(launch,), snp=rules)
    result = appraise(policy, found, now=keys.AT, lifetime=timedelta(minutes=1))
    names = {item.claim for item in result.findings if item.tier is Tier.CONTRAINDICATED}
    assert bool(names) == (result.status is not Tier.AFFIRMING)
    return names


def test_the_fields_stand_where_the_specification_has_them() -> None:
    data = bytearray(REPORTED.read_bytes())
    data[0x1F8:0x208] = struct.pack("<QQ", 1 << 63 | 5, 1)
    report = SnpReport.parse(bytes(data))
    assert (report.launch_mit_vector, report.current_mit_vector) == (1 << 63 | 5, 1)
    assert report.guest_policy["page_swap_disable"]
    assert report.platform["tio_enabled"]
    data[0] = 4
    before = SnpReport.parse(bytes(data))
    assert (before.launch_mit_vector, before.current_mit_vector) == (None, None)


def test_a_report_is_shown_with_its_mitigations_and_every_bit_by_name() -> None:
    data = bytearray(REPORTED.read_bytes())
    data[0x200] = 6
    found = {(item.section, item.name): item.value for item in decode_file(bytes(data))[1]}
    assert found["ATTESTATION_REPORT", "LAUNCH_MIT_VECTOR"] == "00" * 8
    assert found["ATTESTATION_REPORT", "CURRENT_MIT_VECTOR"] == "06" + "00" * 7
    assert found["CURRENT_MIT_VECTOR", "set"] == "bit 1, bit 2"
    assert found["POLICY", "set"].endswith("CIPHERTEXT_HIDING_DRAM, PAGE_SWAP_DISABLE")
    data[0] = 3
    assert "LAUNCH_MIT_VECTOR" not in {item.name for item in decode_file(bytes(data))[1]}


@pytest.mark.parametrize("product", ["Milan", "Genoa", "Turin"])
def test_claims_have_each_tcb_by_component(product: str) -> None:
    found = claims(product=product, launch=OLDER, mitigations=(6, 7)).attributes
    assert found["snp.launch_tcb.snp"] == TCB["snp"] - 1
    assert found["snp.committed_tcb.snp"] == TCB["snp"]
    assert (found["snp.launch_mit_vector"], found["snp.current_mit_vector"]) == (6, 7)


@pytest.mark.parametrize(
    ("rules", "good", "bad", "claim"),
    [
        (SnpRules(min_launch_tcb=TCB), {}, {"launch": OLDER}, "snp.launch_tcb.snp"),
        (SnpRules(min_committed_tcb=TCB), {}, {"committed": OLDER}, "snp.committed_tcb.snp"),
        (
            SnpRules(require_policy=("page_swap_disable",)),
            {"policy": SWAP_DISABLED},
            {},
            "snp.policy.page_swap_disable",
        ),
        (
            SnpRules(require_platform=("alias_check",)),
            {"platform": 1 << 5},
            {"platform": 1},
            "snp.platform.alias_check",
        ),
        (
            SnpRules(require_launch_mitigations=(1, 2)),
            {"mitigations": (6, 0)},
            {"mitigations": (2, 6)},
            "snp.launch_mit_vector.2",
        ),
        (
            SnpRules(require_current_mitigations=(63,)),
            {"mitigations": (0, 1 << 63)},
            {"mitigations": (1 << 63, 0)},
            "snp.current_mit_vector.63",
        ),
    ],
)
def test_a_policy_demands_what_a_report_states(
    rules: SnpRules, good: dict[str, Any], bad: dict[str, Any], claim: str
) -> None:
    assert refused(claims(**good), rules) == set()
    assert refused(claims(**bad), rules) == {claim}


def test_mitigations_that_a_report_does_not_state_are_refused_as_absent() -> None:
    rules = SnpRules(require_current_mitigations=(0,))
    assert refused(claims(4, mitigations=(1, 1)), rules) == {"snp.current_mit_vector.0"}
    assert refused(claims(5, mitigations=(1, 1)), rules) == set()


def test_a_draft_pins_what_a_report_of_version_5_states() -> None:
    strong: dict[str, Any] = {"policy": SWAP_DISABLED, "platform": 1 << 5, "mitigations": (4, 5)}
    found = claims(launch=OLDER, **strong)
    made = draft_policy(found, source="report.bin", now=keys.AT)
    rules = parse_policy(made.text.encode()).snp
    assert rules.require_policy == ("page_swap_disable",)
    assert rules.require_platform == ("alias_check",)
    assert rules.require_launch_mitigations == (2,)
    assert rules.require_current_mitigations == (0, 2)
    assert (rules.min_launch_tcb, rules.min_committed_tcb) == (OLDER, TCB)
    assert refused(found, rules) == set()
    weaker = claims(launch=OLDER, **{**strong, "mitigations": (0, 1)})
    assert refused(weaker, rules) == {"snp.launch_mit_vector.2", "snp.current_mit_vector.2"}


def test_a_refusal_names_the_file_that_is_missing() -> None:
    amd = Amd(product="Genoa")
    report = amd.report(5, report_data=binding().report_data())

    def hint(quote: bytes, *endorsements: bytes) -> str:
        trust = TrustAnchors(amd_ark_keys=frozenset({amd.root_key}), endorsements=endorsements)
        with pytest.raises(EndorsementError) as refused:
            verify(Evidence(tee=Tee.SNP, quote=quote), binding=binding(), trust=trust, now=keys.AT)
        return refused.value.hint

    chip = f"https://kdsintf.amd.com/vcek/v1/Genoa/{amd.chip_id.hex()}?blSPL=04&teeSPL=01"
    assert chip in hint(report)
    assert "https://kdsintf.amd.com/vcek/v1/Genoa/cert_chain" in hint(report, amd.leaf())
    older = amd.report(5, report_data=binding().report_data(), tcb=OLDER)
    assert f"snpSPL={OLDER['snp']:02d}" in hint(older, amd.leaf(), amd.authorities())
    cloud = amd.report(5, report_data=binding().report_data(), kind="vlek")
    assert "extended report" in hint(cloud)
    assert "/vlek/v1/Genoa/cert_chain" in hint(cloud, amd.leaf("vlek"))
    masked = amd.report(5, report_data=binding().report_data(), masked=True)
    assert hint(masked).endswith("--evidence FILE")
