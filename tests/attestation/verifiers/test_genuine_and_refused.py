"""Evidence that is well-formed and signed, and refused for its collateral, its TCB or its rules."""

from __future__ import annotations

import datetime as dt
import json
from dataclasses import replace

import pytest

from attestation.errors import (
    EndorsementError,
    EventLogError,
    FreshnessError,
    SignatureError,
)
from attestation.evidence import Claims, Evidence, Tee
from attestation.logs.eventlog import EventLog
from attestation.policy.appraise import appraise
from attestation.policy.result import Tier
from attestation.trust import TrustAnchors
from attestation.verifiers import verify
from tests.vectors import keys
from tests.vectors.amd import TCB, Amd
from tests.vectors.attempts import SUBJECTS, TRIED, attempt, refused, tdx
from tests.vectors.cases import Subject, binding
from tests.vectors.intel import FMSPC, Intel, event_log


@pytest.mark.parametrize("claim", ["pcr.4", "mrtd", "kernel", "launch", "container.imr", "event"])
def test_software_does_not_speak_for_hardware(claim: str) -> None:
    """A client may measure what it likes, but not under the name of a hardware claim."""
    import hashlib

    from attestation.logs.runtime_events import RuntimeEvent
    from tests.fakes.synthetic_tpm import SyntheticTpm

    content = f"{claim} sha256:{'ab' * 32}"
    data = RuntimeEvent(domain="fedlearn", operation="measure", content=content).to_data()
    tpm = SyntheticTpm(key=keys.ec_key("a TPM's attestation key"))
    digest = hashlib.sha256(data).digest()
    tpm.log = tpm.log.append(14, 6, {"sha256": digest}, data)
    tpm.extend(14, {"sha256": digest})
    error = refused("false name", tpm.evidence(binding()), SUBJECTS["tpm"].trust)
    assert isinstance(error, EventLogError)
    log = EventLog.parse(event_log()[0])
    long = log.append(4, 6, {"sha384": hashlib.sha384(data).digest()}, data)
    registers = long.replay("sha384", ccel=True)
    rtmrs = tuple(registers[index] for index in range(1, 5))
    evidence = replace(bound_quote(Intel(), rtmrs=rtmrs), event_log=long.to_bytes())
    error = refused("false name", evidence, SUBJECTS["tdx-v4"].trust)
    assert isinstance(error, EventLogError)


def bound_quote(intel: Intel, **how: object) -> Evidence:
    return tdx(intel.quote(4, report_data=binding().report_data(), **how))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("moment", "word"),
    [
        (dt.datetime(2025, 12, 31, tzinfo=dt.UTC), "counts only from"),
        (dt.datetime(2026, 2, 2, tzinfo=dt.UTC), "expired"),
        (dt.datetime(2024, 6, 1, tzinfo=dt.UTC), "only from"),
        (dt.datetime(2046, 1, 1, tzinfo=dt.UTC), "expired"),
    ],
)
def test_collateral_counts_only_in_its_window(moment: dt.datetime, word: str) -> None:
    intel = Intel()
    trust = TrustAnchors(intel_root=intel.root_key, collateral=(intel.collateral(),))
    error = refused("wrong time", bound_quote(intel), trust, now=moment)
    assert isinstance(error, FreshnessError)
    assert word in str(error) or "valid before" in str(error)
    assert error.hint or "valid before" in str(error) or "expired" in str(error)


def test_a_look_alike_root_vouches_for_nothing() -> None:
    intel, other = Intel(), Intel(seed="look-alike")
    for collateral in ((intel.collateral(),), (other.collateral(),), ()):
        trust = TrustAnchors(intel_root=intel.root_key, collateral=collateral)
        error = refused("look-alike", bound_quote(other), trust)
        assert isinstance(error, EndorsementError)
        assert "pinned root" in str(error)
    mixed = TrustAnchors(intel_root=intel.root_key, collateral=(other.collateral(),))
    assert isinstance(refused("look-alike", bound_quote(intel), mixed), EndorsementError)
    for product in ("Milan", "Genoa", "Turin"):
        amd, fake = Amd(product=product), Amd(product=product, seed="look-alike")
        report = fake.report(5, report_data=binding().report_data())
        evidence = Evidence(
            tee=Tee.SNP, quote=report, endorsements=(fake.leaf(), fake.authorities())
        )
        pinned = frozenset({amd.root_key})
        for own in ((), (amd.authorities(),)):
            trust = TrustAnchors(amd_ark_keys=pinned, endorsements=own)
            assert isinstance(refused("look-alike", evidence, trust), EndorsementError)


def test_collateral_for_something_else_does_not_count() -> None:
    intel = Intel()
    for document in (
        intel.collateral(fmspc=b"\1" * 6),
        intel.collateral("SGX"),
        intel.collateral(status="Revoked"),
        intel.collateral(revoked=(3,)),
        intel.collateral(least=9),
    ):
        trust = TrustAnchors(intel_root=intel.root_key, collateral=(document,))
        error = refused("wrong collateral", bound_quote(intel), trust)
        assert isinstance(error, EndorsementError), error


def test_a_missing_item_is_named_with_the_command_that_mends_it() -> None:
    intel = Intel()
    document = intel.collateral(fmspc=b"\1" * 6)
    trust = TrustAnchors(intel_root=intel.root_key, collateral=(document,))
    error = refused("wrong collateral", bound_quote(intel), trust)
    assert FMSPC.hex().upper() in str(error)
    assert FMSPC.hex().upper() in error.hint
    assert "fedlearn collateral fetch" in error.hint


def test_altered_collateral_does_not_count() -> None:
    intel = Intel()
    document = json.loads(intel.collateral())
    evidence = bound_quote(intel)
    for key, value in document.items():
        if key == "pck_crl_issuer_chain":
            continue  # chains end at the quote's own root; this one is not used
        for offset in range(0, len(value), max(1, len(value) // 24)):
            changed = value[:offset] + chr(ord(value[offset]) ^ 1) + value[offset + 1 :]
            edited = json.dumps({**document, key: changed}).encode()
            trust = TrustAnchors(intel_root=intel.root_key, collateral=(edited,))
            outcome = attempt("collateral altered", evidence, trust)
            if isinstance(outcome, Claims):
                # The root at the end of a signer's chain is not read: the pinned one is.
                assert key.endswith("_issuer_chain")
                assert outcome.tcb == "UpToDate"


def test_an_older_document_does_not_hide_a_newer_one() -> None:
    intel = Intel()
    old = intel.collateral(evaluation=17)
    new = intel.collateral(evaluation=19, status="OutOfDate")
    for order in ((old, new), (new, old)):
        trust = TrustAnchors(intel_root=intel.root_key, collateral=order)
        claims = verify(bound_quote(intel), binding=binding(), trust=trust, now=keys.AT)
        assert (claims.tcb, claims.attributes["tcb_evaluation"]) == ("OutOfDate", 19)
    trust = TrustAnchors(intel_root=intel.root_key, collateral=(new,))
    sent = replace(bound_quote(intel), endorsements=(old,))
    assert verify(sent, binding=binding(), trust=trust, now=keys.AT).tcb == "OutOfDate"


def judged(subject: Subject, claims: Claims) -> set[str]:
    result = appraise(subject.policy, claims, now=keys.AT, node="site-a")
    assert result.status is Tier.CONTRAINDICATED
    return {finding.claim for finding in result.refusals}


@pytest.mark.parametrize(
    ("bit", "claim"), [(0, "debug"), (29, "td.migratable"), (None, "td.sept_ve_disable")]
)
def test_attributes_of_a_domain_are_refused_by_name(bit: int | None, claim: str) -> None:
    subject = SUBJECTS["tdx-v4"]
    attributes = 0 if bit is None else 1 << 28 | 1 << bit
    evidence = bound_quote(Intel(), attributes=attributes)
    claims = verify(evidence, binding=binding(), trust=subject.trust, now=keys.AT)
    TRIED["attribute"] += 1
    assert (claims.tcb == "unknown") is (bit == 29)
    assert claim in judged(subject, claims)


def test_a_platform_whose_tcb_nobody_judged_is_refused() -> None:
    subject = SUBJECTS["tdx-v4"]
    trust = replace(subject.trust, collateral=())
    claims = verify(subject.make(binding()), binding=binding(), trust=trust, now=keys.AT)
    assert (claims.tcb, claims.unverified) == ("unknown", ("tcb",))
    assert "tcb_status" in judged(subject, claims)
    lenient = replace(
        subject.policy, tdx=replace(subject.policy.tdx, tcb_status=("UpToDate", "unknown"))
    )
    assert "tcb_status" in judged(replace(subject, policy=lenient), claims)


@pytest.mark.parametrize("status", ["OutOfDate", "SWHardeningNeeded", "ConfigurationNeeded"])
def test_a_tcb_that_is_not_up_to_date_is_refused(status: str) -> None:
    subject, intel = SUBJECTS["tdx-v4"], Intel()
    document = intel.collateral(status=status, advisories=("INTEL-SA-00001",))
    trust = replace(subject.trust, collateral=(document,))
    claims = verify(subject.make(binding()), binding=binding(), trust=trust, now=keys.AT)
    TRIED["TCB"] += 1
    assert {"tcb_status", "advisories"} <= judged(subject, claims)


@pytest.mark.parametrize(
    ("change", "claim"),
    [
        ({"vmpl": 1}, "snp.vmpl"),
        ({"vmpl": 0xFFFFFFFF}, "snp.vmpl"),
        ({"policy": 3 << 16 | 1 << 18}, "snp.policy.migration"),
        ({"policy": 3 << 16 | 1 << 19}, "debug"),
    ],
)
@pytest.mark.parametrize("product", ["Milan", "Genoa", "Turin"])
def test_what_a_guest_may_not_be(product: str, change: dict[str, int], claim: str) -> None:
    amd = Amd(product=product)
    report = amd.report(5, report_data=binding().report_data(), **change)  # type: ignore[arg-type]
    trust = TrustAnchors(
        amd_ark_keys=frozenset({amd.root_key}), endorsements=(amd.leaf(), amd.authorities())
    )
    evidence = Evidence(tee=Tee.SNP, quote=report)
    claims = verify(evidence, binding=binding(), trust=trust, now=keys.AT)
    TRIED["guest policy"] += 1
    assert claim in judged(SUBJECTS["snp-milan-v2-vcek"], claims)


@pytest.mark.parametrize("product", ["Milan", "Genoa", "Turin"])
def test_a_report_and_its_certificate_are_of_one_chip_and_firmware(product: str) -> None:
    amd = Amd(product=product)
    bound = {"report_data": binding().report_data()}
    pinned = frozenset({amd.root_key})
    trust = TrustAnchors(amd_ark_keys=pinned, endorsements=(amd.leaf(), amd.authorities()))
    for component in TCB:
        if component == "fmc" and product != "Turin":
            continue
        for other in (TCB[component] - 1, TCB[component] + 1):
            report = amd.report(5, tcb={**TCB, component: other}, **bound)  # type: ignore[arg-type]
            error = refused("other firmware", Evidence(tee=Tee.SNP, quote=report), trust)
            assert isinstance(error, EndorsementError)
            assert component in str(error)
    good = Evidence(tee=Tee.SNP, quote=amd.report(5, **bound))  # type: ignore[arg-type]
    for items in ((amd.authorities(),), (amd.leaf(),), (amd.leaf("vlek"), amd.authorities("asvk"))):
        missing = TrustAnchors(amd_ark_keys=pinned, endorsements=items)
        error = refused("chain incomplete", good, missing)
        assert isinstance(error, EndorsementError | SignatureError)
    cross = TrustAnchors(amd_ark_keys=pinned, endorsements=(amd.leaf(), amd.authorities("asvk")))
    assert isinstance(refused("chain incomplete", good, cross), EndorsementError)


def test_revoked_and_stale_authorities_are_refused() -> None:
    amd = Amd()
    evidence = Evidence(tee=Tee.SNP, quote=amd.report(3, report_data=binding().report_data()))
    items = (amd.leaf(), amd.authorities())

    def trust(crl: bytes) -> TrustAnchors:
        return TrustAnchors(amd_ark_keys=frozenset({amd.root_key}), endorsements=(*items, crl))

    assert verify(evidence, binding=binding(), trust=trust(amd.crl()), now=keys.AT)
    assert isinstance(refused("revoked", evidence, trust(amd.crl((2,)))), EndorsementError)
    stale = amd.crl(following=dt.datetime(2026, 1, 10, tzinfo=dt.UTC))
    assert isinstance(refused("revoked", evidence, trust(stale)), FreshnessError)
    foreign = Amd(seed="look-alike").crl()
    assert isinstance(refused("revoked", evidence, trust(foreign)), EndorsementError)


def test_a_masked_chip_id_is_known_only_under_a_vcek() -> None:
    for kind, middle, known in (("vcek", "ask", True), ("vlek", "asvk", False)):
        amd = Amd()
        report = amd.report(3, kind=kind, masked=True, report_data=binding().report_data())
        trust = TrustAnchors(
            amd_ark_keys=frozenset({amd.root_key}),
            endorsements=(amd.leaf(kind), amd.authorities(middle)),
        )
        evidence = Evidence(tee=Tee.SNP, quote=report)
        claims = verify(evidence, binding=binding(), trust=trust, now=keys.AT)
        assert claims.hardware_id == (amd.chip_id if known else b"")
        assert claims.attributes["snp.chip_id_masked"] is True


def test_an_azure_quote_by_another_key_is_refused() -> None:
    from tests.vectors import azure

    subject = SUBJECTS["azure-snp"]
    quote = azure.evidence(binding().qualifying_data(), ak="another ak")
    evidence = Evidence(tee=Tee.AZURE_VTPM, quote=quote)
    assert isinstance(refused("other key", evidence, subject.trust), SignatureError)


def test_a_log_without_the_runtime_register_proves_no_workload() -> None:
    intel = Intel()
    _, rtmrs = event_log()
    subject = SUBJECTS["tdx-v4"]
    evidence = bound_quote(intel, rtmrs=rtmrs)
    claims = verify(evidence, binding=binding(), trust=subject.trust, now=keys.AT)
    TRIED["log dropped"] += 1
    assert {"require.app", "require.job"} <= judged(subject, claims)
