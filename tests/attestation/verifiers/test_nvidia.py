"""GPU reports under a test root in both directions, and a real one."""

from __future__ import annotations

import hashlib
import struct
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding
from hypothesis import given, settings
from hypothesis import strategies as st

from attestation.attesters.sample import SampleAttester
from attestation.binding import ReportData
from attestation.errors import (
    AttestationError,
    BindingError,
    EndorsementError,
    EvidenceError,
    FreshnessError,
    SignatureError,
)
from attestation.evidence import Evidence, Tee
from attestation.policy.appraise import appraise
from attestation.policy.parse import parse_policy
from attestation.policy.result import Tier
from attestation.quotes.nvidia import NvidiaReport
from attestation.trust import TrustAnchors, key_digest
from attestation.verifiers import verify

NOW = datetime(2026, 3, 1, tzinfo=UTC)
FWID = hashlib.sha384(b"firmware").digest()
BINDING = ReportData(value=bytes(range(64)))
NONCE = hashlib.sha256(BINDING.value).digest()
KEYS = {name: ec.generate_private_key(ec.SECP384R1()) for name in ("root", "device", "leaf")}


def name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, text)])


def certificate(
    subject: str,
    issuer: str,
    *,
    ca: bool = True,
    fwid: bytes = b"",
    days: int = 365,
    dice: tuple[str, bytes] = ("2.23.133.5.4.1", b"\x30\x32\x04\x30%b"),
) -> bytes:
    builder = x509.CertificateBuilder().subject_name(name(subject)).issuer_name(name(issuer))
    builder = builder.public_key(KEYS[subject].public_key()).serial_number(1)
    builder = builder.not_valid_before(NOW - timedelta(days=1))
    builder = builder.not_valid_after(NOW + timedelta(days=days))
    builder = builder.add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
    builder = builder.add_extension(
        x509.KeyUsage(not ca, False, False, False, False, ca, False, False, False), critical=True
    )
    if fwid:
        oid, value = x509.ObjectIdentifier(dice[0]), dice[1] % fwid
        builder = builder.add_extension(x509.UnrecognizedExtension(oid, value), critical=False)
    return builder.sign(KEYS[issuer], hashes.SHA384()).public_bytes(Encoding.PEM)


CHAIN = (
    certificate("leaf", "device", ca=False, fwid=FWID)
    + certificate("device", "root")
    + certificate("root", "root")
)
TRUST = TrustAnchors(nvidia_root=key_digest(KEYS["root"].public_key()))


def report(nonce: bytes = NONCE, fwid: bytes = FWID) -> bytes:
    blocks = b"".join(
        struct.pack("<BBHBH", index, 1, 51, 0, 48) + bytes([index]) * 48 for index in (1, 2)
    )
    opaque = b"".join(
        struct.pack("<HH", kind, len(value)) + value
        for kind, value in ((3, b"550.90.07\0"), (6, bytes.fromhex("009f009601000000")), (20, fwid))
    )
    data = b"\x11\xe0\x01\xff" + nonce + b"\0" + b"\x11\x60\0\0"
    data += bytes([2]) + len(blocks).to_bytes(3, "little") + blocks
    data += bytes(32) + struct.pack("<H", len(opaque)) + opaque
    r, s = decode_dss_signature(KEYS["leaf"].sign(data, ec.ECDSA(hashes.SHA384())))
    return data + r.to_bytes(48, "big") + s.to_bytes(48, "big")


EVIDENCE = Evidence(tee=Tee.NVIDIA, quote=report(), endorsements=(CHAIN,))


def check(evidence: Evidence, trust: TrustAnchors = TRUST, now: datetime = NOW) -> None:
    verify(evidence, binding=BINDING, trust=trust, now=now)


def test_a_genuine_report_gives_its_claims() -> None:
    claims = verify(EVIDENCE, binding=BINDING, trust=TRUST, now=NOW)
    assert claims.unverified == ()
    assert claims.measurements["measurement.2"] == b"\x02" * 48
    assert claims.measurements["firmware_id"] == FWID
    assert claims.attributes["nvidia.driver"] == "550.90.07"
    assert claims.attributes["nvidia.vbios"] == "96.00.9F.00.01"
    assert claims.bound is True
    assert claims.hardware_id == key_digest(KEYS["device"].public_key())


def test_without_its_chain_nothing_counts() -> None:
    claims = verify(replace(EVIDENCE, endorsements=()), binding=BINDING, trust=TRUST, now=NOW)
    assert set(claims.unverified) == set(claims.measurements)
    assert claims.bound is False


def test_another_nonce_is_refused() -> None:
    with pytest.raises(BindingError, match="nonce"):
        check(replace(EVIDENCE, quote=report(nonce=bytes(32))))
    unbound = verify(
        replace(EVIDENCE, quote=report(nonce=bytes(32))), binding=None, trust=TRUST, now=NOW
    )
    assert unbound.bound is False


def test_a_chain_that_does_not_vouch_is_refused() -> None:
    parts = {
        part: certificate(part, issuer) for part, issuer in (("device", "root"), ("root", "root"))
    }
    good = certificate("leaf", "device", ca=False, fwid=FWID)
    with pytest.raises(EndorsementError, match="pinned NVIDIA root"):
        check(EVIDENCE, TrustAnchors())
    with pytest.raises(EndorsementError, match="leaf was issued by CN=device, not by root"):
        check(replace(EVIDENCE, endorsements=(good + parts["root"],)))
    no_ca = certificate("device", "root", ca=False)
    with pytest.raises(EndorsementError, match="device is not an authority"):
        check(replace(EVIDENCE, endorsements=(good + no_ca + parts["root"],)))
    bare = certificate("leaf", "device", ca=False)
    with pytest.raises(EndorsementError, match="DICE"):
        check(replace(EVIDENCE, endorsements=(bare + parts["device"] + parts["root"],)))
    old = certificate("leaf", "device", ca=False, fwid=FWID, days=1)
    expired = replace(EVIDENCE, endorsements=(old + parts["device"] + parts["root"],))
    with pytest.raises(FreshnessError, match="leaf expired"):
        check(expired, now=NOW + timedelta(days=2))


def test_other_firmware_than_the_keys_is_refused() -> None:
    with pytest.raises(EndorsementError, match="its key belongs to"):
        check(replace(EVIDENCE, quote=report(fwid=bytes(48))))
    with pytest.raises(EndorsementError, match="its key belongs to"):
        check(replace(EVIDENCE, quote=report(fwid=FWID[1:])))


def test_every_flipped_byte_and_every_truncation_is_refused() -> None:
    quote = EVIDENCE.quote
    for index in range(len(quote)):
        flipped = quote[:index] + bytes([quote[index] ^ 1]) + quote[index + 1 :]
        with pytest.raises((SignatureError, EvidenceError)):
            check(replace(EVIDENCE, quote=flipped))
        with pytest.raises(EvidenceError):
            check(replace(EVIDENCE, quote=quote[:index]))


@settings(max_examples=300, deadline=None)
@given(st.integers(0, 2), st.integers(0, 10_000), st.integers(1, 255))
def test_no_damaged_certificate_is_accepted_or_raises_anything_of_another_tree(
    which: int, at: int, mask: int
) -> None:
    chain = [item.public_bytes(Encoding.DER) for item in x509.load_pem_x509_certificates(CHAIN)]
    damaged = bytearray(chain[which])
    damaged[at % len(damaged)] ^= mask
    chain[which] = bytes(damaged)
    with pytest.raises(AttestationError):
        check(replace(EVIDENCE, endorsements=tuple(chain)))


def test_the_count_of_unused_bits_of_a_signature_must_be_none() -> None:
    made = (certificate("leaf", "device", ca=False, fwid=FWID) for _ in range(64))
    leaf = next(
        item for item in map(x509.load_pem_x509_certificate, made) if item.signature[-1] % 2 == 0
    )
    above = certificate("device", "root"), certificate("root", "root")
    der = bytearray(leaf.public_bytes(Encoding.DER))
    check(replace(EVIDENCE, endorsements=(bytes(der), *above)))
    der[-len(leaf.signature) - 1] = 1
    with pytest.raises(EvidenceError, match="not a well-formed certificate"):
        check(replace(EVIDENCE, endorsements=(bytes(der), *above)))


def test_broken_endorsements_are_named() -> None:
    with pytest.raises(EvidenceError, match=r"endorsements\[0\]"):
        check(replace(EVIDENCE, endorsements=(b"junk",)))
    with pytest.raises(EvidenceError, match="a chain has"):
        check(replace(EVIDENCE, endorsements=(CHAIN * 4,)))
    with pytest.raises(EvidenceError, match="event_log"):
        check(replace(EVIDENCE, event_log=b"log"))


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=400), st.integers(0, 500))
def test_no_bytes_raise_anything_but_an_evidence_error(junk: bytes, at: int) -> None:
    data = EVIDENCE.quote[:at] + junk
    try:
        verify(Evidence(tee=Tee.NVIDIA, quote=data), binding=None, trust=TRUST, now=NOW)
    except AttestationError as error:
        assert isinstance(error, EvidenceError)  # noqa: PT017


def test_a_policy_that_needs_a_gpu_gets_a_verified_one() -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    host = SampleAttester(key, b"host", {"software": b"\x07" * 32}, clock=NOW.timestamp).collect(
        BINDING
    )
    trust = replace(TRUST, sample_keys=frozenset({key_digest(key.public_key())}))
    policy = parse_policy(
        b'accept = ["sample"]\ninsecure_sample = true\n[nvidia]\nrequired = true\n'
        b'[[reference]]\nclaim = "software"\nvalue = "%s"\n'
        b'[[reference]]\nclaim = "firmware_id"\nvalue = "%s"\ntee = "nvidia"\n'
        % (b"07" * 32, FWID.hex().encode())
    )
    for component, tier in (
        (EVIDENCE, Tier.AFFIRMING),
        (replace(EVIDENCE, endorsements=()), Tier.CONTRAINDICATED),
        (None, Tier.CONTRAINDICATED),
    ):
        whole = replace(host, components=(component,) if component else ())
        claims = verify(whole, binding=BINDING, trust=trust, now=NOW)
        assert appraise(policy, claims, now=NOW).status is tier


ENTRY = bytes.fromhex("303d06096086480165030402020430")
MANY = b"\x30\x81\x84\x80\x06NVIDIA\xa6\x7e" + ENTRY + b"%b" + ENTRY + bytes(48)


def test_a_leaf_that_states_several_firmware_ids_means_the_first() -> None:
    def chained(dice: tuple[str, bytes], fwid: bytes = FWID) -> Evidence:
        leaf = certificate("leaf", "device", ca=False, fwid=fwid, dice=dice)
        above = certificate("device", "root") + certificate("root", "root")
        return replace(EVIDENCE, endorsements=(leaf + above,))

    check(chained(("2.23.133.5.4.1.1", MANY)))
    for oid, value, fwid in (
        ("2.23.133.5.4.1.1", MANY, hashlib.sha384(b"other").digest()),
        ("2.23.133.5.4.1.1", b"\x30\x32\x04\x30%b", FWID),
        ("2.23.133.5.4.1.1", ENTRY + bytes(48) + ENTRY + b"%b", FWID),
        ("2.23.133.5.4.1.1", ENTRY + b"%.47b", FWID),
        ("2.23.133.5.4.1", MANY, FWID),
        ("2.23.133.5.4.2", MANY, FWID),
    ):
        with pytest.raises(EndorsementError, match="gpu firmware id"):
            check(chained((oid, value), fwid))


def test_zeros_behind_a_report_are_a_buffer_and_nothing_else_is() -> None:
    padded = replace(EVIDENCE, quote=EVIDENCE.quote + bytes(3))
    assert verify(padded, binding=BINDING, trust=TRUST, now=NOW).unverified == ()
    for tail in (b"\1", b"\0\1", b"\0\0\0\x80"):
        with pytest.raises(EvidenceError, match=r"nvidia\.end"):
            verify(
                replace(EVIDENCE, quote=EVIDENCE.quote + tail),
                binding=BINDING,
                trust=TRUST,
                now=NOW,
            )


def test_a_real_report_verifies_and_its_damage_does_not() -> None:
    folder = Path(__file__).parents[2] / "vectors/nvidia"
    real = Evidence(
        tee=Tee.NVIDIA,
        quote=(folder / "hopper_report.bin").read_bytes(),
        endorsements=((folder / "hopper_chain.pem").read_bytes(),),
    )
    trust = TrustAnchors()
    nonce = NvidiaReport.parse(real.quote).nonce
    claims = verify(real, binding=ReportData(value=nonce), trust=trust, now=NOW)
    assert claims.attributes["nvidia.driver"] == "550.90.07"
    assert len(claims.measurements) == 65
    assert claims.unverified == ()
    hexadecimal = replace(real, quote=real.quote.hex().encode())
    assert verify(hexadecimal, binding=None, trust=trust, now=NOW).measurements == (
        claims.measurements
    )
    with pytest.raises(BindingError):
        verify(real, binding=BINDING, trust=trust, now=NOW)
    raw = bytearray(real.quote)
    raw[60] ^= 1  # inside of a measurement
    with pytest.raises(SignatureError):
        verify(replace(real, quote=bytes(raw)), binding=None, trust=trust, now=NOW)
