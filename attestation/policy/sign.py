"""Detached signatures of appraisal policies: which operator signed which version.

``policy.toml.sig`` is canonical JSON::

    {"algorithm", "digest", "key", "public_key", "signature", "version"}
    algorithm   "ed25519" or "ecdsa-p256-sha256"
    digest      AppraisalPolicy.digest, hex
    key         SHA-256 of the signer's SubjectPublicKeyInfo, hex
    public_key  that SubjectPublicKeyInfo, DER, hex; a verifier needs only its digest
    version     AppraisalPolicy.version
    signed      "fedlearn-policy-signature/1\\0" | u64be version | digest

The digest covers the meaning of the policy: a comment may change without a new signature, but
nothing that changes a verdict.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable
from typing import Final

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_der_public_key,
)

from attestation.encodings import json_object
from attestation.errors import EndorsementError, EvidenceError, FreshnessError, SignatureError
from attestation.policy.model import AppraisalPolicy

__all__ = [
    "MAX_SIGNATURE_BYTES",
    "PrivateKey",
    "PublicKey",
    "operator_key_digest",
    "sign_policy",
    "signer_of",
    "verify_policy",
]

PrivateKey = ed25519.Ed25519PrivateKey | ec.EllipticCurvePrivateKey
PublicKey = ed25519.Ed25519PublicKey | ec.EllipticCurvePublicKey

MAX_SIGNATURE_BYTES: Final = 4096
_DOMAIN: Final = b"fedlearn-policy-signature/1\0"
_ED25519: Final = "ed25519"
_ECDSA: Final = "ecdsa-p256-sha256"
_MAX_VERSION: Final = 2**63 - 1
_HEX: Final = re.compile(r"(?:[0-9a-f]{2})+")


def operator_key_digest(key: PublicKey) -> bytes:
    """Return the SHA-256 (32 bytes) of the DER SubjectPublicKeyInfo of an operator's key."""
    return hashlib.sha256(_spki(key)).digest()


def sign_policy(policy: AppraisalPolicy, key: PrivateKey) -> bytes:
    """Return the signature file of ``policy`` by ``key`` (Ed25519, or ECDSA on P-256).

    :raises ValueError: for a key on another curve.
    """
    message = _message(policy.version, policy.digest)
    if isinstance(key, ed25519.Ed25519PrivateKey):
        algorithm, signature = _ED25519, key.sign(message)
    elif isinstance(key.curve, ec.SECP256R1):
        algorithm, signature = _ECDSA, key.sign(message, ec.ECDSA(hashes.SHA256()))
    else:
        raise ValueError(f"an operator's key is Ed25519 or on P-256, not on {key.curve.name}")
    return _canonical(
        {
            "algorithm": algorithm,
            "digest": policy.digest.hex(),
            "key": operator_key_digest(key.public_key()).hex(),
            "public_key": _spki(key.public_key()).hex(),
            "signature": signature.hex(),
            "version": policy.version,
        }
    )


def verify_policy(
    policy: AppraisalPolicy,
    signature: bytes,
    *,
    keys: Iterable[PublicKey] = (),
    key_digests: Iterable[bytes] = (),
    minimum_version: int = 1,
) -> bytes:
    """Return the digest of the operator's key that signed ``policy``.

    It is one of ``keys``, or one whose SHA-256 (of its SubjectPublicKeyInfo) is among
    ``key_digests``; the signature file then has the key itself. ``minimum_version`` is the newest
    version that was used before; an older one is a rollback.

    :raises EvidenceError: when the signature file is malformed.
    :raises EndorsementError: when another key signed it.
    :raises SignatureError: when it is not a signature of this policy.
    :raises FreshnessError: when the policy is older than ``minimum_version``.
    """
    fields = _parse(signature)
    known = {operator_key_digest(key): key for key in keys}
    signer = bytes.fromhex(str(fields["key"]))
    shown = bytes.fromhex(str(fields["public_key"]))
    if signer in frozenset(key_digests) and hashlib.sha256(shown).digest() == signer:
        known.setdefault(signer, _load(shown))
    if signer not in known:
        raise EndorsementError(
            f"signed by {signer.hex()[:16]}…, which is not a known operator's key",
            step="policy signature",
        )
    if fields["digest"] != policy.digest.hex() or fields["version"] != policy.version:
        raise SignatureError(
            "the signature is for another policy or another version of it",
            step="policy signature",
            hint="`fedlearn policy sign` signs the policy as it is now",
        )
    _check(known[signer], str(fields["algorithm"]), bytes.fromhex(str(fields["signature"])), policy)
    if shown != _spki(known[signer]):
        raise SignatureError("another public key came with the signature", step="policy signature")
    if policy.version < minimum_version:
        raise FreshnessError(
            f"version {policy.version} is older than {minimum_version}, which was seen before",
            step="policy version",
        )
    return signer


def signer_of(signature: bytes) -> bytes:
    """Return the digest of the key that ``signature`` names; nothing is verified.

    :raises EvidenceError: when the signature file is malformed.
    """
    return bytes.fromhex(str(_parse(signature)["key"]))


def _spki(key: PublicKey) -> bytes:
    return key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def _load(spki: bytes) -> PublicKey:
    try:
        key = load_der_public_key(spki)
    except (ValueError, UnsupportedAlgorithm):
        raise EvidenceError("not a public key", field="policy signature.public_key") from None
    if not isinstance(key, ed25519.Ed25519PublicKey | ec.EllipticCurvePublicKey):
        raise EvidenceError("not an operator's key", field="policy signature.public_key")
    return key


def _check(key: PublicKey, algorithm: str, signature: bytes, policy: AppraisalPolicy) -> None:
    message = _message(policy.version, policy.digest)
    try:
        if isinstance(key, ed25519.Ed25519PublicKey) and algorithm == _ED25519:
            key.verify(signature, message)
        elif (
            isinstance(key, ec.EllipticCurvePublicKey)
            and isinstance(key.curve, ec.SECP256R1)
            and algorithm == _ECDSA
        ):
            key.verify(signature, message, ec.ECDSA(hashes.SHA256()))
        else:
            raise SignatureError(
                f"the operator's key does not make {algorithm} signatures",
                step="policy signature",
            )
    except InvalidSignature:
        raise SignatureError(
            "the operator's key did not sign this policy", step="policy signature"
        ) from None


def _parse(data: bytes) -> dict[str, str | int]:
    if len(data) > MAX_SIGNATURE_BYTES:
        raise EvidenceError(
            f"{len(data)} bytes, at most {MAX_SIGNATURE_BYTES} are read", field="policy signature"
        )
    document = json_object(data, "policy signature")
    texts = ("algorithm", "digest", "key", "public_key", "signature")
    if document.keys() != {*texts, "version"}:
        raise EvidenceError(
            f"must have exactly {', '.join(texts)} and version", field="policy signature"
        )
    for name in texts:
        value = document[name]
        if not isinstance(value, str) or (name != "algorithm" and not _HEX.fullmatch(value)):
            raise EvidenceError("must be lower-case hex", field=f"policy signature.{name}")
    if document["algorithm"] not in (_ED25519, _ECDSA):
        raise EvidenceError(f"must be {_ED25519} or {_ECDSA}", field="policy signature.algorithm")
    version = document["version"]
    if (
        not isinstance(version, int)
        or isinstance(version, bool)
        or not 1 <= version <= _MAX_VERSION
    ):
        raise EvidenceError("must be a whole number", field="policy signature.version")
    if _canonical(document) != data:
        raise EvidenceError("not the canonical encoding of its content", field="policy signature")
    return document


def _message(version: int, digest: bytes) -> bytes:
    return _DOMAIN + version.to_bytes(8, "big") + digest


def _canonical(document: object) -> bytes:
    return json.dumps(document, sort_keys=True, separators=(",", ":")).encode("ascii") + b"\n"
