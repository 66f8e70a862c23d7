"""`fedlearn collateral`: fetched from real HTTP servers, kept, checked, and mended."""

from __future__ import annotations

import json
import struct
from contextlib import AbstractContextManager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.parse import quote

import pytest
from click.testing import CliRunner, Result
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from attestation.endorsements.collateral import BUNDLE_NAME, load_folder
from attestation.errors import EndorsementError, EvidenceError, FreshnessError
from fedlearn.cli import main
from tests.harness.http_server import QuietHandler, serving_http

NOW = datetime.now(UTC).replace(microsecond=0)
FMSPC = "B0C06F000000"
KEY = ec.generate_private_key(ec.SECP256R1())
NAME = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "Test Root")])


def certificate(until: datetime) -> bytes:
    builder = x509.CertificateBuilder().subject_name(NAME).issuer_name(NAME)
    builder = builder.public_key(KEY.public_key()).serial_number(7)
    builder = builder.not_valid_before(NOW - timedelta(days=1)).not_valid_after(until)
    return builder.sign(KEY, hashes.SHA256()).public_bytes(Encoding.PEM)


def crl(until: datetime) -> bytes:
    builder = x509.CertificateRevocationListBuilder().issuer_name(NAME)
    builder = builder.last_update(NOW - timedelta(days=1)).next_update(until)
    return builder.sign(KEY, hashes.SHA256()).public_bytes(Encoding.DER)


class Vendor:
    """What the two vendors publish, with an expiry that a test can move."""

    def __init__(self) -> None:
        self.until = NOW + timedelta(days=30)
        self.asked: list[str] = []
        self.status = 200
        self.broken = ""
        self.sooner = ""

    def ends(self, path: str) -> datetime:
        """When what lies at ``path`` ends: in three days where ``sooner`` is part of it."""
        return NOW + timedelta(days=3) if self.sooner and self.sooner in path else self.until

    def answer(self, path: str) -> tuple[dict[str, str], bytes]:
        self.asked.append(path)
        chain = quote(certificate(NOW + timedelta(days=900)).decode())
        if self.broken and self.broken in path:
            return {}, b"<html>"
        dates = {
            "issueDate": (NOW - timedelta(days=1)).isoformat().replace("+00:00", "Z"),
            "nextUpdate": self.ends(path).isoformat().replace("+00:00", "Z"),
        }
        if "/tcb?" in path:
            info = json.dumps({"id": "TDX", "fmspc": FMSPC, **dates}, separators=(",", ":"))
            body = f'{{"tcbInfo":{info},"signature":"ABCD"}}'
            return {"TCB-Info-Issuer-Chain": chain}, body.encode()
        if path.endswith("/qe/identity"):
            body = f'{{"enclaveIdentity":{json.dumps(dates)},"signature":"abcd"}}'
            return {"SGX-Enclave-Identity-Issuer-Chain": chain}, body.encode()
        if "/pckcrl?" in path:
            return {"SGX-PCK-CRL-Issuer-Chain": chain}, crl(self.ends(path))
        if path.endswith((".der", "/crl")):
            return {}, crl(self.ends(path))
        return {}, certificate(self.ends(path))


def serving(vendor: Vendor) -> AbstractContextManager[str]:
    class Handler(QuietHandler):
        def do_GET(self) -> None:
            headers, body = vendor.answer(self.path)
            self.send_response(vendor.status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

    return serving_http(Handler)


def run(*arguments: object) -> Result:
    result = CliRunner().invoke(main, ["collateral", *map(str, arguments)])
    assert "Traceback" not in result.output
    return result


def failed(result: Result, *words: str) -> None:
    assert result.exit_code == 1, result.output
    for word in ("error:", *words):
        assert word in result.stderr, result.stderr


def fetch(folder: Path, url: str, *more: object) -> Result:
    urls = ("--intel-url", url, "--intel-crl-url", f"{url}/root.der", "--amd-url", url)
    return run("fetch", "--directory", folder, *urls, *more)


def test_intel_collateral_is_fetched_and_loaded(tmp_path: Path) -> None:
    vendor, folder = Vendor(), tmp_path / "bundle"
    with serving(vendor) as url:
        result = fetch(folder, url, "--fmspc", FMSPC)
    assert result.exit_code == 0, result.output
    assert FMSPC in result.output
    assert any(f"fmspc={FMSPC}" in path for path in vendor.asked)
    loaded = load_folder(folder, now=NOW)
    document = json.loads(loaded.collateral[0])
    assert json.loads(document["tcb_info"])["fmspc"] == FMSPC
    assert document["tcb_info_signature"] == "abcd"
    assert "-----BEGIN CERTIFICATE" in document["pck_crl_issuer_chain"]
    assert loaded.warnings == ()
    shown = run("show", "--directory", folder)
    assert "intel-collateral" in shown.output
    assert run("check", "--directory", folder).exit_code == 0
    assert json.loads(run("check", "--directory", folder, "--json").stdout)["items"] == 1


def report(version: int = 3, family: int = 0x19, model: int = 0x01, chip: bytes = b"\x0c") -> bytes:
    data = bytearray(1184)
    data[0:4] = struct.pack("<I", version)
    data[0x34] = 1  # ECDSA on P-384 with SHA-384
    data[0x188:0x18A] = bytes([family, model])
    data[0x1A0:0x1E0] = chip * 64
    data[0x180:0x188] = bytes([3, 0, 0, 0, 0, 0, 8, 115])
    return bytes(data)


@pytest.mark.parametrize(
    ("family", "model", "query"),
    [
        (0x19, 0x01, "/vcek/v1/Milan/" + "0c" * 64 + "?blSPL=03&teeSPL=00&snpSPL=08&ucodeSPL=115"),
        (0x19, 0x11, "/vcek/v1/Genoa/" + "0c" * 64 + "?blSPL=03"),
        (0x1A, 0x02, "/vcek/v1/Turin/" + "0c" * 8 + "?fmcSPL=03&blSPL=00"),
    ],
)
def test_amd_certificates_are_fetched_for_a_report(
    tmp_path: Path, family: int, model: int, query: str
) -> None:
    vendor, folder, evidence = Vendor(), tmp_path / "bundle", tmp_path / "report.bin"
    evidence.write_bytes(report(family=family, model=model))
    with serving(vendor) as url:
        result = fetch(folder, url, "--evidence", evidence)
    assert result.exit_code == 0, result.output
    assert any(path.startswith(query) for path in vendor.asked), vendor.asked
    assert len(load_folder(folder, now=NOW).endorsements) == 3


def test_what_expires_is_warned_of_and_then_refused_and_mended(tmp_path: Path) -> None:
    vendor, folder = Vendor(), tmp_path / "bundle"
    with serving(vendor) as url:
        fetch(folder, url, "--fmspc", FMSPC)
        soon = (NOW + timedelta(days=26)).isoformat()
        warned = run("check", "--directory", folder, "--at", soon)
        assert warned.exit_code == 0
        assert "warning: Intel collateral" in warned.stderr
        late = (NOW + timedelta(days=30)).isoformat()
        failed(
            run("check", "--directory", folder, "--at", late),
            "expired at",
            FMSPC,
            f"fedlearn collateral fetch --directory {folder}",
        )
        with pytest.raises(FreshnessError, match="counts only from"):
            load_folder(folder, now=NOW - timedelta(days=2))
        vendor.until = NOW + timedelta(days=60)
        (item,) = json.loads(run("fetch", "--directory", folder, "--json").stdout)["items"]
        assert FMSPC in item["name"]
        assert run("check", "--directory", folder, "--at", late).exit_code == 0


KINDS = {
    "TCB info": ("/tcb?", "Intel collateral"),
    "QE identity": ("/qe/identity", "Intel collateral"),
    "PCK CRL": ("/pckcrl?", "Intel collateral"),
    "root CA CRL": ("/root.der", "Intel collateral"),
    "VCEK": ("?blSPL", "-vcek.der"),
    "AMD chain": ("/cert_chain", "-chain.pem"),
    "AMD CRL": ("/crl", "revocation list"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_warns_before_its_day_and_is_refused_after_it(tmp_path: Path, kind: str) -> None:
    vendor, folder, evidence = Vendor(), tmp_path / "bundle", tmp_path / "report.bin"
    vendor.sooner, named = KINDS[kind]
    evidence.write_bytes(report())
    with serving(vendor) as url:
        assert fetch(folder, url, "--fmspc", FMSPC, "--evidence", evidence).exit_code == 0
    policy = tmp_path / "policy.toml"
    policy.write_text('accept = ["snp"]\n')
    day = vendor.ends(vendor.sooner)
    verify = ("verify", "--evidence", evidence, "--collateral", folder, "--policy", policy)
    for at, late in ((NOW, False), (day + timedelta(seconds=1), True)):
        checked = run("check", "--directory", folder, "--at", at.isoformat())
        verified = CliRunner().invoke(main, ["policy", *map(str, verify), "--at", at.isoformat()])
        for result in (checked, verified):
            word = "expired at" if late else "expires at"
            [line] = [line for line in result.stderr.splitlines() if word in line]
            assert line.startswith("error: " if late else "warning: ")
            assert named in line
            assert f"{word} {day.isoformat()}" in line
            assert f"fedlearn collateral fetch --directory {folder}" in result.stderr
        assert checked.exit_code == (1 if late else 0)


@pytest.mark.parametrize("damage", ["missing", "altered"])
def test_a_missing_or_altered_item_is_named_and_mended(tmp_path: Path, damage: str) -> None:
    vendor, folder = Vendor(), tmp_path / "bundle"
    with serving(vendor) as url:
        fetch(folder, url, "--fmspc", FMSPC)
        [item] = folder.glob("intel-*.json")
        if damage == "missing":
            item.unlink()
        else:
            item.write_bytes(item.read_bytes() + b" ")
        with pytest.raises(EndorsementError, match="intel-tdx"):
            load_folder(folder, now=NOW)
        failed(run("check", "--directory", folder), item.name, "collateral fetch --directory")
        assert run("fetch", "--directory", folder).exit_code == 0
        assert run("check", "--directory", folder).exit_code == 0


def test_no_network_is_one_plain_line(tmp_path: Path) -> None:
    folder = tmp_path / "bundle"
    result = fetch(folder, "http://127.0.0.1:9", "--fmspc", FMSPC)
    failed(result, "TCB info: 127.0.0.1:9 cannot be reached", "carry the folder")
    assert f"http://127.0.0.1:9/tdx/certification/v4/tcb?fmspc={FMSPC}" in result.stderr
    assert "fedlearn collateral add" in result.stderr
    assert not folder.exists()


def test_a_bad_answer_leaves_the_folder_as_it_was(tmp_path: Path) -> None:
    vendor, folder = Vendor(), tmp_path / "bundle"
    with serving(vendor) as url:
        fetch(folder, url, "--fmspc", FMSPC)
        before = {item.name: item.read_bytes() for item in folder.iterdir()}
        vendor.status = 404
        failed(fetch(folder, url, "--fmspc", FMSPC), "answered 404")
        vendor.status = 200
        for part in ("/tcb?", "/qe/identity", "/pckcrl?", "/root.der"):
            vendor.broken = part
            failed(fetch(folder, url, "--fmspc", FMSPC), "the answer")
    assert {item.name: item.read_bytes() for item in folder.iterdir()} == before


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (report(version=2), ("--product",)),
        (report(chip=b"\0"), ("CHIP_ID", "masked")),
        (b'{"tee":"sample","quote":"AAAA"}', ("no vendor",)),
        (b"junk", ("known formats",)),
    ],
)
def test_evidence_that_tells_nothing_is_named(
    tmp_path: Path, data: bytes, words: tuple[str, ...]
) -> None:
    evidence = tmp_path / "evidence"
    evidence.write_bytes(data)
    failed(fetch(tmp_path / "bundle", "http://127.0.0.1:9", "--evidence", evidence), *words)


def test_broken_flags_are_named(tmp_path: Path) -> None:
    folder = tmp_path / "bundle"
    failed(run("fetch", "--directory", folder), "nothing to fetch")
    failed(run("fetch", "--directory", folder, "--fmspc", "xyz"), "--fmspc", "12 hex digits")
    failed(run("check", "--directory", folder), BUNDLE_NAME, "collateral fetch")
    failed(run("show", "--directory", folder), BUNDLE_NAME)


ITEM = {"path": "a.pem", "kind": "certificates", "name": "a", "sha256": "00" * 32}


@pytest.mark.parametrize(
    ("document", "field"),
    [
        ([], "bundle.json"),
        ({"version": 2, "items": [], "sources": {}}, "version"),
        ({"version": 1, "items": {}, "sources": {}}, "items"),
        ({"version": 1, "items": [], "sources": []}, "sources"),
        ({"version": 1, "items": [{}], "sources": {}}, "items[0]"),
        ({"version": 1, "items": [{**ITEM, "path": "../a"}], "sources": {}}, "items[0].path"),
        ({"version": 1, "items": [{**ITEM, "path": "/a"}], "sources": {}}, "items[0].path"),
        ({"version": 1, "items": [{**ITEM, "kind": "x"}], "sources": {}}, "items[0].kind"),
        ({"version": 1, "items": [{**ITEM, "sha256": "x"}], "sources": {}}, "items[0].sha256"),
        ({"version": 1, "items": [{**ITEM, "name": 3}], "sources": {}}, "items[0].name"),
    ],
)
def test_a_malformed_list_is_named(tmp_path: Path, document: object, field: str) -> None:
    (tmp_path / BUNDLE_NAME).write_text(json.dumps(document))
    with pytest.raises(EvidenceError) as error:
        load_folder(tmp_path, now=NOW)
    assert field in error.value.field


REPORTED = Path(__file__).parents[3] / "attestation" / "reported"


def test_a_plain_folder_is_taken_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "root.pem").write_bytes(certificate(NOW + timedelta(days=1)))
    (tmp_path / "list.crl").write_bytes(crl(NOW + timedelta(days=1)))
    (tmp_path / "note.json").write_text("{}")
    loaded = load_folder(tmp_path, now=NOW)
    assert [Path(item.name).name for item in loaded.endorsements] == ["list.crl", "root.pem"]
    assert loaded.warnings == ()
    malformed = REPORTED / "NUVO_2111.pem"
    (tmp_path / "root.pem").write_bytes(
        malformed.read_bytes() + (tmp_path / "root.pem").read_bytes()
    )
    (tmp_path / "vendor.pem").write_bytes(malformed.read_bytes())
    loaded = load_folder(tmp_path, now=NOW)
    assert [Path(item.name).name for item in loaded.endorsements] == ["list.crl", "root.pem"]
    assert [text.split(":")[0] for text in loaded.warnings] == [
        str(tmp_path / "root.pem"),
        str(tmp_path / "vendor.pem"),
    ]
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(EndorsementError, match="holds no collateral"):
        load_folder(empty, now=NOW)
