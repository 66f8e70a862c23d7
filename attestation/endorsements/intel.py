"""Intel's endorsement of a DCAP quote: the certificate chain, and the collateral for its TCB.

:func:`check_signatures` checks up to the pinned root: PCK chain, Quoting Enclave report,
attestation key, quote. :func:`judge` has ``dcap_qvl`` check the same again, and determines the
status of the platform's TCB from signed collateral. Without the second, the quote is known to be
from genuine hardware, and nothing is known about the age of its firmware.
"""

from __future__ import annotations

import hashlib
import hmac
import json
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any, Final

import dcap_qvl
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

from attestation.encodings import json_object
from attestation.endorsements.chains import (
    Certificate,
    check_issued,
    check_validity,
    load_certificate,
    split_certificates,
)
from attestation.endorsements.collateral_forms import read_collateral
from attestation.endorsements.intel_tcb import Platform, tcb_status
from attestation.errors import (
    UNREADABLE,
    EndorsementError,
    EvidenceError,
    FreshnessError,
    SignatureError,
    VerificationError,
)
from attestation.evidence import Tee
from attestation.quotes.dcap import INTEL_QE_VENDOR, DcapQuote
from attestation.quotes.tdx import TdReport

__all__ = [
    "Collateral",
    "Pck",
    "Verdict",
    "check_root",
    "check_signatures",
    "judge",
    "parse_collateral",
    "read_pck",
]

MAX_COLLATERAL_BYTES: Final = 1024 * 1024
_COORDINATE: Final = 32
_EXPIRY: Final = ("expired", "CertNotValidYet", "in the future", "Expired")
_ATTRIBUTES: Final = (
    "Debug mode",
    "SEPT_VE_DISABLE",
    "Reserved bits in TD attributes",
    "MR service TD",
    "TD migration",
    "TD profiling",
)
"""What ``dcap_qvl`` refuses last, after all other checks passed."""

_NEVER: Final = ("hgs_plus_prof", "perf_prof", "pmt_prof", "migratable")

_FETCH: Final = "fedlearn collateral fetch --directory DIR --fmspc {} --ca {} --tee {}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Pck:
    """The content of the PCK certificate about the platform; proven once its chain was checked.

    ``fmspc``   family, model and stepping, by which collateral is published (6 bytes)
    ``ppid``    the platform's provisioning id (16 bytes)
    ``ca``      ``platform`` or ``processor``: which CA of Intel's issued the certificate
    ``svns``    security versions, which TCB levels are compared with
    """

    fmspc: bytes
    ppid: bytes
    ca: str
    key_digest: bytes
    svns: Platform

    @property
    def identity(self) -> bytes:
        """The PPID, or the digest of the PCK where a platform has none."""
        return self.ppid if any(self.ppid) else self.key_digest

    def fetch_command(self, tee: Tee) -> str:
        """The command that fetches collateral for this platform."""
        return _FETCH.format(self.fmspc.hex().upper(), self.ca, tee.value)


@dataclass(frozen=True, slots=True, kw_only=True)
class Collateral:
    """One document of collateral. ``ca`` is ``platform`` or ``processor``, whose revocation list
    is in it. ``evaluation`` is the smaller TCB evaluation number of its
    TCB info and QE identity. ``windows`` are (item, from, until), all of them stated
    by the items themselves; they count because the items are signed."""

    fmspc: bytes
    tee: Tee
    ca: str
    evaluation: int
    windows: tuple[tuple[str, datetime, datetime], ...]
    parsed: Any

    def check_windows(self, now: datetime, mend: str) -> None:
        """Check that every item is valid at ``now``.

        :raises FreshnessError: naming the item, the date, and the command that fetches it again.
        """
        for item, start, end in self.windows:
            if now < start:
                raise FreshnessError(
                    f"{item} for FMSPC {self.fmspc.hex().upper()} counts only from "
                    f"{start.isoformat()}",
                    step="collateral",
                    hint="check the clock, or appraise at another time with --at",
                )
            if now > end:
                raise FreshnessError(
                    f"{item} for FMSPC {self.fmspc.hex().upper()} expired at {end.isoformat()}",
                    step="collateral",
                    hint=mend,
                )


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """The status of a platform's TCB by Intel's collateral.

    ``missing`` is the reason why there is no ``status``; it is empty when there is one.
    """

    status: str = ""
    advisories: tuple[str, ...] = ()
    evaluation: int = 0
    missing: str = ""


def read_pck(quote: DcapQuote) -> Pck:
    """Read the PCK certificate of a quote.

    :raises EndorsementError: when the quote carries none.
    :raises EvidenceError: when it is malformed.
    """
    if not quote.chain:
        raise EndorsementError(
            f"the quote has no PCK chain (certification data type {quote.certification_type})",
            step="PCK chain",
            hint="make the quote on a platform that is registered with Intel",
        )
    return _read_pck(quote.chain[0], quote.chain_pem)


@lru_cache(maxsize=256)
def _read_pck(der: bytes, pem: bytes) -> Pck:
    certificate = load_certificate(der, "quote.pck_certificate")
    try:
        extension = dcap_qvl.parse_pck_extension_from_pem(pem)
    except (ValueError, OverflowError) as error:
        raise EvidenceError(
            "has no SGX extension that can be read", field="quote.pck_certificate"
        ) from error
    return Pck(
        fmspc=bytes(extension.fmspc),
        ppid=bytes(extension.ppid),
        ca=_authority(certificate.issuer),
        key_digest=certificate.key_digest,
        svns=Platform(cpu_svn=bytes(extension.cpu_svn), pce_svn=int(extension.pce_svn)),
    )


def _authority(name: x509.Name) -> str:
    return "platform" if "Platform" in name.rfc4514_string() else "processor"


def check_root(quote: DcapQuote, pinned: bytes) -> Certificate:
    """Return the root of the quote's chain, whose public key is the ``pinned`` one.

    :raises EndorsementError: when it is another.
    :raises EvidenceError: when it is malformed.
    """
    root = load_certificate(quote.chain[-1], "quote.root_certificate")
    if not hmac.compare_digest(root.key_digest, pinned):
        raise EndorsementError(
            f"the chain ends at {root.name} with key {root.key_digest.hex()}, which is not the "
            "pinned root of Intel",
            step="PCK chain",
        )
    if not _is_self_signed(root.der):
        raise EndorsementError("the root certificate was altered", step="PCK chain")
    return root


@lru_cache(maxsize=16)
def _is_self_signed(der: bytes) -> bool:
    root = load_certificate(der, "root")
    try:
        check_issued(root, root, step="PCK chain")
    except EndorsementError:
        return False
    return True


def check_signatures(quote: DcapQuote, pinned: bytes, now: datetime) -> None:
    """Check that a genuine platform made this quote.

    Order: chain of the PCK certificate up to the pinned root, report of the Quoting Enclave,
    attestation key, quote.

    :raises EndorsementError: for the chain or the Quoting Enclave's vendor.
    :raises FreshnessError: for a certificate outside of its window.
    :raises SignatureError: for the rest.
    """
    step = "PCK chain"
    root = check_root(quote, pinned)
    above = [load_certificate(der, f"quote.chain[{i}]") for i, der in enumerate(quote.chain)][:-1]
    if not above:
        raise EndorsementError("the chain has no PCK certificate", step=step)
    for child, issuer in zip(above, [*above[1:], root], strict=True):
        check_issued(child, issuer, step=step)
    for certificate in (*above, root):
        check_validity(certificate, now, step=step)
    if above[0].authority:
        raise EndorsementError("an authority's certificate is not a platform's", step=step)
    pck = above[0].key
    if not isinstance(pck, ec.EllipticCurvePublicKey) or not isinstance(pck.curve, ec.SECP256R1):
        raise EndorsementError("the PCK is not a P-256 key", step=step)
    _check(pck, quote.qe_report_signature, quote.qe_report.raw, "quoting enclave")
    digest = hashlib.sha256(quote.attestation_key + quote.qe_auth_data).digest()
    if not hmac.compare_digest(quote.qe_report.report_data, digest + bytes(32)):
        raise SignatureError(
            "the quoting enclave does not vouch for this attestation key", step="attestation key"
        )
    try:
        key = ec.EllipticCurvePublicNumbers(
            int.from_bytes(quote.attestation_key[:_COORDINATE], "big"),
            int.from_bytes(quote.attestation_key[_COORDINATE:], "big"),
            ec.SECP256R1(),
        ).public_key()
    except ValueError:
        raise SignatureError("is not a point on P-256", step="attestation key") from None
    _check(key, quote.signature, quote.signed, "quote signature")
    if quote.qe_vendor_id != INTEL_QE_VENDOR:
        raise EndorsementError("the quoting enclave is not Intel's", step="quoting enclave")


def _check(key: ec.EllipticCurvePublicKey, signature: bytes, data: bytes, step: str) -> None:
    r, s = (
        int.from_bytes(part, "big") for part in (signature[:_COORDINATE], signature[_COORDINATE:])
    )
    try:
        key.verify(encode_dss_signature(r, s), data, ec.ECDSA(hashes.SHA256()))
    except InvalidSignature:
        raise SignatureError("the signature does not verify", step=step) from None


def judge(
    quote: DcapQuote, pck: Pck, collateral: Collateral, root: Certificate, now: datetime
) -> Verdict:
    """Verify ``quote`` with ``collateral`` and return the status of its platform's TCB.

    Everything is checked up to ``root``, which the caller pinned: the collateral's signatures
    and windows, revocation, the quote's signatures, the Quoting Enclave and the TDX module.

    ``dcap_qvl`` never accepts some attributes of an environment, and checks them last. For those
    that a policy can accept by name (debug, no SEPT_VE_DISABLE, a service TD) the status is from
    :mod:`attestation.endorsements.intel_tcb`; for the others (reserved bits, profiling, migration)
    there is none.

    :raises VerificationError: with ``dcap_qvl``'s reason; :class:`FreshnessError` where it
        is about time.
    """
    try:
        report = dcap_qvl.verify_with_root_ca(
            quote.raw, collateral.parsed, root.der, int(now.timestamp())
        )
    except (ValueError, OverflowError) as error:
        if not any(word in str(error) for word in _ATTRIBUTES):
            raise _refusal(error) from error
        if not _nameable(quote):
            return Verdict(missing=f"{_reason(error)}; start it with other attributes")
        status, advisories = tcb_status(
            quote,
            pck.svns,
            json.loads(collateral.parsed.tcb_info),
            json.loads(collateral.parsed.qe_identity),
        )
        return Verdict(status=status, advisories=advisories, evaluation=collateral.evaluation)
    return Verdict(
        status=str(report.status),
        advisories=tuple(sorted(map(str, report.advisory_ids))),
        evaluation=collateral.evaluation,
    )


def _nameable(quote: DcapQuote) -> bool:
    """Return whether policies name every attribute that ``dcap_qvl`` may have refused."""
    body = quote.body
    if not isinstance(body, TdReport):
        return True
    return not body.reserved_attributes and not any(map(body.has, _NEVER))


def _reason(error: Exception) -> str:
    return " ".join(str(error).removeprefix("Verification failed: ").split())


def _refusal(error: Exception) -> VerificationError:
    """Return the error for what ``dcap_qvl`` refused; the quote's signatures were good."""
    text = _reason(error)
    if any(word in text for word in _EXPIRY):
        return FreshnessError(text, step="collateral", hint="fetch newer collateral")
    if "Signature is invalid" in text and "collateral" not in text:
        return SignatureError(text, step="quote signature")
    old = "No matching TCB level" in text
    hint = "the platform is older than every level that Intel lists; update its firmware"
    return EndorsementError(text, step="TCB", hint=hint if old else "")


@lru_cache(maxsize=32)
def parse_collateral(data: bytes) -> Collateral | None:
    """Parse one document; ``None`` when it is not collateral.

    :raises EvidenceError: when it is collateral and malformed, or too large.
    """
    if data.lstrip()[:1] != b"{":
        return None
    if len(data) > MAX_COLLATERAL_BYTES:
        raise EvidenceError(
            f"{len(data)} bytes, at most {MAX_COLLATERAL_BYTES} are read", field="collateral"
        )
    document = json_object(data, "collateral")
    if "tcb_info" not in document:
        return None
    # A chain in the document would replace the quote's own, which is the one that was checked.
    document = read_collateral(document)
    text = json.dumps(document)
    try:
        parsed = dcap_qvl.QuoteCollateralV3.from_json(text)
        crl = x509.load_der_x509_crl(bytes.fromhex(document["pck_crl"]))
        tcb, identity = json.loads(document["tcb_info"]), json.loads(document["qe_identity"])
        return Collateral(
            fmspc=bytes.fromhex(tcb["fmspc"]),
            tee=Tee.TDX if tcb.get("id") == "TDX" else Tee.SGX,
            ca=_authority(crl.issuer),
            evaluation=min(int(item["tcbEvaluationDataNumber"]) for item in (tcb, identity)),
            windows=tuple(_windows(document, tcb, identity)),
            parsed=parsed,
        )
    except EvidenceError:
        raise
    except (*UNREADABLE, AttributeError, RecursionError, OverflowError) as error:
        raise EvidenceError("is malformed", field="collateral") from error


def _windows(
    document: dict[str, str], tcb: dict[str, Any], identity: dict[str, Any]
) -> list[tuple[str, datetime, datetime]]:
    found = []
    for name, item in (("TCB info", tcb), ("QE identity", identity)):
        start, end = (datetime.fromisoformat(item[key]) for key in ("issueDate", "nextUpdate"))
        found.append((name, start.astimezone(UTC), end.astimezone(UTC)))
    for name, key in (("root CA CRL", "root_ca_crl"), ("PCK CRL", "pck_crl")):
        crl = x509.load_der_x509_crl(bytes.fromhex(document[key]))
        if crl.next_update_utc is None:
            raise EvidenceError("has no next update", field=f"collateral.{key}")
        found.append((name, crl.last_update_utc, crl.next_update_utc))
    for name, key in (
        ("TCB signer", "tcb_info_issuer_chain"),
        ("QE signer", "qe_identity_issuer_chain"),
    ):
        found.extend(
            (f"{name} {certificate.name}", certificate.start, certificate.end)
            for certificate in split_certificates(document[key].encode(), f"collateral.{key}")
        )
    return found
