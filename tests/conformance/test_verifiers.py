"""One suite for every verifier: what one of them refuses, all of them refuse."""

from __future__ import annotations

from dataclasses import replace

import pytest

from attestation.binding import ReportData
from attestation.errors import (
    AttestationError,
    BindingError,
    EndorsementError,
    EvidenceError,
    FreshnessError,
)
from attestation.evidence import Claims, Evidence, Tee
from attestation.policy.appraise import appraise
from attestation.policy.result import Tier
from attestation.verifiers import verify
from tests.vectors import keys
from tests.vectors.cases import AFTER, BEFORE, OTHER_BINDINGS, Subject, binding, subjects

SUBJECTS = subjects()
pytestmark = pytest.mark.parametrize("subject", SUBJECTS, ids=lambda item: item.name)


def claims_of(subject: Subject, evidence: Evidence | None = None) -> Claims:
    made = evidence or subject.make(binding())
    return verify(made, binding=binding(), trust=subject.trust, now=keys.AT)


def test_genuine_evidence_is_affirmed(subject: Subject) -> None:
    claims = claims_of(subject)
    result = appraise(subject.policy, claims, now=keys.AT, node="site-a")
    assert result.status is Tier.AFFIRMING, result.refusals
    assert claims.bound is True
    assert claims.tee is subject.tee
    assert not claims.unverified


def test_evidence_survives_its_encoding(subject: Subject) -> None:
    evidence = subject.make(binding())
    assert claims_of(subject, Evidence.from_bytes(evidence.to_bytes())) == claims_of(
        subject, evidence
    )


@pytest.mark.parametrize("other", OTHER_BINDINGS)
def test_another_binding_is_refused(subject: Subject, other: str) -> None:
    evidence = subject.make(binding())
    with pytest.raises(BindingError):
        verify(
            evidence,
            binding=binding(**OTHER_BINDINGS[other]),
            trust=subject.trust,
            now=keys.AT,
        )


def test_a_nonce_that_the_prover_chose_is_refused(subject: Subject) -> None:
    evidence = subject.make(binding(nonce=bytes(32)))
    with pytest.raises(BindingError):
        claims_of(subject, evidence)


def test_an_unchecked_binding_states_it_and_is_not_affirmed(subject: Subject) -> None:
    evidence = subject.make(binding())
    claims = verify(evidence, binding=None, trust=subject.trust, now=keys.AT)
    assert claims.bound is False
    result = appraise(subject.policy, claims, now=keys.AT, node="site-a")
    assert result.status is Tier.CONTRAINDICATED


def test_stored_report_data_is_compared_as_it_is(subject: Subject) -> None:
    evidence = subject.make(binding())
    tpm = subject.tee in (Tee.TPM, Tee.AZURE_VTPM)
    value = binding().qualifying_data() if tpm else binding().report_data()
    given = ReportData(value=value)
    claims = verify(evidence, binding=given, trust=subject.trust, now=keys.AT)
    assert claims.bound is True
    with pytest.raises(BindingError):
        verify(
            evidence,
            binding=ReportData(value=value[:-1]),
            trust=subject.trust,
            now=keys.AT,
        )


def test_another_root_is_refused(subject: Subject) -> None:
    with pytest.raises(EndorsementError):
        verify(subject.make(binding()), binding=binding(), trust=subject.stranger, now=keys.AT)


def test_evidence_of_another_name_is_refused(subject: Subject) -> None:
    evidence = subject.make(binding())
    for tee in Tee:
        if tee is not subject.tee:
            renamed = replace(evidence, tee=tee)
            with pytest.raises(AttestationError):
                verify(renamed, binding=binding(), trust=subject.trust, now=keys.AT)


@pytest.mark.parametrize("data", [b"", b"\0", b"{}", b"[]", b"\xff" * 64, bytes(5000)])
def test_what_is_not_evidence_is_malformed(subject: Subject, data: bytes) -> None:
    broken = replace(subject.make(binding()), quote=data)
    with pytest.raises(EvidenceError):
        verify(broken, binding=binding(), trust=subject.trust, now=keys.AT)


def test_evidence_that_is_too_large_is_not_read(subject: Subject) -> None:
    evidence = subject.make(binding())
    large = replace(evidence, quote=evidence.quote + b" " * 1024 * 1024)
    with pytest.raises(EvidenceError, match=r"at most|bytes|size"):
        verify(large, binding=binding(), trust=subject.trust, now=keys.AT)


@pytest.mark.parametrize("when", [BEFORE, AFTER], ids=["before", "after"])
def test_what_vouches_for_it_must_be_valid_now(subject: Subject, when: object) -> None:
    if not subject.times:
        pytest.skip(f"{subject.name} evidence is vouched for by a pinned key without a window")
    with pytest.raises(FreshnessError) as refused:
        verify(subject.make(binding()), binding=binding(), trust=subject.trust, now=when)  # type: ignore[arg-type]
    assert refused.value.hint or refused.value.step


def test_a_naive_time_is_a_fault_of_the_caller(subject: Subject) -> None:
    with pytest.raises(ValueError, match="aware"):
        verify(
            subject.make(binding()),
            binding=binding(),
            trust=subject.trust,
            now=keys.AT.replace(tzinfo=None),
        )


def test_debug_is_refused(subject: Subject) -> None:
    if subject.debug is None:
        pytest.skip(f"{subject.name} has no debug mode of its own")
    claims = claims_of(subject, subject.debug(binding()))
    assert claims.debug
    result = appraise(subject.policy, claims, now=keys.AT, node="site-a")
    assert result.status is Tier.CONTRAINDICATED
    assert "debug" in {finding.claim for finding in result.refusals}


def test_an_empty_policy_admits_nobody(subject: Subject) -> None:
    empty = type(subject.policy)()
    assert appraise(empty, claims_of(subject), now=keys.AT).status is Tier.CONTRAINDICATED


def test_other_hardware_is_refused(subject: Subject) -> None:
    claims = claims_of(subject)
    for identity, status in (
        (claims.hardware_id, Tier.AFFIRMING),
        (b"\1" * 32, Tier.CONTRAINDICATED),
    ):
        policy = replace(subject.policy, nodes={"site-a": frozenset({identity})})
        assert appraise(policy, claims, now=keys.AT, node="site-a").status is status
        elsewhere = appraise(policy, claims, now=keys.AT, node="site-b")
        assert elsewhere.status is Tier.CONTRAINDICATED


def test_a_log_of_something_else_is_refused(subject: Subject) -> None:
    from attestation.logs.eventlog import EventLog

    other = EventLog.create(("sha256", "sha384")).append(
        14 if subject.tee in (Tee.TPM, Tee.AZURE_VTPM) else 4,
        0x80000007,
        {"sha256": bytes(32), "sha384": bytes(48)},
        b"",
    )
    swapped = replace(subject.make(binding()), event_log=other.to_bytes())
    with pytest.raises(AttestationError, match=r"log|event"):
        claims_of(subject, swapped)


def test_verification_is_pure(subject: Subject) -> None:
    evidence = subject.make(binding())
    assert claims_of(subject, evidence) == claims_of(subject, evidence)
