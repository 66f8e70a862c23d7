"""`fedlearn collateral` for GPUs: RIMs and OCSP answers, from servers that answer like NVIDIA's."""

from __future__ import annotations

import base64
import hashlib
import json
from contextlib import AbstractContextManager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509 import ocsp

from attestation.attesters.sample import SampleAttester
from attestation.binding import ReportData
from attestation.endorsements.chains import split_certificates
from attestation.endorsements.collateral import load_folder
from attestation.endorsements.nvidia_rim import match_rims
from attestation.endorsements.nvidia_sources import (
    ocsp_addresses,
    ocsp_post,
    rim_addresses,
    rim_in_answer,
)
from attestation.errors import EvidenceError, FreshnessError
from attestation.evidence import Evidence, Tee
from attestation.quotes.nvidia import NvidiaReport
from attestation.verifiers import verify
from fedlearn.cli import main
from tests.harness.http_server import QuietHandler, serving_http
from tests.vectors import nvidia as made
from tests.vectors.nvidia import Authority

REAL = Path(__file__).parents[3] / "vectors/nvidia"
NOW = datetime.now(UTC).replace(microsecond=0)
BOARD = {15: b"882\0\0", 17: b"1010\0", 18: b"0200\0"}
GPU = made.Device("GPU")
HOST_KEY = ec.generate_private_key(ec.SECP256R1())
NONCE = hashlib.sha256(bytes(64)).digest()
EVIDENCE = replace(GPU.evidence(NONCE), quote=GPU.report(NONCE, opaque=BOARD | {35: b"GH100\0"}))
DRIVER_ID, VBIOS_ID = "NV_GPU_DRIVER_GH100_550.90.07", "NV_GPU_VBIOS_1010_0200_882_96009F0001"
SIGNER = Authority("Signer", made.RIM_CA, ca=False, end=NOW + timedelta(days=90))
RIMS = {
    DRIVER_ID: made.sign(made.tag(made.DRIVER, made.DRIVER_RESOURCES), SIGNER),
    VBIOS_ID: made.sign(made.tag(made.VBIOS, made.VBIOS_RESOURCES), SIGNER),
}
KNOWN = (made.IDENTITY, made.RIM_CA, SIGNER, GPU.identity)


class Nvidia:
    """What the two services give, and what they were asked with."""

    def __init__(self) -> None:
        self.until = NOW + timedelta(hours=20)
        self.rims = dict(RIMS)
        self.asked: list[tuple[str, str]] = []
        self.broken: dict[str, bytes] = {}

    def get(self, path: str, key: str) -> bytes | None:
        self.asked.append((path, key))
        name = path.rpartition("/")[2]
        if name in self.broken:
            return self.broken[name]
        if name not in self.rims:
            return None
        return json.dumps({"id": name, "rim": base64.b64encode(self.rims[name]).decode()}).encode()

    def post(self, body: bytes) -> bytes:
        serial = ocsp.load_der_ocsp_request(body).serial_number
        self.asked.append(("OCSP", f"{serial:x}"))
        if "OCSP" in self.broken:
            return self.broken["OCSP"]
        subject = next(item for item in KNOWN if item.certificate.serial_number == serial)
        return made.answer(subject, start=NOW - timedelta(hours=4), end=self.until)


def serving(nvidia: Nvidia) -> AbstractContextManager[str]:
    class Handler(QuietHandler):
        def do_GET(self) -> None:
            self.reply(nvidia.get(self.path, self.headers.get("Authorization", "")))

        def do_POST(self) -> None:
            assert self.headers["Content-Type"] == "application/ocsp-request"
            assert "Authorization" not in self.headers
            self.reply(nvidia.post(self.rfile.read(int(self.headers["Content-Length"]))))

        def reply(self, body: bytes | None) -> None:
            self.send_response(404 if body is None else 200)
            self.end_headers()
            self.wfile.write(body or b"")

    return serving_http(Handler)


def run(*arguments: object) -> Result:
    result = CliRunner().invoke(main, ["collateral", *map(str, arguments)])
    assert "Traceback" not in result.output
    return result


def fetch(folder: Path, url: str, *more: object) -> Result:
    urls = ("--nvidia-rim-url", url, "--nvidia-ocsp-url", f"{url}/ocsp")
    return run("fetch", "--directory", folder, *urls, *more)


@pytest.fixture
def evidence(tmp_path: Path) -> Path:
    host = SampleAttester(HOST_KEY, b"host", {}, clock=NOW.timestamp)
    path = tmp_path / "evidence.json"
    whole = replace(host.collect(ReportData(value=bytes(64))), components=(EVIDENCE,))
    path.write_bytes(whole.to_bytes())
    return path


def test_rims_and_answers_are_fetched_and_verify_the_gpu(tmp_path: Path, evidence: Path) -> None:
    nvidia, folder = Nvidia(), tmp_path / "bundle"
    with serving(nvidia) as url:
        result = fetch(folder, url, "--evidence", evidence)
    assert result.exit_code == 0, result.output
    assert [path for path, _ in nvidia.asked if path != "OCSP"] == [
        f"/v1/rim/{DRIVER_ID}",
        f"/v1/rim/{VBIOS_ID}",
    ]
    assert len(nvidia.asked) == 2 + 4
    loaded = load_folder(folder, now=NOW)
    assert (len(loaded.collateral), loaded.endorsements, loaded.warnings) == (6, (), ())
    trust = replace(made.TRUST, collateral=loaded.collateral)
    claims = verify(EVIDENCE, binding=ReportData(value=bytes(64)), trust=trust, now=NOW)
    assert {"nvidia.rim", "nvidia.revocation"} <= set(claims.measurements)
    shown = run("show", "--directory", folder)
    assert "nvidia-rim" in shown.output
    assert f"NVIDIA RIM of GH100 550.90.07  ({DRIVER_ID}.swidtag)" in shown.output
    assert f"ocsp              until {nvidia.until.isoformat()}" in shown.output


def test_answers_expire_within_a_day_and_are_fetched_again(tmp_path: Path, evidence: Path) -> None:
    nvidia, folder = Nvidia(), tmp_path / "bundle"
    with serving(nvidia) as url:
        assert fetch(folder, url, "--evidence", evidence).exit_code == 0
        assert "warning" not in run("check", "--directory", folder).stderr
        soon, late = nvidia.until - timedelta(hours=11), nvidia.until
        warned = run("check", "--directory", folder, "--at", soon.isoformat())
        assert warned.exit_code == 0
        assert "warning: OCSP answer for serial" in warned.stderr
        refused = run("check", "--directory", folder, "--at", late.isoformat())
        assert refused.exit_code == 1
        assert "OCSP answer for serial" in refused.stderr
        assert "expired at" in refused.stderr
        with pytest.raises(FreshnessError, match="OCSP answer"):
            load_folder(folder, now=late)
        nvidia.until += timedelta(hours=24)
        renewed = run("fetch", "--directory", folder)
        assert renewed.exit_code == 0, renewed.output
        assert run("check", "--directory", folder, "--at", late.isoformat()).exit_code == 0


def test_a_key_goes_to_the_rim_service_and_into_no_file(tmp_path: Path, evidence: Path) -> None:
    nvidia, folder, key = Nvidia(), tmp_path / "bundle", tmp_path / "key"
    key.write_text("nvapi-secret\n")
    with serving(nvidia) as url:
        result = fetch(folder, url, "--evidence", evidence, "--nvidia-key-file", key)
        assert result.exit_code == 0, result.output
        keys = {reported for path, reported in nvidia.asked if path != "OCSP"}
        assert keys == {"Bearer nvapi-secret"}
        for text in (b"two lines\nof it", b"\xff", b""):
            key.write_bytes(text)
            result = fetch(folder, url, "--evidence", evidence, "--nvidia-key-file", key)
            assert result.exit_code == 1
            assert "printable" in result.stderr
    assert "secret" not in result.output
    assert not any(b"nvapi-secret" in item.read_bytes() for item in folder.iterdir())


@pytest.mark.parametrize(
    ("broken", "words"),
    [
        ({DRIVER_ID: b"<html>"}, "is not an answer of NVIDIA's RIM service"),
        ({DRIVER_ID: b'{"rim": "AAAA"}'}, "has no SWID tag"),
        (
            {VBIOS_ID: json.dumps({"rim": base64.b64encode(b"<SoftwareIdentity/>").decode()})},
            "is not collateral",
        ),
        ({"OCSP": b"<html>"}, "is not collateral"),
        ({"OCSP": made.IDENTITY.certificate.tbs_certificate_bytes}, "is not collateral"),
        ({"OCSP": made.IDENTITY.pem}, "is certificates, not ocsp"),
    ],
)
def test_a_bad_answer_leaves_the_folder_as_it_was(
    tmp_path: Path, evidence: Path, broken: dict[str, bytes | str], words: str
) -> None:
    nvidia, folder = Nvidia(), tmp_path / "bundle"
    with serving(nvidia) as url:
        assert fetch(folder, url, "--evidence", evidence).exit_code == 0
        before = {item.name: item.read_bytes() for item in folder.iterdir()}
        nvidia.broken = {
            name: data.encode() if isinstance(data, str) else data for name, data in broken.items()
        }
        result = fetch(folder, url, "--evidence", evidence)
    assert result.exit_code == 1
    assert words in result.stderr, result.stderr
    assert {item.name: item.read_bytes() for item in folder.iterdir()} == before


def test_a_rim_that_nvidia_does_not_have_is_named(tmp_path: Path, evidence: Path) -> None:
    nvidia = Nvidia()
    del nvidia.rims[VBIOS_ID]
    with serving(nvidia) as url:
        result = fetch(tmp_path / "bundle", url, "--evidence", evidence)
    assert result.exit_code == 1
    assert f"rim-{VBIOS_ID}" in result.stderr
    assert "answered 404" in result.stderr


def test_what_was_got_another_way_is_added(tmp_path: Path, evidence: Path) -> None:
    folder, files = tmp_path / "bundle", tmp_path / "files"
    files.mkdir()
    (files / "driver.swidtag").write_bytes(RIMS[DRIVER_ID])
    answered = {"id": VBIOS_ID, "rim": base64.b64encode(RIMS[VBIOS_ID]).decode()}
    (files / "vbios.json").write_text(json.dumps(answered))
    for number, subject in enumerate(KNOWN):
        end = NOW + timedelta(hours=20)
        (files / f"{number}.der").write_bytes(
            made.answer(subject, start=NOW - timedelta(hours=4), end=end)
        )
    result = run("add", "--directory", folder, files)
    assert result.exit_code == 0, result.output
    assert "added NVIDIA RIM of GH100 96.00.9F.00.01, valid until" in result.output
    loaded = load_folder(folder, now=NOW)
    trust = replace(made.TRUST, collateral=loaded.collateral)
    claims = verify(EVIDENCE, binding=None, trust=trust, now=NOW)
    assert {"nvidia.rim", "nvidia.revocation"} <= set(claims.measurements)
    damaged = files / "driver.swidtag"
    damaged.write_bytes(RIMS[DRIVER_ID].replace(b"<ds:X509Data>", b"<!-- -->"))
    refused = run("add", "--directory", folder, damaged)
    assert refused.exit_code == 1
    assert "driver.swidtag" in refused.stderr
    plain = tmp_path / "plain"
    files.rename(plain)
    (plain / "driver.swidtag").write_bytes(RIMS[DRIVER_ID])
    (plain / "vbios.json").write_bytes(RIMS[VBIOS_ID])
    assert len(load_folder(plain, now=NOW).collateral) == 6


def test_policy_verify_takes_the_folder(tmp_path: Path) -> None:
    for name in ("NV_GPU_DRIVER_GH100_550.90.07.xml", "NV_GPU_VBIOS_1010_0200_882_96009F0001.xml"):
        (tmp_path / name).write_bytes((REAL / name).read_bytes())
    policy = tmp_path.parent / f"{tmp_path.name}.toml"
    policy.write_text('accept = ["tdx"]\n')
    source = tmp_path.parent / f"{tmp_path.name}.json"
    evidence = Evidence(
        tee=Tee.NVIDIA,
        quote=(REAL / "hopper_report.bin").read_bytes(),
        endorsements=((REAL / "hopper_chain.pem").read_bytes(),),
    )
    source.write_bytes(evidence.to_bytes())
    command = ("policy", "explain", "--evidence", source, "--policy", policy)
    at = ("--at", "2025-10-24T12:00:00Z")
    result = CliRunner().invoke(main, [*map(str, command), *at, "--collateral", str(tmp_path)])
    assert result.exit_code == 2, result.output
    other = CliRunner().invoke(
        main, [*map(str, command), *at, "--collateral", str(REAL / "other_driver.swidtag")]
    )
    assert other.exit_code != 0
    assert "no RIM is for driver 550.90.07" in other.output + other.stderr


def test_the_ids_of_rims_are_those_of_nvidias_sdk() -> None:
    hopper = NvidiaReport.parse((REAL / "hopper_report.bin").read_bytes())
    assert list(rim_addresses(hopper, "NVIDIA:GH100:48B02D92494BADF4")) == [
        f"rim-{DRIVER_ID}",
        f"rim-{VBIOS_ID}",
    ]
    blackwell = NvidiaReport.parse(GPU.report(NONCE, opaque=BOARD | {35: b"GB100\0"}))
    assert next(iter(rim_addresses(blackwell, "").values())) == (
        "https://rim.attestation.nvidia.com/v1/rim/NV_GPU_CC_DRIVER_GB100_550.90.07"
    )
    switch = NvidiaReport.parse((REAL / "nvswitch_report.bin").read_bytes())
    assert list(rim_addresses(switch, "")) == ["rim-NV_SWITCH_BIOS_5612_0002_890_96106D0001"]
    for change in ({3: b"../../x\0"}, {17: b""}, {3: b""}):
        odd = NvidiaReport.parse(GPU.report(NONCE, opaque=BOARD | change))
        with pytest.raises(EvidenceError, match="no RIM can be asked for"):
            rim_addresses(odd, "NVIDIA:GH100:1")


def test_an_address_of_ocsp_has_its_request() -> None:
    chain = split_certificates((REAL / "hopper_chain.pem").read_bytes(), "chain")[1:]
    addresses = ocsp_addresses([chain, chain])
    assert len(addresses) == 3
    for address in addresses.values():
        url, request = ocsp_post(address)
        assert url == "https://ocsp.ndis.nvidia.com"
        assert ocsp.load_der_ocsp_request(request)
        assert len(address) < 512
    with pytest.raises(EvidenceError):
        ocsp_post("https://ocsp.ndis.nvidia.com/*")
    with pytest.raises(EvidenceError):
        rim_in_answer(b"[]")


def test_the_rims_of_these_tests_match() -> None:
    report = NvidiaReport.parse(EVIDENCE.quote)
    root = made.TRUST.nvidia_rim_root
    assert len(match_rims(report, tuple(RIMS.values()), root=root, now=NOW)) == 2
