"""Answers of Intel's service as they came: put together, verified with, and named where missing."""

from __future__ import annotations

import json
import os
from base64 import b64encode
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from urllib.parse import quote

import pytest
from click.testing import CliRunner, Result
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from attestation.endorsements.collateral import load_folder
from attestation.errors import EndorsementError, EvidenceError, VerificationError
from attestation.evidence import Evidence, Tee
from attestation.trust import TrustAnchors
from attestation.verifiers import verify
from fedlearn.cli import main

DATA = Path(__file__).parents[3] / "vectors" / "data"
MADE = json.loads((DATA / "manifest.json").read_bytes())
NOW = datetime.fromisoformat(MADE["at"])
REAL = Path(os.environ.get("FEDLEARN_VECTORS", Path(__file__).parents[5] / "shared/vectors"))


def pem(crl: bytes) -> bytes:
    return x509.load_der_x509_crl(crl).public_bytes(Encoding.PEM)


def write(folder: Path, document: dict[str, str], style: str = "plain") -> None:
    """Write what the service would have answered, as one of the tools that ask it keeps it."""
    folder.mkdir(parents=True, exist_ok=True)
    lists: dict[str, Callable[[bytes], bytes]] = {
        "plain": bytes,
        "pem": pem,
        "hex": lambda crl: crl.hex().encode() + b"\n",
        "base64": b64encode,
        "curl": bytes,
    }
    bodies = {
        "tcb": signed("tcbInfo", document["tcb_info"], document["tcb_info_signature"]),
        "identity": signed(
            "enclaveIdentity", document["qe_identity"], document["qe_identity_signature"]
        ),
        "pckcrl": lists[style](bytes.fromhex(document["pck_crl"])),
    }
    chains = {
        "tcb": ("TCB-Info-Issuer-Chain", document["tcb_info_issuer_chain"]),
        "identity": ("SGX-Enclave-Identity-Issuer-Chain", document["qe_identity_issuer_chain"]),
        "pckcrl": ("SGX-PCK-CRL-Issuer-Chain", document["pck_crl_issuer_chain"]),
    }
    (folder / "rootcrl").write_bytes(lists[style](bytes.fromhex(document["root_ca_crl"])))
    for name, body in bodies.items():
        header, chain = chains[name]
        field = f"HTTP/1.1 200 OK\r\nDate: today\r\n{header}: {quote(chain)}\r\n\r\n".encode()
        if style == "curl":
            proxy = b"HTTP/1.1 200 Connection established\r\n\r\n" if name == "tcb" else b""
            (folder / name).write_bytes(proxy + field + body)
            continue
        (folder / name).write_bytes(body)
        kept = chain.encode() if style == "pem" else field
        (folder / f"{name}.chain").write_bytes(kept)


def signed(name: str, text: str, signature: str) -> bytes:
    return f'{{"{name}":{text},"signature":"{signature}"}}'.encode()


def made(name: str = "tdx") -> dict[str, str]:
    found: dict[str, str] = json.loads((DATA / f"{name}_collateral.json").read_bytes())
    return found


def judged(folder: Path, name: str = "tdx_v4_quote.bin", tee: Tee = Tee.TDX) -> str:
    """Return the TCB status that the made quote gets with the collateral of ``folder``."""
    loaded = load_folder(folder, now=NOW)
    trust = TrustAnchors(intel_root=bytes.fromhex(MADE["intel_root"]), collateral=loaded.collateral)
    evidence = Evidence(tee=tee, quote=(DATA / name).read_bytes())
    return verify(evidence, binding=None, trust=trust, now=NOW).tcb


def run(*arguments: object) -> Result:
    result = CliRunner().invoke(main, list(map(str, arguments)))
    assert "Traceback" not in result.output
    return result


@pytest.mark.parametrize("style", ["plain", "pem", "hex", "base64", "curl"])
def test_a_folder_of_answers_is_collateral(tmp_path: Path, style: str) -> None:
    write(tmp_path, made(), style)
    (tmp_path / "notes.txt").write_text("asked on Monday")
    assert judged(tmp_path) == "UpToDate"
    assert load_folder(tmp_path, now=NOW).endorsements == ()


def test_answers_for_both_tees_lie_side_by_side(tmp_path: Path) -> None:
    write(tmp_path, made())
    write(tmp_path / "sgx", made("sgx"))
    for file in (tmp_path / "sgx").iterdir():
        file.rename(tmp_path / f"sgx-{file.name}")
    (tmp_path / "sgx").rmdir()
    assert judged(tmp_path) == "UpToDate"
    assert judged(tmp_path, "sgx_v3_quote.bin", Tee.SGX) == "UpToDate"


@pytest.mark.parametrize(
    ("file", "piece", "remedy"),
    [
        ("tcb", "the TCB info", "/tdx/certification/v4/tcb?fmspc=FMSPC"),
        ("identity", "the TDX QE identity", "/tdx/certification/v4/qe/identity"),
        ("pckcrl", "the revocation list of the PCK CA", "/sgx/certification/v4/pckcrl?ca="),
        ("rootcrl", "the revocation list of the root CA", "IntelSGXRootCA.der"),
        ("*.chain", "the certificate of the TCB signer", "TCB-Info-Issuer-Chain"),
    ],
)
def test_a_missing_piece_is_named_with_its_address(
    tmp_path: Path, file: str, piece: str, remedy: str
) -> None:
    write(tmp_path, made())
    for gone in tmp_path.glob(file):
        gone.unlink()
    with pytest.raises(EndorsementError, match=f"{piece} is missing") as raised:
        load_folder(tmp_path, now=NOW)
    assert remedy in raised.value.hint
    result = run("collateral", "add", "--directory", tmp_path / "made", tmp_path)
    assert result.exit_code == 1
    assert f"{piece} is missing" in result.stderr
    assert remedy in result.stderr
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize("half", ["tcb", "identity", "pckcrl", "rootcrl"])
def test_an_altered_answer_is_refused(tmp_path: Path, half: str) -> None:
    write(tmp_path, made())
    data = (tmp_path / half).read_bytes()
    if half in ("tcb", "identity"):
        changed = data.replace(b"UpToDate", b"UpToDatE")
    else:
        changed = data[:-1] + bytes([data[-1] ^ 1])
    assert changed != data
    (tmp_path / half).write_bytes(changed)
    with pytest.raises(VerificationError):
        judged(tmp_path)


def test_of_several_signers_and_lists_the_right_ones_are_taken(tmp_path: Path) -> None:
    old = x509.load_der_x509_crl(bytes.fromhex(made()["pck_crl"]))
    other = ec.generate_private_key(ec.SECP256R1())
    chain = x509.load_pem_x509_certificates(made()["tcb_info_issuer_chain"].encode())
    twin = x509.CertificateBuilder().subject_name(chain[0].subject).issuer_name(chain[0].issuer)
    twin = twin.public_key(other.public_key()).serial_number(9)
    twin = twin.not_valid_before(NOW - timedelta(days=1)).not_valid_after(NOW + timedelta(days=1))
    write(tmp_path, made())
    (tmp_path / "aaa.der").write_bytes(twin.sign(other, hashes.SHA256()).public_bytes(Encoding.DER))
    for name, days in (("aaa.crl", -900), ("zzz.crl", 2)):
        crl = x509.CertificateRevocationListBuilder().issuer_name(old.issuer)
        crl = crl.last_update(NOW + timedelta(days=days))
        crl = crl.next_update(NOW + timedelta(days=days + 30))
        made_of = crl.sign(other, hashes.SHA256()).public_bytes(Encoding.DER)
        (tmp_path / name).write_bytes(made_of)
    assert judged(tmp_path) == "UpToDate"


def test_added_answers_become_a_bundle(tmp_path: Path) -> None:
    write(tmp_path / "answers", made(), "curl")
    folder = tmp_path / "bundle"
    result = run("collateral", "add", "--directory", folder, tmp_path / "answers")
    assert result.exit_code == 0, result.output
    fmspc = json.loads(made()["tcb_info"])["fmspc"]
    assert f"added Intel collateral for FMSPC {fmspc} (TDX), valid until" in result.output
    assert judged(folder) == "UpToDate"
    shown = run("collateral", "show", "--directory", folder, "--json")
    assert [item["kind"] for item in json.loads(shown.output)["items"]] == ["intel-collateral"]
    sources = json.loads((folder / "bundle.json").read_bytes())["sources"]
    assert any("fmspc=" in address for parts in sources.values() for address in parts.values())
    again = run("collateral", "add", "--directory", folder, DATA / "snp_genoa_ask_ark.pem")
    assert again.exit_code == 0, again.output
    assert len(load_folder(folder, now=NOW).endorsements) == 1
    assert judged(folder) == "UpToDate"


def test_a_file_that_is_none_is_named(tmp_path: Path) -> None:
    file = tmp_path / "notes.txt"
    file.write_text("asked on Monday")
    result = run("collateral", "add", "--directory", tmp_path / "bundle", file)
    assert result.exit_code == 1
    assert "notes.txt: is not an answer of a vendor's service" in result.stderr
    gone = run("collateral", "add", "--directory", tmp_path / "bundle", tmp_path / "gone")
    assert gone.exit_code == 1
    assert "cannot be read" in gone.stderr


@pytest.mark.parametrize(
    ("body", "field"),
    [
        (b'{"tcbInfo":{"fmspc":"00"},"signature":"00"}', "12 hex digits"),
        (b'{"tcbInfo":{"fmspc":"000000000000","id":"TDX"},"signature":"00"}', "issueDate"),
        (b'{"tcbInfo":{],},"signature":"00"}', "not a JSON document"),
    ],
)
def test_a_malformed_answer_is_named(tmp_path: Path, body: bytes, field: str) -> None:
    (tmp_path / "tcb").write_bytes(body)
    with pytest.raises(EvidenceError, match=field):
        load_folder(tmp_path, now=NOW)


@pytest.mark.skipif(
    not (REAL / "manifest.json").is_file(),
    reason="no real evidence here; FEDLEARN_VECTORS names its folder",
)
@pytest.mark.parametrize("style", ["plain", "curl"])
def test_real_answers_judge_a_real_quote(tmp_path: Path, style: str) -> None:
    write(tmp_path, json.loads((REAL / "tdx_v4_quote_phala.collateral.json").read_bytes()), style)
    flags = ("--collateral", tmp_path, "--at", "2025-06-20T00:00:00Z")
    evidence = REAL / "tdx_v4_quote_phala.bin"
    policy = tmp_path / "policy.toml"
    drafted = run("policy", "init", "--from-evidence", evidence, *flags, "--output", policy)
    assert drafted.exit_code == 0, drafted.output
    verdict = run("policy", "verify", "--evidence", evidence, *flags, "--policy", policy, "--json")
    assert verdict.exit_code == 0, verdict.output
    assert json.loads(verdict.output)["tcb_status"] == "UpToDate"
    tcb = tmp_path / "tcb"
    tcb.write_bytes(tcb.read_bytes().replace(b'"OutOfDate"', b'"UpToDate"', 1))
    refused = run("policy", "verify", "--evidence", evidence, *flags, "--policy", policy)
    assert refused.exit_code == 2, refused.output
