"""Verifies NVIDIA GPU reports (Hopper, Blackwell) as components of a confidential VM's evidence.

Steps: the certificate chain to the pinned NVIDIA root, signature by signature; the report's
signature by the leaf; the firmware id in the report against the leaf's DICE extension; the
nonce against the binding.

What is *not* checked, and what a policy therefore pins or accepts: revocation (NVIDIA answers
OCSP on line only), and NVIDIA's reference measurements (RIM), in whose place a policy lists
the measurements that it accepts. A policy that requires the claim ``nvidia.rim`` or
``nvidia.revocation`` refuses, because nothing here gives it. A report proves that *a* genuine
GPU answered this nonce; that it is the one plugged into this VM is as true as the measured
software that asked it.

A report without its chain is returned with every claim in ``unverified``.
"""

from __future__ import annotations

import hashlib
import hmac
import itertools
from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from attestation.binding import Bound
from attestation.chains import whole_octets
from attestation.errors import (
    BindingError,
    EndorsementError,
    EvidenceError,
    FreshnessError,
    SignatureError,
)
from attestation.evidence import Claims, Evidence, Scalar, Tee
from attestation.offline import UNREADABLE, load_certificates
from attestation.quotes.nvidia import NvidiaReport
from attestation.trust import TrustAnchors

__all__ = ["VERIFIER", "NvidiaVerifier"]

_TCB_INFO: Final = x509.ObjectIdentifier("2.23.133.5.4.1")  # DICE attestation, TCG
_TCB_INFO_OF_MANY: Final = x509.ObjectIdentifier("2.23.133.5.4.1.1")
_FIRST_FWID: Final = bytes.fromhex("303d06096086480165030402020430")
"""DER of a firmware id, up to its 48 bytes: ``SEQUENCE { SHA-384, OCTET STRING }``."""

_SCALAR_BYTES: Final = 48
_MAX_CHAIN: Final = 8
_NONCE_BYTES: Final = 32
_MIN_CHAIN: Final = 2


class NvidiaVerifier:
    """Claims: ``measurement.N`` (SPDM index), ``firmware_id``. Attributes: ``nvidia.driver``,
    ``nvidia.vbios``, ``nvidia.revocation`` and ``nvidia.rim`` (both ``not checked``),
    ``bound``.

    ``hardware_id`` is the SHA-256 of the SPKI of the device's own certificate, which its boot
    ROM holds.
    """

    def verify(
        self, evidence: Evidence, *, binding: Bound | None, trust: TrustAnchors, now: datetime
    ) -> Claims:
        """See :meth:`attestation.verifiers.Verifier.verify`.

        The nonce must be the SHA-256 of the binding's report data, or that data itself where
        it has 32 bytes.
        """
        if evidence.tee is not Tee.NVIDIA:
            raise EvidenceError(f"not nvidia but {evidence.tee.value} evidence", field="tee")
        if evidence.event_log:
            raise EvidenceError("GPU evidence has no event log", field="event_log")
        report = NvidiaReport.parse(evidence.quote)
        chain = _chain(evidence.endorsements)
        if chain:
            _check_chain(chain, trust, now)
            _check_signature(report, chain[0])
            _check_firmware(report, chain[0])
        if binding is not None:
            _check_nonce(report, binding)
        measurements = {
            f"measurement.{index}": value for index, value in sorted(report.measurements.items())
        }
        if report.firmware_id:
            measurements["firmware_id"] = report.firmware_id
        attributes: dict[str, Scalar | tuple[str, ...]] = {
            "bound": binding is not None and bool(chain),
            "nvidia.driver": report.driver,
            "nvidia.vbios": report.vbios,
            "nvidia.revocation": "not checked",
            "nvidia.rim": "not checked",
        }
        return Claims(
            tee=Tee.NVIDIA,
            measurements=measurements,
            debug=False,
            tcb=f"vbios {report.vbios}, driver {report.driver}",
            hardware_id=_spki_digest(chain[1]) if chain else b"",
            attributes=attributes,
            unverified=() if chain else tuple(measurements) or ("report",),
        )


VERIFIER: Final = NvidiaVerifier()


def _chain(endorsements: Sequence[bytes]) -> list[x509.Certificate]:
    """Return the chain, leaf first; empty when none came along."""
    chain: list[x509.Certificate] = []
    for number, item in enumerate(endorsements):
        try:
            found = load_certificates(item)
            for certificate in found:
                _read_all(certificate)
                if not whole_octets(certificate.public_bytes(Encoding.DER), certificate.signature):
                    raise ValueError("not the canonical encoding")
        except UNREADABLE:
            raise EvidenceError(
                "is not a certificate chain", field=f"endorsements[{number}]"
            ) from None
        chain += found
    if chain and not _MIN_CHAIN <= len(chain) <= _MAX_CHAIN:
        raise EvidenceError(
            f"{len(chain)} certificates, a chain has {_MIN_CHAIN} to {_MAX_CHAIN}",
            field="endorsements",
        )
    return chain


def _read_all(certificate: x509.Certificate) -> None:
    """Read now what is needed later: ``cryptography`` parses these parts when asked."""
    certificate.subject.rfc4514_string()
    certificate.issuer.rfc4514_string()
    certificate.public_key()
    _ = certificate.extensions, certificate.not_valid_before_utc, certificate.not_valid_after_utc


def _check_chain(chain: Sequence[x509.Certificate], trust: TrustAnchors, now: datetime) -> None:
    step = "gpu certificate chain"
    if not hmac.compare_digest(_spki_digest(chain[-1]), trust.nvidia_root):
        raise EndorsementError("does not end at the pinned NVIDIA root", step=step)
    for certificate in chain:
        if not certificate.not_valid_before_utc <= now <= certificate.not_valid_after_utc:
            name = certificate.subject.rfc4514_string()
            raise FreshnessError(f"{name} is not valid at {now.isoformat()}", step=step)
    for subject, issuer in _pairs(chain):
        name = subject.subject.rfc4514_string()
        if not _may_sign(issuer):
            raise EndorsementError(f"the issuer of {name} is no CA", step=step)
        try:
            subject.verify_directly_issued_by(issuer)
        except (*UNREADABLE, InvalidSignature):
            raise EndorsementError(f"{name} was not issued by the next one", step=step) from None


def _pairs(
    chain: Sequence[x509.Certificate],
) -> Iterator[tuple[x509.Certificate, x509.Certificate]]:
    yield from itertools.pairwise(chain)
    yield chain[-1], chain[-1]


def _may_sign(certificate: x509.Certificate) -> bool:
    try:
        constraints = certificate.extensions.get_extension_for_class(x509.BasicConstraints).value
        usage = certificate.extensions.get_extension_for_class(x509.KeyUsage).value
    except x509.ExtensionNotFound:
        return False
    return constraints.ca and usage.key_cert_sign


def _check_signature(report: NvidiaReport, leaf: x509.Certificate) -> None:
    step = "gpu report signature"
    key = leaf.public_key()
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP384R1):
        raise EndorsementError("the leaf's key is not on P-384", step=step)
    encoded = encode_dss_signature(
        int.from_bytes(report.signature[:_SCALAR_BYTES], "big"),
        int.from_bytes(report.signature[_SCALAR_BYTES:], "big"),
    )
    try:
        key.verify(encoded, report.signed, ec.ECDSA(hashes.SHA384()))
    except InvalidSignature:
        raise SignatureError("the GPU did not sign this report", step=step) from None


def _check_firmware(report: NvidiaReport, leaf: x509.Certificate) -> None:
    """Compare the firmware id with the one that the boot ROM wrote into the leaf."""
    step = "gpu firmware id"
    stated = _stated_firmware(leaf)
    if stated is None:
        raise EndorsementError("the leaf has no DICE extension", step=step)
    if len(stated) != hashes.SHA384.digest_size or report.firmware_id != stated:
        raise EndorsementError("the report names other firmware than its key's", step=step)


def _stated_firmware(leaf: x509.Certificate) -> bytes | None:
    """Return the firmware id in a leaf: Hopper's, the last 48 bytes; Blackwell's, its first."""
    size = hashes.SHA384.digest_size
    for extension in leaf.extensions:
        if not isinstance(extension.value, x509.UnrecognizedExtension):
            continue
        value = extension.value.value
        if extension.oid == _TCB_INFO:
            return value[-size:]
        if extension.oid == _TCB_INFO_OF_MANY:
            return value.partition(_FIRST_FWID)[2][:size]
    return None


def _check_nonce(report: NvidiaReport, binding: Bound) -> None:
    expected = binding.report_data()
    if len(expected) != _NONCE_BYTES:
        expected = hashlib.sha256(expected).digest()
    if not hmac.compare_digest(report.nonce, expected):
        raise BindingError(
            "the GPU was asked with another nonce than this binding's", step="gpu nonce"
        )


def _spki_digest(certificate: x509.Certificate) -> bytes:
    spki = certificate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return hashlib.sha256(spki).digest()
