"""The addresses of NVIDIA's RIMs and OCSP answers, and their parsers. Uses no network.

RIM service: ``GET /v1/rim/{id}`` answers JSON with the document in base64
(https://docs.api.nvidia.com/attestation/reference/getrim). The ids are made as by NVIDIA's SDK
(https://github.com/NVIDIA/attestation-sdk).

OCSP service: RFC 6960 over HTTP (https://docs.nvidia.com/attestation/api-docs-ocsp). An address has
the form of RFC 6960, appendix A.1, for GET, with the request in its last part; the request is sent
by POST, as NVIDIA documents.
"""

from __future__ import annotations

import base64
import binascii
import itertools
import json
import re
from collections.abc import Iterable, Sequence
from typing import Final
from urllib.parse import quote, unquote

from attestation.endorsements.chains import Certificate
from attestation.endorsements.nvidia_rim import is_rim
from attestation.endorsements.ocsp import ocsp_request
from attestation.errors import EvidenceError
from attestation.quotes.nvidia import NvidiaReport

__all__ = [
    "NVIDIA_OCSP",
    "NVIDIA_RIM",
    "OCSP_PART",
    "RIM_PART",
    "ocsp_addresses",
    "ocsp_post",
    "rim_addresses",
    "rim_in_answer",
]

NVIDIA_RIM: Final = "https://rim.attestation.nvidia.com"
NVIDIA_OCSP: Final = "https://ocsp.ndis.nvidia.com"
RIM_PART: Final = "rim-"
OCSP_PART: Final = "ocsp-"
"""Prefixes of the names of the parts, before a RIM's id or a serial number in hex."""

_HOPPER: Final = "GH100"
_BLACKWELL: Final = "GB100"
_SWITCH_BOARD: Final = "5612_0002_890"
"""Project, SKU and chip SKU of LS10; a switch's report has none of them."""
_PROJECT, _PROJECT_SKU, _CHIP_SKU = 17, 18, 15
_ID: Final = re.compile(r"NV_[A-Z]{2,16}(?:_[0-9A-Za-z.-]{1,32}){1,8}")


def rim_addresses(report: NvidiaReport, device: str, base: str = NVIDIA_RIM) -> dict[str, str]:
    """Return the addresses of the RIMs of a report.

    ``device`` is the name in the leaf, such as ``NVIDIA:GH100:48B02D92494BADF4``.

    :raises EvidenceError: when the report lacks a part of an id.
    """
    vbios = report.vbios.replace(".", "").upper()
    if report.is_switch:
        ids = [f"NV_SWITCH_BIOS_{_SWITCH_BOARD}_{vbios}"]
    else:
        chip = report.chip or device.partition(":")[2].partition(":")[0] or _BLACKWELL
        kind = "NV_GPU_DRIVER" if chip == _HOPPER else "NV_GPU_CC_DRIVER"
        board = "_".join(report.text(item) for item in (_PROJECT, _PROJECT_SKU, _CHIP_SKU))
        ids = [f"{kind}_{chip}_{report.driver}", f"NV_GPU_VBIOS_{board}_{vbios}"]
    for name in ids:
        if not _ID.fullmatch(name):
            raise EvidenceError(f"no RIM can be asked for by {name!r}", field="report")
    return {f"{RIM_PART}{name}": f"{base.rstrip('/')}/v1/rim/{name}" for name in ids}


def ocsp_addresses(
    chains: Iterable[Sequence[Certificate]], base: str = NVIDIA_OCSP
) -> dict[str, str]:
    """Return the OCSP addresses for each certificate of the chains except the last."""
    found: dict[str, str] = {}
    for chain in chains:
        for certificate, issuer in itertools.pairwise(chain):
            request = base64.b64encode(ocsp_request(certificate, issuer)).decode("ascii")
            name = f"{OCSP_PART}{certificate.parsed.serial_number:x}"
            found[name] = f"{base.rstrip('/')}/{quote(request, safe='')}"
    return found


def ocsp_post(address: str) -> tuple[str, bytes]:
    """Return where to send an OCSP request, and the request.

    :raises EvidenceError: when it is not an address of :func:`ocsp_addresses`.
    """
    base, _, request = address.rpartition("/")
    try:
        return base, base64.b64decode(unquote(request), validate=True)
    except (binascii.Error, ValueError):
        raise EvidenceError("has no OCSP request in base64 at its end", field=address) from None


def rim_in_answer(body: bytes) -> bytes:
    """Return the RIM in an answer of the RIM service.

    :raises EvidenceError: when it is not one.
    """
    try:
        document = json.loads(body)
        rim = base64.b64decode(document["rim"], validate=True)
    except (ValueError, KeyError, TypeError, RecursionError):
        raise EvidenceError("is not an answer of NVIDIA's RIM service", field="rim") from None
    if not is_rim(rim):
        raise EvidenceError("the answer of NVIDIA's RIM service has no SWID tag", field="rim")
    return rim
