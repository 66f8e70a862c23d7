"""Results as signed tokens: they come back as they were, or not at all."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from attestation import ecdsa
from attestation.errors import AttestationError, EvidenceError, FreshnessError, SignatureError
from attestation.policy import ear
from attestation.policy.result import AttestationResult, Finding, Tier

NOW = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
KEY = ec.generate_private_key(ec.SECP256R1())
POLICY = hashlib.sha256(b"policy").digest()


def finding(tier: Tier = Tier.AFFIRMING, **changes: object) -> Finding:
    values: dict[str, Any] = {
        "claim": "app",
        "expected": "ab",
        "actual": "ab",
        "category": "executables",
    }
    return Finding(tier=tier, **(values | changes))


def result(*findings: Finding, status: Tier = Tier.AFFIRMING) -> AttestationResult:
    return AttestationResult(
        status=status,
        tee="tpm",
        findings=findings or (finding(),),
        policy=POLICY,
        key_thumbprint=hashlib.sha256(b"key").digest(),
        expires=NOW + timedelta(minutes=30),
    )


def b64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def unb64(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


def sign(header: dict[str, Any], payload: object, key: ec.EllipticCurvePrivateKey = KEY) -> str:
    signed = f"{b64(json.dumps(header).encode())}.{b64(json.dumps(payload).encode())}"
    return f"{signed}.{b64(ecdsa.sign(key, signed.encode()))}"


def claims(token: str) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(unb64(token.split(".")[1]))
    return document


def read(token: str | bytes, **options: object) -> AttestationResult:
    usual: dict[str, Any] = {"key": KEY.public_key(), "now": NOW}
    return ear.read(token, **(usual | options))


HEADER = {"alg": "ES256", "typ": "eat+jwt"}


@pytest.mark.parametrize(
    "original",
    [
        result(),
        result(finding(Tier.CONTRAINDICATED, actual="cd"), status=Tier.CONTRAINDICATED),
        result(finding(), finding(Tier.NONE, claim="binding", category="instance-identity")),
        result(status=Tier.NONE),
    ],
)
def test_a_result_comes_back_as_it_was(original: AttestationResult) -> None:
    token = ear.issue(original, key=KEY, issued=NOW)
    assert read(token) == original
    assert read(token.encode()) == original


def test_the_claims_are_those_of_the_profile() -> None:
    token = ear.issue(
        result(finding(), finding(category="hardware")), key=KEY, issued=NOW, nonce=b"n" * 32
    )
    assert json.loads(unb64(token.split(".")[0])) == HEADER
    document = claims(token)
    assert document["eat_profile"] == "tag:github.com,2023:veraison/ear"
    assert document["exp"] - document["iat"] == 1800
    assert document["ear.verifier-id"].keys() == {"developer", "build"}
    appraisal = document["submods"]["tpm"]
    assert appraisal["ear.status"] == "affirming"
    assert appraisal["ear.appraisal-policy-id"] == "ni:///sha-256;" + b64(POLICY)
    assert appraisal["ear.trustworthiness-vector"] == {
        "instance-identity": 0,
        "configuration": 0,
        "executables": 2,
        "file-system": 0,
        "hardware": 2,
        "runtime-opaque": 0,
        "storage-opaque": 0,
        "sourced-data": 0,
    }


def test_the_worst_finding_of_a_category_decides() -> None:
    vector = ear.trust_vector([finding(), finding(Tier.CONTRAINDICATED), finding(Tier.NONE)])
    assert vector["executables"] == Tier.CONTRAINDICATED


def test_another_key_is_refused() -> None:
    token = ear.issue(result(), key=KEY, issued=NOW)
    with pytest.raises(SignatureError):
        read(token, key=ec.generate_private_key(ec.SECP256R1()).public_key())


def test_an_expired_or_future_result_is_refused() -> None:
    token = ear.issue(result(), key=KEY, issued=NOW)
    assert read(token, now=NOW + timedelta(minutes=30, seconds=-1))
    with pytest.raises(FreshnessError, match="expired"):
        read(token, now=NOW + timedelta(minutes=30))
    with pytest.raises(FreshnessError, match="future"):
        read(token, now=NOW - timedelta(minutes=2))


def test_another_nonce_is_refused() -> None:
    token = ear.issue(result(), key=KEY, issued=NOW, nonce=b"n" * 32)
    assert read(token, nonce=b"n" * 32)
    with pytest.raises(FreshnessError, match="nonce"):
        read(token, nonce=b"m" * 32)
    with pytest.raises(FreshnessError, match="nonce"):
        read(ear.issue(result(), key=KEY, issued=NOW), nonce=b"n" * 32)


@pytest.mark.parametrize(
    "header",
    [
        {"alg": "none", "typ": "eat+jwt"},
        {"alg": "HS256", "typ": "eat+jwt"},
        {"alg": "ES384", "typ": "eat+jwt"},
        {"alg": "ES256"},
        {"alg": "ES256", "typ": "JWT"},
        {"alg": "ES256", "typ": "eat+jwt", "crit": ["exp"]},
        {"alg": "ES256", "typ": "eat+jwt", "jwk": {}},
        {},
    ],
)
def test_any_other_header_is_refused(header: dict[str, Any]) -> None:
    payload = claims(ear.issue(result(), key=KEY, issued=NOW))
    with pytest.raises(EvidenceError, match="no other algorithm"):
        read(sign(header, payload))


def test_a_token_without_a_signature_is_refused() -> None:
    token = ear.issue(result(), key=KEY, issued=NOW)
    body = token.rsplit(".", 1)[0]
    none = b64(json.dumps({"alg": "none", "typ": "eat+jwt"}).encode())
    for forged in (body, body + ".", f"{none}.{body.split('.')[1]}."):
        with pytest.raises(EvidenceError):
            read(forged)


def test_the_public_key_as_a_secret_is_refused() -> None:
    spki = KEY.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    header = b64(json.dumps({"alg": "HS256", "typ": "eat+jwt"}).encode())
    body = ear.issue(result(), key=KEY, issued=NOW).split(".")[1]
    mac = hmac.digest(spki, f"{header}.{body}".encode(), "sha256")
    with pytest.raises(EvidenceError):
        read(f"{header}.{body}.{b64(mac * 2)}")


def edit(path: list[Any], value: object) -> str:
    payload = claims(ear.issue(result(), key=KEY, issued=NOW))
    place: Any = payload
    for step in path[:-1]:
        place = place[step]
    if value is ...:
        del place[path[-1]]
    else:
        place[path[-1]] = value
    return sign(HEADER, payload)


APPRAISAL = ["submods", "tpm"]
FINDING = [*APPRAISAL, "fedlearn.findings", 0]


@pytest.mark.parametrize(
    ("path", "value", "field"),
    [
        (["eat_profile"], "other", "ear.eat_profile"),
        (["exp"], ..., "ear.exp"),
        (["exp"], "soon", "ear.exp"),
        (["exp"], True, "ear.exp"),
        (["exp"], 10**20, "ear.exp"),
        (["iat"], -1, "ear.iat"),
        (["extra"], 1, "ear"),
        (["submods"], {}, "ear.submods"),
        (["submods"], [], "ear.submods"),
        (["submods", "tdx"], {}, "ear.submods"),
        ([*APPRAISAL, "ear.status"], ..., "ear.submods.tpm"),
        ([*APPRAISAL, "ear.status"], "fine", "ear.submods.tpm.ear.status"),
        ([*APPRAISAL, "ear.status"], 2, "ear.submods.tpm.ear.status"),
        (
            [*APPRAISAL, "ear.trustworthiness-vector", "executables"],
            96,
            "ear.submods.tpm.ear.trustworthiness-vector",
        ),
        (
            [*APPRAISAL, "ear.appraisal-policy-id"],
            "none",
            "ear.submods.tpm.ear.appraisal-policy-id",
        ),
        (
            [*APPRAISAL, "ear.appraisal-policy-id"],
            "ni:///sha-256;",
            "ear.submods.tpm.ear.appraisal-policy-id",
        ),
        (
            [*APPRAISAL, "fedlearn.key-thumbprint"],
            "AA",
            "ear.submods.tpm.fedlearn.key-thumbprint",
        ),
        ([*FINDING], 1, "ear.submods.tpm.fedlearn.findings[0]"),
        ([*FINDING, "tier"], "good", "ear.submods.tpm.fedlearn.findings[0].tier"),
        ([*FINDING, "category"], "x", "ear.submods.tpm.fedlearn.findings[0].category"),
        ([*FINDING, "actual"], None, "ear.submods.tpm.fedlearn.findings[0].actual"),
    ],
)
def test_a_malformed_claim_is_named(path: list[Any], value: object, field: str) -> None:
    with pytest.raises(EvidenceError) as error:
        read(edit(path, value))
    assert error.value.field == field


def test_a_status_that_its_findings_refuse_is_refused() -> None:
    bad = result(finding(Tier.WARNING), status=Tier.WARNING)
    payload = claims(ear.issue(bad, key=KEY, issued=NOW))
    payload["submods"]["tpm"]["ear.status"] = "affirming"
    with pytest.raises(EvidenceError, match="affirms"):
        read(sign(HEADER, payload))


def test_a_claim_that_stands_twice_is_refused() -> None:
    header, body, _ = ear.issue(result(), key=KEY, issued=NOW).split(".")
    twice = b64(unb64(body).replace(b'"exp":', b'"exp":1,"exp":'))
    with pytest.raises(EvidenceError, match="payload"):
        read(f"{header}.{twice}.{b64(bytes(64))}")


def test_every_flipped_character_and_every_truncation_is_refused() -> None:
    token = ear.issue(result(), key=KEY, issued=NOW).encode()
    mutants = [token[:end] for end in range(len(token))]
    mutants += [
        token[:index] + bytes([token[index] ^ 1]) + token[index + 1 :]
        for index in range(len(token))
    ]
    for mutant in mutants:
        with pytest.raises(AttestationError):
            read(mutant)


@pytest.mark.parametrize("token", ["", "..", "a.b.c", "é.é.é", "a" * (ear.MAX_TOKEN_BYTES + 1)])
def test_garbage_is_refused(token: str) -> None:
    with pytest.raises(EvidenceError):
        read(token)


def test_faults_of_the_caller_are_named() -> None:
    with pytest.raises(ValueError, match="P-256"):
        ear.issue(result(), key=ec.generate_private_key(ec.SECP384R1()), issued=NOW)
    with pytest.raises(ValueError, match="AR4SI"):
        ear.issue(result(finding(category="mood")), key=KEY, issued=NOW)
    with pytest.raises(ValueError, match="aware"):
        ear.issue(result(), key=KEY, issued=datetime(2026, 3, 1))  # noqa: DTZ001
