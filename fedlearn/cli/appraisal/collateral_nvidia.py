"""The requests of `fedlearn collateral fetch` to NVIDIA: RIMs, and OCSP for their signers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from attestation.endorsements.chains import split_certificates
from attestation.endorsements.collateral import Item, describe
from attestation.endorsements.nvidia_rim import is_rim, read_label
from attestation.endorsements.nvidia_sources import (
    OCSP_PART,
    RIM_PART,
    ocsp_addresses,
    ocsp_post,
    rim_addresses,
    rim_in_answer,
)
from attestation.endorsements.ocsp import is_ocsp
from attestation.errors import EvidenceError
from attestation.evidence import Evidence, Tee
from attestation.quotes.nvidia import NvidiaReport
from attestation.verifiers.nvidia import device_name
from fedlearn.errors import TransportError

__all__ = ["SOURCE", "Ask", "fetch_nvidia", "nvidia_addresses"]

SOURCE = "nvidia"
"""The name of all of NVIDIA's addresses among a folder's sources."""

Ask = Callable[[str, str, bytes | None], bytes]
"""Requests an address (GET, or POST with a body) for a part; returns the body."""


def nvidia_addresses(evidence: Evidence, rim_url: str, ocsp_url: str) -> dict[str, str]:
    """Return the requests for the GPUs and NVSwitches of evidence; empty without any.

    :raises EvidenceError: when a report or its chain is malformed.
    """
    found: dict[str, str] = {}
    for item in (evidence, *evidence.components):
        if item.tee is not Tee.NVIDIA:
            continue
        report = NvidiaReport.parse(item.quote)
        sent = [piece for piece in item.endorsements if not (is_rim(piece) or is_ocsp(piece))]
        chain = [part for piece in sent for part in split_certificates(piece, "endorsements")]
        found |= rim_addresses(report, device_name(chain[0]) if chain else "", rim_url)
        found |= ocsp_addresses([chain[1:]], ocsp_url)
    return found


def fetch_nvidia(
    ask: Ask, addresses: Mapping[str, str], ocsp_url: str
) -> tuple[list[Item], dict[str, str]]:
    """Fetch everything at ``addresses``, and the OCSP answers for the signers of the RIMs.

    Returns the items, and ``addresses`` with those for the RIMs' signers.

    :raises TransportError: naming the part whose answer does not match the request.
    """
    items = [*_rims(ask, addresses)]
    chains = [read_label(item.data).chain for item in items]
    known = ocsp_addresses(chains, ocsp_url) | dict(addresses)
    for part, address in known.items():
        if part.startswith(OCSP_PART):
            url, request = ocsp_post(address)
            items.append(_item(ask(url, part, request), f"{part}.der", "ocsp"))
    return items, known


def _rims(ask: Ask, addresses: Mapping[str, str]) -> Iterator[Item]:
    for part, address in addresses.items():
        if part.startswith(RIM_PART):
            try:
                data = rim_in_answer(ask(address, part, None))
            except EvidenceError as error:
                raise TransportError(f"the answer for {part}: {error}") from None
            yield _item(data, f"{part.removeprefix(RIM_PART)}.swidtag", "nvidia-rim")


def _item(data: bytes, path: str, kind: str) -> Item:
    try:
        item = describe(data, path=path)
    except EvidenceError as error:
        raise TransportError(f"the answer for {path} is not collateral: {error}") from None
    if item.kind != kind:
        raise TransportError(f"the answer for {path} is {item.kind}, not {kind}")
    return item
