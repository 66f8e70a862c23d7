"""OCSP answers: genuine ones count in their window, and each rule of RFC 6960 has its refusal."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509 import ocsp
from cryptography.x509.oid import ExtendedKeyUsageOID
from hypothesis import given, settings
from hypothesis import strategies as st

from attestation.endorsements.chains import Certificate, split_certificates
from attestation.endorsements.nvidia_rim import read_label
from attestation.endorsements.ocsp import (
    MAX_OCSP_BYTES,
    OcspAnswer,
    check_not_revoked,
    is_ocsp,
    ocsp_request,
)
from attestation.errors import (
    AttestationError,
    EndorsementError,
    EvidenceError,
    FreshnessError,
    SignatureError,
)
from tests.vectors import nvidia as made

REAL = Path(__file__).parents[2] / "vectors/nvidia"
GPU_TIME = datetime(2025, 8, 21, 12, tzinfo=UTC)
RIM_TIME = datetime(2025, 10, 24, 12, tzinfo=UTC)
FILES = sorted(REAL.glob("ocsp_*.der"))
GPU_CHAIN = split_certificates((REAL / "hopper_chain.pem").read_bytes(), "chain")[1:]

SUBJECT = made.Authority("Subject", made.RIM_CA, ca=False)
CHAIN = split_certificates(SUBJECT.pem, "chain")
PURPOSE = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.OCSP_SIGNING])
RESPONDER = made.Authority("Responder", made.RIM_CA, ca=False, extensions=(PURPOSE,))
CA_ANSWER = made.answer(made.RIM_CA)


def check(
    *data: bytes, chain: tuple[Certificate, ...] = CHAIN, now: datetime = made.NOW
) -> tuple[OcspAnswer, ...]:
    answers = [item for file in data for item in OcspAnswer.parse(file)]
    return check_not_revoked(chain, answers, now=now, step="revocation", hint="fetch it")


def test_the_genuine_answers_about_a_gpu_count() -> None:
    assert len(FILES) == 7
    data = [file.read_bytes() for file in FILES]
    counted = check(*data, chain=GPU_CHAIN, now=GPU_TIME)
    assert [item.serial for item in counted] == [
        item.parsed.serial_number for item in GPU_CHAIN[:-1]
    ]
    for now in (GPU_TIME - timedelta(days=1), GPU_TIME + timedelta(days=1)):
        with pytest.raises(FreshnessError, match="counts from 2025-08-21T06:47:07"):
            check(*data, chain=GPU_CHAIN, now=now)


@pytest.mark.parametrize(
    "name", ["NV_GPU_DRIVER_GH100_550.90.07.xml", "NV_GPU_VBIOS_1010_0200_882_96009F0001.xml"]
)
def test_the_genuine_answers_about_the_signers_of_rims_count(name: str) -> None:
    chain = read_label((REAL / name).read_bytes()).chain
    data = [file.read_bytes() for file in FILES]
    assert len(check(*data, chain=chain, now=RIM_TIME)) == 3
    with pytest.raises(FreshnessError):
        check(*data, chain=chain, now=GPU_TIME)
    without = [item for item in data if item != (REAL / "ocsp_rim_l3.der").read_bytes()]
    with pytest.raises(EndorsementError, match="no OCSP answer for NVIDIA Reference Value L3"):
        check(*without, chain=chain, now=RIM_TIME)


def test_no_flipped_byte_of_a_genuine_answer_is_accepted() -> None:
    good = [file.read_bytes() for file in FILES]
    one = (REAL / "ocsp_gpu_certificate_l4.der").read_bytes()
    rest = [item for item in good if item != one]
    for at in range(0, len(one), 3):
        flipped = one[:at] + bytes([one[at] ^ 1]) + one[at + 1 :]
        with pytest.raises((EndorsementError, EvidenceError, FreshnessError, SignatureError)):
            check(flipped, *rest, chain=GPU_CHAIN, now=GPU_TIME)


def test_the_issuer_answers_for_itself_or_by_whom_it_certified_for_that() -> None:
    assert len(check(made.answer(SUBJECT), CA_ANSWER)) == 2
    assert len(check(made.answer(SUBJECT, responder=RESPONDER), CA_ANSWER)) == 2


def test_a_revoked_certificate_is_refused_even_beside_a_good_answer() -> None:
    revoked = made.answer(SUBJECT, status=ocsp.OCSPCertStatus.REVOKED)
    for data in ((revoked,), (made.answer(SUBJECT), revoked), (revoked, made.answer(SUBJECT))):
        with pytest.raises(EndorsementError, match=r"Subject .* was revoked at .*keyCompromise"):
            check(*data, CA_ANSWER)
    above = made.answer(made.RIM_CA, status=ocsp.OCSPCertStatus.REVOKED)
    with pytest.raises(EndorsementError, match=r"RIM CA .* was revoked"):
        check(made.answer(SUBJECT), above)


def test_an_unknown_certificate_is_refused() -> None:
    unknown = made.answer(SUBJECT, status=ocsp.OCSPCertStatus.UNKNOWN)
    with pytest.raises(EndorsementError, match="does not know Subject"):
        check(unknown, CA_ANSWER)


def test_an_answer_counts_from_its_first_to_before_its_last_moment() -> None:
    start, end = made.NOW, made.NOW + timedelta(hours=1)
    data = made.answer(SUBJECT, start=start, end=end)
    lasting = made.answer(made.RIM_CA, start=start - made.DAY, end=end + made.DAY)
    second = timedelta(seconds=1)
    for now in (start, end - second):
        check(data, lasting, now=now)
    for now in (start - second, end):
        with pytest.raises(FreshnessError, match="the OCSP answer for Subject") as caught:
            check(data, lasting, now=now)
        assert caught.value.hint == "fetch it"
    newer = made.answer(SUBJECT, start=end, end=end + made.DAY)
    assert len(check(data, newer, lasting, now=end)) == 2


def test_an_answer_about_another_certificate_does_not_count() -> None:
    sibling = made.Authority("Sibling", made.RIM_CA, ca=False)
    namesake = made.Authority("RIM CA", made.RIM_ROOT)
    twin = made.Authority("Subject", namesake, ca=False, serial=SUBJECT.certificate.serial_number)
    for data in (made.answer(sibling), made.answer(twin)):
        with pytest.raises(EndorsementError, match="no OCSP answer for Subject") as caught:
            check(data, CA_ANSWER)
        assert caught.value.hint == "fetch it"
    with pytest.raises(EndorsementError, match="no OCSP answer for RIM CA"):
        check(made.answer(SUBJECT))
    with pytest.raises(EndorsementError, match="no OCSP answer for Subject"):
        check()


def test_only_the_issuers_own_responder_may_answer() -> None:
    elsewhere = made.Authority("Elsewhere")
    for responder, message in (
        (made.Authority("Responder", elsewhere, ca=False, extensions=(PURPOSE,)), "issued by"),
        (made.Authority("Responder", made.RIM_ROOT, ca=False, extensions=(PURPOSE,)), "issued by"),
        (made.Authority("Responder", made.RIM_CA, ca=False), "not for OCSP signing"),
        (made.Authority("Responder", made.RIM_CA, extensions=(PURPOSE,)), "not for OCSP signing"),
        (
            made.Authority(
                "Responder",
                made.Authority("RIM CA", made.RIM_ROOT),
                ca=False,
                extensions=(PURPOSE,),
            ),
            "did not sign Responder",
        ),
    ):
        with pytest.raises(EndorsementError, match=message):
            check(made.answer(SUBJECT, responder=responder), CA_ANSWER)
    old = made.Authority(
        "Responder", made.RIM_CA, ca=False, extensions=(PURPOSE,), end=made.NOW - made.DAY
    )
    with pytest.raises(FreshnessError, match="Responder expired"):
        check(made.answer(SUBJECT, responder=old), CA_ANSWER)


def test_a_signature_by_another_key_is_refused() -> None:
    for responder in (None, RESPONDER):
        data = made.answer(SUBJECT, responder=responder, forged=True)
        with pytest.raises(SignatureError, match="did not sign the OCSP answer"):
            check(data, CA_ANSWER)


def test_the_responder_must_be_the_one_that_is_named() -> None:
    builder = ocsp.OCSPResponseBuilder().add_response(
        cert=SUBJECT.certificate,
        issuer=made.RIM_CA.certificate,
        algorithm=hashes.SHA256(),
        cert_status=ocsp.OCSPCertStatus.GOOD,
        this_update=made.NOW - made.DAY,
        next_update=made.NOW + made.DAY,
        revocation_time=None,
        revocation_reason=None,
    )
    nameless = builder.responder_id(ocsp.OCSPResponderEncoding.NAME, RESPONDER.certificate).sign(
        RESPONDER.key, hashes.SHA256()
    )
    with pytest.raises(EndorsementError, match="OCSP answer has no certificate of its responder"):
        check(nameless.public_bytes(Encoding.DER), CA_ANSWER)
    named = (
        builder.responder_id(ocsp.OCSPResponderEncoding.NAME, RESPONDER.certificate)
        .certificates([RESPONDER.certificate])
        .sign(RESPONDER.key, hashes.SHA256())
    )
    assert len(check(named.public_bytes(Encoding.DER), CA_ANSWER)) == 2


def test_what_cannot_count_at_all_is_refused_when_it_is_read() -> None:
    endless = made.answer(SUBJECT, end=None)
    with pytest.raises(EvidenceError, match="no nextUpdate"):
        OcspAnswer.parse(endless)
    later = ocsp.OCSPResponseBuilder.build_unsuccessful(ocsp.OCSPResponseStatus.TRY_LATER)
    with pytest.raises(EvidenceError, match="answered try_later"):
        OcspAnswer.parse(later.public_bytes(Encoding.DER))
    for data in (b"", b"0", b"junk", SUBJECT.certificate.public_bytes(Encoding.DER)):
        assert not is_ocsp(data)
        with pytest.raises(EvidenceError):
            OcspAnswer.parse(data)
    with pytest.raises(EvidenceError, match="at most"):
        OcspAnswer.parse(bytes(MAX_OCSP_BYTES + 1))


def test_a_request_asks_about_the_certificate() -> None:
    asked = ocsp.load_der_ocsp_request(ocsp_request(GPU_CHAIN[0], GPU_CHAIN[1]))
    (about,) = OcspAnswer.parse((REAL / "ocsp_gpu_certificate_l4.der").read_bytes())
    assert asked.serial_number == about.serial
    assert asked.issuer_key_hash == about.issuer_key
    assert asked.issuer_name_hash == about.issuer_name


SEED = made.answer(SUBJECT, responder=RESPONDER)


@settings(max_examples=300, deadline=None)
@given(st.integers(0, len(SEED)), st.binary(max_size=20), st.integers(0, 20))
def test_no_damage_raises_anything_of_another_tree(at: int, junk: bytes, cut: int) -> None:
    data = SEED[:at] + junk + SEED[at + cut :]
    try:
        found = check(data, CA_ANSWER)
    except AttestationError:
        return
    assert found[0].serial == SUBJECT.certificate.serial_number
