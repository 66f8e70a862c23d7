"""Evidence in the JSON documents of other agents, which contain a quote or report.

::

    {"quote": base64, "cc_eventlog": base64 | null}       Confidential Containers: TDX, SGX
    {"attestation_report": {...}, "cert_chain": [...]}     Confidential Containers: SEV-SNP
    {"provider", "outblob", "auxblob"}                     a report of Linux's configfs-tsm

The second has the *fields* of an AMD report, by their names in the Rust crate ``sev`` (1 to
6), and not its bytes; they are placed as AMD publication 56860, table
``ATTESTATION_REPORT Structure``, defines. A field in a wrong place is detected, because AMD's
signature covers the bytes. ``auxblob`` is the host's certificate table.

A document has these keys and no others, so that no change of it goes unnoticed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from attestation.encodings import json_bytes, json_object
from attestation.errors import EvidenceError
from attestation.evidence import MAX_EVIDENCE_BYTES
from attestation.quotes.snp import REPORT_BYTES, TCB, TCB_TURIN, parse_certificate_table

__all__ = ["AgentDocument", "is_agent_document", "parse_agent_document"]

_FORMS: Final = (
    (frozenset({"quote"}), frozenset({"cc_eventlog"})),
    (frozenset({"attestation_report"}), frozenset({"cert_chain"})),
    (frozenset({"provider", "outblob"}), frozenset({"auxblob"})),
)
"""Keys that a document must and may have."""

_PROVIDERS: Final = ("sev_guest", "tdx_guest")
_MAX_CERTIFICATES: Final = 16
_KINDS: Final = ("ARK", "ASK", "ASVK", "VCEK", "VLEK", "CRL")

_Place = tuple[int, int, tuple[str, ...]]
_NUMBERS: Final[tuple[_Place, ...]] = (
    (0x000, 4, ("version",)),
    (0x004, 4, ("guest_svn",)),
    (0x008, 8, ("policy",)),
    (0x030, 4, ("vmpl",)),
    (0x034, 4, ("sig_algo",)),
    (0x040, 8, ("plat_info",)),
    (0x048, 4, ("key_info", "_author_key_en")),
    (0x188, 1, ("cpuid_fam_id",)),
    (0x189, 1, ("cpuid_mod_id",)),
    (0x18A, 1, ("cpuid_step",)),
    (0x1E8, 1, ("current_build",)),
    (0x1E9, 1, ("current_minor",)),
    (0x1EA, 1, ("current_major",)),
    (0x1EC, 1, ("committed_build",)),
    (0x1ED, 1, ("committed_minor",)),
    (0x1EE, 1, ("committed_major",)),
    (0x1F8, 8, ("launch_mit_vector",)),
    (0x200, 8, ("current_mit_vector",)),
)
_TEXTS: Final[tuple[_Place, ...]] = (
    (0x010, 16, ("family_id",)),
    (0x020, 16, ("image_id",)),
    (0x050, 64, ("report_data",)),
    (0x090, 48, ("measurement",)),
    (0x0C0, 32, ("host_data",)),
    (0x0E0, 48, ("id_key_digest",)),
    (0x110, 48, ("author_key_digest",)),
    (0x140, 32, ("report_id",)),
    (0x160, 32, ("report_id_ma",)),
    (0x1A0, 64, ("chip_id",)),
)
_VERSIONS: Final = ((0x038, "current_tcb"), (0x180, "reported_tcb"), (0x1E0, "committed_tcb"))
_LAUNCH: Final = (0x1F0, "launch_tcb")
_SIGNATURE: Final = ((0x2A0, "r"), (0x2E8, "s"))
_SCALAR_BYTES: Final = 72
_RESERVED: Final = tuple(f"_reserved_{number}" for number in range(5))
_MAY_LACK: Final = frozenset(
    {"cpuid_fam_id", "cpuid_mod_id", "cpuid_step", "launch_mit_vector", "current_mit_vector"}
)


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentDocument:
    """The quote or report of a document, and what else it has. Nothing is verified."""

    quote: bytes
    event_log: bytes = b""
    endorsements: tuple[bytes, ...] = ()


def is_agent_document(document: Mapping[str, Any]) -> bool:
    """Return whether a JSON object has the keys of one of the documents."""
    return _form(document) is not None


def parse_agent_document(data: bytes) -> AgentDocument:
    """Return what a document holds.

    :raises EvidenceError: naming the key that is malformed, or too large a document.
    """
    if len(data) > 2 * MAX_EVIDENCE_BYTES:
        raise EvidenceError(f"{len(data)} bytes are too many", field="document")
    document = json_object(data, "document")
    form = _form(document)
    if form == 0:
        log = document.get("cc_eventlog")
        return AgentDocument(
            quote=json_bytes(document["quote"], "quote"),
            event_log=json_bytes(log, "cc_eventlog") if log else b"",
        )
    if form == 1:
        return AgentDocument(
            quote=_report(_object(document["attestation_report"], "attestation_report")),
            endorsements=_chain(document.get("cert_chain")),
        )
    if form == 2:
        # The file of configfs-tsm that names the provider ends with a new line.
        if str(document["provider"]).rstrip("\n") not in _PROVIDERS:
            raise EvidenceError(f"must be one of {', '.join(_PROVIDERS)}", field="provider")
        aux = document.get("auxblob")
        table = json_bytes(aux, "auxblob") if aux else b""
        return AgentDocument(
            quote=json_bytes(document["outblob"], "outblob"),
            endorsements=parse_certificate_table(table) if table else (),
        )
    raise EvidenceError("has not the keys of an agent's evidence", field="document")


def _form(document: Mapping[str, Any]) -> int | None:
    for number, (needed, allowed) in enumerate(_FORMS):
        if needed <= document.keys() <= needed | allowed:
            return number
    return None


def _object(value: object, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise EvidenceError("is not an object", field=where)
    return value


def _report(fields: dict[str, Any]) -> bytes:
    """Return the bytes of a report from its fields."""
    known: set[str] = set()
    report = bytearray(REPORT_BYTES)
    flat = fields | {
        f"{name}_{part}": value
        for name in ("current", "committed")
        for part, value in _object(fields.get(name, {}), name).items()
    }
    known |= {name for name in _MAY_LACK if name in fields}
    for offset, size, names in _NUMBERS:
        name = next((item for item in names if item in flat), names[0])
        value = flat.get(name)
        if value is None and name in _MAY_LACK:
            value = 0
        if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 256**size:
            raise EvidenceError(f"must be a number of {size} bytes", field=f"report.{name}")
        report[offset : offset + size] = value.to_bytes(size, "little")
        known.add(name)
    for offset, size, (name,) in _TEXTS:
        report[offset : offset + size] = _sized(fields.get(name), size, name)
        known.add(name)
    for offset, name in (*_VERSIONS, _LAUNCH):
        report[offset : offset + 8] = _tcb(_object(fields.get(name), name), name)
        known.add(name)
    signature = _object(fields.get("signature"), "signature")
    for offset, name in _SIGNATURE:
        scalar = _sized(signature.get(name), _SCALAR_BYTES, f"signature.{name}")
        report[offset : offset + _SCALAR_BYTES] = scalar
    _check_keys(fields, known | {"signature", "current", "committed"}, _RESERVED, "report")
    _check_keys(signature, {"r", "s"}, ("_reserved",), "signature")
    return bytes(report)


def _tcb(versions: dict[str, Any], where: str) -> bytes:
    layout = TCB if versions.get("fmc") is None else TCB_TURIN
    _check_keys(versions, {*layout, "fmc"}, ("_reserved",), where)
    found = bytearray(8)
    for name, slot in layout.items():
        value = versions.get(name)
        if not isinstance(value, int) or not 0 <= value < 256:
            raise EvidenceError("must be numbers of one byte", field=where)
        found[slot.number] = value
    return bytes(found)


def _check_keys(
    fields: Mapping[str, Any], known: set[str], reserved: Sequence[str], where: str
) -> None:
    """Refuse unknown fields, and reserved fields that are not zero."""
    for name, value in fields.items():
        zero = not any(value) if isinstance(value, list) else value == 0
        if name not in known and not (name in reserved and zero):
            raise EvidenceError("has no place in a report", field=f"{where}.{name[:64]}")


def _sized(value: object, size: int, name: str) -> bytes:
    data = json_bytes(value, f"report.{name}")
    if len(data) != size:
        raise EvidenceError(f"has {len(data)} bytes, not {size}", field=f"report.{name}")
    return data


def _chain(value: object) -> tuple[bytes, ...]:
    if value is None:
        return ()
    if not isinstance(value, list) or len(value) > _MAX_CERTIFICATES:
        raise EvidenceError(f"must be a list of at most {_MAX_CERTIFICATES}", field="cert_chain")
    found = []
    for number, entry in enumerate(value):
        where = f"cert_chain[{number}]"
        item = _object(entry, where)
        if item.keys() != {"cert_type", "data"}:
            raise EvidenceError("must have exactly cert_type, data", field=where)
        if item["cert_type"] in _KINDS:
            found.append(json_bytes(item["data"], where))
    return tuple(found)
