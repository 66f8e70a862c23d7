"""Software evidence: what verifies, and every way in which it must not."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given, settings
from hypothesis import strategies as st

from attestation.attesters.sample import SampleAttester
from attestation.binding import Binding, ReportData, Role
from attestation.errors import (
    AttestationError,
    AttesterError,
    BindingError,
    EndorsementError,
    EvidenceError,
    FreshnessError,
    SignatureError,
)
from attestation.evidence import Evidence, Tee
from attestation.quotes.sample import MAX_SAMPLE_BYTES, SampleQuote, SampleStatement
from attestation.trust import TrustAnchors, key_digest
from attestation.verifiers import verify

NOW = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
KEY = ec.generate_private_key(ec.SECP256R1())
TRUST = TrustAnchors(sample_keys=frozenset({key_digest(KEY.public_key())}))
APP = hashlib.sha256(b"app").digest()
BINDING = Binding(
    role=Role.CLIENT,
    nonce=bytes(range(32)),
    verifier_id=b"v" * 32,
    tls_key=b"tls spki",
    hpke_key=b"h" * 32,
    node_id="site-a",
    workload=b"w" * 32,
)


def attester(**options: object) -> SampleAttester:
    return SampleAttester(KEY, b"\x01" * 16, clock=NOW.timestamp, **options)  # type: ignore[arg-type]


def test_genuine_evidence_gives_its_claims() -> None:
    made = attester(measurements={"image": b"\x02" * 32})
    made.extend("app", APP)
    claims = verify(made.collect(BINDING), binding=BINDING, trust=TRUST, now=NOW)
    assert claims.tee is Tee.SAMPLE
    assert claims.measurements == {"app": APP, "image": b"\x02" * 32}
    assert claims.hardware_id == b"\x01" * 16
    assert claims.bound is True
    assert claims.attributes == {"issued": int(NOW.timestamp())}
    assert claims.tcb == "insecure-software"
    assert not claims.debug


def test_evidence_survives_its_own_encoding() -> None:
    evidence = attester().collect(BINDING)
    again = Evidence.from_bytes(evidence.to_bytes())
    assert again == evidence
    assert verify(again, binding=BINDING, trust=TRUST, now=NOW)


def test_without_a_binding_the_claims_state_it() -> None:
    claims = verify(attester().collect(BINDING), binding=None, trust=TRUST, now=NOW)
    assert claims.bound is False


def test_debug_is_reported() -> None:
    evidence = attester(debug=True).collect(BINDING)
    assert verify(evidence, binding=BINDING, trust=TRUST, now=NOW).debug


@settings(max_examples=200, deadline=None)
@given(
    measurements=st.dictionaries(
        st.from_regex(r"[a-z][a-z0-9_.-]{0,63}", fullmatch=True),
        st.binary(min_size=1, max_size=64),
        max_size=5,
    ),
    debug=st.booleans(),
    time=st.integers(0, 253402300799),
    report_data=st.binary(min_size=64, max_size=64),
    spelling=st.sampled_from(["", " ", "\n", ".0", "\\u0061"]),
)
def test_a_quote_has_one_spelling(
    measurements: dict[str, bytes], debug: bool, time: int, report_data: bytes, spelling: str
) -> None:
    statement = SampleStatement(
        report_data=report_data,
        measurements=measurements,
        hardware_id=b"chip",
        time=time,
        debug=debug,
    )
    quote = SampleQuote(
        statement=statement, key=b"key", signature=bytes(64), signed=statement.signed_bytes()
    )
    data = quote.to_bytes()
    assert SampleQuote.from_bytes(data) == quote
    if spelling:
        other = {
            " ": data.replace(b",", b", ", 1),
            "\n": data + b"\n",
            ".0": data.replace(b'"version":1', b'"version":1.0'),
            "\\u0061": data.replace(b"statement", b"st\\u0061tement"),
        }[spelling]
        with pytest.raises(EvidenceError):
            SampleQuote.from_bytes(other)


@pytest.mark.parametrize(
    "change",
    [
        {"role": Role.COORDINATOR},
        {"nonce": bytes(32)},
        {"verifier_id": b"x" * 32},
        {"tls_key": b"another key"},
        {"hpke_key": b"i" * 32},
        {"node_id": "site-b"},
        {"workload": bytes(32)},
    ],
)
def test_evidence_for_anything_else_is_refused(change: dict[str, object]) -> None:
    evidence = attester().collect(BINDING)
    with pytest.raises(BindingError):
        verify(evidence, binding=replace(BINDING, **change), trust=TRUST, now=NOW)  # type: ignore[arg-type]


def test_unknown_development_key_is_refused() -> None:
    evidence = attester().collect(BINDING)
    with pytest.raises(EndorsementError, match="development key"):
        verify(evidence, binding=BINDING, trust=TrustAnchors(), now=NOW)


def test_statement_from_the_future_is_refused() -> None:
    evidence = attester().collect(BINDING)
    with pytest.raises(FreshnessError):
        verify(evidence, binding=BINDING, trust=TRUST, now=NOW - timedelta(minutes=6))


def test_another_statement_under_the_same_signature_is_refused() -> None:
    evidence = attester().collect(BINDING)
    quote = json.loads(evidence.quote)
    quote["statement"]["measurements"]["app"] = APP.hex()
    forged = json.dumps(quote, sort_keys=True, separators=(",", ":")).encode()
    with pytest.raises(SignatureError):
        verify(replace(evidence, quote=forged), binding=BINDING, trust=TRUST, now=NOW)


def test_every_flipped_byte_and_every_truncation_is_refused() -> None:
    evidence = attester(measurements={"app": APP}).collect(BINDING)
    quote = evidence.quote
    mutants = [quote[:end] for end in range(len(quote))]
    mutants += [
        quote[:index] + bytes([quote[index] ^ mask]) + quote[index + 1 :]
        for index in range(len(quote))
        for mask in (0x01, 0x20, 0x80)
    ]
    for mutant in mutants:
        with pytest.raises(AttestationError):
            verify(replace(evidence, quote=mutant), binding=BINDING, trust=TRUST, now=NOW)


@pytest.mark.parametrize(
    "quote",
    [
        b"",
        b"[]",
        b"null",
        b'{"key":1}',
        b"[" * 60_000,
        b'{"statement":NaN}',
        b"\xff\xfe",
        hashlib.sha512(b"noise").digest(),
    ],
)
def test_garbage_is_refused_with_the_field_named(quote: bytes) -> None:
    with pytest.raises(EvidenceError) as error:
        verify(Evidence(tee=Tee.SAMPLE, quote=quote), binding=None, trust=TRUST, now=NOW)
    assert error.value.field.startswith("sample")


def test_oversized_quote_is_refused_unread() -> None:
    quote = b" " * (MAX_SAMPLE_BYTES + 1)
    with pytest.raises(EvidenceError, match="at most"):
        verify(Evidence(tee=Tee.SAMPLE, quote=quote), binding=None, trust=TRUST, now=NOW)


def test_key_of_another_kind_is_refused() -> None:
    other = ec.generate_private_key(ec.SECP384R1())
    spki = other.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    quote = json.loads(attester().collect(BINDING).quote)
    quote["key"] = spki.hex()
    trust = TrustAnchors(sample_keys=frozenset({hashlib.sha256(spki).digest()}))
    data = json.dumps(quote, sort_keys=True, separators=(",", ":")).encode()
    with pytest.raises(EvidenceError, match="P-256"):
        verify(Evidence(tee=Tee.SAMPLE, quote=data), binding=None, trust=trust, now=NOW)
    with pytest.raises(AttesterError, match="P-256"):
        SampleAttester(other, b"id")


def test_an_event_log_does_not_belong_here() -> None:
    evidence = replace(attester().collect(BINDING), event_log=b"log")
    with pytest.raises(EvidenceError, match="event_log"):
        verify(evidence, binding=BINDING, trust=TRUST, now=NOW)


def test_a_claim_is_measured_once() -> None:
    made = attester()
    made.extend("app", APP)
    with pytest.raises(AttesterError, match="already measured"):
        made.extend("app", APP)
    with pytest.raises(AttesterError, match="32 bytes"):
        made.extend("job", b"short")


def test_a_naive_time_is_a_fault_of_the_caller() -> None:
    with pytest.raises(ValueError, match="aware"):
        verify(
            attester().collect(BINDING),
            binding=ReportData(value=bytes(64)),
            trust=TRUST,
            now=datetime(2026, 3, 1),  # noqa: DTZ001
        )
