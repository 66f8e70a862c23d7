"""The JSON of other agents: what stands in it is taken as it is, and nothing else is let by."""

from __future__ import annotations

import base64
import json
import struct
import uuid
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from attestation.documents.agent_documents import parse_agent_document
from attestation.documents.formats import detect_format, to_evidence
from attestation.endorsements.offline import Input, gather
from attestation.errors import EndorsementError, EvidenceError, VerificationError
from attestation.evidence import Tee
from attestation.quotes.snp import SnpReport
from attestation.trust import TrustAnchors
from attestation.verifiers import verify
from tests.vectors import make

DATA = Path(make.__file__).parent / "data"
MADE = json.loads((DATA / "manifest.json").read_bytes())
NOW = datetime.fromisoformat(MADE["at"])
REPORTS = ("snp_milan_v2", "snp_milan_vcek", "snp_genoa_vlek", "snp_turin_vcek")
VCEK = uuid.UUID("63da758d-e664-4564-adc5-f4b93be8accd")
ASK = uuid.UUID("4ab7b379-bbac-4fe4-a02f-05aef327c782")


def read(name: str) -> bytes:
    return (DATA / name).read_bytes()


def fields(report: bytes, *, old: bool = False) -> dict[str, Any]:
    """Return a report as the crate ``sev`` writes it, as of version 6 or as of before."""
    parsed = SnpReport.parse(report)
    turin = parsed.product == "Turin"

    def tcb(value: bytes) -> dict[str, Any]:
        if turin:
            found = dict(zip(("fmc", "bootloader", "tee", "snp"), value[:4], strict=True))
            return {**found, "microcode": value[7]}
        found = {"bootloader": value[0], "tee": value[1], "snp": value[6], "microcode": value[7]}
        return {**found, "_reserved": [0] * 4} if old else {**found, "fmc": None}

    def number(at: int, size: int) -> int:
        return int.from_bytes(report[at : at + size], "little")

    found: dict[str, Any] = {
        "version": parsed.version,
        "guest_svn": number(4, 4),
        "policy": number(8, 8),
        "family_id": list(parsed.family_id),
        "image_id": list(parsed.image_id),
        "vmpl": parsed.vmpl,
        "sig_algo": number(0x34, 4),
        "current_tcb": tcb(parsed.current_tcb),
        "plat_info": number(0x40, 8),
        "report_data": list(parsed.report_data),
        "measurement": list(parsed.measurement),
        "host_data": list(parsed.host_data),
        "id_key_digest": list(parsed.id_key_digest),
        "author_key_digest": list(parsed.author_key_digest),
        "report_id": list(parsed.report_id),
        "report_id_ma": list(parsed.report_id_ma),
        "reported_tcb": tcb(parsed.reported_tcb),
        "chip_id": list(parsed.chip_id),
        "committed_tcb": tcb(parsed.committed_tcb),
        "launch_tcb": tcb(parsed.launch_tcb),
        "signature": {
            "r": list(report[0x2A0 : 0x2A0 + 72]),
            "s": list(report[0x2E8 : 0x2E8 + 72]),
        },
    }
    parts = {"build": 0, "minor": 1, "major": 2}
    for name, at in (("current", 0x1E8), ("committed", 0x1EC)):
        values = {part: report[at + offset] for part, offset in parts.items()}
        found |= {f"{name}_{part}": v for part, v in values.items()} if old else {name: values}
    if old:
        found |= {"_author_key_en": number(0x48, 4), "_reserved_0": 0, "_reserved_1": [0] * 24}
        found |= {"_reserved_2": 0, "_reserved_3": 0, "_reserved_4": [0] * 168}
        found["signature"]["_reserved"] = [0] * 368
    else:
        found["key_info"] = number(0x48, 4)
        cpuid = list(report[0x188:0x18B]) if parsed.version > 2 else [None] * 3
        found |= dict(zip(("cpuid_fam_id", "cpuid_mod_id", "cpuid_step"), cpuid, strict=True))
        if parsed.version >= 5:
            found |= {"launch_mit_vector": number(0x1F8, 8), "current_mit_vector": 0}
    return found


def coco(report: bytes, chain: object = None, *, old: bool = False) -> dict[str, Any]:
    return {"attestation_report": fields(report, old=old), "cert_chain": chain}


def judged(document: dict[str, Any], *endorsements: str) -> Tee:
    """Verify a document against the tests' roots, and return what it is of."""
    evidence = to_evidence(json.dumps(document).encode())
    trust = TrustAnchors(
        intel_root=bytes.fromhex(MADE["intel_root"]),
        amd_ark_keys=frozenset({bytes.fromhex(MADE["amd_ark"])}),
        collateral=tuple(read(name) for name in endorsements if name.endswith(".json")),
        endorsements=tuple(read(name) for name in endorsements if not name.endswith(".json")),
    )
    return verify(evidence, binding=None, trust=trust, now=NOW).tee


@pytest.mark.parametrize(
    ("name", "old"), [*((name, False) for name in REPORTS), ("snp_milan_v2", True)]
)
def test_the_fields_of_a_report_become_its_bytes(name: str, old: bool) -> None:
    report = read(f"{name}_report.bin")
    document = json.dumps(coco(report, old=old)).encode()
    assert detect_format(document) == "snp-report"
    assert to_evidence(document, "snp-report").quote == report


def test_a_report_brings_its_certificates() -> None:
    report, leaf = read("snp_milan_vcek_report.bin"), list(read("snp_milan_vcek.der"))
    other = {"cert_type": {"OTHER": "00"}, "data": [1]}
    document = coco(report, [{"cert_type": "VCEK", "data": leaf}, other])
    assert judged(document, "snp_milan_ask_ark.pem") is Tee.SNP
    document["attestation_report"]["measurement"][7] ^= 1
    with pytest.raises(VerificationError):
        judged(document, "snp_milan_ask_ark.pem")


def quoted(name: str, log: str = "", encode: Callable[[bytes], bytes] = base64.b64encode) -> Any:
    document: dict[str, Any] = {"quote": encode(read(name)).decode().rstrip("=")}
    if log:
        document["cc_eventlog"] = encode(read(log)).decode()
    return document


@pytest.mark.parametrize("encode", [base64.b64encode, base64.urlsafe_b64encode])
def test_a_quote_brings_its_event_log(encode: Callable[[bytes], bytes]) -> None:
    document = quoted("tdx_v4_quote.bin", "ccel.bin", encode)
    assert detect_format(json.dumps(document).encode()) == "tdx-quote"
    assert to_evidence(json.dumps(document).encode()).event_log == read("ccel.bin")
    assert judged(document, "tdx_collateral.json") is Tee.TDX
    assert judged(quoted("sgx_v3_quote.bin"), "sgx_collateral.json") is Tee.SGX
    log = bytearray(read("ccel.bin"))
    log[-1] ^= 1
    document["cc_eventlog"] = base64.b64encode(log).decode()
    with pytest.raises(VerificationError):
        judged(document, "tdx_collateral.json")
    with pytest.raises(EvidenceError, match="event log of its own"):
        to_evidence(json.dumps(document).encode(), event_log=read("ccel.bin"))


def table(*entries: tuple[uuid.UUID, bytes]) -> bytes:
    offset = 24 * (len(entries) + 1)
    head, body = b"", b""
    for kind, data in entries:
        head += struct.pack("<16sII", kind.bytes, offset + len(body), len(data))
        body += data
    return head + bytes(24) + body


def test_configfs_tsm_as_json_and_as_two_files() -> None:
    report, leaf = read("snp_genoa_vcek_report.bin"), read("snp_genoa_vcek.der")
    blob = table((VCEK, leaf), (uuid.UUID(int=7), b"other"))
    document = {
        "provider": "sev_guest\n",
        "outblob": base64.b64encode(report).decode(),
        "auxblob": base64.urlsafe_b64encode(blob).decode(),
    }
    assert judged(document, "snp_genoa_ask_ark.pem") is Tee.SNP
    evidence, trust = gather(
        Input(name="outblob", data=report), endorsements=(Input(name="auxblob", data=blob),)
    )
    assert evidence.quote == report
    assert trust.endorsements == (leaf,)
    with pytest.raises(EndorsementError, match=r"auxblob: cert_table\.entry"):
        gather(Input(name="r", data=report), endorsements=(Input(name="auxblob", data=blob[:30]),))
    with pytest.raises(EvidenceError, match="provider"):
        to_evidence(json.dumps(document | {"provider": "arm_cca_guest"}).encode())


def test_a_key_that_is_not_used_is_refused() -> None:
    document = quoted("tdx_v4_quote.bin") | {"vm_config": "{}"}
    with pytest.raises(EvidenceError, match="without the keys") as raised:
        to_evidence(json.dumps(document).encode())
    assert "jq -r .quote" in raised.value.hint


def changed(path: str, value: object) -> dict[str, Any]:
    document = coco(read("snp_milan_vcek_report.bin"), [])
    *parents, last = path.split(".")
    inner = document
    for name in parents:
        inner = inner[name]
    inner[last] = value
    return document


@pytest.mark.parametrize(
    ("path", "value", "field"),
    [
        ("attestation_report.vmpl", 1 << 32, "report.vmpl"),
        ("attestation_report.vmpl", True, "report.vmpl"),
        ("attestation_report.policy", None, "report.policy"),
        ("attestation_report.policy", -1, "report.policy"),
        ("attestation_report.chip_id", [0] * 63, "report.chip_id"),
        ("attestation_report.chip_id", [256] * 64, "report.chip_id"),
        ("attestation_report.reported_tcb", [3], "reported_tcb"),
        ("attestation_report.reported_tcb.snp", 256, "reported_tcb"),
        ("attestation_report.reported_tcb.fmc", 1, "report signature"),
        ("attestation_report.reported_tcb._reserved", [0, 1], "reported_tcb._reserved"),
        ("attestation_report.signature", None, "signature"),
        ("attestation_report.signature.r", [1] * 71, "report.signature.r"),
        ("attestation_report.signature.t", 0, "signature.t"),
        ("attestation_report._reserved_9", [1], "report._reserved_9"),
        ("attestation_report.more", 0, "report.more"),
        ("attestation_report.current", 7, "current"),
        ("attestation_report", [], "attestation_report"),
        ("cert_chain", {}, "cert_chain"),
        ("cert_chain", [None] * 17, "cert_chain"),
        ("cert_chain", [{"cert_type": "VCEK"}], r"cert_chain\[0\]"),
        ("cert_chain", [{"cert_type": "VCEK", "data": "?"}], r"cert_chain\[0\]"),
    ],
)
def test_a_malformed_document_is_named(path: str, value: object, field: str) -> None:
    with pytest.raises((EvidenceError, VerificationError), match=field):
        judged(changed(path, value), "snp_milan_vcek.der", "snp_milan_ask_ark.pem")


@pytest.mark.parametrize(("name", "old"), [("snp_milan_v2", True), ("snp_genoa_vcek", False)])
def test_no_altered_byte_of_a_document_passes(name: str, old: bool) -> None:
    product = name.split("_")[1]
    leaf = [{"cert_type": "VCEK", "data": list(read(f"snp_{product}_vcek.der"))}]
    report = read(f"{name}_report.bin")
    data = json.dumps(coco(report, leaf, old=old), separators=(",", ":")).encode()
    chain = (read(f"snp_{product}_ask_ark.pem"),)
    trust = TrustAnchors(
        amd_ark_keys=frozenset({bytes.fromhex(MADE["amd_ark"])}), endorsements=chain
    )
    assert verify(to_evidence(data), binding=None, trust=trust, now=NOW).tee is Tee.SNP
    names = [at for at in range(len(data)) if chr(data[at]).isalpha() or data[at] == ord("_")]
    for at in {*names, *range(0, len(data), 13)}:
        altered = bytearray(data)
        altered[at] ^= 1
        with pytest.raises((EvidenceError, VerificationError)):
            verify(to_evidence(bytes(altered)), binding=None, trust=trust, now=NOW)


def test_a_key_that_comes_twice_is_refused() -> None:
    document = json.dumps(coco(read("snp_milan_vcek_report.bin")))
    twice = document.replace('"vmpl":', '"vmpl": 7, "vmpl":')
    with pytest.raises(EvidenceError, match="twice"):
        to_evidence(twice.encode())


def test_what_is_no_document_is_an_error_of_ours() -> None:
    for data in (b"", b"{", b"[]", b"{}", b'{"quote":7}', b'{"a":1}'):
        with pytest.raises(EvidenceError):
            parse_agent_document(data)
    with pytest.raises(EvidenceError):
        to_evidence(b'{"quote":""}')
