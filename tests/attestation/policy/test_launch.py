"""Launch identity: nothing is affirmed whose start a policy does not pin, whatever else matches."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import pytest

from attestation.errors import EventLogError, PolicyError
from attestation.evidence import Claims, Evidence, Origin, Tee
from attestation.logs.eventlog import EventLog
from attestation.logs.runtime_events import Measurement
from attestation.policy.appraise import appraise
from attestation.policy.draft import draft_policy
from attestation.policy.ear import issue, read
from attestation.policy.launch import launch_errors, launch_warnings, require_launch_identity
from attestation.policy.lint import lint_policy
from attestation.policy.model import AppraisalPolicy, ReferenceValue, SgxRules, SnpRules
from attestation.policy.parse import parse_policy
from attestation.policy.references import event_references
from attestation.policy.result import Finding, Tier
from attestation.trust import TrustAnchors
from attestation.verifiers import verify
from tests.vectors import keys
from tests.vectors.cases import Subject, binding, subjects
from tests.vectors.intel import Intel

SELF_REPORTED = ("app", "job", "software", "image", "initdata")
BY_THE_HOST = ("host_data", "mrconfigid", "mrowner", "mrownerconfig")
ONE = b"\x01" * 48


def judged(subject: Subject) -> Claims:
    """Return the claims of genuine evidence, with everything that somebody may claim of it."""
    bound = binding()
    trust = subject.policy.anchors_for(subject.trust, tee=subject.tee, now=keys.AT)
    claims = verify(subject.make(bound), binding=bound, trust=trust, now=keys.AT)
    reported = dict.fromkeys((*SELF_REPORTED, *BY_THE_HOST), ONE)
    return replace(claims, measurements={**reported, **claims.measurements})


def refused(policy: AppraisalPolicy, claims: Claims) -> set[str]:
    result = appraise(policy, claims, now=keys.AT)
    assert (result.status is Tier.AFFIRMING) is (not result.refusals)
    return {item.claim for item in result.refusals}


@pytest.mark.parametrize("subject", subjects(), ids=lambda subject: subject.name)
def test_no_evidence_is_affirmed_without_its_launch(subject: Subject) -> None:
    claims = judged(subject)
    assert refused(subject.policy, claims) == set()
    assert launch_errors(subject.policy) == ()
    started = [r for r in subject.policy.references if r.claim not in SELF_REPORTED[:2]]
    for reference in started:
        rest = tuple(r for r in subject.policy.references if r is not reference)
        elsewhere = replace(reference, tee=next(t for t in Tee if t is not subject.tee))
        for references in (
            rest,
            (*rest, elsewhere),
            (*rest, replace(reference, claim="event")),
            (*rest, replace(reference, value=bytes(len(reference.value)), claim="launch"))
            if subject.tee is not Tee.SAMPLE
            else rest,
        ):
            lacking = replace(subject.policy, references=references)
            assert "launch_identity" in refused(lacking, claims)
            [error] = launch_errors(lacking)
            assert f" of {subject.tee.value}," in error
            with pytest.raises(PolicyError, match="nothing pins"):
                require_launch_identity(lacking)


@pytest.mark.parametrize("subject", subjects(), ids=lambda subject: subject.name)
def test_what_others_report_or_set_never_replaces_a_measurement(subject: Subject) -> None:
    claims = judged(subject)
    names = [*SELF_REPORTED, *BY_THE_HOST]
    if subject.tee is Tee.SAMPLE:
        names.remove("software")
    references = tuple(
        ReferenceValue(claim=name, value=claims.measurements[name]) for name in names
    )
    lacking = replace(subject.policy, references=references, require=tuple(names))
    gate = tuple(
        Finding(claim=name, tier=Tier.AFFIRMING, expected="x", actual="x")
        for name in ("app", "job")
    )
    result = appraise(lacking, claims, now=keys.AT, extra=gate)
    assert [item.claim for item in result.refusals] == ["launch_identity"]
    coordinator = AppraisalPolicy(coordinator=lacking)
    assert launch_errors(coordinator) == tuple(f"coordinator: {e}" for e in launch_errors(lacking))


def claims_of(tee: Tee, **measurements: bytes) -> Claims:
    return Claims(
        tee=tee,
        measurements={name.replace("_", ".", 1): value for name, value in measurements.items()},
        debug=False,
        tcb="",
        hardware_id=b"chip",
        bound=True,
    )


def identified(
    tee: Tee, shown: dict[str, bytes], *pinned: str, sgx: SgxRules | None = None
) -> bool:
    """Return whether these pins identify the launch, by the policy alone and by the evidence."""
    claims = replace(claims_of(tee), measurements=shown)
    policy = AppraisalPolicy(
        accept=(tee,),
        sgx=sgx or SgxRules(),
        references=tuple(ReferenceValue(claim=name, value=shown[name]) for name in pinned),
    )
    by_evidence = "launch_identity" not in refused(policy, claims)
    assert by_evidence is (launch_errors(policy) == ())
    return by_evidence


PCRS = {f"pcr.{number}{bank}": ONE for number in range(24) for bank in ("", ".sha384")}


@pytest.mark.parametrize("azure", [False, True])
def test_what_identifies_the_boot_of_a_tpm(azure: bool) -> None:
    tee = Tee.AZURE_VTPM if azure else Tee.TPM
    shown = PCRS | {"launch": ONE, "id_key_digest": ONE, "mrtd": ONE}
    below = ("launch",) if azure else ("pcr.0",)
    for pinned in (
        ("pcr.4", "pcr.8"),
        ("pcr.4", "pcr.9"),
        ("pcr.4", "pcr.12"),
        ("pcr.4.sha384", "pcr.9"),
    ):
        assert identified(tee, shown, *below, *pinned)
        assert not identified(tee, shown, *pinned)
        assert not identified(tee, shown | {pinned[0]: bytes(48)}, *below, *pinned)
        assert not identified(tee, shown | {pinned[1]: bytes(48)}, *below, *pinned)
    for few in (("pcr.4",), ("pcr.9",), ("pcr.4", "pcr.7"), ("pcr.4", "pcr.11"), ("pcr.14",)):
        assert not identified(tee, shown, *below, *few)
    # A unified kernel image without a command line of its own: PCR 12 is zero.
    unified = shown | {"pcr.12": bytes(48)}
    assert identified(tee, unified, *below, "pcr.4", "pcr.11", "pcr.12")
    assert not identified(tee, unified, *below, "pcr.4", "pcr.12")
    if azure:
        for other in ("id_key_digest", "mrtd"):
            assert identified(tee, shown, other, "pcr.4", "pcr.9")
        assert not identified(tee, shown, "pcr.0", "pcr.4", "pcr.9")
    else:
        assert identified(tee, shown, "pcr.0.sha384", "pcr.4", "pcr.9")


def test_a_software_tpm_is_asked_for_by_its_value_and_named_for_what_it_is() -> None:
    zero = PCRS | {"pcr.0": bytes(32), "pcr.4": bytes(32)}
    assert identified(Tee.TPM, zero, "pcr.0")
    assert not identified(Tee.TPM, zero, "pcr.4")
    assert not identified(Tee.TPM, PCRS, "pcr.0")
    policy = AppraisalPolicy(
        accept=(Tee.TPM,), references=(ReferenceValue(claim="pcr.0", value=bytes(32)),)
    )
    [warning] = launch_warnings(policy)
    assert "prove nothing about hardware" in warning
    assert warning in lint_policy(policy, now=keys.AT)
    software = replace(claims_of(Tee.TPM), measurements=zero)
    found = {f.claim: f for f in appraise(policy, software, now=keys.AT).findings}
    assert found["launch_identity"].tier is Tier.AFFIRMING
    assert "proves nothing" in found["launch_identity"].actual
    # A machine with firmware is not affirmed by it, and Azure's vTPM has no such exception.
    assert refused(policy, replace(claims_of(Tee.TPM), measurements=PCRS)) == {
        "launch_identity",
        "pcr.0",
    }
    assert not identified(Tee.AZURE_VTPM, zero | {"launch": ONE}, "launch", "pcr.0")


def test_what_identifies_a_guest() -> None:
    shown = {"launch": ONE, "id_key_digest": ONE, "author_key_digest": ONE, "host_data": ONE}
    assert identified(Tee.SNP, shown, "launch")
    assert identified(Tee.SNP, shown, "id_key_digest")
    assert identified(Tee.SNP, shown, "id_key_digest", "author_key_digest")
    assert not identified(Tee.SNP, shown, "author_key_digest")
    assert not identified(Tee.SNP, shown, "host_data")


def test_a_signed_launch_has_a_version() -> None:
    key = ReferenceValue(claim="id_key_digest", value=ONE)
    any_version = AppraisalPolicy(accept=(Tee.SNP,), references=(key,))
    [warning] = launch_warnings(any_version)
    assert "every image that the key ever signed" in warning
    launch = ReferenceValue(claim="launch", value=ONE)
    for tidy in (
        replace(any_version, snp=SnpRules(min_guest_svn=1)),
        replace(any_version, references=(*any_version.references, launch)),
    ):
        assert list(launch_warnings(tidy)) == []
    shown = replace(
        claims_of(Tee.SNP),
        measurements={"id_key_digest": ONE, "launch": ONE},
        attributes={"snp.guest_svn": 4},
    )
    text = draft_policy(shown, source="report", now=keys.AT).text
    assert parse_policy(text.encode()).snp.min_guest_svn == 4


def test_what_identifies_an_enclave() -> None:
    shown = {"mrenclave": b"\x01" * 32, "mrsigner": b"\x02" * 32}
    signer = SgxRules(mrsigner=(b"\x02" * 32,))
    for rules in (
        SgxRules(mrenclave=(b"\x01" * 32,)),
        replace(signer, isv_prod_id=0, min_isv_svn=0),
    ):
        assert identified(Tee.SGX, shown, sgx=rules)
    assert identified(Tee.SGX, shown, "mrenclave")
    assert identified(Tee.SGX, shown, "mrsigner", sgx=SgxRules(isv_prod_id=1, min_isv_svn=2))
    for rules in (signer, replace(signer, isv_prod_id=1), replace(signer, min_isv_svn=1)):
        assert not identified(Tee.SGX, shown, sgx=rules)
    assert not identified(Tee.SGX, shown, "mrsigner")


def test_a_gpu_alone_is_nothing_that_starts_software() -> None:
    assert not identified(Tee.NVIDIA, {"measurement.1": ONE}, "measurement.1")


INTEL = Intel()
EXIT = b"Exit Boot Services Invocation"
CMDLINE = b"\xed\x22\x3b\x8f\x00\x00\x00\x00"
IMAGE, TAG, ACTION = 0x80000003, 0x6, 0x80000007


def digest(content: bytes) -> bytes:
    return hashlib.sha384(content).digest()


GOOD, EVIL, SHIM, OPTIONS = map(digest, (b"good kernel", b"evil kernel", b"shim", b"options"))


def log_of(*events: tuple[int, int, bytes, bytes]) -> EventLog:
    log = EventLog.create(("sha384",), index=1)
    for index, kind, value, data in events:
        log = log.append(index, kind, {"sha384": value}, data)
    return log


def registers_of(log: EventLog) -> tuple[bytes, ...]:
    registers = log.replay("sha384", ccel=True)
    return tuple(registers.get(index, bytes(48)) for index in range(1, 5))


def booted(true: EventLog, received: EventLog, *pinned: tuple[str, bytes]) -> Finding:
    """Return the launch finding about a domain that booted ``true`` and sends ``reported``."""
    evidence = Evidence(
        tee=Tee.TDX,
        quote=INTEL.quote(4, rtmrs=registers_of(true)),
        endorsements=(INTEL.collateral(),),
        event_log=received.to_bytes(),
    )
    started = [ReferenceValue(claim=claim, value=value) for claim, value in pinned]
    mrtd = ReferenceValue(claim="mrtd", value=keys.stream("mrtd", 48))
    policy = AppraisalPolicy(accept=(Tee.TDX,), references=(mrtd, *started))
    assert launch_errors(policy) == ()
    trust = TrustAnchors(intel_root=INTEL.root_key)
    claims = verify(evidence, binding=None, trust=trust, now=keys.AT)
    result = appraise(policy, claims, now=keys.AT, require_binding=False)
    [found] = [item for item in result.findings if item.claim == "launch_identity"]
    others = {item.claim for item in result.refusals} - {"launch_identity"}
    assert others == set(), "only the launch may refuse here"
    return found


LABELS = (("boot.1", SHIM), ("kernel", GOOD), ("cmdline", OPTIONS))
EVENTS = (*LABELS, ("event", digest(EXIT)))
OPTIONS_EVENT = (3, TAG, OPTIONS, CMDLINE)
HONEST = log_of(
    (2, IMAGE, SHIM, b"a"), (2, IMAGE, GOOD, b"b"), OPTIONS_EVENT, (2, ACTION, digest(EXIT), EXIT)
)


def test_a_log_of_which_every_event_is_named_identifies_what_was_booted() -> None:
    assert booted(HONEST, HONEST, *EVENTS).tier is Tier.AFFIRMING


def test_an_event_is_named_in_its_time_and_for_its_tee() -> None:
    def finding(**changed: object) -> Finding:
        evidence = Evidence(
            tee=Tee.TDX,
            quote=INTEL.quote(4, rtmrs=registers_of(HONEST)),
            endorsements=(INTEL.collateral(),),
            event_log=HONEST.to_bytes(),
        )
        trust = TrustAnchors(intel_root=INTEL.root_key)
        claims = verify(evidence, binding=None, trust=trust, now=keys.AT)
        mrtd = ReferenceValue(claim="mrtd", value=keys.stream("mrtd", 48))
        started = [ReferenceValue(claim=claim, value=value) for claim, value in LABELS]
        last = ReferenceValue(claim="event", value=digest(EXIT))
        last = replace(last, **changed)  # type: ignore[arg-type]
        policy = AppraisalPolicy(accept=(Tee.TDX,), references=(mrtd, *started, last))
        result = appraise(policy, claims, now=keys.AT)
        return next(item for item in result.findings if item.claim == "launch_identity")

    assert finding().tier is finding(tee=Tee.TDX).tier is Tier.AFFIRMING
    for changed in ({"tee": Tee.SNP}, {"not_after": keys.AT}, {"not_before": keys.END}):
        assert finding(**changed).tier is Tier.CONTRAINDICATED


def test_the_events_of_a_known_log_can_be_written_as_a_policy() -> None:
    references = event_references(HONEST.to_bytes(), name="image 2.1")
    assert [item.claim for item in references] == ["boot.1", "boot.2", "cmdline", "kernel", "event"]
    pinned = [(item.claim, item.value) for item in references]
    assert booted(HONEST, HONEST, *pinned).tier is Tier.AFFIRMING
    with pytest.raises(EventLogError, match="event 1 has no sha384"):
        event_references(
            EventLog.create(("sha256", "sha384"), index=1)
            .append(2, IMAGE, {"sha256": bytes(32)}, b"a")
            .to_bytes()
        )


def test_a_kernel_that_extends_the_good_digest_later_is_refused() -> None:
    true = log_of(
        *((2, IMAGE, SHIM, b"a"), (2, IMAGE, EVIL, b"b"), OPTIONS_EVENT),
        *((2, ACTION, digest(EXIT), EXIT), (2, IMAGE, GOOD, b"c")),
    )
    received = log_of(
        *((2, IMAGE, SHIM, b"a"), (2, IMAGE, EVIL, b"b"), OPTIONS_EVENT),
        *((2, IMAGE, digest(EXIT), b"c"), (2, IMAGE, GOOD, b"d")),
    )
    for pinned in (LABELS, EVENTS):
        found = booted(true, received, *pinned)
        assert found.tier is Tier.CONTRAINDICATED
        assert found.actual == "nothing pins the kernel (rtmr1)"


def test_a_command_line_under_another_label_is_refused() -> None:
    evil = digest(b"init=/bin/evil")
    received = log_of(
        *((2, IMAGE, SHIM, b"a"), (2, IMAGE, GOOD, b"b"), (3, 0xD, evil, b"something")),
        *(OPTIONS_EVENT, (2, ACTION, digest(EXIT), EXIT)),
    )
    found = booted(received, received, *EVENTS)
    assert found.tier is Tier.CONTRAINDICATED
    assert found.actual == "nothing pins the kernel's command line (rtmr2)"


def test_lint_states_which_labels_can_be_chosen() -> None:
    def warned(*pinned: str) -> set[str]:
        references = tuple(ReferenceValue(claim=name, value=ONE) for name in ("mrtd", *pinned))
        policy = AppraisalPolicy(accept=(Tee.TDX,), references=references)
        found = [line for line in lint_policy(policy, now=keys.AT) if "label" in line]
        return {line.split()[0] for line in found}

    assert warned("kernel", "cmdline", "initrd", "boot.1") == {
        "kernel",
        "cmdline",
        "initrd",
        "boot.1",
    }
    assert warned("kernel", "cmdline", "initrd", "boot.1", "rtmr1") == {
        "kernel",
        "cmdline",
        "initrd",
    }
    assert warned("kernel", "cmdline", "initrd", "boot.1", "rtmr1", "rtmr2") == set()


def test_claims_state_where_they_come_from() -> None:
    origins = {
        Tee.TDX: {
            "mrtd": Origin.QUOTE,
            "rtmr1": Origin.QUOTE,
            "mrconfigid": Origin.HOST,
            "kernel": Origin.LOG,
            "app": Origin.SELF,
            "software": Origin.SELF,
        },
        Tee.SNP: {"launch": Origin.QUOTE, "host_data": Origin.HOST, "app": Origin.SELF},
        Tee.TPM: {"pcr.14": Origin.QUOTE, "pcr.0.sha384": Origin.QUOTE, "app": Origin.SELF},
        Tee.NVIDIA: {"measurement.1": Origin.QUOTE},
        Tee.SAMPLE: {"launch": Origin.SELF, "mrtd": Origin.SELF},
    }
    for tee, expected in origins.items():
        claims = replace(claims_of(tee), measurements=dict.fromkeys(expected, ONE))
        assert {name: claims.origin_of(name) for name in expected} == expected
        references = tuple(ReferenceValue(claim=name, value=ONE, tee=tee) for name in expected)
        policy = AppraisalPolicy(accept=(tee,), references=references, require=tuple(expected))
        result = appraise(policy, claims, now=keys.AT)
        shown = {item.claim: item.origin for item in result.findings}
        for name, origin in expected.items():
            assert shown[name] is shown[f"require.{name}"] is origin
        assert shown["launch_identity"] is shown["binding"] is Origin.VERIFIER
        key = keys.ec_key("a verifier's key")
        token = issue(result, key=key, issued=keys.AT)
        assert read(token, key=key.public_key(), now=keys.AT).findings == result.findings


@pytest.mark.parametrize(
    "claim", ["nvidia.rim", "nvidia.revocation", "tpm", "snp.vmpl", "td.debug"]
)
def test_software_cannot_measure_under_a_name_of_a_verifier(claim: str) -> None:
    with pytest.raises(ValueError, match="not by software"):
        Measurement(claim=claim, digest=bytes(32))
    assert Measurement(claim=f"x{claim}", digest=bytes(32)).name == f"x{claim}"
