"""AMD's endorsement of an SNP report: the certificate chain up to a pinned root.

    VCEK or VLEK  <-  ASK or ASVK  <-  ARK, pinned by the digest of its public key

Certificates are signed with RSA-PSS and SHA-384 (AMD publication 57230), the report with ECDSA
P-384. The chip and the firmware in the certificate's extensions must be those of the report.
"""

from __future__ import annotations

import hmac
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding

from attestation.endorsements.chains import (
    Certificate,
    check_issued,
    check_validity,
    load_crl,
    names_issuer,
    pem_blocks,
    split_certificates,
    whole_octets,
)
from attestation.endorsements.collateral_sources import AMD_KDS, amd_chip
from attestation.errors import (
    UNREADABLE,
    EndorsementError,
    EvidenceError,
    FreshnessError,
    SignatureError,
)
from attestation.quotes.snp import PRODUCTS, VCEK, VLEK, SnpReport, tcb_versions
from attestation.trust import TrustAnchors

__all__ = ["Endorsements", "SnpPlatform", "check_report"]

_STEP: Final = "AMD chain"
_OID: Final = "1.3.6.1.4.1.3704.1."
_HWID: Final = _OID + "4"
_CSP: Final = _OID + "5"
_PRODUCT: Final = _OID + "2"
_VERSIONS: Final = {
    "bootloader": _OID + "3.1",
    "tee": _OID + "3.2",
    "snp": _OID + "3.3",
    "microcode": _OID + "3.8",
    "fmc": _OID + "3.9",
}
_KINDS: Final = {VCEK: "VCEK", VLEK: "VLEK"}
_FETCH: Final = "fedlearn collateral fetch --directory DIR --evidence FILE"
_CRL_START: Final = b"-----BEGIN X509 CRL-----"
_MAX_PIECES: Final = 16
_MAX_CRL_BYTES: Final = 256 * 1024
_CHIP_ID_BYTES: Final = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class SnpPlatform:
    """The signer of a report: product, chip, and for a VLEK the cloud that owns it.

    ``hardware_id`` is the chip id. A VCEK's certificate states it, also when the report masks it.
    With a VLEK it is the report's, and empty when the report masks it.
    """

    product: str
    signer: str
    hardware_id: bytes
    csp: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Endorsements:
    """Certificates and revocation lists, from the relying party and from the evidence."""

    certificates: tuple[Certificate, ...]
    crls: tuple[x509.CertificateRevocationList, ...]

    @classmethod
    def gather(cls, trust: Iterable[bytes], evidence: Sequence[bytes]) -> Endorsements:
        """Read both; the relying party's first. Items of another kind are ignored.

        A certificate of the relying party that cannot be read is ignored, and the others in its
        file are read. A revocation list that cannot be read is refused, because certificates that
        it revokes would be accepted.

        :raises EvidenceError: when an item of the evidence is malformed.
        :raises EndorsementError: when a revocation list of the relying party is.
        """
        certificates: list[Certificate] = []
        crls: list[x509.CertificateRevocationList] = []
        for piece in (piece for data in trust for piece in pem_blocks(data)):
            try:
                _read(piece, "endorsement", certificates, crls)
            except EvidenceError as error:
                if _CRL_START in piece:
                    raise EndorsementError(
                        f"a revocation list that was given cannot be read ({error})",
                        step=_STEP,
                        hint=_FETCH,
                    ) from error
        for number, data in enumerate(evidence):
            if data.lstrip()[:1] != b"{":
                _read_all(data, f"endorsements[{number}]", certificates, crls)
        return cls(certificates=tuple(certificates), crls=tuple(crls))


def _read_all(
    data: bytes,
    field: str,
    certificates: list[Certificate],
    crls: list[x509.CertificateRevocationList],
) -> None:
    pieces = pem_blocks(data)
    if len(pieces) > _MAX_PIECES:
        raise EvidenceError(f"more than {_MAX_PIECES} certificates", field=field)
    for piece in pieces:
        _read(piece, field, certificates, crls)


def _read(
    data: bytes,
    field: str,
    certificates: list[Certificate],
    crls: list[x509.CertificateRevocationList],
) -> None:
    """Read one certificate or one revocation list."""
    if _CRL_START in data:
        crls.append(_crl(data, field))
        return
    try:
        certificates.extend(split_certificates(data, field))
    except EvidenceError:
        if b"-----BEGIN" in data or len(data) > _MAX_CRL_BYTES:
            raise
        crls.append(_crl(data, field))


def _crl(data: bytes, field: str) -> x509.CertificateRevocationList:
    if len(data) > _MAX_CRL_BYTES:
        raise EvidenceError(f"{len(data)} bytes are too long for a CRL", field=field)
    try:
        found = load_crl(data)
        # These are parsed on first access, which must fail here.
        _ = (found.issuer, found.last_update_utc, found.next_update_utc)
        _ = (found.signature_hash_algorithm, found.extensions)
        if not whole_octets(found.public_bytes(Encoding.DER), found.signature):
            raise ValueError("not the canonical encoding")
    except UNREADABLE as error:
        raise EvidenceError("neither a certificate nor a revocation list", field=field) from error
    return found


def check_report(
    report: SnpReport, endorsements: Endorsements, trust: TrustAnchors, now: datetime
) -> SnpPlatform:
    """Check that a genuine chip, with the firmware that it reports, signed ``report``.

    :raises EndorsementError: for the chain, or a certificate of another chip or firmware.
    :raises FreshnessError: for a certificate or revocation list outside of its window.
    :raises SignatureError: for the report's signature.
    """
    leaf = _leaf(report, endorsements.certificates)
    product = _product(leaf)
    chain = f"{AMD_KDS}/{_KINDS[_kind(leaf)].lower()}/v1/{product}/cert_chain"
    issuer = _issuer(leaf, endorsements.certificates, chain)
    root = _issuer(issuer, endorsements.certificates, chain)
    if root.key_digest not in trust.amd_ark_keys:
        raise EndorsementError(
            f"the chain ends at {root.name} with key {root.key_digest.hex()}, which is not a "
            "pinned root of AMD",
            step=_STEP,
        )
    if leaf.authority:
        raise EndorsementError("an authority's certificate is not a chip's", step=_STEP)
    for child, parent in ((root, root), (issuer, root), (leaf, issuer)):
        check_issued(child, parent, step=_STEP)
    for certificate in (leaf, issuer, root):
        check_validity(certificate, now, step=_STEP, hint=_FETCH)
    _check_revocation((leaf, issuer), (issuer, root), endorsements.crls, now)
    _check_signature(report, leaf)
    return _platform(report, leaf, product)


def _leaf(report: SnpReport, certificates: Sequence[Certificate]) -> Certificate:
    """Return the certificate of the key that the report names; among several the exact one."""
    leaves = [item for item in certificates if _HWID in item.extensions or _CSP in item.extensions]
    kind = _KINDS[report.signing_key]
    if not leaves:
        raise EndorsementError(
            f"no {kind} came along for chip {report.chip_id.hex()[:16]} with TCB "
            f"{report.reported_tcb.hex()}",
            step=_STEP,
            hint=_leaf_hint(report),
        )

    if len(leaves) == 1:
        return leaves[0]

    def distance(item: Certificate) -> tuple[bool, bool]:
        if _kind(item) != report.signing_key:
            return True, True
        try:
            _compare(report, item, _product(item))
        except (EndorsementError, EvidenceError):
            return False, True
        return False, False

    return min(leaves, key=distance)


def _leaf_hint(report: SnpReport) -> str:
    """Describe where to get the certificate of the key that signed a report."""
    if report.signing_key == VLEK:
        return "its cloud has it: request an extended report, whose certificate table contains it"
    try:
        return f"{_FETCH}, or the file {amd_chip(report.raw, report.product).addresses()['vcek']}"
    except EvidenceError:
        return _FETCH


def _kind(certificate: Certificate) -> int:
    return VLEK if _CSP in certificate.extensions else VCEK


def _product(certificate: Certificate) -> str:
    value = certificate.extensions.get(_PRODUCT, b"")
    text = _der_value(value, 0x16).decode("ascii", "replace").split("-")[0]
    if text not in PRODUCTS:
        raise EndorsementError(f"a certificate for product {text[:32]!r}", step=_STEP)
    return text


def _issuer(child: Certificate, certificates: Sequence[Certificate], chain: str) -> Certificate:
    """Return the certificate that has the issuer's name of ``child`` and signed it.

    ``chain`` is the address at which AMD publishes it.
    """
    named = [item for item in certificates if item.authority and names_issuer(child, item)]
    for item in named[:-1]:
        try:
            check_issued(child, item, step=_STEP)
        except EndorsementError:
            continue
        return item
    if not named:
        raise EndorsementError(
            f"the certificate of {child.issuer.rfc4514_string()} is missing",
            step=_STEP,
            hint=f"{_FETCH}, or the file {chain}",
        )
    return named[-1]


def _check_revocation(
    children: Sequence[Certificate],
    issuers: Sequence[Certificate],
    crls: Sequence[x509.CertificateRevocationList],
    now: datetime,
) -> None:
    """Check the given revocation lists; AMD publishes one for each root."""
    for child, issuer in zip(children, issuers, strict=True):
        for crl in crls:
            if crl.issuer != issuer.subject:
                continue
            _check_crl(crl, issuer, now)
            if crl.get_revoked_certificate_by_serial_number(child.parsed.serial_number):
                raise EndorsementError(f"{child.name} was revoked by {issuer.name}", step=_STEP)


def _check_crl(crl: x509.CertificateRevocationList, issuer: Certificate, now: datetime) -> None:
    name = f"the revocation list of {issuer.name}"
    algorithm = crl.signature_hash_algorithm
    try:
        if isinstance(issuer.key, rsa.RSAPublicKey) and algorithm is not None:
            scheme = padding.PSS(padding.MGF1(algorithm), algorithm.digest_size)
            issuer.key.verify(crl.signature, crl.tbs_certlist_bytes, scheme, algorithm)
        else:
            raise EndorsementError(f"{name} is not signed with RSA-PSS", step=_STEP)
    except (InvalidSignature, UnsupportedAlgorithm, ValueError):
        raise EndorsementError(f"{name} was not signed by it", step=_STEP) from None
    if now < crl.last_update_utc:
        raise FreshnessError(f"{name} counts only from {crl.last_update_utc}", step=_STEP)
    if crl.next_update_utc is not None and now > crl.next_update_utc:
        raise FreshnessError(
            f"{name} expired on {crl.next_update_utc.isoformat()}", step=_STEP, hint=_FETCH
        )


def _check_signature(report: SnpReport, leaf: Certificate) -> None:
    step = "report signature"
    key = leaf.key
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP384R1):
        raise EndorsementError(f"{leaf.name} is not a P-384 key", step=_STEP)
    try:
        key.verify(
            encode_dss_signature(*report.signature), report.signed, ec.ECDSA(hashes.SHA384())
        )
    except InvalidSignature:
        raise SignatureError(f"{leaf.name} did not sign this report", step=step) from None


def _platform(report: SnpReport, leaf: Certificate, product: str) -> SnpPlatform:
    if _kind(leaf) != report.signing_key:
        raise EndorsementError(
            f"the report names a {_KINDS[report.signing_key]}, the certificate is a "
            f"{_KINDS[_kind(leaf)]}",
            step=_STEP,
        )
    _compare(report, leaf, product)
    if report.signing_key == VLEK:
        return SnpPlatform(
            product=product,
            signer="VLEK",
            hardware_id=report.chip_id if any(report.chip_id) else b"",
            csp=_der_value(leaf.extensions[_CSP], 0x16).decode("utf-8", "replace")[:256],
        )
    return SnpPlatform(product=product, signer="VCEK", hardware_id=_hwid(leaf), csp="")


def _compare(report: SnpReport, leaf: Certificate, product: str) -> None:
    """Check chip and firmware of the report against the extensions of the certificate."""
    reported = report.product
    if reported is not None and reported != product:
        raise EndorsementError(
            f"the report is from {reported}, the certificate for {product}", step=_STEP
        )
    for component, version in tcb_versions(report.reported_tcb, product).items():
        certified = _integer(leaf.extensions.get(_VERSIONS[component]), component)
        if certified != version:
            raise EndorsementError(
                f"reported TCB has {component} {version}, {leaf.name} is for {certified}",
                step="reported TCB",
                hint=_leaf_hint(report),
            )
    if _kind(leaf) == VCEK and any(report.chip_id):
        wanted = _hwid(leaf).ljust(_CHIP_ID_BYTES, b"\0")
        if not hmac.compare_digest(report.chip_id, wanted):
            raise EndorsementError("the certificate is for another chip", step="chip id")


def _hwid(leaf: Certificate) -> bytes:
    """Return the chip id of a VCEK: 64 bytes, on Turin 8."""
    value = leaf.extensions[_HWID]
    if value[:2] in (b"\x04\x40", b"\x04\x08") and len(value) in (66, 10):
        value = value[2:]
    if len(value) not in (64, 8):
        raise EndorsementError(f"a chip id of {len(value)} bytes", step=_STEP)
    return value


def _integer(value: bytes | None, component: str) -> int:
    if value is None:
        raise EndorsementError(f"the certificate does not state {component}", step=_STEP)
    return int.from_bytes(_der_value(value, 0x02), "big")


def _der_value(value: bytes, tag: int) -> bytes:
    if len(value) < 3 or value[0] != tag or value[1] != len(value) - 2 or value[1] > 127:
        raise EndorsementError("an extension of the certificate is malformed", step=_STEP)
    return value[2:]
