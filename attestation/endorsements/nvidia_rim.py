"""Reference integrity manifests (RIM) of NVIDIA: the expected measurements of driver and VBIOS.

A RIM is a SWID tag (ISO/IEC 19770-2:2015; TCG, *Reference Integrity Manifest Information Model*)
with an XML signature, whose signer's chain ends at NVIDIA's CoRIM root. These parts are read, as by
NVIDIA's verifier (https://github.com/NVIDIA/nvtrust)::

    Meta      colloquialVersion (of driver or VBIOS), product (GH100), edition (GPU or SWITCH)
    Payload   Resource type="Measurement" index active alternatives size Hash0 Hash1 ...

Index *i* of a RIM is index *i* + 1 of the SPDM report. An active resource requires that the
measurement is one of its alternatives; an inactive one requires nothing. RIM index 35 is the
firmware of NVDEC0; it is not required when NVDEC0 is disabled by the report.

Reading a RIM needs the extra ``nvidia``; without it every function that reads one raises an error.

The page is docs/adr/0016-nvidia.md.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from types import MappingProxyType, ModuleType
from typing import TYPE_CHECKING, Final

from cryptography import x509

from attestation.endorsements.chains import Certificate, check_chain, load_certificate
from attestation.errors import EndorsementError, EvidenceError, VerificationError
from attestation.quotes.nvidia import NvidiaReport

if TYPE_CHECKING:
    from attestation.endorsements.xmlsig import Element

__all__ = ["Rim", "RimLabel", "is_rim", "match_rims", "read_label"]

_SWID: Final = "{http://standards.iso.org/iso/19770/-2/2015/schema.xsd}"
_SHA384: Final = "{http://www.w3.org/2001/04/xmlenc#sha384}"
_FIELD: Final = "rim"
_STEP: Final = "nvidia rim"
_MAX_RIMS: Final = 64
_MAX_INDEX: Final = 254
_MAX_ALTERNATIVES: Final = 64
_DIGEST_BYTES: Final = 48
_NVDEC0_INDEX: Final = 35
_NUMBER: Final = re.compile(r"0|[1-9][0-9]{0,3}")
_DIGEST: Final = re.compile(rf"(?:[0-9a-f]{{2}}){{{_DIGEST_BYTES}}}", re.IGNORECASE)
_VERSION: Final = re.compile(r"[0-9A-Za-z][0-9A-Za-z._-]{0,63}")
_FETCH: Final = "fedlearn collateral fetch --directory DIR --evidence FILE"


@dataclass(frozen=True, slots=True, kw_only=True)
class RimLabel:
    """The identification in a RIM. Nothing is verified.

    ``chain`` is the signer's, leaf first.
    """

    product: str
    edition: str
    version: str
    chain: tuple[Certificate, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Rim:
    """A verified RIM.

    ``golden``  by SPDM index: the values (48 bytes) that an active measurement may have
    ``digest``  SHA-256 of the canonical bytes that the signature covers
    """

    product: str
    edition: str
    version: str
    golden: Mapping[int, tuple[bytes, ...]]
    digest: bytes
    chain: tuple[Certificate, ...]

    @classmethod
    def verify(cls, data: bytes, *, root: bytes, now: datetime) -> Rim:
        """Verify chain and signature, and read what the signature covers.

        ``root`` is the SHA-256 of the SPKI of the pinned root.

        :raises EvidenceError: when the document is malformed.
        :raises EndorsementError: when the chain does not end at ``root``.
        :raises FreshnessError: when a certificate of it is not valid at ``now``.
        :raises SignatureError: when the signature does not cover this content.
        """
        xml = _xmlsig()
        chain = _chain(xml, data)
        check_chain(chain, root=root, root_name="NVIDIA RIM root", now=now, step=_STEP)
        if not _signs_documents(chain[0]):
            raise EndorsementError(f"{chain[0].name} is not for signing RIMs", step=_STEP)
        document = xml.verify_document(
            data, chain[0].parsed, now=now, field=_FIELD, step=f"{_STEP} signature"
        )
        meta, payload = _parts(document.root)
        return cls(
            product=_text(meta, "product"),
            edition=_text(meta, "edition"),
            version=_text(meta, "colloquialVersion"),
            golden=MappingProxyType(_golden(payload)),
            digest=hashlib.sha256(document.covered).digest(),
            chain=chain,
        )

    def mismatches(self, report: NvidiaReport) -> tuple[int, ...]:
        """Return the SPDM indices at which ``report`` has none of the required values."""
        ignored = {_NVDEC0_INDEX + 1} if report.nvdec0_disabled else set()
        return tuple(
            index
            for index, values in sorted(self.golden.items())
            if report.measurements.get(index) not in values and index not in ignored
        )


def is_rim(data: bytes) -> bool:
    """Return whether ``data`` is XML that names the root element of a SWID tag."""
    start = data.removeprefix(b"\xef\xbb\xbf").lstrip()[:1]
    return start == b"<" and b"SoftwareIdentity" in data


def read_label(data: bytes) -> RimLabel:
    """Return the identification in a RIM.

    :raises EvidenceError: when it is malformed.
    :raises EndorsementError: when the extra ``nvidia`` is not installed.
    """
    xml = _xmlsig()
    meta, _ = _parts(xml.parse_unverified(data, _FIELD))
    return RimLabel(
        product=_text(meta, "product"),
        edition=_text(meta, "edition"),
        version=_text(meta, "colloquialVersion"),
        chain=_chain(xml, data),
    )


def match_rims(
    report: NvidiaReport, rims: Sequence[bytes], *, root: bytes, now: datetime
) -> tuple[Rim, ...]:
    """Return the verified RIMs that ``report`` matches: of driver and VBIOS; of a switch, VBIOS.

    A RIM that cannot be read or does not verify is skipped when another one matches.

    :raises EndorsementError: when there is none for a version of the report, or a measurement is
        not one that the RIM requires.
    :raises AttestationError: as :meth:`Rim.verify`, where no other RIM of that version matches.
    """
    if len(rims) > _MAX_RIMS:
        raise EvidenceError(f"{len(rims)} RIMs, at most {_MAX_RIMS} are read", field=_FIELD)
    labels = [*_labelled(rims)]
    wanted = {"VBIOS": report.vbios}
    if not report.is_switch:
        wanted = {"driver": report.driver, **wanted}
    found = tuple(
        _match(report, kind, version, labels, root, now) for kind, version in wanted.items()
    )
    indices = [index for rim in found for index in rim.golden]
    if twice := sorted({index for index in indices if indices.count(index) > 1}):
        raise EndorsementError(
            f"the RIMs of driver and VBIOS both demand measurement {_list(twice)}", step=_STEP
        )
    return found


def _labelled(rims: Iterable[bytes]) -> Iterator[tuple[RimLabel, bytes]]:
    for data in rims:
        try:
            yield read_label(data), data
        except EvidenceError:
            continue


def _match(
    report: NvidiaReport,
    kind: str,
    version: str,
    labels: Iterable[tuple[RimLabel, bytes]],
    root: bytes,
    now: datetime,
) -> Rim:
    """Return the first RIM of this version that verifies and matches."""
    edition = "SWITCH" if report.is_switch else "GPU"
    mine = [item for item in labels if item[0].edition == edition]
    named = [data for label, data in mine if _same(label.version, version)]
    if not named:
        others = (
            ", ".join(sorted({label.version for label, _ in mine}))
            or "none of this kind that can be read"
        )
        raise EndorsementError(
            f"no RIM is for {kind} {version}, which the report names; there is {others}",
            step=_STEP,
            hint=_FETCH,
        )
    refused: list[EvidenceError | VerificationError] = []
    for data in named:
        try:
            rim = Rim.verify(data, root=root, now=now)
            if not (_same(rim.version, version) and rim.edition == edition):
                raise EndorsementError(f"the signed part is of {kind} {rim.version}", step=_STEP)
            if wrong := rim.mismatches(report):
                raise EndorsementError(
                    f"measurement {_list(wrong)} (SPDM index) is not one that the RIM of {kind} "
                    f"{rim.version} ({rim.product}) demands",
                    step=_STEP,
                    hint="install the unaltered driver and VBIOS of this version",
                )
        except (EvidenceError, VerificationError) as error:
            refused.append(error)
        else:
            return rim
    raise refused[0]


def _xmlsig() -> ModuleType:
    try:
        import attestation.endorsements.xmlsig as xmlsig
    except ModuleNotFoundError as error:
        raise EndorsementError(
            f"a RIM cannot be read, because {error.name} is not installed",
            step=_STEP,
            hint="pip install 'fedlearn[nvidia]'",
        ) from error
    return xmlsig


def _chain(xml: ModuleType, data: bytes) -> tuple[Certificate, ...]:
    return tuple(
        load_certificate(der, f"{_FIELD}.certificate[{number}]")
        for number, der in enumerate(xml.parse_certificates(data, _FIELD))
    )


def _signs_documents(signer: Certificate) -> bool:
    """Return whether a certificate may sign data: no authority, and for no other purpose."""
    extensions = signer.parsed.extensions
    usage = [item.value for item in extensions if isinstance(item.value, x509.KeyUsage)]
    purposes = [item for item in extensions if isinstance(item.value, x509.ExtendedKeyUsage)]
    return not (signer.authority or purposes) and all(item.digital_signature for item in usage)


def _parts(root: Element) -> tuple[Element, Element]:
    if root.tag != f"{_SWID}SoftwareIdentity":
        raise EvidenceError("is not a SWID tag", field=_FIELD)
    found = []
    for name in ("Meta", "Payload"):
        named = [item for item in root.children if item.tag == f"{_SWID}{name}"]
        if len(named) != 1:
            raise EvidenceError(f"has {len(named)} elements {name}, not one", field=_FIELD)
        found.append(named[0])
    return found[0], found[1]


def _text(meta: Element, name: str) -> str:
    value = meta.attributes.get(name, "")
    if not _VERSION.fullmatch(value):
        raise EvidenceError("is missing, or is no name or version", field=f"{_FIELD}.Meta.{name}")
    return value


def _golden(payload: Element) -> dict[int, tuple[bytes, ...]]:
    golden: dict[int, tuple[bytes, ...]] = {}
    seen: set[int] = set()
    for number, item in enumerate(payload.children):
        field = f"{_FIELD}.Payload[{number}]"
        if item.tag != f"{_SWID}Resource" or item.attributes.get("type") != "Measurement":
            raise EvidenceError("is not a measurement", field=field)
        index = _number(item, "index", _MAX_INDEX, field)
        if index in seen:
            raise EvidenceError(f"index {index} occurs twice", field=field)
        seen.add(index)
        active = item.attributes.get("active")
        if active not in ("True", "False"):
            raise EvidenceError("must be True or False", field=f"{field}.active")
        values = _alternatives(item, field)
        if active == "True":
            golden[index + 1] = values
    if not golden:
        raise EvidenceError("has no active measurement", field=f"{_FIELD}.Payload")
    return golden


def _alternatives(item: Element, field: str) -> tuple[bytes, ...]:
    count = _number(item, "alternatives", _MAX_ALTERNATIVES, field)
    names = [name for name in item.attributes if name.startswith(_SHA384)]
    if count == 0 or set(names) != {f"{_SHA384}Hash{number}" for number in range(count)}:
        raise EvidenceError("must count the values Hash0, Hash1, …", field=f"{field}.alternatives")
    if _number(item, "size", _DIGEST_BYTES, field) != _DIGEST_BYTES:
        raise EvidenceError(f"must be {_DIGEST_BYTES}", field=f"{field}.size")
    values = [item.attributes[f"{_SHA384}Hash{number}"] for number in range(count)]
    if not all(map(_DIGEST.fullmatch, values)):
        raise EvidenceError("a value is not SHA-384 in hex", field=field)
    return tuple(map(bytes.fromhex, values))


def _number(item: Element, name: str, most: int, field: str) -> int:
    text = item.attributes.get(name, "")
    if not _NUMBER.fullmatch(text) or int(text) > most:
        raise EvidenceError(f"must be a number up to {most}", field=f"{field}.{name}")
    return int(text)


def _same(one: str, other: str) -> bool:
    return bool(one) and one.casefold() == other.casefold()


def _list(numbers: Iterable[int]) -> str:
    return ", ".join(map(str, numbers))
