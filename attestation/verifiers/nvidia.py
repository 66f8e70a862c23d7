"""Verifies reports of NVIDIA GPUs (Hopper, Blackwell) and NVSwitches, components of evidence.

Steps, each named in the error that it raises:

1. *certificate chain* to the pinned NVIDIA root, signature by signature, and dates;
2. *report signature* by the leaf;
3. *firmware id*: that of a GPU's report is the one in the leaf's DICE extension; the report of an
   NVSwitch has none, and its claim comes from the leaf;
4. *nonce* against the binding;
5. *RIM*, when there are any: the measurements of driver and VBIOS are those of NVIDIA's reference
   manifests (:mod:`attestation.endorsements.nvidia_rim`). A RIM of another version is refused;
6. *revocation*, when there are OCSP answers: every certificate of the device, and of the RIMs'
   signers, has a good and current one (:mod:`attestation.endorsements.ocsp`). The device itself
   issues the leaf, which has none.

RIMs and OCSP answers come from the relying party (``trust.collateral``) or with the report. Without
any of a kind, the claim ``nvidia.rim`` or ``nvidia.revocation`` is not made, and a policy that
requires it refuses. :mod:`attestation.verifiers.nvidia_topology` checks that the devices belong to
one machine. A report proves that *a* genuine device answered this nonce. That it is the device of
this VM is proven only as far as the measured software that requested the report.

A report without its chain is returned with every claim in ``unverified``.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

from attestation.binding import Bound
from attestation.endorsements.chains import Certificate, check_chain, split_certificates
from attestation.endorsements.nvidia_rim import Rim, is_rim, match_rims
from attestation.endorsements.ocsp import OcspAnswer, check_not_revoked, is_ocsp
from attestation.errors import (
    BindingError,
    EndorsementError,
    EvidenceError,
    SignatureError,
)
from attestation.evidence import Claims, Evidence, Scalar, Tee
from attestation.policy.nvidia import SWITCH_PREFIX
from attestation.quotes.nvidia import NvidiaReport
from attestation.trust import TrustAnchors

__all__ = ["VERIFIER", "NvidiaVerifier", "device_name"]

_TCB_INFO: Final = "2.23.133.5.4.1"  # DICE attestation, TCG
_TCB_INFO_OF_MANY: Final = "2.23.133.5.4.1.1"
_FIRST_FWID: Final = bytes.fromhex("303d06096086480165030402020430")
"""DER of a firmware id, up to its 48 bytes: ``SEQUENCE { SHA-384, OCTET STRING }``."""
_DEVICE_NAME: Final = x509.ObjectIdentifier("1.3.6.1.4.1.412.274.1")  # id-DMTF-device-info, DSP0274

_SCALAR_BYTES: Final = 48
_MIN_CHAIN, _MAX_CHAIN = 2, 8
_MAX_ANSWERS, _MAX_SENT_RIMS = 256, 4
_NONCE_BYTES: Final = 32
_NOT_CHECKED: Final = "not checked: there is no"
_FETCH: Final = "fedlearn collateral fetch --directory DIR --evidence FILE"


class NvidiaVerifier:
    """Claims: ``measurement.N`` (SPDM index), ``firmware_id``, of an NVSwitch with ``nvswitch.``
    before them; ``nvidia.rim`` (SHA-256 over the digests of the RIMs that the report matches) and
    ``nvidia.revocation`` (SHA-256 over the OCSP answers that count), where they were checked.

    Attributes: ``bound``, ``nvidia.kind`` (``gpu``, ``nvswitch``), ``nvidia.device`` (as the leaf
    names it), ``nvidia.driver``, ``nvidia.vbios``, ``nvidia.protected_pcie``, ``nvidia.pdi`` and
    ``nvidia.links`` (see :mod:`attestation.quotes.nvidia`), and texts that explain ``nvidia.rim``
    and ``nvidia.revocation``.

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
        found = _Endorsements.sort(evidence.endorsements, trust.collateral)
        chain = found.chain
        kind = SWITCH_PREFIX if report.is_switch else ""
        measurements = {
            f"{kind}measurement.{index}": value
            for index, value in sorted(report.measurements.items())
        }
        checked = _Checked(firmware_id=report.firmware_id)
        if chain:
            check_chain(
                chain,
                root=trust.nvidia_root,
                root_name="NVIDIA root",
                now=now,
                step="gpu certificate chain",
            )
            _check_signature(report, chain[0])
            checked = _check_endorsed(report, found, trust, now)
        if binding is not None:
            _check_nonce(report, binding)
        if checked.firmware_id:
            measurements[f"{kind}firmware_id"] = checked.firmware_id
        measurements |= checked.claims()
        return Claims(
            tee=Tee.NVIDIA,
            measurements=measurements,
            debug=False,
            tcb=f"vbios {report.vbios}" + (f", driver {report.driver}" if report.driver else ""),
            hardware_id=chain[1].key_digest if chain else b"",
            bound=bool(binding and chain),
            attributes=_attributes(report, chain, checked),
            unverified=() if chain else tuple(measurements) or ("report",),
        )


VERIFIER: Final = NvidiaVerifier()


@dataclass(slots=True)
class _Endorsements:
    """The endorsements of the evidence and of the relying party, by kind."""

    chain: list[Certificate] = field(default_factory=list)
    rims: list[bytes] = field(default_factory=list)
    answers: list[OcspAnswer] = field(default_factory=list)

    @classmethod
    def sort(cls, sent: Sequence[bytes], collateral: Iterable[bytes]) -> _Endorsements:
        found = cls()
        for item in collateral:
            # One malformed file of the relying party does not affect the others.
            with contextlib.suppress(EvidenceError):
                found._take(item)
        had = len(found.rims)
        for number, item in enumerate(sent):
            if not found._take(item):
                found.chain += split_certificates(item, f"endorsements[{number}]")
        if len(found.rims) - had > _MAX_SENT_RIMS:
            raise EvidenceError(
                f"more than {_MAX_SENT_RIMS} RIMs came along; a GPU has two", field="endorsements"
            )
        if found.chain and not _MIN_CHAIN <= len(found.chain) <= _MAX_CHAIN:
            raise EvidenceError(
                f"{len(found.chain)} certificates, a chain has {_MIN_CHAIN} to {_MAX_CHAIN}",
                field="endorsements",
            )
        if len(found.answers) > _MAX_ANSWERS:
            raise EvidenceError(f"more than {_MAX_ANSWERS} OCSP answers", field="endorsements")
        return found

    def _take(self, item: bytes) -> bool:
        if is_rim(item):
            self.rims.append(item)
        elif is_ocsp(item):
            self.answers += OcspAnswer.parse(item)
        else:
            return False
        return True


@dataclass(frozen=True, slots=True, kw_only=True)
class _Checked:
    """The claims and texts that endorsements add to a report."""

    firmware_id: bytes
    rims: tuple[Rim, ...] = ()
    answers: tuple[OcspAnswer, ...] = ()

    def claims(self) -> dict[str, bytes]:
        found: dict[str, bytes] = {}
        if self.rims:
            found["nvidia.rim"] = _digest(item.digest for item in self.rims)
        if self.answers:
            found["nvidia.revocation"] = _digest(item.data for item in self.answers)
        return found

    def words(self) -> dict[str, Scalar | tuple[str, ...]]:
        rims = [f"{item.version} ({len(item.golden)} measurements)" for item in self.rims]
        until = min((item.end for item in self.answers), default=None)
        return {
            "nvidia.rim": f"matches {', '.join(rims)}" if rims else f"{_NOT_CHECKED} RIM",
            "nvidia.revocation": f"not revoked, until {until.isoformat()}"
            if until
            else f"{_NOT_CHECKED} OCSP answer",
        }


def _check_endorsed(
    report: NvidiaReport, found: _Endorsements, trust: TrustAnchors, now: datetime
) -> _Checked:
    firmware_id = _check_firmware(report, found.chain[0])
    rims: tuple[Rim, ...] = ()
    answers: tuple[OcspAnswer, ...] = ()
    if found.rims:
        rims = match_rims(report, found.rims, root=trust.nvidia_rim_root, now=now)
    if found.answers:
        for chain in (found.chain[1:], *(item.chain for item in rims)):
            answers += check_not_revoked(
                chain, found.answers, now=now, step="nvidia revocation", hint=_FETCH
            )
    return _Checked(firmware_id=firmware_id, rims=rims, answers=tuple(dict.fromkeys(answers)))


def _attributes(
    report: NvidiaReport, chain: Sequence[Certificate], checked: _Checked
) -> dict[str, Scalar | tuple[str, ...]]:
    return {
        "nvidia.kind": "nvswitch" if report.is_switch else "gpu",
        "nvidia.device": device_name(chain[0]) if chain else "",
        "nvidia.driver": report.driver,
        "nvidia.vbios": report.vbios,
        "nvidia.protected_pcie": report.protected_pcie,
        "nvidia.pdi": report.own_pdi.hex(),
        "nvidia.links": tuple(sorted(item.hex() for item in report.linked_pdis)),
        **checked.words(),
    }


def _check_signature(report: NvidiaReport, leaf: Certificate) -> None:
    step = "gpu report signature"
    if not isinstance(leaf.key, ec.EllipticCurvePublicKey) or not isinstance(
        leaf.key.curve, ec.SECP384R1
    ):
        raise EndorsementError("the leaf's key is not on P-384", step=step)
    encoded = encode_dss_signature(
        int.from_bytes(report.signature[:_SCALAR_BYTES], "big"),
        int.from_bytes(report.signature[_SCALAR_BYTES:], "big"),
    )
    try:
        leaf.key.verify(encoded, report.signed, ec.ECDSA(hashes.SHA384()))
    except InvalidSignature:
        raise SignatureError(f"{leaf.name} did not sign this report", step=step) from None


def _check_firmware(report: NvidiaReport, leaf: Certificate) -> bytes:
    """Return the firmware id that the boot ROM wrote into the leaf; a GPU's report repeats it."""
    step = "gpu firmware id"
    stated = _stated_firmware(leaf)
    if stated is None or len(stated) != hashes.SHA384.digest_size:
        raise EndorsementError("the leaf has no DICE extension with a firmware id", step=step)
    if report.is_switch and not report.firmware_id:
        return stated
    if report.firmware_id != stated:
        raise EndorsementError(
            f"the report names firmware {report.firmware_id.hex() or '(none)'}, "
            f"its key belongs to {stated.hex()}",
            step=step,
        )
    return stated


def _stated_firmware(leaf: Certificate) -> bytes | None:
    """Return the firmware id in a leaf: Hopper's, the last 48 bytes; Blackwell's, its first."""
    size = hashes.SHA384.digest_size
    if (value := leaf.extensions.get(_TCB_INFO)) is not None:
        return value[-size:]
    if (value := leaf.extensions.get(_TCB_INFO_OF_MANY)) is not None:
        return value.partition(_FIRST_FWID)[2][:size]
    return None


def device_name(leaf: Certificate) -> str:
    """Return the name of the device (``NVIDIA:GH100:48B02D…``) in a leaf, empty where absent."""
    for extension in leaf.parsed.extensions:
        if isinstance(extension.value, x509.SubjectAlternativeName):
            for name in extension.value:
                if isinstance(name, x509.OtherName) and name.type_id == _DEVICE_NAME:
                    # DER of a UTF8String shorter than 128 bytes: tag, length, text.
                    return name.value[2:].decode("utf-8", "replace")
    return ""


def _check_nonce(report: NvidiaReport, binding: Bound) -> None:
    expected = binding.report_data()
    if len(expected) != _NONCE_BYTES:
        expected = hashlib.sha256(expected).digest()
    if not hmac.compare_digest(report.nonce, expected):
        raise BindingError("the report has another nonce than this binding", step="gpu nonce")


def _digest(items: Iterable[bytes]) -> bytes:
    """Return the SHA-256 over the SHA-256 of each item."""
    return hashlib.sha256(b"".join(hashlib.sha256(item).digest() for item in items)).digest()
