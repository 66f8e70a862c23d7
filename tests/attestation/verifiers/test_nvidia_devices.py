"""GPUs and NVSwitches of one machine, and what a policy makes of what was checked of them."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509 import ocsp

from attestation.attesters.sample import SampleAttester
from attestation.binding import ReportData
from attestation.decoded import decode_file
from attestation.errors import (
    EndorsementError,
    EvidenceError,
    FreshnessError,
    SignatureError,
)
from attestation.evidence import Claims, Evidence, Tee
from attestation.policy.appraise import appraise as appraise_claims
from attestation.policy.draft import draft_policy
from attestation.policy.parse import parse_policy
from attestation.policy.result import AttestationResult, Tier
from attestation.quotes.nvidia import NvidiaReport
from attestation.trust import TrustAnchors, key_digest
from attestation.verifiers import verify
from tests.vectors import nvidia as made

REAL = Path(__file__).parents[2] / "vectors/nvidia"
HOST_KEY = ec.generate_private_key(ec.SECP256R1())
BINDING = ReportData(value=bytes(range(64)))
NONCE = hashlib.sha256(BINDING.value).digest()
HOST = SampleAttester(
    HOST_KEY, b"host", {"software": b"\7" * 32}, clock=made.NOW.timestamp
).collect(BINDING)
TRUST = replace(made.TRUST, sample_keys=frozenset({key_digest(HOST_KEY.public_key())}))
GPU = made.Device("GPU")
DRIVER, VBIOS = made.rims()
ANSWERS = made.answers(GPU)
GPUS, SWITCHES = made.machine()


def judge(
    *components: Evidence, collateral: tuple[bytes, ...] = (), now: datetime = made.NOW
) -> Claims:
    whole = replace(HOST, components=components)
    return verify(whole, binding=BINDING, trust=replace(TRUST, collateral=collateral), now=now)


def appraise(claims: Claims, *required: str, gpus: int = 1) -> AttestationResult:
    listed = ", ".join(f'"{name}"' for name in required)
    text = (
        'accept = ["sample"]\ninsecure_sample = true\n'
        f"[nvidia]\nrequired = true\nmin_gpus = {gpus}\n"
        f'[[reference]]\nclaim = "software"\nvalue = "{"07" * 32}"\n'
        f"[require]\nclaims = [{listed}]\n"
    )
    return appraise_claims(parse_policy(text.encode()), claims, now=made.NOW)


def reports(gpus: list[made.Device], switches: list[made.Device]) -> list[Evidence]:
    """The whole machine's reports, whichever of them come along."""
    ends = [item.pdi for item in SWITCHES]
    return [item.evidence(NONCE, links=ends) for item in gpus] + [
        item.evidence(NONCE, links=[gpu.pdi for gpu in GPUS]) for item in switches
    ]


# RIM and revocation


def test_rim_and_revocation_are_claims_that_a_policy_can_require() -> None:
    claims = judge(GPU.evidence(NONCE), collateral=(DRIVER, VBIOS, *ANSWERS))
    (gpu,) = claims.components
    assert len(gpu.measurements["nvidia.rim"]) == len(gpu.measurements["nvidia.revocation"]) == 32
    assert gpu.attributes["nvidia.revocation"] == "not revoked, until 2026-03-02T11:00:00+00:00"
    assert appraise(claims, "nvidia.rim", "nvidia.revocation").status is Tier.AFFIRMING


def test_they_may_come_along_with_the_report() -> None:
    claims = judge(GPU.evidence(NONCE, DRIVER, VBIOS, *ANSWERS))
    assert appraise(claims, "nvidia.rim", "nvidia.revocation").status is Tier.AFFIRMING
    halves = judge(GPU.evidence(NONCE, DRIVER, *ANSWERS[2:]), collateral=(VBIOS, *ANSWERS[:2]))
    assert halves == claims


@pytest.mark.parametrize(
    ("collateral", "missing"),
    [
        ((), ["nvidia.rim", "nvidia.revocation"]),
        ((DRIVER, VBIOS), ["nvidia.revocation"]),
        (ANSWERS, ["nvidia.rim"]),
    ],
)
def test_without_them_a_policy_that_requires_them_refuses(
    collateral: tuple[bytes, ...], missing: list[str]
) -> None:
    claims = judge(GPU.evidence(NONCE), collateral=collateral)
    result = appraise(claims, "nvidia.rim", "nvidia.revocation")
    assert result.status is Tier.CONTRAINDICATED
    refused = [item for item in result.refusals if item.claim.startswith("require.")]
    assert {item.claim for item in refused} == {f"require.component[0].{name}" for name in missing}
    assert all(item.actual.startswith("not checked: there is no") for item in refused)
    assert all("collateral" in item.remedy for item in refused)


def test_without_a_gpu_and_for_one_of_two_the_requirement_is_not_met() -> None:
    result = appraise(judge(), "nvidia.rim")
    assert result.status is Tier.CONTRAINDICATED
    assert "absent: the evidence has no GPU" in [item.actual for item in result.refusals]
    claims = judge(GPU.evidence(NONCE, DRIVER, VBIOS), made.Device("B").evidence(NONCE))
    result = appraise(claims, "nvidia.rim")
    assert [item.claim for item in result.refusals] == ["require.component[1].nvidia.rim"]
    chainless = replace(GPU.evidence(NONCE), endorsements=(DRIVER, VBIOS, *ANSWERS))
    refused = appraise(judge(chainless), "nvidia.rim", "nvidia.revocation").refusals
    assert {f"require.component[0].nvidia.{name}" for name in ("rim", "revocation")} <= {
        item.claim for item in refused
    }


def test_a_host_cannot_make_the_claims_itself() -> None:
    own = {"software": b"\7" * 32, "nvidia.rim": b"\1" * 32, "nvidia.revocation": b"\1" * 32}
    host = SampleAttester(HOST_KEY, b"host", own, clock=made.NOW.timestamp).collect(BINDING)
    for components in ((), (GPU.evidence(NONCE),)):
        whole = replace(host, components=components)
        claims = verify(whole, binding=BINDING, trust=TRUST, now=made.NOW)
        assert appraise(claims, "nvidia.rim").status is Tier.CONTRAINDICATED


@pytest.mark.parametrize(
    ("collateral", "error", "message"),
    [
        ((DRIVER, VBIOS, *ANSWERS[1:]), EndorsementError, "no OCSP answer for Identity"),
        ((DRIVER, VBIOS, *ANSWERS[:2], *ANSWERS[3:]), EndorsementError, "answer for RIM Signer"),
        ((DRIVER, VBIOS, *ANSWERS[:-1]), EndorsementError, "no OCSP answer for GPU BROM"),
        (
            (*ANSWERS[:-1], made.answer(GPU.identity, status=ocsp.OCSPCertStatus.REVOKED)),
            EndorsementError,
            "GPU BROM .* was revoked",
        ),
        (
            (
                *(DRIVER, VBIOS, *ANSWERS[:2], *ANSWERS[3:]),
                made.answer(made.RIM_SIGNER, status=ocsp.OCSPCertStatus.REVOKED),
            ),
            EndorsementError,
            "RIM Signer .* was revoked",
        ),
    ],
)
def test_an_answer_that_is_missing_or_states_revoked_is_refused(
    collateral: tuple[bytes, ...], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=f"nvidia revocation: .*{message}"):
        judge(GPU.evidence(NONCE), collateral=collateral)


def test_answers_of_yesterday_are_refused_with_what_to_do() -> None:
    with pytest.raises(FreshnessError, match="counts from") as caught:
        judge(GPU.evidence(NONCE), collateral=ANSWERS, now=made.NOW + timedelta(days=1))
    assert "fedlearn collateral fetch" in caught.value.hint


def test_a_genuine_gpu_was_not_revoked() -> None:
    evidence = Evidence(
        tee=Tee.NVIDIA,
        quote=(REAL / "hopper_report.bin").read_bytes(),
        endorsements=((REAL / "hopper_chain.pem").read_bytes(),),
    )
    answers = tuple(file.read_bytes() for file in sorted(REAL.glob("ocsp_*.der")))
    now = datetime(2025, 8, 21, 12, tzinfo=UTC)
    claims = verify(evidence, binding=None, trust=TrustAnchors(collateral=answers), now=now)
    assert claims.attributes["nvidia.revocation"] == "not revoked, until 2025-08-22T06:47:07+00:00"
    with pytest.raises(FreshnessError, match="GH100 A01 GSP BROM"):
        verify(
            evidence,
            binding=None,
            trust=TrustAnchors(collateral=answers),
            now=now + timedelta(days=1),
        )


def test_a_draft_requires_what_was_checked_and_pins_no_answer_of_today() -> None:
    claims = judge(GPU.evidence(NONCE), collateral=(DRIVER, VBIOS, *ANSWERS))
    draft = draft_policy(claims, source="quote", now=made.NOW).text
    assert 'claims = ["nvidia.rim", "nvidia.revocation"]' in draft
    assert 'claim = "nvidia.revocation"' not in draft
    policy = parse_policy(draft.encode())
    assert appraise_claims(policy, claims, now=made.NOW).status is Tier.AFFIRMING
    later = made.NOW + timedelta(hours=20)
    fresh = tuple(
        made.answer(item, start=later, end=later + made.DAY)
        for item in (made.IDENTITY, made.RIM_CA, made.RIM_SIGNER, GPU.identity)
    )
    again = judge(GPU.evidence(NONCE), collateral=(DRIVER, VBIOS, *fresh), now=later)
    assert (
        again.components[0].measurements["nvidia.revocation"]
        != (claims.components[0].measurements["nvidia.revocation"])
    )
    assert appraise_claims(policy, again, now=later).status is Tier.AFFIRMING
    bare = judge(GPU.evidence(NONCE))
    assert appraise_claims(policy, bare, now=made.NOW).status is Tier.CONTRAINDICATED


# Devices


def test_a_switch_names_its_vbios_as_text_and_has_its_firmware_id_from_its_certificate() -> None:
    report = NvidiaReport.parse((REAL / "nvswitch_report.bin").read_bytes())
    assert (report.is_switch, report.vbios, report.driver) == (True, "96.10.6D.00.01", "")
    assert report.own_pdi.hex() == "7a66a96e440d8c05"
    assert len(report.linked_pdis) == 8
    (gpu, *_), (switch, *_) = GPUS, SWITCHES
    evidence = switch.evidence(NONCE, links=[gpu.pdi])
    claims = verify(evidence, binding=BINDING, trust=TRUST, now=made.NOW)
    assert claims.measurements["nvswitch.firmware_id"] == switch.firmware_id
    assert claims.attributes["nvidia.kind"] == "nvswitch"
    assert claims.tcb == "vbios 96.10.6D.00.01"
    wrong = replace(evidence, quote=switch.report(NONCE, links=[gpu.pdi], opaque={20: b"\1" * 48}))
    with pytest.raises(EndorsementError, match=r"names firmware 0101.*its key belongs to"):
        verify(wrong, binding=BINDING, trust=TRUST, now=made.NOW)
    silent = replace(GPU.evidence(NONCE), quote=GPU.report(NONCE, opaque={20: b""}))
    with pytest.raises(EndorsementError, match=r"names firmware \(none\)"):
        verify(silent, binding=BINDING, trust=TRUST, now=made.NOW)


def test_a_genuine_report_under_the_chain_of_another_switch_is_refused() -> None:
    evidence = Evidence(
        tee=Tee.NVIDIA,
        quote=(REAL / "nvswitch_report.bin").read_bytes(),
        endorsements=((REAL / "nvswitch_chain.pem").read_bytes(),),
    )
    with pytest.raises(SignatureError, match="LS_10 A01 FSP FMC LF did not sign this report"):
        verify(evidence, binding=None, trust=TrustAnchors(), now=made.NOW)


@pytest.mark.parametrize(
    ("opaque", "names"),
    [
        (
            "hopper_report.bin",
            {
                "VBIOS_VERSION": "(96.00.9F.00.01)",
                "DRIVER_VERSION": '("550.90.07")',
                "NVDEC0_STATUS": "(disabled)",
                "PROTECTED_PCIE_STATUS": "(disabled)",
                "PROJECT": '("1010")',
            },
        ),
        (
            "nvswitch_report.bin",
            {
                "VBIOS_VERSION": "(96.10.6D.00.01)",
                "DEVICE_PDI": "7a66a96e440d8c05",
                "SWITCH_GPU_PDIS": "09562537c1b4ea4a, 0faaade460782321",
                "DISABLED_PORTS": "ec00",
                "SWITCH_POSITION_ID": "(1)",
                "SWITCH_LOCK_STATUS": "(1)",
            },
        ),
    ],
)
def test_every_opaque_field_is_decoded_by_name(opaque: str, names: dict[str, str]) -> None:
    _, fields = decode_file((REAL / opaque).read_bytes())
    found = {item.name: item.value for item in fields if item.section == "OpaqueData"}
    assert not [name for name in found if name.startswith("type ")]
    for name, value in names.items():
        assert value in found[name]


def test_the_fields_of_blackwell_are_decoded() -> None:
    report = GPU.report(NONCE, opaque={35: b"GB100\0", 34: b"\1\0", 36: b"\1\0", 33: b"\7\7"})
    _, fields = decode_file(report)
    found = {item.name: item.value for item in fields}
    assert found["CHIP_INFO"].endswith('("GB100")')
    assert found["FEATURE_FLAG"].endswith("(several GPUs)")
    assert found["OPAQUE_DATA_VERSION"].endswith("(1)")
    assert NvidiaReport.parse(report).chip == "GB100"


def test_a_machine_in_protected_pcie_mode_shows_every_device() -> None:
    claims = judge(*reports(GPUS, SWITCHES))
    topologies = {item.measurements["nvidia.topology"] for item in claims.components}
    assert len(claims.components) == 12
    assert len(topologies) == 1
    assert claims.components[0].attributes["nvidia.topology"] == "8 GPUs, 4 NVSwitches"
    assert appraise(claims, "nvidia.topology").status is Tier.WARNING  # no firmware is pinned
    backwards = judge(*reversed(reports(GPUS, SWITCHES)))
    assert {item.measurements["nvidia.topology"] for item in backwards.components} == topologies


def test_a_draft_of_a_machine_affirms_it_and_no_other() -> None:
    whole = reports(GPUS, SWITCHES)
    claims = judge(*whole)
    policy = parse_policy(draft_policy(claims, source="quote", now=made.NOW).text.encode())
    assert (policy.nvidia.min_gpus, policy.require) == (8, ("nvidia.topology",))
    assert appraise_claims(policy, claims, now=made.NOW).status is Tier.AFFIRMING
    pdis = [gpu.pdi for gpu in GPUS]
    other = SWITCHES[0].report(NONCE, links=pdis, measurements={3: b"\1" * 48})
    changed = [*whole[:8], replace(whole[8], quote=other), *whole[9:]]
    result = appraise_claims(policy, judge(*changed), now=made.NOW)
    assert [item.claim for item in result.refusals] == ["component[8].nvswitch.measurement.3"]


def test_a_policy_pins_gpus_and_switches_by_themselves() -> None:
    claims = judge(*reports(GPUS, SWITCHES))
    values = {
        name: claims.components[index].measurements[name]
        for index, name in ((0, "measurement.1"), (8, "nvswitch.measurement.1"))
    }
    base = (
        'accept = ["sample"]\ninsecure_sample = true\n[nvidia]\nrequired = true\n'
        f'[[reference]]\nclaim = "software"\nvalue = "{"07" * 32}"\n'
    )
    for pinned, tier in (
        (("measurement.1", "nvswitch.measurement.1"), Tier.AFFIRMING),
        (("measurement.1",), Tier.WARNING),
        (("nvswitch.measurement.1",), Tier.WARNING),
        ((), Tier.WARNING),
    ):
        text = base + "".join(
            f'[[reference]]\nclaim = "{name}"\nvalue = "{values[name].hex()}"\ntee = "nvidia"\n'
            for name in pinned
        )
        result = appraise_claims(parse_policy(text.encode()), claims, now=made.NOW)
        assert result.status is tier, result.refusals
        refused = [item for item in result.refusals if item.claim == "nvidia.reference"]
        assert bool(refused) is (tier is Tier.WARNING)


def test_a_policy_states_how_many_gpus_there_must_be() -> None:
    two = judge(GPU.evidence(NONCE, DRIVER, VBIOS), made.Device("B").evidence(NONCE, DRIVER, VBIOS))
    for count, tier in ((1, Tier.AFFIRMING), (2, Tier.AFFIRMING), (3, Tier.CONTRAINDICATED)):
        result = appraise(two, "nvidia.rim", gpus=count)
        assert result.status is tier
        assert [item.claim for item in result.refusals] == (["nvidia"] if count == 3 else [])


def test_a_single_gpu_has_no_topology() -> None:
    claims = judge(GPU.evidence(NONCE), made.Device("B").evidence(NONCE))
    result = appraise(claims, "nvidia.topology")
    assert [item.actual for item in result.refusals].count("absent") == 2


@pytest.mark.parametrize("feature", [{21: b"\xaa"}, {36: b"\2\0"}])
def test_a_gpu_in_protected_pcie_mode_is_nothing_alone(feature: dict[int, bytes]) -> None:
    ends = [item.pdi for item in SWITCHES]
    quote = GPU.report(NONCE, links=ends, opaque={21: b"\x55"} | feature)
    with pytest.raises(EndorsementError, match=r"nvidia topology: .*reports of \(none\)") as caught:
        judge(replace(GPU.evidence(NONCE), quote=quote))
    assert all(pdi.hex() in str(caught.value) for pdi in ends)


def test_a_gpu_in_protected_pcie_mode_without_a_link_is_refused() -> None:
    unlinked = GPU.report(NONCE, opaque={21: b"\xaa", 22: bytes(144)})
    with pytest.raises(EndorsementError, match=r"NVSwitches \(none\); there are reports of \(none"):
        judge(replace(GPU.evidence(NONCE), quote=unlinked))


def test_a_device_that_is_left_out_is_missed() -> None:
    with pytest.raises(EndorsementError, match=r"connect 8 GPUs .*reports of 7"):
        judge(*reports(GPUS[1:], SWITCHES))
    with pytest.raises(EndorsementError, match="is connected to the NVSwitches") as caught:
        judge(*reports(GPUS, SWITCHES[1:]))
    assert SWITCHES[0].pdi.hex() in str(caught.value)
    with pytest.raises(EndorsementError, match=r"connect 8 GPUs .*reports of 0"):
        judge(*reports([], SWITCHES))


def test_two_reports_of_one_device_are_refused() -> None:
    for devices in (([*GPUS[:7], GPUS[0]], SWITCHES), (GPUS, [*SWITCHES[:3], SWITCHES[0]])):
        with pytest.raises(EndorsementError, match=r"component\[\d+\] and component\[\d+\] are"):
            judge(*reports(*devices))
    with pytest.raises(EndorsementError, match=r"component\[0\] and component\[1\] are reports"):
        judge(GPU.evidence(NONCE), GPU.evidence(NONCE))


def test_devices_of_different_machines_are_refused() -> None:
    stranger = made.Device("SWITCH 9", switch=True)
    foreign = stranger.evidence(NONCE, links=[gpu.pdi for gpu in GPUS])
    with pytest.raises(EndorsementError, match="is connected to the NVSwitches"):
        judge(*reports(GPUS, SWITCHES[:3]), foreign)
    seven = [gpu.pdi for gpu in GPUS[:7]]
    for links in (seven, [*seven, bytes([9]) * 8]):
        whole = reports(GPUS, SWITCHES)
        whole[-1] = SWITCHES[-1].evidence(NONCE, links=links)
        with pytest.raises(EndorsementError, match=r"component\[11\], an NVSwitch, connects"):
            judge(*whole)
    elsewhere = GPUS[0].evidence(NONCE, links=[*(item.pdi for item in SWITCHES), b"\1" * 8])
    with pytest.raises(EndorsementError, match=r"component\[0\], a GPU"):
        judge(elsewhere, *reports(GPUS[1:], SWITCHES))
    open_gpu = GPUS[0].evidence(NONCE)
    with pytest.raises(EndorsementError, match="outside of Protected PCIe mode"):
        judge(open_gpu, *reports(GPUS[1:], SWITCHES))


def test_without_the_chain_of_one_device_there_is_no_topology() -> None:
    whole = reports(GPUS, SWITCHES)
    whole[3] = replace(whole[3], endorsements=())
    claims = judge(*whole)
    assert not any("nvidia.topology" in item.measurements for item in claims.components)
    assert appraise(claims, "nvidia.topology").status is Tier.CONTRAINDICATED


def test_a_list_of_pdis_that_ends_inside_of_one_is_refused() -> None:
    switch = SWITCHES[0]
    for report in (
        GPU.report(NONCE, opaque={22: bytes(12)}),
        switch.report(NONCE, opaque={22: bytes(7)}),
        switch.report(NONCE, opaque={26: bytes(63)}),
    ):
        with pytest.raises(EvidenceError, match=r"nvidia\.opaque"):
            NvidiaReport.parse(report)


def test_evidence_of_a_whole_machine_fits_and_more_does_not() -> None:
    whole = replace(HOST, components=tuple(reports(GPUS, SWITCHES)))
    assert Evidence.from_bytes(whole.to_bytes()) == whole
    with pytest.raises(EvidenceError, match="more than 16"):
        Evidence.from_bytes(replace(whole, components=whole.components * 2).to_bytes())


def test_what_came_along_with_a_report_is_described() -> None:
    evidence = GPU.evidence(NONCE, DRIVER, ANSWERS[0], b"junk")
    _, fields = decode_file(evidence.to_bytes())
    found = [item.value for item in fields if item.name.startswith("endorsements[")]
    assert "certificates (GPU FMC, GPU BROM, Identity, Device Root), until" in found[0]
    assert "nvidia-rim (NVIDIA RIM of GH100 550.90.07), until" in found[1]
    assert "ocsp (OCSP answer for serial" in found[2]
    assert found[3] == "4 bytes"
