"""Credential activation: an attestation key is proven to live in the TPM of its EK."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.types import CertificatePublicKeyTypes
from cryptography.x509.oid import NameOID
from hypothesis import given, settings
from hypothesis import strategies as st

from attestation.attesters.software_tpm import SoftwareTpm
from attestation.attesters.tpm import TpmAttester
from attestation.attesters.tpm2_tools import Tpm2Tools
from attestation.errors import AttestationError, AttesterError, EndorsementError, EvidenceError
from attestation.quotes.tpm_keys import PublicArea, spki
from attestation.tpm.credential import (
    ActivationChallenge,
    ProvenKey,
    TpmIdentity,
    challenge_identity,
    make_credential,
)
from attestation.tpm.endorsement import certificate_der, check_ek_certificate
from attestation.trust import TrustAnchors
from attestation.verifiers import verify
from tests.fakes.synthetic_tpm import SyntheticTpm, binding, public_area

NOW = datetime(2026, 1, 1, tzinfo=UTC)
EK_USAGE = x509.ObjectIdentifier("2.23.133.8.1")


def digest_of(area: PublicArea) -> bytes:
    return hashlib.sha256(area.spki).digest()


def challenge(identity: TpmIdentity, **options: Any) -> ActivationChallenge:
    options.setdefault("pinned", frozenset([digest_of(identity.ek)]))
    return challenge_identity(identity, now=NOW, **options)


@pytest.mark.swtpm
@pytest.mark.parametrize("ak", ["ecdsa", "rsapss"])
@pytest.mark.parametrize("ek", ["ecc", "rsa"])
def test_a_real_tpm_proves_its_key(
    software_tpm: SoftwareTpm, tmp_path: Path, ek: str, ak: str
) -> None:
    attester = TpmAttester(tmp_path / "site", tcti=software_tpm.tcti, ek=ek, ak=ak)
    identity = TpmIdentity.from_bytes(attester.identity().to_bytes())
    asked = challenge(identity)
    proven = asked.prove(attester.activate(asked.blob))
    assert proven == ProvenKey(
        ak=digest_of(identity.ak), ek=digest_of(identity.ek), endorsement="pinned"
    )
    trust = TrustAnchors(tpm_aks=frozenset([proven.ak]), tpm_ek_of={proven.ak: proven.ek})
    bound = binding()
    claims = verify(attester.collect(bound), binding=bound, trust=trust, now=datetime.now(UTC))
    assert claims.hardware_id == proven.ek


@pytest.mark.swtpm
@pytest.mark.parametrize("ek", ["ecc", "rsa"])
def test_a_tpm_without_the_key_cannot_answer(
    software_tpm: SoftwareTpm, fresh_tpm: SoftwareTpm, tmp_path: Path, ek: str
) -> None:
    here = TpmAttester(tmp_path / "here", tcti=software_tpm.tcti, ek=ek)
    there = TpmAttester(tmp_path / "there", tcti=fresh_tpm.tcti, ek=ek)
    mixed = replace(here.identity(), ak=there.identity().ak)
    asked = challenge(mixed)
    for attester in (here, there):
        with pytest.raises(AttesterError, match="activatecredential"):
            attester.activate(asked.blob)
    honest = challenge(here.identity())
    with pytest.raises(AttesterError):
        there.activate(honest.blob)
    assert honest.prove(here.activate(honest.blob)).endorsement == "pinned"


@pytest.mark.swtpm
def test_flipped_challenges_are_refused_by_the_tpm(
    software_tpm: SoftwareTpm, tmp_path: Path
) -> None:
    attester = TpmAttester(tmp_path / "site", tcti=software_tpm.tcti)
    asked = challenge(attester.identity())
    for position in range(8, len(asked.blob), 11):
        flipped = bytearray(asked.blob)
        flipped[position] ^= 1
        with pytest.raises(AttesterError):
            attester.activate(bytes(flipped))
    for blob in (b"", b"x" * 50, asked.blob[:-1]):
        with pytest.raises(AttesterError):
            attester.activate(blob)


def synthetic_identity(**changes: Any) -> TpmIdentity:
    key = ec.generate_private_key(ec.SECP256R1()).public_key()
    storage = bytearray(public_area(key, attributes=changes.get("ek", 0x000300B2)))
    # A storage key protects its children with AES-128-CFB and signs nothing.
    body = bytes(storage[:10]) + bytes.fromhex("0006008000430010") + bytes(storage[16:])
    signing = public_area(
        ec.generate_private_key(ec.SECP256R1()).public_key(),
        attributes=changes.get("ak", 0x00050072),
    )
    return TpmIdentity(ek=PublicArea.parse(body), ak=PublicArea.parse(signing))


def test_a_wrong_answer_proves_nothing() -> None:
    asked = challenge(synthetic_identity())
    assert asked.secret.hex() not in repr(asked)
    assert asked.secret not in asked.blob
    for answer in (b"", bytes(32), asked.secret[:-1], asked.secret + b"\0"):
        with pytest.raises(EndorsementError, match="does not hold"):
            asked.prove(answer)
    assert asked.prove(asked.secret).endorsement == "pinned"


def test_an_unknown_endorsement_key_is_refused_unless_asked_for_by_name() -> None:
    identity = synthetic_identity()
    with pytest.raises(EndorsementError, match="not pinned") as caught:
        challenge(identity, pinned=frozenset())
    assert caught.value.hint
    believed = challenge(identity, pinned=frozenset(), insecure_first_use=True)
    assert believed.proven.endorsement == "insecure-first-use"


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"ak": 0x00040072}, "attestation key"),
        ({"ak": 0x00050070}, "attestation key"),
        ({"ak": 0x000300B2}, "attestation key"),
        ({"ek": 0x000200B2}, "endorsement key"),
        ({"ek": 0x00050072}, "endorsement key"),
    ],
)
def test_keys_of_another_kind_are_refused(changes: dict[str, int], what: str) -> None:
    with pytest.raises(EndorsementError, match="restricted") as caught:
        challenge(synthetic_identity(**changes))
    assert caught.value.step == what


def test_an_ek_without_aes_is_refused() -> None:
    identity = synthetic_identity()
    with pytest.raises(EvidenceError, match="AES"):
        make_credential(replace(identity.ek, symmetric=(0x10, 0, 0)), b"name", b"secret")
    with pytest.raises(ValueError, match="1 to 32"):
        make_credential(identity.ek, b"name", bytes(33))


def test_an_identity_is_refused_truncated_at_every_length() -> None:
    identity = replace(synthetic_identity(), ek_certificate=b"c" * 10, chain=(b"d" * 5,))
    data = identity.to_bytes()
    assert TpmIdentity.from_bytes(data) == identity
    for length in range(len(data)):
        if length == len(data) - 9:
            continue  # without the certificate above
        with pytest.raises(EvidenceError):
            TpmIdentity.from_bytes(data[:length])
    with pytest.raises(EvidenceError, match="at most"):
        TpmIdentity.from_bytes(bytes(100_000))


@given(data=st.binary(max_size=300))
@settings(max_examples=200, deadline=None)
def test_no_identity_raises_anything_but_our_errors(data: bytes) -> None:
    for start in (b"", b"FLTI\x01", b"FLTI\x01\0\0\0\x5a\0\x23\0\x0b"):
        try:
            TpmIdentity.from_bytes(start + data)
        except AttestationError:
            continue


# The certificate of an endorsement key.


@dataclass
class Authority:
    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey

    @property
    def der(self) -> bytes:
        return self.certificate.public_bytes(serialization.Encoding.DER)


def issue(
    name: str,
    public_key: CertificatePublicKeyTypes,
    issuer: Authority | None,
    key: ec.EllipticCurvePrivateKey,
    *,
    ca: bool,
    path_length: int | None = None,
    usage: x509.ObjectIdentifier | None = EK_USAGE,
    start: datetime = NOW - timedelta(days=1),
    end: datetime = NOW + timedelta(days=1),
) -> x509.Certificate:
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)] if name else [])
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer.certificate.subject if issuer else subject)
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(start)
        .not_valid_after(end)
        .add_extension(x509.BasicConstraints(ca=ca, path_length=path_length), critical=True)
    )
    if usage is not None and not ca:
        builder = builder.add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
    return builder.sign(issuer.key if issuer else key, hashes.SHA256())


def authority(name: str, issuer: Authority | None = None, **options: Any) -> Authority:
    key = ec.generate_private_key(ec.SECP256R1())
    return Authority(issue(name, key.public_key(), issuer, key, ca=True, **options), key)


@pytest.fixture(scope="module")
def root() -> Authority:
    return authority("Test TPM Root")


@pytest.fixture(scope="module")
def maker(root: Authority) -> Authority:
    return authority("Test TPM Maker", root, path_length=0)


def leaf(issuer: Authority, public_key: Any = None, **options: Any) -> bytes:
    key = ec.generate_private_key(ec.SECP256R1())
    options.setdefault("ca", False)
    made = issue("", public_key or key.public_key(), issuer, key, **options)
    return made.public_bytes(serialization.Encoding.DER)


def test_a_certificate_under_a_trusted_root_gives_its_key(
    root: Authority, maker: Authority
) -> None:
    key = ec.generate_private_key(ec.SECP256R1()).public_key()
    for issuer, above in ((root, []), (maker, [maker.der]), (maker, [b"junk", maker.der])):
        found = check_ek_certificate(leaf(issuer, key), above, roots=[root.der], now=NOW)
        assert spki(found) == spki(key)


Refusal = tuple[str, Callable[[Authority, Authority], tuple[bytes, list[bytes]]], str]
REFUSALS: list[Refusal] = [
    ("intermediate missing", lambda r, m: (leaf(m), []), "no trusted root"),
    ("look-alike root", lambda r, m: (leaf(authority("Test TPM Root")), []), "no trusted root"),
    (
        "look-alike root sent along",
        lambda r, m: (lambda fake: (leaf(fake), [fake.der]))(authority("Test TPM Root")),
        "no trusted root",
    ),
    (
        "issuer that is no authority",
        lambda r, m: (lambda fake: (leaf(fake), [fake.der]))(
            Authority(issue("Maker", m.key.public_key(), r, m.key, ca=False), m.key)
        ),
        "no trusted root",
    ),
    (
        "path too long",
        lambda r, m: (lambda sub: (leaf(sub), [m.der, sub.der]))(authority("Sub", m)),
        "no trusted root",
    ),
    ("for TLS", lambda r, m: (leaf(r, usage=x509.OID_SERVER_AUTH), []), "not for an endorsement"),
    ("for anything", lambda r, m: (leaf(r, usage=None), []), "not for an endorsement"),
    ("expired", lambda r, m: (leaf(r, end=NOW - timedelta(hours=1)), []), "expired on"),
    ("not yet", lambda r, m: (leaf(r, start=NOW + timedelta(hours=1)), []), "not valid before"),
    (
        "maker expired",
        lambda r, m: (lambda old: (leaf(old), [old.der]))(
            authority("Old", r, end=NOW - timedelta(hours=1))
        ),
        "expired on",
    ),
]


@pytest.mark.parametrize(("name", "make", "reason"), REFUSALS, ids=[r[0] for r in REFUSALS])
def test_other_certificates_are_refused(
    root: Authority,
    maker: Authority,
    name: str,
    make: Callable[[Authority, Authority], tuple[bytes, list[bytes]]],
    reason: str,
) -> None:
    certificate, above = make(root, maker)
    with pytest.raises(EndorsementError, match=reason):
        check_ek_certificate(certificate, above, roots=[root.der], now=NOW)


def test_every_flipped_byte_of_a_certificate_is_refused(root: Authority) -> None:
    key = ec.generate_private_key(ec.SECP256R1()).public_key()
    good = leaf(root, key)
    accepted = 0
    for position in range(len(good)):
        flipped = bytearray(good)
        flipped[position] ^= 1 << position % 8
        try:
            found = check_ek_certificate(bytes(flipped), [], roots=[root.der], now=NOW)
        except AttestationError:
            continue
        assert spki(found) == spki(key)
        accepted += 1
    assert accepted <= 4  # the unused bits of a BIT STRING and the like


def test_the_padding_of_a_tpms_memory_is_cut_off(root: Authority) -> None:
    good = leaf(root)
    assert certificate_der(good + b"\xff" * 500) == good
    for bad in (b"", b"\0" * 10, good[:100]):
        with pytest.raises(EvidenceError):
            certificate_der(bad)


def test_the_certificate_must_be_for_the_same_key(root: Authority) -> None:
    identity = synthetic_identity()
    good = replace(identity, ek_certificate=leaf(root, identity.ek.key))
    options: dict[str, Any] = {"pinned": frozenset(), "roots": [root.der]}
    assert challenge(good, **options).proven.endorsement == "certificate"
    with pytest.raises(EndorsementError, match="another key"):
        challenge(replace(identity, ek_certificate=leaf(root)), **options)


def test_a_certificate_in_a_quote_must_be_that_of_the_proven_key(root: Authority) -> None:
    tpm, bound = SyntheticTpm(), binding()
    ek = ec.generate_private_key(ec.SECP256R1()).public_key()
    evidence = tpm.evidence(bound, ek=leaf(root, ek))
    ak = hashlib.sha256(spki(tpm.key.public_key())).digest()
    unproven = TrustAnchors(tpm_aks=frozenset([ak]), tpm_ek_roots=(root.der,))
    claims = verify(evidence, binding=bound, trust=unproven, now=NOW)
    assert claims.unverified == ("tpm.ek_certificate",)
    proven = replace(unproven, tpm_ek_of={ak: hashlib.sha256(spki(ek)).digest()})
    assert verify(evidence, binding=bound, trust=proven, now=NOW).unverified == ()
    other = replace(unproven, tpm_ek_of={ak: b"e" * 32})
    with pytest.raises(EndorsementError, match="another endorsement key"):
        verify(evidence, binding=bound, trust=other, now=NOW)


@pytest.mark.swtpm
@pytest.mark.parametrize("ek", ["ecc", "rsa"])
def test_a_certificate_in_the_tpm_is_found_and_checked(
    fresh_tpm: SoftwareTpm, tmp_path: Path, root: Authority, ek: str
) -> None:
    attester = TpmAttester(tmp_path / "site", tcti=fresh_tpm.tcti, ek=ek)
    bare = attester.identity()
    assert bare.ek_certificate == b""
    certificate = leaf(root, bare.ek.key)
    index = {"ecc": "0x01c0000a", "rsa": "0x01c00002"}[ek]
    with Tpm2Tools(fresh_tpm.tcti).workspace() as work:
        work.write("certificate", certificate + b"\xff" * 64)
        size = str(len(certificate) + 64)
        work.run("nvdefine", "-Q", index, "-C", "o", "-s", size, "-a", "ownerread|ownerwrite")
        work.run("nvwrite", "-Q", index, "-C", "o", "-i", "certificate")
    identity = attester.identity()
    assert identity.ek_certificate == certificate
    asked = challenge(identity, pinned=frozenset(), roots=[root.der])
    assert asked.prove(attester.activate(asked.blob)).endorsement == "certificate"
