"""Evidence and the claims a verifier derives from it (RFC 9334, section 8).

Evidence travels as one canonical JSON document (sorted keys, no spaces, base64 for
bytes), so that its SHA-256 can be named in a certificate and in the ledger.
"""

from __future__ import annotations

import base64
import binascii
import enum
import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Final

from attestation.encodings import json_object
from attestation.errors import EvidenceError

__all__ = ["MAX_COMPONENTS", "MAX_EVIDENCE_BYTES", "Claims", "Evidence", "Origin", "Scalar", "Tee"]

MAX_EVIDENCE_BYTES: Final = 4 * 1024 * 1024
"""Upper bound of one encoded evidence document, checked before it is parsed."""

MAX_ENDORSEMENTS: Final = 16
MAX_COMPONENTS: Final = 16
"""A machine of the largest kind has 8 GPUs and 4 NVSwitches."""

Scalar = str | int | bool


class Tee(enum.StrEnum):
    """The kind of environment that an attester runs in."""

    TDX = "tdx"
    SGX = "sgx"
    SNP = "snp"
    TPM = "tpm"
    AZURE_VTPM = "azure-vtpm"
    NVIDIA = "nvidia"
    SAMPLE = "sample"
    """Software only. It proves nothing about hardware and is refused by default."""


class Origin(enum.StrEnum):
    """Who is responsible for the value of a claim."""

    QUOTE = "signed quote"
    """Hardware, firmware below the environment, or a TPM measured it into what is signed."""
    HOST = "set by the host"
    """It is in the signed quote, and the host that started the environment chose it."""
    LOG = "measured log"
    """An event of a log that replays to the signed registers. The replay proves the digest and
    not the label, so the value counts only as far as the register is pinned."""
    SELF = "self-reported"
    """Software inside of the environment reported it; it counts as far as the launch is pinned."""
    VERIFIER = "verifier"
    """The verifier or the gate determined it; it is no claim of the evidence."""


_IN_THE_QUOTE: Final = re.compile(
    r"mrtd|rtmr[0-3]|mrseam|mrservicetd|launch|(?:id|author)_key_digest|mrenclave|mrsigner"
    r"|pcr\.[0-9]+(?:\.sha[0-9]+)?"
)
_BY_THE_HOST: Final = re.compile(r"mrconfigid|mrowner|mrownerconfig|host_data")
_IN_THE_LOG: Final = re.compile(r"firmware|boot\.[0-9]+|kernel|cmdline|initrd|container\.server")


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """What an attester produced, unverified.

    ``quote``         the signed statement, in the native format of ``tee``
    ``event_log``     the log that replays to the quoted registers; empty if there is none
    ``endorsements``  certificates or collateral sent with it (DER, PEM or JSON)
    ``components``    further evidence of the same environment, such as a GPU
    """

    tee: Tee
    quote: bytes
    event_log: bytes = b""
    endorsements: tuple[bytes, ...] = ()
    components: tuple[Evidence, ...] = ()

    def to_bytes(self) -> bytes:
        """Return the canonical encoding."""
        return json.dumps(_to_json(self), sort_keys=True, separators=(",", ":")).encode()

    def digest(self) -> bytes:
        """Return the SHA-256 of the canonical encoding (32 bytes)."""
        return hashlib.sha256(self.to_bytes()).digest()

    @classmethod
    def from_bytes(cls, data: bytes) -> Evidence:
        """Parse an encoded document of at most :data:`MAX_EVIDENCE_BYTES`.

        :raises EvidenceError: naming the field, for anything else.
        """
        if len(data) > MAX_EVIDENCE_BYTES:
            raise EvidenceError(
                f"{len(data)} bytes, at most {MAX_EVIDENCE_BYTES} are read", field="evidence"
            )
        return _from_json(json_object(data, "evidence"), "evidence", depth=0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Claims:
    """The claims of evidence that a verifier found genuine; no policy was applied to them.

    ``measurements``  names as policies use them (``mrtd``, ``rtmr0``, ``launch``,
                      ``pcr.14``, ``app``, ``job``), to raw digests
    ``debug``         the environment can be inspected by its host
    ``tcb``           the TCB status or version in the vendor's words
    ``hardware_id``   chip id, PPID or the SHA-256 of the endorsement key
    ``bound``         the evidence is over the nonce and the keys that the caller expects; a
                      verifier that does not compare them leaves it false
    ``attributes``    every other verified fact (``advisories``, ``vmpl``, ``tpm.reset_count``)
    ``unverified``    names of claims that were present and could not be verified
    ``components``    claims of component evidence, in order
    """

    tee: Tee
    measurements: Mapping[str, bytes]
    debug: bool
    tcb: str
    hardware_id: bytes
    bound: bool = False
    attributes: Mapping[str, Scalar | tuple[str, ...]] = field(default_factory=dict)
    unverified: tuple[str, ...] = ()
    components: tuple[Claims, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "measurements", MappingProxyType(dict(self.measurements)))
        object.__setattr__(self, "attributes", MappingProxyType(dict(self.attributes)))

    def origin_of(self, claim: str) -> Origin:
        """Return where the value of a measurement comes from.

        A name that no verifier reserves for hardware, host or firmware is self-reported, as are
        all claims of sample evidence. Software cannot measure under a reserved name; see
        :mod:`attestation.logs.runtime_events`.
        """
        if self.tee is Tee.SAMPLE:
            return Origin.SELF
        if self.tee is Tee.NVIDIA or _IN_THE_QUOTE.fullmatch(claim):
            return Origin.QUOTE
        if _BY_THE_HOST.fullmatch(claim):
            return Origin.HOST
        return Origin.LOG if _IN_THE_LOG.fullmatch(claim) else Origin.SELF


def _to_json(evidence: Evidence) -> dict[str, Any]:
    return {
        "tee": evidence.tee.value,
        "quote": base64.b64encode(evidence.quote).decode(),
        "event_log": base64.b64encode(evidence.event_log).decode(),
        "endorsements": [base64.b64encode(item).decode() for item in evidence.endorsements],
        "components": [_to_json(item) for item in evidence.components],
    }


def _from_json(document: object, where: str, *, depth: int) -> Evidence:
    if not isinstance(document, dict):
        raise EvidenceError("must be an object", field=where)
    known = {"tee", "quote", "event_log", "endorsements", "components"}
    if unknown := sorted(map(str, set(document) - known)):
        raise EvidenceError(f"unknown key {unknown[0]!r}", field=where)
    try:
        tee = Tee(str(document.get("tee")))
    except ValueError:
        names = ", ".join(Tee)
        raise EvidenceError(f"must be one of {names}", field=f"{where}.tee") from None
    endorsements = _list(document.get("endorsements", []), f"{where}.endorsements")
    components = _list(document.get("components", []), f"{where}.components")
    if len(endorsements) > MAX_ENDORSEMENTS:
        raise EvidenceError(f"more than {MAX_ENDORSEMENTS}", field=f"{where}.endorsements")
    if components and depth > 0:
        raise EvidenceError("components do not nest", field=f"{where}.components")
    if len(components) > MAX_COMPONENTS:
        raise EvidenceError(f"more than {MAX_COMPONENTS}", field=f"{where}.components")
    return Evidence(
        tee=tee,
        quote=_base64(document.get("quote"), f"{where}.quote"),
        event_log=_base64(document.get("event_log", ""), f"{where}.event_log"),
        endorsements=tuple(
            _base64(item, f"{where}.endorsements[{i}]") for i, item in enumerate(endorsements)
        ),
        components=tuple(
            _from_json(item, f"{where}.components[{i}]", depth=depth + 1)
            for i, item in enumerate(components)
        ),
    )


def _list(value: object, where: str) -> list[object]:
    if not isinstance(value, list):
        raise EvidenceError("must be a list", field=where)
    return value


def _base64(value: object, where: str) -> bytes:
    if not isinstance(value, str):
        raise EvidenceError("must be a base64 string", field=where)
    try:
        return base64.b64decode(value, validate=True)
    except (binascii.Error, ValueError):
        raise EvidenceError("is not base64", field=where) from None
