"""ECDSA on P-256 with SHA-256, in one encoding: r and s of 32 bytes each, big-endian, s low.

For each signature (r, s), the signature (r, n - s) is valid for the same key and message, so that
anyone can make a second one. This project signs with the smaller s, and refuses the other in its
own formats (sealed models, results, sample evidence, ledgers). Vendors sign with either, so in
their formats both are accepted; see docs/reference/evidence.md.
"""

from __future__ import annotations

from typing import Final

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import (
    Prehashed,
    decode_dss_signature,
    encode_dss_signature,
)

__all__ = ["P256_ORDER", "SIGNATURE_BYTES", "sign", "verify"]

SIGNATURE_BYTES: Final = 64
_SCALAR: Final = SIGNATURE_BYTES // 2
P256_ORDER: Final = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
"""The order n of P-256 (NIST SP 800-186, section 3.2.1.3)."""


def sign(key: ec.EllipticCurvePrivateKey, message: bytes, *, digested: bool = False) -> bytes:
    """Return the signature (64 bytes) over ``message``, which is its SHA-256 if ``digested``.

    :raises ValueError: for a key on another curve.
    """
    _check_curve(key.curve)
    r, s = decode_dss_signature(key.sign(message, _algorithm(digested)))
    return r.to_bytes(_SCALAR, "big") + min(s, P256_ORDER - s).to_bytes(_SCALAR, "big")


def verify(
    key: ec.EllipticCurvePublicKey, signature: bytes, message: bytes, *, digested: bool = False
) -> None:
    """Check that ``key`` signed ``message``, which is its SHA-256 if ``digested``.

    :raises ValueError: for a key on another curve, or a signature that is not 64 bytes with r
        from 1 to n - 1 and s from 1 to n / 2.
    :raises cryptography.exceptions.InvalidSignature: when it did not.
    """
    _check_curve(key.curve)
    r, s = (int.from_bytes(part, "big") for part in (signature[:_SCALAR], signature[_SCALAR:]))
    if len(signature) != SIGNATURE_BYTES or not 0 < r < P256_ORDER or not 0 < s < P256_ORDER:
        raise ValueError("not a signature of ECDSA on P-256, which is r and s of 32 bytes each")
    if s > P256_ORDER // 2:
        raise ValueError("the s of the signature is in the upper half of its range")
    key.verify(encode_dss_signature(r, s), message, _algorithm(digested))


def _algorithm(digested: bool) -> ec.ECDSA:
    return ec.ECDSA(Prehashed(hashes.SHA256()) if digested else hashes.SHA256())


def _check_curve(curve: ec.EllipticCurve) -> None:
    if not isinstance(curve, ec.SECP256R1):
        raise ValueError(f"a key on P-256 is needed, not on {curve.name}")
