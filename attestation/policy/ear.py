"""Attestation results as signed tokens, for relying parties that did not appraise themselves.

An EAT Attestation Result (draft-ietf-rats-ear) is a JWT whose ``submods`` hold one appraisal
each: ``ear.status``, an AR4SI ``ear.trustworthiness-vector`` (draft-ietf-rats-ar4si, section
2.3), and ``ear.appraisal-policy-id``. The claim names are the dotted ones of profile
``tag:github.com,2023:veraison/ear``, which deployed verifiers write. Claims that the profile does
not have start with ``fedlearn.``: the findings, each with the origin of its value, and the
thumbprint of the bound TLS key.

Tokens are JWS compact, ES256 only (RFC 7515, RFC 7518 section 3.4), typed ``eat+jwt`` (RFC 9711).
The reader accepts only what the writer makes: no other algorithm, no other type, no unknown header,
and only canonical base64.

The page is docs/adr/0027-compact-jws.md.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec

from attestation import ecdsa
from attestation.encodings import MAX_UNIX_SECONDS, json_object
from attestation.errors import EvidenceError, FreshnessError, SignatureError
from attestation.evidence import Origin
from attestation.policy.result import AttestationResult, Finding, Tier

__all__ = ["EAT_PROFILE", "MAX_TOKEN_BYTES", "TRUST_VECTOR", "issue", "read", "trust_vector"]

EAT_PROFILE: Final = "tag:github.com,2023:veraison/ear"
MAX_TOKEN_BYTES: Final = 256 * 1024
"""Upper bound of a token, checked before anything of it is decoded."""

TRUST_VECTOR: Final = (
    "instance-identity",
    "configuration",
    "executables",
    "file-system",
    "hardware",
    "runtime-opaque",
    "storage-opaque",
    "sourced-data",
)
"""The members of an AR4SI trustworthiness vector."""

_SKEW: Final = timedelta(minutes=1)
_DIGEST_BYTES: Final = 32
_MAX_FINDINGS: Final = 1024
_MAX_TEXT: Final = 8192
_HEADER: Final = {"alg": "ES256", "typ": "eat+jwt"}
_POLICY_SCHEME: Final = "ni:///sha-256;"  # RFC 6920, section 3
_VERIFIER_ID: Final = {"developer": "https://github.com/fedlearn/fedlearn", "build": "fedlearn/1"}
_TIERS: Final = {tier.name.lower(): tier for tier in Tier}
_ORIGINS: Final = frozenset(origin.value for origin in Origin)


def trust_vector(findings: Iterable[Finding]) -> dict[str, int]:
    """Return the worst tier of each AR4SI category; 0 where nothing was appraised.

    Notes (tier ``NONE``) do not count, as they appraise nothing.
    """
    vector = dict.fromkeys(TRUST_VECTOR, int(Tier.NONE))
    for finding in findings:
        vector[finding.category] = max(vector[finding.category], int(finding.tier))
    return vector


def issue(
    result: AttestationResult,
    *,
    key: ec.EllipticCurvePrivateKey,
    issued: datetime,
    nonce: bytes = b"",
) -> str:
    """Return ``result`` as a token signed by ``key`` (P-256).

    ``nonce`` is the relying party's, at most 64 bytes, if there was one. Times are whole
    seconds: an expiry with a fraction is rounded down.

    :raises ValueError: for a key on another curve, a naive time or a finding whose category
        is not one of AR4SI.
    """
    if not isinstance(key.curve, ec.SECP256R1):
        raise ValueError(f"ES256 needs a key on P-256, not on {key.curve.name}")
    if issued.tzinfo is None or result.expires.tzinfo is None:
        raise ValueError("the times of a token must be aware")
    if unknown := {f.category for f in result.findings} - set(TRUST_VECTOR):
        raise ValueError(f"{sorted(unknown)[0]!r} is not a category of AR4SI")
    appraisal = {
        "ear.status": result.status.name.lower(),
        "ear.trustworthiness-vector": trust_vector(result.findings),
        "ear.appraisal-policy-id": _POLICY_SCHEME + _encode(result.policy),
        "fedlearn.key-thumbprint": _encode(result.key_thumbprint),
        "fedlearn.findings": [finding.to_json() for finding in result.findings],
    }
    claims: dict[str, Any] = {
        "eat_profile": EAT_PROFILE,
        "iat": int(issued.timestamp()),
        "exp": int(result.expires.timestamp()),
        "ear.verifier-id": _VERIFIER_ID,
        "submods": {result.tee: appraisal},
    }
    if nonce:
        claims["eat_nonce"] = _encode(nonce)
    signed = f"{_encode(_json(_HEADER))}.{_encode(_json(claims))}"
    raw = ecdsa.sign(key, signed.encode("ascii"))
    return f"{signed}.{_encode(raw)}"


def read(
    token: str | bytes,
    *,
    key: ec.EllipticCurvePublicKey,
    now: datetime,
    nonce: bytes | None = None,
) -> AttestationResult:
    """Return the result inside ``token``, signed by ``key`` and valid at ``now``.

    ``nonce``, when given, must be the token's.

    :raises EvidenceError: when the token is malformed, naming the claim.
    :raises SignatureError: when ``key`` did not sign it.
    :raises FreshnessError: when it expired, is from the future, or has another nonce.
    """
    if now.tzinfo is None:
        raise ValueError("the time of a reading must be aware")
    header, payload, signature, signed = _split(token)
    if header != _HEADER:
        raise EvidenceError(
            'must be exactly {"alg":"ES256","typ":"eat+jwt"}; no other algorithm is accepted',
            field="ear.header",
        )
    _check_signature(key, signature, signed)
    known = {"eat_profile", "iat", "exp", "ear.verifier-id", "submods", "eat_nonce"}
    if unknown := sorted(payload.keys() - known):
        raise EvidenceError(f"unknown claim {unknown[0][:64]!r}", field="ear")
    if payload.get("eat_profile") != EAT_PROFILE:
        raise EvidenceError(f"must be {EAT_PROFILE}", field="ear.eat_profile")
    issued, expires = _time(payload, "iat"), _time(payload, "exp")
    if now >= expires:
        raise FreshnessError(f"expired at {expires.isoformat()}", step="result")
    if issued > now + _SKEW:
        raise FreshnessError(f"issued in the future, at {issued.isoformat()}", step="result")
    if nonce is not None and payload.get("eat_nonce") != _encode(nonce):
        raise FreshnessError("the result is for another nonce", step="result")
    return _result(payload.get("submods"), expires)


def _split(token: str | bytes) -> tuple[Mapping[str, Any], Mapping[str, Any], bytes, bytes]:
    if len(token) > MAX_TOKEN_BYTES:
        raise EvidenceError(f"{len(token)} bytes, at most {MAX_TOKEN_BYTES} are read", field="ear")
    try:
        data = token.encode("ascii") if isinstance(token, str) else token
    except UnicodeEncodeError as error:
        raise EvidenceError("is not ASCII", field="ear", offset=error.start) from None
    parts = data.split(b".")
    if len(parts) != 3:
        raise EvidenceError("must have three parts between dots", field="ear")
    header, payload, signature = parts
    raw = _decode(signature, "ear.signature")
    if len(raw) != ecdsa.SIGNATURE_BYTES:
        raise EvidenceError(f"must have 64 bytes, not {len(raw)}", field="ear.signature")
    return (
        json_object(_decode(header, "ear.header"), "ear.header"),
        json_object(_decode(payload, "ear.payload"), "ear.payload"),
        raw,
        header + b"." + payload,
    )


def _check_signature(key: ec.EllipticCurvePublicKey, signature: bytes, signed: bytes) -> None:
    if not isinstance(key.curve, ec.SECP256R1):
        raise ValueError(f"ES256 needs a key on P-256, not on {key.curve.name}")
    try:
        ecdsa.verify(key, signature, signed)
    except ValueError as error:
        raise EvidenceError(str(error), field="ear.signature") from error
    except InvalidSignature:
        raise SignatureError("the result was not signed by this verifier", step="result") from None


def _result(submods: object, expires: datetime) -> AttestationResult:
    if not isinstance(submods, dict) or len(submods) != 1:
        raise EvidenceError("must hold exactly one appraisal", field="ear.submods")
    [(tee, appraisal)] = submods.items()
    where = f"ear.submods.{tee[:32]}"
    names = {
        "ear.status",
        "ear.trustworthiness-vector",
        "ear.appraisal-policy-id",
        "fedlearn.key-thumbprint",
        "fedlearn.findings",
    }
    if not isinstance(appraisal, dict) or appraisal.keys() != names:
        raise EvidenceError(f"must have exactly {', '.join(sorted(names))}", field=where)
    findings = appraisal["fedlearn.findings"]
    if not isinstance(findings, list) or len(findings) > _MAX_FINDINGS:
        raise EvidenceError(f"must be at most {_MAX_FINDINGS}", field=f"{where}.fedlearn.findings")
    parsed = tuple(
        _finding(item, f"{where}.fedlearn.findings[{i}]") for i, item in enumerate(findings)
    )
    if appraisal["ear.trustworthiness-vector"] != trust_vector(parsed):
        raise EvidenceError(
            "is not the worst of the findings", field=f"{where}.ear.trustworthiness-vector"
        )
    status = _tier(appraisal["ear.status"], f"{where}.ear.status")
    worst = max((item.tier for item in parsed), default=Tier.NONE)
    if status is Tier.AFFIRMING and worst is not Tier.AFFIRMING:
        raise EvidenceError("affirms what the findings refuse", field=f"{where}.ear.status")
    policy = appraisal["ear.appraisal-policy-id"]
    if not isinstance(policy, str) or not policy.startswith(_POLICY_SCHEME):
        raise EvidenceError(
            f"must start with {_POLICY_SCHEME}", field=f"{where}.ear.appraisal-policy-id"
        )
    return AttestationResult(
        status=status,
        tee=tee,
        findings=parsed,
        policy=_digest(
            policy.removeprefix(_POLICY_SCHEME), f"{where}.ear.appraisal-policy-id", optional=False
        ),
        key_thumbprint=_digest(
            appraisal["fedlearn.key-thumbprint"],
            f"{where}.fedlearn.key-thumbprint",
            optional=True,
        ),
        expires=expires,
    )


def _finding(item: object, where: str) -> Finding:
    names = {"claim", "tier", "expected", "actual", "category", "remedy", "origin"}
    if not isinstance(item, dict) or item.keys() != names:
        raise EvidenceError(f"must have exactly {', '.join(sorted(names))}", field=where)
    for name, value in item.items():
        if not isinstance(value, str) or len(value) > _MAX_TEXT:
            raise EvidenceError("must be text", field=f"{where}.{name}")
    if item["category"] not in TRUST_VECTOR:
        raise EvidenceError("is not one of AR4SI", field=f"{where}.category")
    if item["origin"] not in _ORIGINS:
        raise EvidenceError(
            f"must be one of {', '.join(sorted(_ORIGINS))}", field=f"{where}.origin"
        )
    return Finding(
        claim=item["claim"],
        tier=_tier(item["tier"], f"{where}.tier"),
        expected=item["expected"],
        actual=item["actual"],
        category=item["category"],
        remedy=item["remedy"],
        origin=Origin(item["origin"]),
    )


def _tier(value: object, where: str) -> Tier:
    if not isinstance(value, str) or value not in _TIERS:
        raise EvidenceError(f"must be one of {', '.join(_TIERS)}", field=where)
    return _TIERS[value]


def _time(payload: Mapping[str, Any], name: str) -> datetime:
    value = payload.get(name)
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= MAX_UNIX_SECONDS:
        raise EvidenceError("must be seconds since 1970", field=f"ear.{name}")
    return datetime.fromtimestamp(value, UTC)


def _digest(value: object, where: str, *, optional: bool) -> bytes:
    if not isinstance(value, str):
        raise EvidenceError("must be text", field=where)
    raw = _decode(value.encode("ascii", "replace"), where) if value else b""
    if len(raw) != _DIGEST_BYTES and not (optional and not raw):
        raise EvidenceError(f"must have {_DIGEST_BYTES} bytes, not {len(raw)}", field=where)
    return raw


def _json(document: object) -> bytes:
    return json.dumps(document, sort_keys=True, separators=(",", ":")).encode("ascii")


def _encode(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode("ascii")


def _decode(text: bytes, where: str) -> bytes:
    try:
        data = base64.b64decode(text + b"=" * (-len(text) % 4), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError):
        raise EvidenceError("is not base64url", field=where) from None
    if _encode(data).encode() != text:
        raise EvidenceError("is not the canonical base64url of its bytes", field=where)
    return data
