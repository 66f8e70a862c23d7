"""Signed policies: whose they are, which version, and nothing else passes for them."""

from __future__ import annotations

import hashlib
import json

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519

from attestation.errors import (
    AttestationError,
    EndorsementError,
    EvidenceError,
    FreshnessError,
    SignatureError,
)
from attestation.policy.parse import parse_policy
from attestation.policy.sign import (
    PrivateKey,
    operator_key_digest,
    sign_policy,
    signer_of,
    verify_policy,
)

TEXT = b'version = 3\naccept = ["tpm"]\n'
POLICY = parse_policy(TEXT)
ED = ed25519.Ed25519PrivateKey.generate()
EC = ec.generate_private_key(ec.SECP256R1())


@pytest.mark.parametrize("key", [ED, EC])
def test_a_signed_policy_names_its_signer(key: PrivateKey) -> None:
    signature = sign_policy(POLICY, key)
    keys = (ED.public_key(), EC.public_key())
    assert verify_policy(POLICY, signature, keys=keys) == operator_key_digest(key.public_key())
    commented = parse_policy(b"# reviewed\n" + TEXT)
    assert verify_policy(commented, signature, keys=keys)


@pytest.mark.parametrize("key", [ED, EC])
def test_the_digest_of_a_key_is_enough_to_know_it(key: PrivateKey) -> None:
    signature = sign_policy(POLICY, key)
    digest = operator_key_digest(key.public_key())
    assert signer_of(signature) == digest
    assert verify_policy(POLICY, signature, key_digests=[digest]) == digest
    with pytest.raises(EndorsementError, match="not a known operator"):
        verify_policy(POLICY, signature, key_digests=[bytes(32)])


def test_another_key_does_not_pass_for_the_one_that_is_named() -> None:
    digest = operator_key_digest(ED.public_key())
    document = json.loads(sign_policy(POLICY, ed25519.Ed25519PrivateKey.generate()))
    document["key"] = digest.hex()
    forged = json.dumps(document, sort_keys=True, separators=(",", ":")).encode() + b"\n"
    with pytest.raises(EndorsementError):
        verify_policy(POLICY, forged, key_digests=[digest])
    document = json.loads(sign_policy(POLICY, ED))
    document["public_key"] = "00"
    document["key"] = hashlib.sha256(b"\0").hexdigest()
    junk = json.dumps(document, sort_keys=True, separators=(",", ":")).encode() + b"\n"
    with pytest.raises(EvidenceError, match="public_key"):
        verify_policy(POLICY, junk, key_digests=[hashlib.sha256(b"\0").digest()])


@pytest.mark.parametrize("key", [ED, EC])
def test_another_policy_is_refused(key: PrivateKey) -> None:
    signature = sign_policy(POLICY, key)
    for text in (b'version = 4\naccept = ["tpm"]', b'version = 3\naccept = ["tpm", "tdx"]'):
        with pytest.raises(SignatureError, match="another policy"):
            verify_policy(parse_policy(text), signature, keys=[key.public_key()])


def test_a_stranger_is_refused() -> None:
    signature = sign_policy(POLICY, ED)
    with pytest.raises(EndorsementError, match="not a known operator"):
        verify_policy(POLICY, signature, keys=[EC.public_key()])
    with pytest.raises(EndorsementError):
        verify_policy(POLICY, signature, keys=[])


def test_a_signature_by_a_stranger_under_the_operators_name_is_refused() -> None:
    document = json.loads(sign_policy(POLICY, ed25519.Ed25519PrivateKey.generate()))
    document["key"] = operator_key_digest(ED.public_key()).hex()
    forged = json.dumps(document, sort_keys=True, separators=(",", ":")).encode() + b"\n"
    with pytest.raises(SignatureError, match="did not sign"):
        verify_policy(POLICY, forged, keys=[ED.public_key()])


def test_an_older_version_is_a_rollback() -> None:
    signature = sign_policy(POLICY, ED)
    assert verify_policy(POLICY, signature, keys=[ED.public_key()], minimum_version=3)
    with pytest.raises(FreshnessError, match="older than 4"):
        verify_policy(POLICY, signature, keys=[ED.public_key()], minimum_version=4)


@pytest.mark.parametrize("key", [ED, EC])
def test_every_flipped_byte_and_every_truncation_is_refused(key: PrivateKey) -> None:
    signature = sign_policy(POLICY, key)
    mutants = [signature[:end] for end in range(len(signature))]
    mutants += [
        signature[:index] + bytes([signature[index] ^ 1]) + signature[index + 1 :]
        for index in range(len(signature))
    ]
    for mutant in mutants:
        with pytest.raises(AttestationError):
            verify_policy(POLICY, mutant, keys=[key.public_key()])


@pytest.mark.parametrize("data", [b"", b"[]", b"{}", b"\xff", b" " * 5000, b"[" * 4000])
def test_garbage_is_refused(data: bytes) -> None:
    with pytest.raises(EvidenceError, match="policy signature"):
        verify_policy(POLICY, data, keys=[ED.public_key()])


def test_a_key_of_another_kind_cannot_sign() -> None:
    with pytest.raises(ValueError, match="P-256"):
        sign_policy(POLICY, ec.generate_private_key(ec.SECP384R1()))
