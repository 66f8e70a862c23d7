"""Attacks, generated: bytes flipped, evidence cut, logs edited, everything presented elsewhere.

Nothing may pass, and nothing may raise anything but our own errors, of the class that fits
the field. The count of what was tried is printed at the end.
"""

from __future__ import annotations

import datetime as dt
import json
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from attestation.binding import ReportData
from attestation.errors import (
    AttestationError,
    BindingError,
    EndorsementError,
    EventLogError,
    EvidenceError,
    FreshnessError,
    SignatureError,
    VerificationError,
)
from attestation.evidence import Claims, Evidence, Tee
from attestation.logs.eventlog import EventLog
from attestation.policy.appraise import appraise
from attestation.policy.result import Tier
from attestation.trust import TrustAnchors
from attestation.verifiers import verify
from tests.vectors import keys
from tests.vectors.amd import TCB, Amd
from tests.vectors.cases import OTHER_BINDINGS, Subject, binding, subjects
from tests.vectors.intel import FMSPC, Intel, event_log

SUBJECTS = {subject.name: subject for subject in subjects()}
BINARY = [name for name in SUBJECTS if not name.startswith(("azure", "sample"))]
EVERY = 64
"""Fields of up to so many bytes are flipped byte by byte, longer ones at about as many."""

TRIED: Counter[str] = Counter()
MALFORMED = {
    "version",
    "key type",
    "tee type",
    "body descriptor",
    "signature size",
    "certification header",
    "padding",
    "signature algo",
    "signature reserved",
}
SIGNED = {
    "user data",
    "svn",
    "vendor",
    "body",
    "signature",
    "attestation key",
    "qe report",
    "qe signature",
    "report data",
    "measurement",
    "host data",
    "chip id",
    "reported tcb",
    "vmpl",
    "policy",
}


def attempt(kind: str, evidence: Evidence, trust: TrustAnchors, **how: Any) -> Claims | Exception:
    """Return what came of it; an error that is not ours ends the test."""
    TRIED[kind] += 1
    how = {"binding": binding(), "now": keys.AT, **how}
    try:
        return verify(evidence, trust=trust, **how)
    except (EvidenceError, VerificationError) as error:
        return error


def refused(kind: str, evidence: Evidence, trust: TrustAnchors, **how: Any) -> AttestationError:
    """Check that ``evidence`` is refused with an error of ours; return it."""
    outcome = attempt(kind, evidence, trust, **how)
    assert isinstance(outcome, AttestationError), f"{kind}: accepted"
    assert str(outcome)
    return outcome


def flipped(data: bytes, start: int, end: int) -> Iterator[tuple[int, bytes]]:
    step = max(1, (end - start) // EVERY)
    for number, offset in enumerate(range(start, end, step)):
        changed = bytearray(data)
        changed[offset] ^= (0x01, 0xFF, 0x80, 0x20)[number % 4]
        yield offset, bytes(changed)


@pytest.mark.parametrize("name", BINARY)
def test_no_flipped_byte_passes(name: str) -> None:
    subject = SUBJECTS[name]
    evidence = subject.make(binding())
    for field, start, end in subject.regions(evidence.quote):
        for offset, quote in flipped(evidence.quote, start, end):
            error = refused("byte flipped", replace(evidence, quote=quote), subject.trust)
            if field in MALFORMED:
                assert isinstance(error, EvidenceError | SignatureError), (field, offset, error)
            if field in SIGNED:
                assert isinstance(error, SignatureError), (field, offset, error)
            if isinstance(error, EvidenceError):
                assert error.field, (field, offset, error)


@pytest.mark.parametrize("name", SUBJECTS)
def test_no_length_but_the_whole_passes(name: str) -> None:
    subject = SUBJECTS[name]
    evidence = subject.make(binding())
    whole = len(evidence.quote.rstrip())
    step = max(1, whole // 200)
    for length in {*range(0, whole, step), *range(max(0, whole - 32), whole), *range(64)}:
        cut = replace(evidence, quote=evidence.quote[:length])
        error = refused("cut", cut, subject.trust)
        assert isinstance(error, EvidenceError), (length, error)
    for tail in (b"\1", b"\xff" * 16, evidence.quote):
        refused("appended", replace(evidence, quote=evidence.quote + tail), subject.trust)


@pytest.mark.parametrize("name", [name for name in SUBJECTS if name.startswith("azure")])
def test_no_changed_part_of_a_composite_passes(name: str) -> None:
    subject = SUBJECTS[name]
    evidence = subject.make(binding())
    document = json.loads(evidence.quote)
    message = bytes.fromhex(document["tpm_quote"]["message"])
    signature = bytes.fromhex(document["tpm_quote"]["signature"])
    for key, value in (("message", message), ("signature", signature)):
        for _, changed in flipped(value, 0, len(value)):
            edited = {**document, "tpm_quote": {**document["tpm_quote"], key: changed.hex()}}
            quote = json.dumps(edited).encode()
            error = refused("part changed", replace(evidence, quote=quote), subject.trust)
            assert isinstance(error, SignatureError | EvidenceError)
    for number, value in enumerate(document["tpm_quote"]["pcrs"]):
        pcrs = [*document["tpm_quote"]["pcrs"]]
        pcrs[number] = (bytes.fromhex(value)[:-1] + b"\0").hex()
        edited = {**document, "tpm_quote": {**document["tpm_quote"], "pcrs": pcrs}}
        quote = json.dumps(edited).encode()
        error = refused("part changed", replace(evidence, quote=quote), subject.trust)
        assert isinstance(error, SignatureError)
    import base64

    hcl = base64.urlsafe_b64decode(document["hcl_report"] + "==")
    for start, end in ((0, 32), (32, 1216), (1216, len(hcl))):
        if name == "azure-tdx" and start == 32:
            continue
        for offset, changed in flipped(hcl, start, end):
            edited = {**document, "hcl_report": base64.b64encode(changed).decode()}
            quote = json.dumps(edited).encode()
            error = refused("part changed", replace(evidence, quote=quote), subject.trust)
            assert not isinstance(error, FreshnessError), offset


@pytest.mark.parametrize("name", ["tdx-v4", "tdx-v5", "tpm"])
def test_no_edited_log_passes(name: str) -> None:
    subject = SUBJECTS[name]
    evidence = subject.make(binding())
    log = EventLog.parse(evidence.event_log)
    events = [event.to_bytes() for event in log.events]
    edits: list[list[bytes]] = []
    for number in range(len(events)):
        edits.append(events[:number] + events[number + 1 :])
        edits.append([*events[: number + 1], *events[number:]])
        edits.append(events[:number])
        for other in range(number):
            if log.events[number].index == log.events[other].index:
                swapped = [*events]
                swapped[number], swapped[other] = events[other], events[number]
                edits.append(swapped)
    for edit in edits:
        if edit == events or not edit:
            continue
        changed = replace(evidence, event_log=log.header + b"".join(edit))
        error = refused("log edited", changed, subject.trust)
        assert isinstance(error, EventLogError), error
        assert error.register or "event" in str(error)


@pytest.mark.parametrize("name", ["tdx-v4", "tpm"])
def test_no_flipped_byte_of_a_log_changes_a_claim(name: str) -> None:
    subject = SUBJECTS[name]
    evidence = subject.make(binding())
    good = verify(evidence, binding=binding(), trust=subject.trust, now=keys.AT)
    for offset in range(0, len(evidence.event_log), 3):
        changed = bytearray(evidence.event_log)
        changed[offset] ^= 0xFF
        log = replace(evidence, event_log=bytes(changed))
        outcome = attempt("log byte flipped", log, subject.trust)
        if isinstance(outcome, Claims):
            for claim in ("app", "job"):
                assert outcome.measurements[claim] == good.measurements[claim], offset
        else:
            assert isinstance(outcome, EvidenceError | EventLogError), (offset, outcome)


@pytest.mark.parametrize("name", SUBJECTS)
def test_evidence_is_good_for_nothing_else(name: str) -> None:
    subject = SUBJECTS[name]
    for changed in OTHER_BINDINGS.values():
        evidence = subject.make(binding(**changed))
        assert isinstance(refused("relayed", evidence, subject.trust), BindingError)
    evidence = subject.make(binding())
    for value in (b"", bytes(32), bytes(64), bytes(63), b"\xff" * 64):
        error = refused("relayed", evidence, subject.trust, binding=ReportData(value=value))
        assert isinstance(error, BindingError)


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


def tdx(quote: bytes) -> Evidence:
    return Evidence(tee=Tee.TDX, quote=quote)


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


@pytest.fixture(scope="module")
def real() -> Path:
    """The folder of real evidence."""
    default = Path(__file__).parents[3].parent / "shared" / "vectors"
    found = Path(os.environ.get("FEDLEARN_VECTORS", default))
    if not found.is_dir():
        pytest.skip(f"no real evidence at {found}; set FEDLEARN_VECTORS")
    return found


def test_no_flipped_byte_of_real_evidence_passes(real: Path) -> None:
    from tests.vectors.cases import dcap_regions, snp_regions

    intel = dt.datetime.fromtimestamp(1750340000, dt.UTC)
    now = dt.datetime(2025, 9, 1, tzinfo=dt.UTC)

    def read(name: str) -> bytes:
        return (real / name).read_bytes()

    for tee, data, trust, moment in (
        (
            Tee.TDX,
            read("tdx_v4_quote_phala.bin"),
            TrustAnchors(collateral=(read("tdx_v4_quote_phala.collateral.json"),)),
            intel,
        ),
        (
            Tee.SGX,
            read("sgx_v3_quote_phala.bin"),
            TrustAnchors(collateral=(read("sgx_v3_quote_phala.collateral.json"),)),
            intel,
        ),
        (
            Tee.SNP,
            bytes.fromhex(read("snp_v2_report_virtee_milan.hex").decode().strip()),
            TrustAnchors(
                endorsements=(read("snp_vcek_virtee_milan.der"), read("amd_ask_ark_milan.pem"))
            ),
            now,
        ),
        (
            Tee.SNP,
            read("snp_vlek_report_trustee.bin"),
            TrustAnchors(
                endorsements=(read("snp_vlek_trustee.der"), read("amd_asvk_ark_milan.pem"))
            ),
            now,
        ),
    ):
        evidence = Evidence(tee=tee, quote=data)
        assert verify(evidence, binding=None, trust=trust, now=moment)
        regions = snp_regions(data) if tee is Tee.SNP else dcap_regions(data)
        for _, start, end in regions:
            for _, quote in flipped(data, start, end):
                refused(
                    "real byte flipped",
                    replace(evidence, quote=quote),
                    trust,
                    binding=None,
                    now=moment,
                )
        padding = next((start for name, start, _ in regions if name == "padding"), len(data))
        for length in range(0, padding, 41):
            refused(
                "real cut", replace(evidence, quote=data[:length]), trust, binding=None, now=moment
            )


def test_the_count(capsys: pytest.CaptureFixture[str]) -> None:
    with capsys.disabled():
        listed = ", ".join(f"{count} {kind}" for kind, count in sorted(TRIED.items()))
        print(f"\nadversarial: {sum(TRIED.values())} attempts, none passed ({listed})")
    if os.environ.get("PYTEST_XDIST_WORKER") is None:
        assert sum(TRIED.values()) > 0
