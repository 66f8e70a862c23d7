"""What a client sends to be admitted to a job, as client and coordinator have it."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["AdmitRequest"]


@dataclass(frozen=True, slots=True, kw_only=True)
class AdmitRequest:
    """A request for admission, or for its renewal. Nothing in it is believed before its step.

    Fields are called as in ``fedlearn.v1.AdmitRequest``.

    ``nonce``         of the challenge that is answered
    ``csr``           PKCS#10, DER, of the P-256 key for TLS
    ``hpke_key``      raw X25519 public key, 32 bytes
    ``evidence``      encoded (:meth:`attestation.evidence.Evidence.to_bytes`)
    ``site_voucher``  :mod:`fedlearn.identity.voucher`; empty in a renewal
    """

    job: str
    site: str
    client: str
    nonce: bytes
    csr: bytes
    hpke_key: bytes
    evidence: bytes
    site_voucher: bytes = b""
