"""The addresses of vendors' collateral, and the parsers of their answers. Uses no network.

Intel: Provisioning Certification Service, API v4
(https://api.portal.trustedservices.intel.com). AMD: key distribution service, VCEK
Certificate and KDS Interface Specification (publication 57230).
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final
from urllib.parse import unquote

import dcap_qvl

from attestation.endorsements.collateral_forms import split_signed
from attestation.errors import EndorsementError, EvidenceError
from attestation.quotes.snp import PRODUCTS, SnpReport, tcb_versions

__all__ = [
    "AMD_KDS",
    "INTEL_PCS",
    "INTEL_ROOT_CRL",
    "AmdChip",
    "Answer",
    "IntelPlatform",
    "amd_chip",
    "assemble_intel",
    "intel_platform",
]

INTEL_PCS: Final = "https://api.trustedservices.intel.com"
INTEL_ROOT_CRL: Final = "https://certificates.trustedservices.intel.com/IntelSGXRootCA.der"
AMD_KDS: Final = "https://kdsintf.amd.com"
_FMSPC: Final = re.compile(r"[0-9A-Fa-f]{12}")
_TURIN_CHIP_ID_BYTES: Final = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """The answer of one address: its header fields, names in lower case, and its body."""

    headers: Mapping[str, str]
    body: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class IntelPlatform:
    """The keys under which Intel publishes collateral.

    ``fmspc`` 12 hex digits; ``ca`` ``processor`` or ``platform``; ``tee`` ``sgx`` or ``tdx``.
    """

    fmspc: str
    ca: str
    tee: str

    def __post_init__(self) -> None:
        if not _FMSPC.fullmatch(self.fmspc):
            raise ValueError("an FMSPC has 12 hex digits")
        if self.ca not in ("processor", "platform"):
            raise ValueError("the CA is processor or platform")
        if self.tee not in ("sgx", "tdx"):
            raise ValueError("the TEE is sgx or tdx")

    def addresses(self, base: str = INTEL_PCS, root_crl: str = INTEL_ROOT_CRL) -> dict[str, str]:
        """Return the four addresses, by the piece that each gives."""
        return {
            "tcb_info": f"{base}/{self.tee}/certification/v4/tcb?fmspc={self.fmspc.upper()}",
            "qe_identity": f"{base}/{self.tee}/certification/v4/qe/identity",
            "pck_crl": f"{base}/sgx/certification/v4/pckcrl?ca={self.ca}&encoding=der",
            "root_ca_crl": root_crl,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class AmdChip:
    """The keys under which AMD publishes a VCEK: product, chip id, reported TCB versions."""

    product: str
    chip_id: bytes
    tcb: Mapping[str, int]

    def addresses(self, base: str = AMD_KDS) -> dict[str, str]:
        """Return the addresses of the VCEK, its chain and its revocation list."""
        chip = self.chip_id
        names = [("blSPL", "bootloader"), ("teeSPL", "tee"), ("snpSPL", "snp")]
        if self.product == "Turin":
            chip = chip[:_TURIN_CHIP_ID_BYTES]
            names.insert(0, ("fmcSPL", "fmc"))
        names.append(("ucodeSPL", "microcode"))
        query = "&".join(f"{key}={self.tcb[name]:02d}" for key, name in names)
        return {
            "vcek": f"{base}/vcek/v1/{self.product}/{chip.hex()}?{query}",
            "chain": f"{base}/vcek/v1/{self.product}/cert_chain",
            "crl": f"{base}/vcek/v1/{self.product}/crl",
        }


def intel_platform(quote: bytes) -> IntelPlatform:
    """Return the keys of Intel's collateral for a quote, from its PCK certificate.

    :raises EvidenceError: when the quote has none.
    """
    try:
        parsed = dcap_qvl.parse_quote(quote)
        fmspc, authority, tdx = parsed.fmspc(), parsed.ca(), parsed.is_tdx()
    except ValueError as error:
        raise EvidenceError(str(error), field="quote") from None
    return IntelPlatform(fmspc=fmspc, ca=authority, tee="tdx" if tdx else "sgx")


def amd_chip(report: bytes, product: str | None = None) -> AmdChip:
    """Return the keys of AMD's certificates for a report of 1184 bytes.

    Reports of version 2 do not state their product; ``product`` must then be given.

    :raises EvidenceError: when the report lacks one of the keys.
    """
    parsed = SnpReport.parse(report)
    if not any(parsed.chip_id):
        raise EvidenceError(
            "is masked, so AMD cannot be asked for this chip's key",
            field="CHIP_ID",
            offset=0x1A0,
            hint="take the certificates from the host, or use a VLEK",
        )
    chosen = product or parsed.product
    if chosen is None:
        raise EvidenceError(
            "the report does not state the product that made it",
            field="CPUID_FAM_ID",
            offset=0x188,
            hint=f"give --product {'|'.join(PRODUCTS)}",
        )
    return AmdChip(
        product=chosen,
        chip_id=parsed.chip_id,
        tcb=tcb_versions(parsed.reported_tcb, chosen),
    )


def assemble_intel(answers: Mapping[str, Answer]) -> bytes:
    """Return the collateral document made of the answers to :meth:`IntelPlatform.addresses`.

    The signed JSON is copied from the bodies byte by byte, because the signature covers the
    bytes and not the meaning.

    :raises EndorsementError: when an answer is not what Intel documents.
    """
    tcb_info, tcb_signature = _signed(answers["tcb_info"].body, "tcbInfo")
    identity, identity_signature = _signed(answers["qe_identity"].body, "enclaveIdentity")
    crl = answers["root_ca_crl"].body
    document = {
        "pck_crl_issuer_chain": _chain(answers["pck_crl"], "sgx-pck-crl-issuer-chain"),
        "root_ca_crl": crl.hex(),
        "pck_crl": answers["pck_crl"].body.hex(),
        "tcb_info_issuer_chain": _chain(answers["tcb_info"], "tcb-info-issuer-chain"),
        "tcb_info": tcb_info,
        "tcb_info_signature": tcb_signature,
        "qe_identity_issuer_chain": _chain(
            answers["qe_identity"], "sgx-enclave-identity-issuer-chain"
        ),
        "qe_identity": identity,
        "qe_identity_signature": identity_signature,
    }
    return json.dumps(document, indent=1).encode() + b"\n"


def _signed(body: bytes, name: str) -> tuple[str, str]:
    found = split_signed(body, name)
    if found is None:
        raise EndorsementError(f"the answer is not a signed {name}", step="collateral")
    return found


def _chain(answer: Answer, header: str) -> str:
    chain = unquote(answer.headers.get(header, ""))
    if "-----BEGIN CERTIFICATE" not in chain:
        raise EndorsementError(f"the answer has no {header}", step="collateral")
    return chain
