"""Which signatures have a second spelling, and in which formats it counts.

To each ECDSA signature (r, s) belongs (r, n - s). In our own formats it is refused; vendors write
either, so that in theirs both count, and nothing is named by a signature. The same is reported in
docs/reference/evidence.md.
"""

from __future__ import annotations

import base64
import hashlib
import json
import struct
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.utils import (
    decode_dss_signature,
    encode_dss_signature,
)
from cryptography.hazmat.primitives.serialization import Encoding

from attestation import ecdsa
from attestation.attesters.sample import SampleAttester
from attestation.endorsements.chains import check_issued, load_certificate
from attestation.errors import AttestationError, EvidenceError, SignatureError
from attestation.evidence import Evidence
from attestation.policy import ear
from attestation.policy.model import AppraisalPolicy
from attestation.policy.result import AttestationResult, Tier
from attestation.policy.sign import sign_policy, verify_policy
from attestation.quotes.sample import SampleQuote
from attestation.quotes.tpm import TpmQuote
from attestation.tpm.endorsement import check_ek_certificate
from attestation.trust import TrustAnchors
from attestation.verifiers import verify
from tests.fakes.synthetic_tpm import SyntheticTpm
from tests.vectors import keys
from tests.vectors.cases import Subject, binding, subjects

P256 = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
P384 = int(
    "ffffffffffffffffffffffffffffffffffffffffffffffffc7634d81f4372ddf581a0db248b0a77aecec196accc52973",
    16,
)
NOW = datetime(2026, 11, 1, tzinfo=UTC)
SUBJECTS = {
    subject.name: subject
    for subject in subjects()
    if subject.name.startswith(("tdx", "sgx", "snp"))
}
KEY = ec.generate_private_key(ec.SECP256R1())


def other(raw: bytes) -> bytes:
    """Return the second spelling of r | s on P-256."""
    return raw[:32] + (P256 - int.from_bytes(raw[32:], "big")).to_bytes(32, "big")


# What this project writes has one spelling.


def test_a_signature_of_ours_has_the_lower_s_and_no_other_is_taken() -> None:
    public = KEY.public_key()
    for number in range(16):
        message = b"%d" % number
        good = ecdsa.sign(KEY, message)
        ecdsa.verify(public, good, message)
        with pytest.raises(ValueError, match="upper half"):
            ecdsa.verify(public, other(good), message)
        with pytest.raises(InvalidSignature):
            ecdsa.verify(public, good, message + b"x")
    zero, most = bytes(32), P256.to_bytes(32, "big")
    for bad in (b"", good[:-1], good + b"\0", zero + good[32:], good[:32] + zero, most + good[32:]):
        with pytest.raises(ValueError, match="not a signature"):
            ecdsa.verify(public, bad, message)
    p384 = ec.generate_private_key(ec.SECP384R1())
    with pytest.raises(ValueError, match="P-256"):
        ecdsa.sign(p384, message)
    with pytest.raises(ValueError, match="P-256"):
        ecdsa.verify(p384.public_key(), good, message)


def test_a_digest_is_signed_as_the_message_it_is_of() -> None:
    message, public = b"an entry", KEY.public_key()
    digest = hashlib.sha256(message).digest()
    ecdsa.verify(public, ecdsa.sign(KEY, digest, digested=True), message)
    ecdsa.verify(public, ecdsa.sign(KEY, message), digest, digested=True)
    with pytest.raises(InvalidSignature):
        ecdsa.verify(public, ecdsa.sign(KEY, digest, digested=True), digest)


def test_sample_evidence_has_one_signature() -> None:
    attester = SampleAttester(KEY, hardware_id=bytes(16))
    evidence = attester.collect(binding())
    quote = SampleQuote.from_bytes(evidence.quote)
    changed = replace(quote, signature=other(quote.signature)).to_bytes()
    trust = TrustAnchors(sample_keys=frozenset([keys_digest(quote.key)]))
    now = datetime.now(UTC)
    assert verify(evidence, binding=binding(), trust=trust, now=now)
    with pytest.raises(EvidenceError, match=r"sample\.signature: the s of the signature"):
        verify(replace(evidence, quote=changed), binding=binding(), trust=trust, now=now)


def keys_digest(spki: bytes) -> bytes:
    digest = hashes.Hash(hashes.SHA256())
    digest.update(spki)
    return digest.finalize()


def test_a_result_has_one_signature() -> None:
    result = AttestationResult(
        status=Tier.AFFIRMING,
        tee="sample",
        findings=(),
        policy=bytes(32),
        key_thumbprint=bytes(32),
        expires=NOW + timedelta(minutes=5),
    )
    token = ear.issue(result, key=KEY, issued=NOW)
    signed, _, text = token.rpartition(".")
    raw = base64.urlsafe_b64decode(text + "==")
    changed = base64.urlsafe_b64encode(other(raw)).decode().rstrip("=")
    with pytest.raises(EvidenceError, match=r"ear\.signature: the s of the signature"):
        ear.read(f"{signed}.{changed}", key=KEY.public_key(), now=NOW)


def test_the_signature_of_a_policy_is_der_in_its_one_form() -> None:
    policy = AppraisalPolicy(name="demo", version=2)
    document = json.loads(sign_policy(policy, KEY))
    der = bytes.fromhex(document["signature"])
    r, s = decode_dss_signature(der)

    def judged(signature: bytes) -> None:
        changed = {**document, "signature": signature.hex()}
        data = json.dumps(changed, sort_keys=True, separators=(",", ":")).encode() + b"\n"
        verify_policy(policy, data, keys=[KEY.public_key()])

    judged(der)
    # Operators sign with tools of their own, and nothing is named by the signature: both count.
    judged(encode_dss_signature(r, P256 - s))
    width = (r.bit_length() + 8) // 8
    padded = b"\x02" + bytes((width + 1,)) + b"\0" + r.to_bytes(width, "big")
    tail = b"\x02" + bytes((33,)) + s.to_bytes(33, "big")
    for bad in (
        der + b"\0",
        b"\x30\x81" + der[1:],
        b"\x30" + bytes((len(padded + tail),)) + padded + tail,
    ):
        with pytest.raises(SignatureError):
            judged(bad)


# What vendors write counts in both spellings, and in no third.


@pytest.mark.parametrize("name", SUBJECTS)
def test_a_second_spelling_of_a_vendors_signature_states_the_same(name: str) -> None:
    found = SUBJECTS[name]
    evidence = found.make(binding())
    claims = verify(evidence, binding=binding(), trust=found.trust, now=keys.AT)
    for quote in twins(found, evidence.quote):
        twin = replace(evidence, quote=quote)
        assert twin.digest() != evidence.digest()
        assert verify(twin, binding=binding(), trust=found.trust, now=keys.AT) == claims


def twins(subject: Subject, quote: bytes) -> list[bytes]:
    """Return the quote with each of its signatures in the second spelling."""
    at = {name: start for name, start, _ in subject.regions(quote)}
    if "s" in at:
        start, end = at["s"], at["s"] + 48
        turned = P384 - int.from_bytes(quote[start:end], "little")
        return [quote[:start] + turned.to_bytes(48, "little") + quote[end:]]
    places = [at["signature"], at["qe signature"]]
    return [
        quote[:start] + other(quote[start : start + 64]) + quote[start + 64 :] for start in places
    ]


def tpm_evidence(tpm: SyntheticTpm, respell: Callable[[bytes], bytes]) -> Evidence:
    """Return evidence of ``tpm`` whose signature structure was written anew."""
    quote = tpm.quote(binding().qualifying_data())
    changed = TpmQuote.assemble(
        attest=quote.statement.raw,
        signature=respell(quote.signature.raw),
        ak=tpm.area,
        pcr_values=quote.pcr_values,
    )
    return Evidence(tee=tpm.evidence(binding()).tee, quote=changed.to_bytes())


def tpm_trust(tpm: SyntheticTpm) -> TrustAnchors:
    return TrustAnchors(tpm_aks=frozenset([tpm.quote(b"").ak_digest]))


def sized(*values: bytes) -> bytes:
    return b"".join(struct.pack(">H", len(value)) + value for value in values)


def parts(raw: bytes) -> tuple[bytes, bytes]:
    (size,) = struct.unpack_from(">H", raw, 4)
    return raw[6 : 6 + size], raw[8 + size :]


TPM_GOOD: dict[str, Callable[[bytes, bytes], bytes]] = {
    "as it is": lambda r, s: sized(r, s),
    "the other s": lambda r, s: sized(r, other(r + s)[32:]),
    "no leading zeros": lambda r, s: sized(r.lstrip(b"\0"), s.lstrip(b"\0")),
}
TPM_BAD: dict[str, Callable[[bytes, bytes], bytes]] = {
    "a zero before r": lambda r, s: sized(b"\0" + r, s),
    "a zero before s": lambda r, s: sized(r, b"\0" + s),
    "as wide as P-521": lambda r, s: sized(r.rjust(66, b"\0"), s.rjust(66, b"\0")),
    "s plus n": lambda r, s: sized(r, (int.from_bytes(s, "big") + P256).to_bytes(33, "big")),
    "no r": lambda r, s: sized(b"", s),
    "zeros": lambda r, s: sized(bytes(32), bytes(32)),
}


@pytest.mark.parametrize("spelling", [*TPM_GOOD, *TPM_BAD])
def test_a_tpm_writes_r_and_s_in_full_or_without_leading_zeros(spelling: str) -> None:
    tpm = SyntheticTpm()
    write = {**TPM_GOOD, **TPM_BAD}[spelling]
    evidence = tpm_evidence(tpm, lambda raw: raw[:4] + write(*parts(raw)))
    if spelling in TPM_GOOD:
        assert verify(evidence, binding=binding(), trust=tpm_trust(tpm), now=NOW)
        return
    with pytest.raises((EvidenceError, SignatureError)):
        verify(evidence, binding=binding(), trust=tpm_trust(tpm), now=NOW)


@pytest.mark.parametrize("scheme", ["rsassa", "rsapss"])
def test_an_rsa_signature_of_a_tpm_is_a_number_below_the_modulus_in_full_width(scheme: str) -> None:
    key = rsa.generate_private_key(65537, 2048)
    tpm = SyntheticTpm(key=key, scheme=scheme)
    modulus = key.public_key().public_numbers().n
    trust = tpm_trust(tpm)

    def judged(respell: Callable[[bytes], bytes]) -> None:
        evidence = tpm_evidence(tpm, lambda raw: raw[:4] + sized(respell(raw[6:])))
        verify(evidence, binding=binding(), trust=trust, now=NOW)

    judged(lambda value: value)
    for respell in (
        lambda value: b"\0" + value,
        lambda value: value[1:],
        lambda value: (int.from_bytes(value, "big") + modulus).to_bytes(257, "big"),
    ):
        with pytest.raises((EvidenceError, SignatureError)):
            judged(respell)


# Certificates.


def certificates() -> tuple[bytes, bytes]:
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "root")])

    def make(authority: bool) -> bytes:
        built = (
            x509.CertificateBuilder()
            .subject_name(name if authority else x509.Name([]))
            .issuer_name(name)
            .public_key(KEY.public_key())
            .serial_number(7)
            .not_valid_before(NOW - timedelta(days=1))
            .not_valid_after(NOW + timedelta(days=1))
            .add_extension(x509.BasicConstraints(authority, None), critical=True)
        )
        if not authority:
            usage = x509.ExtendedKeyUsage([x509.ObjectIdentifier("2.23.133.8.1")])
            built = built.add_extension(usage, critical=False)
        return built.sign(KEY, hashes.SHA256()).public_bytes(Encoding.DER)

    return make(True), make(False)


def resigned(der: bytes, write: Callable[[int, int], bytes]) -> bytes:
    """Put another spelling of its signature into a certificate."""
    parsed = x509.load_der_x509_certificate(der)
    tbs = parsed.tbs_certificate_bytes
    at = der.index(tbs) + len(tbs)
    algorithm = der[at : at + 2 + der[at + 1]]
    signature = write(*decode_dss_signature(parsed.signature))
    inner = tbs + algorithm + b"\x03" + bytes((len(signature) + 1, 0)) + signature
    return b"\x30\x82" + struct.pack(">H", len(inner)) + inner


def test_a_certificate_counts_with_either_s_and_in_der_alone() -> None:
    root, leaf = certificates()

    def judged(der: bytes) -> None:
        check_issued(load_certificate(der, "leaf"), load_certificate(root, "root"), step="x")
        check_ek_certificate(der, [], roots=[root], now=NOW)

    judged(leaf)
    judged(resigned(leaf, encode_dss_signature))
    judged(resigned(leaf, lambda r, s: encode_dss_signature(r, P256 - s)))

    def padded(r: int, s: int) -> bytes:
        inner = b"\x02\x22\0" + r.to_bytes(33, "big") + b"\x02\x21" + s.to_bytes(33, "big")
        return b"\x30" + bytes((len(inner),)) + inner

    def followed(r: int, s: int) -> bytes:
        return encode_dss_signature(r, s) + b"\0"

    for write in (padded, followed):
        altered = resigned(leaf, write)
        for check in (
            lambda der: check_issued(
                load_certificate(der, "leaf"), load_certificate(root, "root"), step="x"
            ),
            lambda der: check_ek_certificate(der, [], roots=[root], now=NOW),
        ):
            with pytest.raises(AttestationError):
                check(altered)


def test_an_ek_certificate_has_no_unused_bits() -> None:
    root, leaf = certificates()
    while leaf[-1] % 2:
        root, leaf = certificates()
    size = len(x509.load_der_x509_certificate(leaf).signature)
    altered = bytearray(leaf)
    altered[-size - 1] = 1
    with pytest.raises(EvidenceError, match="not a certificate"):
        check_ek_certificate(bytes(altered), [], roots=[root], now=NOW)
