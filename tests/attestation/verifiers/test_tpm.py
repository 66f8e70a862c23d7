"""The TPM verifier: each step refuses its own fault, and its error names the step."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from attestation.binding import Binding, ReportData, Role
from attestation.errors import (
    AttestationError,
    BindingError,
    EndorsementError,
    EventLogError,
    EvidenceError,
    SignatureError,
    VerificationError,
)
from attestation.evidence import Claims, Evidence, Tee
from attestation.logs.eventlog import EventLog
from attestation.quotes.tpm import TpmQuote
from attestation.quotes.tpm_keys import load_public_key, spki
from attestation.trust import TrustAnchors
from attestation.verifiers import verify
from attestation.verifiers.tpm import VERIFIER
from tests.fakes.synthetic_tpm import SyntheticTpm, binding, public_area

NOW = datetime(2026, 1, 1, tzinfo=UTC)
APP, JOB = b"a" * 32, b"j" * 32


def trusting(tpm: SyntheticTpm) -> TrustAnchors:
    digest = hashlib.sha256(spki(tpm.key.public_key())).digest()
    return TrustAnchors(tpm_aks=frozenset([digest]))


def check(evidence: Evidence, tpm: SyntheticTpm, bound: Binding) -> Claims:
    return verify(evidence, binding=bound, trust=trusting(tpm), now=NOW)


@pytest.fixture
def tpm() -> SyntheticTpm:
    made = SyntheticTpm()
    made.measure("app", APP, "job-1")
    made.measure("job", JOB, "job-1")
    return made


@pytest.fixture
def bound() -> Binding:
    return binding()


def test_genuine_evidence_gives_claims(tpm: SyntheticTpm, bound: Binding) -> None:
    claims = check(tpm.evidence(bound, scope="job-1"), tpm, bound)
    assert claims.tee is Tee.TPM
    assert claims.measurements["app"] == APP
    assert claims.measurements["job"] == JOB
    assert claims.measurements["pcr.14"] == tpm.pcrs["sha256"][14]
    assert claims.measurements["pcr.0"] == bytes(32)
    assert claims.hardware_id == hashlib.sha256(spki(tpm.key.public_key())).digest()
    assert claims.debug is False
    assert claims.unverified == ()
    assert claims.bound is True
    assert claims.attributes["tpm.clock"] == 1000
    assert claims.attributes["tpm.reset_count"] == 3
    assert claims.attributes["tpm.restart_count"] == 1
    assert claims.attributes["tpm.safe"] is True
    assert claims.attributes["tpm.firmware"] == 0x0102030405060708
    assert claims.attributes["tpm.hierarchy"] == "endorsement"


def test_the_endorsement_key_is_the_hardware_where_it_was_proven(
    tpm: SyntheticTpm, bound: Binding
) -> None:
    trust = trusting(tpm)
    (ak,) = trust.tpm_aks
    proven = replace(trust, tpm_ek_of={ak: b"e" * 32})
    evidence = tpm.evidence(bound)
    assert verify(evidence, binding=bound, trust=proven, now=NOW).hardware_id == b"e" * 32


def test_another_scope_sees_the_measurements_as_those_of_others(
    tpm: SyntheticTpm, bound: Binding
) -> None:
    claims = check(tpm.evidence(bound, scope="job-2"), tpm, bound)
    assert "app" not in claims.measurements
    assert claims.measurements["other/job-1/app"] == APP


def test_unbound_evidence_states_it(tpm: SyntheticTpm, bound: Binding) -> None:
    claims = verify(tpm.evidence(bound), binding=None, trust=trusting(tpm), now=NOW)
    assert claims.bound is False


def test_the_recorded_quote_of_a_software_tpm_verifies(vectors: Path) -> None:
    def read(name: str) -> bytes:
        return (vectors / "swtpm" / name).read_bytes()

    ak = load_public_key(read("ak.pem"), "ak")
    trust = TrustAnchors(tpm_aks=frozenset([hashlib.sha256(spki(ak)).digest()]))
    pieces = (read("sig.bin"), read("ak.pem"), read("pcrs.bin"))
    evidence = Evidence(tee=Tee.TPM, quote=read("attest.bin"), endorsements=pieces)
    asked = ReportData(value=read("qualifying_data.bin"))
    claims = verify(evidence, binding=asked, trust=trust, now=NOW)
    assert claims.measurements["pcr.14"] == read("pcrs.bin")[-32:]
    assert "app" not in claims.measurements
    # Its PCR 14 was extended, and a log that is there must state with what.
    empty = replace(evidence, event_log=EventLog.create(("sha256",)).to_bytes())
    with pytest.raises(EventLogError, match="no event for it") as caught:
        verify(empty, binding=asked, trust=trust, now=NOW)
    assert caught.value.register == "pcr.14"
    with pytest.raises(BindingError):
        verify(evidence, binding=ReportData(value=read("nonce.bin")), trust=trust, now=NOW)


SCHEMES = [
    ("ecdsa", "sha256", ec.SECP256R1()),
    ("ecdsa", "sha384", ec.SECP384R1()),
    ("ecdsa", "sha512", ec.SECP521R1()),
    ("rsassa", "sha256", 2048),
    ("rsapss", "sha256", 2048),
    ("rsapss", "sha384", 3072),
]


@pytest.mark.parametrize(("scheme", "digest", "size"), SCHEMES)
def test_every_scheme_verifies_and_refuses_another_key(
    bound: Binding, scheme: str, digest: str, size: int
) -> None:
    def key() -> Any:
        return (
            rsa.generate_private_key(65537, size)
            if isinstance(size, int)
            else ec.generate_private_key(size)
        )

    tpm = SyntheticTpm(key=key(), scheme=scheme, hash=digest)
    evidence = tpm.evidence(bound)
    check(evidence, tpm, bound)
    forger = SyntheticTpm(key=key(), scheme=scheme, hash=digest)
    statement = tpm.statement(bound.qualifying_data())
    forged = TpmQuote.assemble(
        attest=statement,
        signature=forger.sign(statement),
        ak=tpm.area,
        pcr_values=tpm.values(),
    )
    with pytest.raises(SignatureError) as caught:
        check(replace(evidence, quote=forged.to_bytes()), tpm, bound)
    assert caught.value.step == "quote signature"


def test_a_scheme_for_another_kind_of_key_is_refused(bound: Binding) -> None:
    tpm, other = SyntheticTpm(), SyntheticTpm(key=rsa.generate_private_key(65537, 2048))
    other.scheme = "rsassa"
    statement = tpm.statement(bound.qualifying_data())
    quote = TpmQuote.assemble(
        attest=statement, signature=other.sign(statement), ak=tpm.area, pcr_values=tpm.values()
    )
    with pytest.raises(SignatureError, match="rsassa"):
        check(Evidence(tee=Tee.TPM, quote=quote.to_bytes()), tpm, bound)


def test_sha1_is_never_accepted(bound: Binding) -> None:
    signs = SyntheticTpm(hash="sha1", key=rsa.generate_private_key(65537, 2048))
    signs.scheme = "rsassa"
    with pytest.raises(SignatureError, match="sha1 is not accepted"):
        check(signs.evidence(bound), signs, bound)
    measures = SyntheticTpm(banks=("sha1",))
    claims = check(replace(measures.evidence(bound), event_log=b""), measures, bound)
    assert not claims.measurements
    measures.measure("app", APP)
    with pytest.raises(EventLogError, match="covers no PCR"):
        check(measures.evidence(bound), measures, bound)


OTHERS: list[dict[str, Any]] = [
    {"nonce": b"m" * 32},
    {"tls_key": b"another key"},
    {"role": Role.COORDINATOR},
    {"role": Role.SITE},
    {"node_id": "site-b"},
    {"verifier_id": b"u" * 32},
    {"workload": b"x" * 32},
]


@pytest.mark.parametrize("other", OTHERS)
def test_evidence_for_another_binding_is_refused(
    tpm: SyntheticTpm, bound: Binding, other: dict[str, Any]
) -> None:
    with pytest.raises(BindingError) as caught:
        check(tpm.evidence(bound), tpm, binding(**other))
    assert caught.value.step == "binding"


def test_a_key_that_was_not_enrolled_is_refused(tpm: SyntheticTpm, bound: Binding) -> None:
    with pytest.raises(EndorsementError, match="neither proven") as caught:
        verify(tpm.evidence(bound), binding=bound, trust=TrustAnchors(), now=NOW)
    assert caught.value.step == "attestation key"
    assert caught.value.hint
    with pytest.raises(EndorsementError):
        check(tpm.evidence(bound), SyntheticTpm(), bound)


@pytest.mark.parametrize(
    "attributes",
    [
        0x00040072,  # not restricted: it would sign a statement made by anybody
        0x00050070,  # may be moved to another TPM
        0x00050052,  # made outside of the TPM
        0x00070072,  # decrypts as well
        0x00010072,  # does not sign
    ],
)
def test_a_key_of_another_kind_is_refused(bound: Binding, attributes: int) -> None:
    tpm = SyntheticTpm(attributes=attributes)
    with pytest.raises(EndorsementError, match="restricted signing key"):
        check(tpm.evidence(bound), tpm, bound)


def test_attributes_that_the_tpm_did_not_sign_are_refused(bound: Binding) -> None:
    tpm = SyntheticTpm(attributes=0x00040072)
    statement = tpm.statement(bound.qualifying_data())
    dressed_up = public_area(tpm.key.public_key())
    quote = TpmQuote.assemble(
        attest=statement, signature=tpm.sign(statement), ak=dressed_up, pcr_values=tpm.values()
    )
    with pytest.raises(EndorsementError, match="qualified name"):
        check(Evidence(tee=Tee.TPM, quote=quote.to_bytes()), tpm, bound)


@pytest.mark.parametrize("hierarchy", [(0x40000001, "owner"), (0x4000000C, "platform")])
def test_the_hierarchy_of_the_key_is_a_claim(bound: Binding, hierarchy: tuple[int, str]) -> None:
    tpm = SyntheticTpm(parent=hierarchy[0])
    claims = check(tpm.evidence(bound), tpm, bound)
    assert claims.attributes["tpm.hierarchy"] == hierarchy[1]


def test_pcr_values_that_were_not_signed_are_refused(tpm: SyntheticTpm, bound: Binding) -> None:
    evidence = tpm.evidence(bound)
    quote = TpmQuote.from_bytes(evidence.quote)
    for position in range(0, len(quote.pcr_values), 16):
        values = bytearray(quote.pcr_values)
        values[position] ^= 1
        altered = replace(quote, pcr_values=bytes(values))
        with pytest.raises(SignatureError) as caught:
            check(replace(evidence, quote=altered.to_bytes()), tpm, bound)
        assert caught.value.step == "pcr digest"


def logs(tpm: SyntheticTpm) -> Iterator[tuple[str, EventLog]]:
    log = tpm.log
    one, two = log.events
    yield "first dropped", replace(log, events=(two,))
    yield "last dropped", replace(log, events=(one,))
    yield "all dropped", replace(log, events=())
    yield "swapped", replace(log, events=(two, one))
    yield "repeated", replace(log, events=(one, one, two))
    yield "more", log.append(14, 6, {"sha256": b"e" * 32}, b"extra")
    yield "other register", log.append(7, 6, {"sha256": b"e" * 32}, b"extra")
    yield "register not quoted", log.append(9, 6, {"sha256": b"e" * 32}, b"extra")
    yield "reported, not extended", replace(log, events=(replace(one, type=3), two))
    yield "moved", replace(log, events=(replace(one, index=16), two))
    data = one.data.replace(APP.hex().encode(), (b"b" * 32).hex().encode())
    assert data != one.data
    yield "content edited", replace(log, events=(replace(one, data=data), two))
    digest = {"sha256": hashlib.sha256(data).digest()}
    yield "event edited", replace(log, events=(replace(one, data=data, digests=digest), two))


def test_every_altered_log_is_refused(tpm: SyntheticTpm, bound: Binding) -> None:
    evidence = tpm.evidence(bound, scope="job-1")
    tried = 0
    for name, log in logs(tpm):
        altered = replace(evidence, event_log=log.to_bytes())
        with pytest.raises(EventLogError):
            pytest.fail(f"{name}: {check(altered, tpm, bound)}")
        tried += 1
    without = check(replace(evidence, event_log=b""), tpm, bound)
    assert set(without.measurements) == {f"pcr.{i}" for i in tpm.selected}
    assert tried == 12


def test_a_log_of_the_right_events_for_another_bank_is_refused(bound: Binding) -> None:
    tpm = SyntheticTpm(banks=("sha256", "sha384"))
    tpm.measure("app", APP)
    evidence = tpm.evidence(bound)
    claims = check(evidence, tpm, bound)
    assert claims.measurements["app"] == APP
    assert claims.measurements["pcr.14.sha384"] == tpm.pcrs["sha384"][14]
    events = tuple(replace(e, digests={"sha384": e.digests["sha384"]}) for e in tpm.log.events)
    with pytest.raises(EventLogError):
        check(replace(evidence, event_log=replace(tpm.log, events=events).to_bytes()), tpm, bound)


def test_firmware_events_are_replayed_with_ours(bound: Binding) -> None:
    tpm = SyntheticTpm()
    for pcr in (0, 4, 14):
        digest = hashlib.sha256(bytes([pcr])).digest()
        tpm.log = tpm.log.append(pcr, 0x80000003, {"sha256": digest}, b"firmware")
        tpm.extend(pcr, {"sha256": digest})
    boot = tpm.pcrs["sha256"][14]
    tpm.measure("app", APP)
    evidence = tpm.evidence(bound)
    with pytest.raises(EventLogError, match=boot.hex()):
        check(evidence, tpm, bound)
    trust = replace(trusting(tpm), tpm_boot_values=frozenset([boot]))
    claims = verify(evidence, binding=bound, trust=trust, now=NOW)
    assert claims.measurements["app"] == APP


@pytest.mark.parametrize("disguise", [{"type": 13}, {"data": b"MokList"}])
def test_a_measurement_cannot_be_hidden_to_show_another(
    bound: Binding, disguise: dict[str, Any]
) -> None:
    """The type and the text of an event are not hashed into the register."""
    tpm = SyntheticTpm()
    tpm.measure("app", b"e" * 32)
    (real,) = tpm.log.events
    tpm.log = replace(tpm.log, events=())
    tpm.measure("app", APP)
    shown = tpm.log.events[0]
    for order in ((replace(real, **disguise), shown), (shown, replace(real, **disguise))):
        tpm.log = replace(tpm.log, events=order)
        tpm.pcrs["sha256"][14] = bytes(32)
        for event in order:
            tpm.extend(14, event.digests)
        with pytest.raises(EventLogError, match="does not explain"):
            check(tpm.evidence(bound), tpm, bound)


def test_a_measurement_outside_of_pcr_14_does_not_count(bound: Binding) -> None:
    tpm = SyntheticTpm(selected=(14, 16))
    tpm.measure("app", APP, pcr=16)
    assert "app" not in check(tpm.evidence(bound), tpm, bound).measurements


def test_evidence_of_another_kind_is_refused(tpm: SyntheticTpm, bound: Binding) -> None:
    evidence = replace(tpm.evidence(bound), tee=Tee.SNP)
    with pytest.raises(EvidenceError, match="not TPM but snp"):
        VERIFIER.verify(evidence, binding=bound, trust=trusting(tpm), now=NOW)


def test_every_flipped_bit_of_a_quote_is_refused(tpm: SyntheticTpm, bound: Binding) -> None:
    """All bytes of the container, one bit each in turn; the scope only renames claims."""
    evidence = tpm.evidence(bound, scope="job-1")
    refused = renamed = 0
    for position in range(len(evidence.quote)):
        flipped = bytearray(evidence.quote)
        flipped[position] ^= 1 << position % 8
        try:
            claims = check(replace(evidence, quote=bytes(flipped)), tpm, bound)
        except (EvidenceError, VerificationError):
            refused += 1
            continue
        assert "app" not in claims.measurements
        assert claims.attributes["tpm.scope"] != "job-1"
        renamed += 1
    print(f"{refused} flips refused, {renamed} renamed the scope")
    assert renamed <= len("job-1")
    assert refused + renamed == len(evidence.quote)


def test_every_flipped_bit_of_a_log_is_refused_or_changes_nothing(
    tpm: SyntheticTpm, bound: Binding
) -> None:
    """The header of a log and the header of an event are not hashed; nothing follows from them."""
    evidence = tpm.evidence(bound, scope="job-1")
    genuine = check(evidence, tpm, bound)
    refused = unchanged = 0
    for position in range(len(evidence.event_log)):
        flipped = bytearray(evidence.event_log)
        flipped[position] ^= 1 << position % 8
        try:
            claims = check(replace(evidence, event_log=bytes(flipped)), tpm, bound)
        except AttestationError:
            refused += 1
            continue
        assert dict(claims.measurements) == dict(genuine.measurements)
        unchanged += 1
    print(f"{refused} flips refused, {unchanged} in bytes that mean nothing")
    assert unchanged <= 12
