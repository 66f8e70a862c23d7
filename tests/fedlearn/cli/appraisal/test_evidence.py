"""`fedlearn evidence`: every field by its name, and nothing but plain errors."""

from __future__ import annotations

import contextlib
import json
import struct
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from hypothesis import given, settings
from hypothesis import strategies as st

from attestation.attesters.hardware import detect
from attestation.attesters.sample import SampleAttester
from attestation.attesters.software_tpm import SoftwareTpm
from attestation.binding import ReportData
from attestation.decoded import decode_file
from attestation.errors import EvidenceError
from attestation.evidence import Evidence, Tee
from attestation.logs.eventlog import EV_EVENT_TAG, EventLog
from fedlearn.cli import main
from tests.fakes import coco_agent

KEY = ec.generate_private_key(ec.SECP256R1())
SAMPLE = SampleAttester(KEY, b"\x01" * 16).collect(ReportData(value=bytes(64)))
REPORT = bytearray(1184)
REPORT[0:4] = struct.pack("<I", 3)
REPORT[8:16] = struct.pack("<Q", 0x30000 | 1 << 19)
REPORT[0x30:0x34] = struct.pack("<I", 1)
REPORT[0x188] = 0x1A
REPORT[0x180:0x188] = bytes([1, 2, 3, 4, 0, 0, 0, 7])
LOG = (
    EventLog.create(("sha384",))
    .append(4, EV_EVENT_TAG, {"sha384": b"\x02" * 48}, b"measured here")
    .to_bytes()
)


def quote(version: int, kind: int, size: int) -> bytes:
    tee = 0x81 if kind > 1 else 0
    header = struct.pack("<HHI", version, 2, tee) + bytes(40)
    descriptor = struct.pack("<HI", kind, size) if version == 5 else b""
    body = bytearray(size)
    if kind > 1:
        body[120:128] = struct.pack("<Q", 1 | 1 << 28)
        body[136:184] = b"\x0a" * 48
    certification = struct.pack("<HI", 3, 4) + b"ppid"
    inner = bytes(384) + bytes(64) + struct.pack("<H", 2) + b"au" + certification
    if version > 3:
        inner = struct.pack("<HI", 6, len(inner)) + inner
    signature = bytes(128) + inner
    return header + descriptor + bytes(body) + struct.pack("<I", len(signature)) + signature


QUOTES = [quote(3, 1, 384), quote(4, 2, 584), quote(5, 2, 584), quote(5, 3, 648), quote(5, 1, 384)]


def with_report_data(data: bytes) -> bytes:
    return QUOTES[1][: 48 + 520] + data + QUOTES[1][48 + 584 :]


def run(*arguments: object) -> Result:
    result = CliRunner().invoke(main, ["evidence", *map(str, arguments)])
    assert "Traceback" not in result.output
    return result


def failed(result: Result, *words: str) -> None:
    assert result.exit_code == 1, result.output
    for word in ("error:", *words):
        assert word in result.stderr


def fields(path: Path) -> dict[str, str]:
    document = json.loads(run("show", path, "--json").stdout)
    return {f"{item['section']}/{item['name']}": item["value"] for item in document["fields"]}


@pytest.mark.parametrize("data", QUOTES)
def test_a_quote_is_shown_field_by_field(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "quote.bin"
    path.write_bytes(data)
    shown = fields(path)
    assert shown["Quote Header/Version"] in "345"
    assert shown["QE Certification Data/Certification Data"] == b"ppid".hex()
    if any("TD Quote Body" in name for name in shown):
        [attributes] = [value for name, value in shown.items() if "(set)" in name]
        assert attributes == "DEBUG, SEPT_VE_DISABLE"
    text = run("show", path)
    assert text.exit_code == 0
    assert "decoded, not verified" in text.output


@pytest.mark.parametrize("encode", [bytes, lambda data: data.hex().encode() + b"\n"])
def test_a_report_is_shown_field_by_field(tmp_path: Path, encode: object) -> None:
    path = tmp_path / "report"
    path.write_bytes(encode(bytes(REPORT)))  # type: ignore[operator]
    shown = fields(path)
    assert shown["ATTESTATION_REPORT/VMPL"] == "1"
    assert shown["POLICY/set"] == "SMT, DEBUG"
    assert shown["KEY_INFO/SIGNING_KEY"] == "VCEK"
    assert shown["REPORTED_TCB/FMC"] == "1"
    assert shown["REPORTED_TCB/SNP"] == "4"


def test_a_log_is_shown_event_by_event(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_bytes(LOG)
    shown = fields(path)
    assert shown["TCG_PCR_EVENT2 1/eventType"] == "EV_EVENT_TAG"
    assert shown["TCG_PCR_EVENT2 1/event"] == "measured here"
    assert shown["TCG_PCR_EVENT2 1/digests.sha384"] == "02" * 48


def old_event(index: int, kind: int, data: bytes) -> bytes:
    return struct.pack("<II20sI", index, kind, b"\x03" * 20, len(data)) + data


@pytest.mark.parametrize("padding", [b"", bytes(64), b"\xff" * 64], ids=["no", "00", "ff"])
def test_a_log_of_sha1_digests_is_shown_and_never_verified(tmp_path: Path, padding: bytes) -> None:
    path = tmp_path / "log"
    events = (old_event(0, 8, b"v\0"), old_event(0xFFFFFFFF, 3, b"note"), old_event(4, 13, b"\xab"))
    path.write_bytes(b"".join(events) + padding)
    shown = fields(path)
    assert shown["TCG_PCClientPCREvent 1/eventType"] == "EV_S_CRTM_VERSION"
    assert shown["TCG_PCClientPCREvent 3/digest.sha1"] == "03" * 20
    assert shown["TCG_PCClientPCREvent 3/event"] == "ab"
    with pytest.raises(EvidenceError, match="of SHA-1 digests alone, proves nothing"):
        EventLog.parse(path.read_bytes())
    for damage in (path.read_bytes()[: len(events[0]) - 1], old_event(99, 8, b"v")):
        path.write_bytes(damage)
        failed(run("show", path), "known formats")


@pytest.mark.parametrize(
    ("start", "words"), [(b"CCEL\x38\0\0\0", "tables/data/CCEL"), (b"\x81\0\0\0", "TDREPORT")]
)
def test_what_is_near_evidence_is_distinguished(tmp_path: Path, start: bytes, words: str) -> None:
    path = tmp_path / "file"
    path.write_bytes(start + bytes(range(1, 200)))
    failed(run("show", path), "it looks like", words)


def test_evidence_is_shown_with_its_components(tmp_path: Path) -> None:
    path = tmp_path / "evidence.json"
    report = Evidence(tee=Tee.SNP, quote=bytes(REPORT))
    path.write_bytes(Evidence(tee=Tee.SAMPLE, quote=SAMPLE.quote, components=(report,)).to_bytes())
    shown = fields(path)
    assert shown["sample statement (insecure)/hardware_id"] == "01" * 16
    assert shown["component 0: ATTESTATION_REPORT/VMPL"] == "1"


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", ("empty file",)),
        (b"\0" * 600, ("known formats",)),
        (QUOTES[1][:700], ("Quote Signature Data",)),
        (QUOTES[1][:500], ("offset",)),
        (LOG[:-3], ("offset",)),
        (bytes(REPORT[:1183]), ("known formats",)),
    ],
)
def test_a_broken_file_is_named(tmp_path: Path, data: bytes, words: tuple[str, ...]) -> None:
    path = tmp_path / "broken"
    path.write_bytes(data)
    failed(run("show", path), "broken", *words)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    failed(run("show", tmp_path / "no"), "does not exist")
    failed(run("show", tmp_path), "is a directory")
    failed(run("show"), "FILE")


@settings(max_examples=300, deadline=None)
@given(
    st.sampled_from([*QUOTES, bytes(REPORT), LOG, SAMPLE.to_bytes()]),
    st.integers(0, 2000),
    st.binary(max_size=8),
    st.booleans(),
)
def test_no_damage_raises_anything_but_an_evidence_error(
    data: bytes, at: int, junk: bytes, cut: bool
) -> None:
    at %= len(data)
    damaged = data[:at] + junk + (b"" if cut else data[at + len(junk) :])
    with contextlib.suppress(EvidenceError):
        decode_file(damaged)


def test_sample_evidence_is_collected_by_name(tmp_path: Path) -> None:
    key = tmp_path / "developer.pem"
    key.write_bytes(KEY.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    key.chmod(0o600)
    target = tmp_path / "evidence.json"
    common = ("--attester", "insecure-sample", "--key", key, "--state", tmp_path / "state")
    result = run("collect", *common, "--report-data", "ab" * 64, "--output", target)
    assert result.exit_code == 0, result.output
    assert "sample evidence" in result.output
    assert fields(target)["sample statement (insecure)/report_data"] == "ab" * 64
    failed(run("collect", *common, "--output", target), "exists already")
    again = run("collect", *common, "--output", target, "--force", "--json")
    assert json.loads(again.stdout.splitlines()[-1])["tee"] == "sample"
    failed(run("collect", *common, "--report-data", "ab", "--output", target, "--force"), "64")


def test_auto_states_what_it_looked_for_and_why_it_found_nothing(tmp_path: Path) -> None:
    if any(found.present for found in detect()):
        pytest.skip("this machine can attest")
    target = tmp_path / "evidence.json"
    result = run("collect", "--state", tmp_path / "state", "--output", target)
    looked = ("tsm: ", "ccnp: ", "coco: ", "azure: ", "tpm: there is no TPM device", "hint: ")
    failed(result, "nothing here can attest", *looked)
    assert not target.exists()


@pytest.mark.swtpm
def test_a_software_tpm_attests_when_it_is_asked_for_by_name(tmp_path: Path) -> None:
    if reason := SoftwareTpm.available():
        pytest.skip(reason)
    first, second = tmp_path / "first.json", tmp_path / "second.json"
    state = ("--state", tmp_path / "state")
    result = run(
        *("collect", "--attester", "insecure-software-tpm", *state),
        *("--report-data", "ab" * 32, "--output", first),
    )
    assert result.exit_code == 0, result.output
    assert "attesting with insecure-software-tpm: asked for by name" in result.output
    assert fields(first)["TPMS_ATTEST/extraData"] == "ab" * 32
    with SoftwareTpm(tmp_path / "tpm") as tpm:
        named = ("collect", "--attester", "tpm", "--tcti", tpm.tcti, *state)
        result = run(*named, "--output", second)
        assert result.exit_code == 0, result.output
        assert "attesting with tpm" in result.output
        gone = tpm.tcti
    assert fields(second)["TPMS_ATTEST/extraData"] == bytes(32).hex()
    failed(
        run("collect", "--attester", "tpm", "--tcti", gone, *state, "--output", tmp_path / "x"),
        "tpm",
    )


def test_auto_names_what_it_took_and_what_it_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with coco_agent.CocoAgent(
        quote=lambda data, log: with_report_data(data), log=EventLog.parse(LOG)
    ) as agent:
        monkeypatch.setattr("attestation.attesters.coco.DEFAULT_ADDRESS", agent.address)
        if detect()[0].present or detect()[1].present:
            pytest.skip("this machine can attest with something stronger")
        result = run("collect", "--state", tmp_path / "s", "--output", tmp_path / "evidence")
    assert result.exit_code == 0, result.output
    assert f"attesting with coco: something listens on {agent.address}" in result.output
    assert "(not tsm: " in result.output


def test_a_setting_of_another_attester_is_named(tmp_path: Path) -> None:
    target = tmp_path / "evidence.json"
    failed(
        run("collect", "--attester", "insecure-sample", "--tcti", "x", "--output", target),
        "--tcti",
    )
    assert not target.exists()


def test_fields_state_where_the_claims_that_they_become_come_from(tmp_path: Path) -> None:
    expected: dict[bytes, dict[str, str | None]] = {
        bytes(REPORT): {
            "MEASUREMENT": "signed quote",
            "ID_KEY_DIGEST": "signed quote",
            "HOST_DATA": "set by the host",
            "REPORT_DATA": None,
        },
        QUOTES[1]: {
            "MRTD": "signed quote",
            "RTMR1": "signed quote",
            "MRCONFIGID": "set by the host",
            "REPORTDATA": None,
        },
        QUOTES[0]: {"ISVPRODID": "signed quote"},
        LOG: {"digests.sha384": "measured log", "event": None, "eventType": None},
        SAMPLE.to_bytes(): {"measurements": "self-reported", "key": None},
    }
    for data, origins in expected.items():
        file = tmp_path / "file"
        file.write_bytes(data)
        shown = CliRunner().invoke(main, ["evidence", "show", str(file), "--json"])
        fields = json.loads(shown.stdout)["fields"]
        first = {field["name"]: field["origin"] for field in reversed(fields)}
        assert {name: first[name] for name in origins} == origins
        text = CliRunner().invoke(main, ["evidence", "show", str(file)]).output
        for origin in filter(None, origins.values()):
            assert f"({origin})" in text
    # The enclave that makes Intel's quotes is not the one that they are about.
    quoting = [f for f in decode_file(QUOTES[0])[1] if f.section == "QE Report"]
    assert quoting
    assert all(field.origin is None for field in quoting)
