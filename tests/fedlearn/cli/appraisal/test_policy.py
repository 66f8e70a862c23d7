"""`fedlearn policy`: exit statuses, documents, and one plain line for every broken input."""

from __future__ import annotations

import base64
import hashlib
import json
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

from attestation.attesters.sample import SampleAttester
from attestation.binding import ReportData
from attestation.documents.formats import MAX_INPUT_BYTES
from attestation.policy.parse import parse_policy
from fedlearn.cli import main

KEY = ec.generate_private_key(ec.SECP256R1())
APP = hashlib.sha256(b"app").digest()
SOFTWARE = hashlib.sha256(b"software").digest()
REPORT_DATA = bytes(range(64))
POLICY = f"""\
accept = ["sample"]
insecure_sample = true
name = "demo"
[[reference]]
claim = "app"
value = "{APP.hex()}"
[[reference]]
claim = "software"
value = "{SOFTWARE.hex()}"
"""


def run(*arguments: object) -> Result:
    result = CliRunner().invoke(main, ["policy", *map(str, arguments)])
    assert "Traceback" not in result.output
    return result


def failed(result: Result, *words: str) -> str:
    """Check that the command failed with one line that states what and where."""
    assert result.exit_code == 1, result.output
    lines = [item for item in result.stderr.splitlines() if item.startswith("error:")]
    assert len(lines) == 1, result.output
    for word in words:
        assert word in result.stderr, result.stderr
    return result.stderr


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    attester = SampleAttester(KEY, b"\x01" * 16)
    attester.extend("app", APP)
    attester.extend("software", SOFTWARE)
    evidence = tmp_path / "evidence.json"
    evidence.write_bytes(attester.collect(ReportData(value=REPORT_DATA)).to_bytes())
    debug = SampleAttester(KEY, b"\x01" * 16, {"app": APP, "software": SOFTWARE}, debug=True)
    (tmp_path / "debug.json").write_bytes(debug.collect(ReportData(value=REPORT_DATA)).to_bytes())
    pin = tmp_path / "developer.pem"
    pin.write_bytes(KEY.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    policy = tmp_path / "policy.toml"
    policy.write_text(POLICY)
    return {
        "evidence": evidence,
        "debug": tmp_path / "debug.json",
        "pin": pin,
        "policy": policy,
        "folder": tmp_path,
    }


def arguments(files: dict[str, Path], **changes: object) -> list[object]:
    named: dict[str, object] = {
        "--evidence": files["evidence"],
        "--endorsement": files["pin"],
        "--policy": files["policy"],
    }
    named |= {f"--{name.replace('_', '-')}": value for name, value in changes.items()}
    return [part for pair in named.items() if pair[1] is not None for part in pair]


def test_affirming_evidence_ends_with_status_0(files: dict[str, Path]) -> None:
    result = run("verify", *arguments(files, report_data=REPORT_DATA.hex()))
    assert result.exit_code == 0, result.output
    assert result.output == "affirming: this sample evidence satisfies policy demo\n"


def test_without_report_data_the_binding_is_a_note(files: dict[str, Path]) -> None:
    result = run("verify", *arguments(files, format="evidence"))
    assert result.exit_code == 0
    assert "binding" in result.output
    assert "no report data was given" in result.output


def test_the_document_has_what_programs_need(files: dict[str, Path]) -> None:
    result = run("verify", *arguments(files, report_data=REPORT_DATA.hex()), "--json")
    assert result.exit_code == 0
    document = json.loads(result.stdout)
    assert document["status"] == "affirming"
    assert document["tee"] == "sample"
    assert document["tcb_status"] == "insecure-software"
    assert document["advisories"] == []
    assert document["claims"]["app"] == APP.hex()
    assert document["claims"]["bound"] is True
    assert document["claims"]["debug"] is False
    assert {"claim", "tier", "expected", "actual", "category", "remedy", "origin"} == set(
        document["findings"][0]
    )
    assert document["claims"]["origins"] == dict.fromkeys(("app", "software"), "self-reported")
    assert document["policy"]["digest"] == parse_policy(POLICY.encode()).digest.hex()


def swapped(old: str, new: str) -> Callable[[dict[str, Path]], None]:
    def change(files: dict[str, Path]) -> None:
        text = files["policy"].read_text()
        assert old in text
        files["policy"].write_text(text.replace(old, new))

    return change


@pytest.mark.parametrize(
    ("change", "claim"),
    [
        (swapped('["sample"]', "[]"), "tee"),
        (swapped('["sample"]', '["tdx", "snp"]'), "tee"),
        (swapped("insecure_sample = true", ""), "insecure_sample"),
        (swapped(APP.hex(), "00" * 32), "app"),
        (swapped('claim = "app"', 'claim = "job"'), "job"),
        (lambda files: files["policy"].write_text(""), "tee"),
    ],
)
def test_what_the_policy_does_not_like_ends_with_status_2(
    files: dict[str, Path], change: Callable[[dict[str, Path]], None], claim: str
) -> None:
    change(files)
    result = run("verify", *arguments(files))
    assert result.exit_code == 2
    assert f"  {claim}: expected " in result.output
    document = json.loads(run("verify", *arguments(files), "--json").stdout)
    assert document["status"] == "contraindicated"
    assert claim in {item["claim"] for item in document["findings"] if item["tier"] != "affirming"}


def test_what_is_not_genuine_ends_with_status_2(files: dict[str, Path]) -> None:
    other = run("verify", *arguments(files, report_data="00" * 64), "--json")
    assert other.exit_code == 2
    document = json.loads(other.stdout)
    assert document["claims"] == {}
    assert document["tcb_status"] is None
    assert document["findings"][0]["claim"] == "binding"
    unpinned = run("verify", *arguments(files, endorsement=None))
    assert unpinned.exit_code == 2
    assert "sample key" in unpinned.output
    early = run("verify", *arguments(files, at="2020-01-01T00:00:00Z"))
    assert early.exit_code == 2
    assert "sample time" in early.output


def test_debug_is_refused_unless_the_policy_states_it_by_name(files: dict[str, Path]) -> None:
    assert run("verify", *arguments(files, evidence=files["debug"])).exit_code == 2
    files["policy"].write_text("insecure_debug = true\n" + POLICY)
    assert run("verify", *arguments(files, evidence=files["debug"])).exit_code == 0


def test_hardware_of_another_node_is_refused(files: dict[str, Path]) -> None:
    files["policy"].write_text(POLICY + f'[nodes]\na = ["{"01" * 16}"]\nb = []\n')
    bound = {"report_data": REPORT_DATA.hex()}
    assert run("verify", *arguments(files, **bound, node="a")).exit_code == 0
    assert run("verify", *arguments(files, **bound, node="b")).exit_code == 2
    assert run("verify", *arguments(files, **bound)).exit_code == 2
    assert run("verify", *arguments(files)).exit_code == 0


BROKEN: list[tuple[str, bytes, tuple[str, ...]]] = [
    ("evidence", b"", ("evidence.json", "empty file")),
    ("evidence", b"\x00" * 100, ("evidence.json", "known formats")),
    ("evidence", b"{", ("evidence.json", "starts like JSON")),
    ("evidence", b"{}", ("evidence.json", "without the keys")),
    ("evidence", b'{"tee":"sample"}', ("evidence.json", "evidence.quote")),
    ("evidence", b'{"tee":"sev","quote":""}', ("evidence.json", "evidence.tee")),
    ("evidence", b'{"tee":"sample","quote":"AAAA"}', ("evidence.json", "sample")),
    ("pin", b"hello", ("developer.pem", "not a certificate")),
    ("policy", b"acept = []", ("policy.toml:1: acept", "did you mean 'accept'?")),
    ("policy", b"\xff", ("policy.toml:1", "UTF-8")),
    (
        "policy",
        b"[[reference]]\nclaim = 'a'",
        ("policy.toml:1: reference[0]: needs the key 'value'",),
    ),
]


@pytest.mark.parametrize(("name", "data", "words"), BROKEN)
def test_an_unusable_file_ends_with_status_1_and_one_line(
    files: dict[str, Path], name: str, data: bytes, words: tuple[str, ...]
) -> None:
    files[name].write_bytes(data)
    failed(run("verify", *arguments(files)), *words)
    failed(run("explain", *arguments(files)), *words)
    document = json.loads(run("verify", *arguments(files), "--json").stdout)
    assert document["error"]["message"]


@pytest.mark.parametrize("name", ["evidence", "pin", "policy"])
def test_a_missing_file_or_a_folder_is_named(files: dict[str, Path], name: str) -> None:
    flag = {"pin": "endorsement"}.get(name, name)
    missing = files["folder"] / "nowhere"
    failed(run("verify", *arguments(files, **{flag: missing})), "nowhere", "does not exist")
    failed(run("verify", *arguments(files, **{flag: files["folder"]})), "is a directory")


@pytest.mark.parametrize(
    ("flag", "value", "words"),
    [
        ("report_data", "xyz", ("--report-data", "hex")),
        ("report_data", "abc", ("--report-data", "hex")),
        ("report_data", "00" * 2000, ("--report-data", "at most")),
        ("at", "yesterday", ("--at", "RFC 3339")),
        ("at", "2026-01-01", ("--at", "RFC 3339")),
        ("at", "2026-01-01T00:00:00", ("--at", "zone")),
        ("at", "0001-01-01T00:00:00+10:00", ("--at", "years")),
        ("format", "pdf", ("--format", "pdf")),
        ("collateral", "nowhere", ("nowhere", "does not exist")),
        ("event_log", "nowhere", ("nowhere", "does not exist")),
    ],
)
def test_a_broken_flag_is_named(
    files: dict[str, Path], flag: str, value: str, words: tuple[str, ...]
) -> None:
    failed(run("verify", *arguments(files, **{flag: value})), *words)


@pytest.mark.parametrize(
    ("format_name", "word"),
    [
        ("tdx-quote", "is not a DCAP quote"),
        ("sgx-quote", "is not a DCAP quote"),
        ("snp-report", "is not an SNP report"),
        ("tpm", "is not a TPM quote"),
    ],
)
def test_another_format_than_given_is_named(
    files: dict[str, Path], format_name: str, word: str
) -> None:
    stderr = failed(run("verify", *arguments(files, format=format_name)), word)
    assert "it looks like evidence" in stderr


def test_an_oversized_file_is_refused_unread(files: dict[str, Path]) -> None:
    with files["evidence"].open("wb") as stream:
        stream.truncate(MAX_INPUT_BYTES + 1)
    failed(run("verify", *arguments(files)), "evidence.json", str(MAX_INPUT_BYTES))


def test_an_endless_file_is_refused_unread(files: dict[str, Path]) -> None:
    begin = time.monotonic()
    failed(run("verify", *arguments(files, evidence="/dev/zero")), "/dev/zero")
    assert time.monotonic() - begin < 5


def test_a_missing_flag_is_named(files: dict[str, Path]) -> None:
    failed(run("verify", *arguments(files, policy=None)), "--policy")
    failed(run("verify", *arguments(files, evidence=None)), "--evidence")


def test_an_event_log_may_not_stand_in_for_another(files: dict[str, Path]) -> None:
    log = files["folder"] / "log"
    log.write_bytes(b"x")
    document = json.loads(files["evidence"].read_bytes())
    document["event_log"] = base64.b64encode(b"own").decode()
    files["evidence"].write_text(json.dumps(document))
    failed(run("verify", *arguments(files, event_log=log)), "event log of its own")
    log.write_bytes(b"")
    failed(run("verify", *arguments(files, event_log=log)), "is empty")


def test_an_explanation_shows_every_step(files: dict[str, Path]) -> None:
    good = run("explain", *arguments(files))
    assert good.exit_code == 0
    for word in (
        "genuine?",
        "affirm it?",
        "expected",
        "found",
        APP.hex(),
        "from      self-reported",
    ):
        assert word in good.output
    files["policy"].write_text(POLICY.replace(APP.hex(), "00" * 32))
    bad = run("explain", *arguments(files))
    assert bad.exit_code == 2
    assert "to do     run the expected software" in bad.output
    fake = run("explain", *arguments(files, endorsement=None))
    assert fake.exit_code == 2
    assert "Not appraised" in fake.output


def test_a_drafted_policy_affirms_what_it_was_drafted_from(files: dict[str, Path]) -> None:
    target = files["folder"] / "drafted.toml"
    source = ("--from-evidence", files["evidence"], "--format", "evidence")
    made = run("init", *source, "--endorsement", files["pin"], "--output", target)
    assert made.exit_code == 0, made.output
    assert "note: sample evidence proves nothing" in made.stderr
    assert run("verify", *arguments(files, policy=target)).exit_code == 0
    assert "# " in target.read_text()
    printed = run("init", *source, "--endorsement", files["pin"], "--node", "site-a")
    policy = parse_policy(printed.stdout.encode())
    assert policy.nodes == {"site-a": frozenset({b"\x01" * 16})}


def test_a_draft_never_turns_debugging_on(files: dict[str, Path]) -> None:
    target = files["folder"] / "drafted.toml"
    source = ("--from-evidence", files["debug"], "--endorsement", files["pin"])
    made = run("init", *source, "--output", target)
    assert made.exit_code == 0
    assert "debug mode; the policy refuses it" in made.stderr
    assert not parse_policy(target.read_bytes()).insecure_debug
    refused = run("verify", *arguments(files, evidence=files["debug"], policy=target))
    assert refused.exit_code == 2
    assert "debug" in refused.output


def test_nothing_is_drafted_from_what_is_not_genuine(files: dict[str, Path]) -> None:
    target = files["folder"] / "drafted.toml"
    result = run("init", "--from-evidence", files["evidence"], "--output", target)
    assert result.exit_code == 2
    assert not target.exists()
    files["evidence"].write_bytes(b"junk")
    failed(run("init", "--from-evidence", files["evidence"], "--output", target), "evidence.json")
    assert not target.exists()


def test_a_draft_that_is_refused_states_which_file_is_missing(tmp_path: Path) -> None:
    report = Path(__file__).parents[3] / "vectors" / "data" / "snp_genoa_vcek_report.bin"
    done = run("init", "--from-evidence", report, "--output", tmp_path / "policy.toml")
    assert done.exit_code == 2
    assert "hint: fedlearn collateral fetch" in done.stderr
    assert "or the file https://kdsintf.amd.com/vcek/v1/Genoa/" in done.stderr
    assert not (tmp_path / "policy.toml").exists()


def test_a_draft_does_not_replace_a_file_unasked(files: dict[str, Path]) -> None:
    common = ("--from-evidence", files["evidence"], "--endorsement", files["pin"])
    failed(run("init", *common, "--output", files["policy"]), "exists already", "--force")
    assert files["policy"].read_text() == POLICY
    assert run("init", *common, "--output", files["policy"], "--force").exit_code == 0
    nowhere = files["folder"] / "no" / "policy.toml"
    failed(run("init", *common, "--output", nowhere), "cannot be written")
    assert [item.name for item in files["folder"].iterdir() if item.name.startswith(".")] == []


def test_lint_states_what_deserves_a_look(files: dict[str, Path]) -> None:
    result = run("lint", files["policy"])
    assert result.exit_code == 0
    assert "insecure_sample admits software" in result.output
    assert "without [nodes]" in result.output
    document = json.loads(run("lint", "--policy", files["policy"], "--json").stdout)
    assert document["name"] == "demo"
    assert len(document["warnings"]) == 2
    assert document["errors"] == []
    failed(run("lint", files["folder"] / "nowhere.toml"), "does not exist")
    failed(run("lint"), "name one policy")
    files["policy"].write_text("version = 'one'")
    failed(run("lint", files["policy"]), "policy.toml:1: version")


def private(path: Path, key: ed25519.Ed25519PrivateKey | ec.EllipticCurvePrivateKey) -> Path:
    path.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    public = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    path.with_suffix(".pub").write_bytes(public)
    return path


@pytest.mark.parametrize(
    "key", [ed25519.Ed25519PrivateKey.generate(), ec.generate_private_key(ec.SECP256R1())]
)
def test_a_signature_is_made_and_checked(
    files: dict[str, Path], key: ed25519.Ed25519PrivateKey | ec.EllipticCurvePrivateKey
) -> None:
    operator = private(files["folder"] / "operator.pem", key)
    made = run("sign", files["policy"], "--key", operator)
    assert made.exit_code == 0, made.output
    signature = files["folder"] / "policy.toml.sig"
    check = ("--signature", signature, "--operator-key", operator.with_suffix(".pub"))
    assert "signed by" in run("lint", files["policy"], *check).output
    failed(run("sign", files["policy"], "--key", operator), "exists already")
    again = run("sign", files["policy"], "--key", operator, "--force", "--json")
    assert json.loads(again.stdout)["signer"] in made.stdout
    files["policy"].write_text("version = 2\n" + POLICY)
    failed(run("lint", files["policy"], *check), "another policy")
    other = private(files["folder"] / "other.pem", ed25519.Ed25519PrivateKey.generate())
    failed(
        run(
            "lint",
            files["policy"],
            "--signature",
            signature,
            "--operator-key",
            other.with_suffix(".pub"),
        ),
        "not a known operator's key",
    )
    failed(run("lint", files["policy"], "--signature", signature), "--operator-key")


def test_a_broken_signing_key_is_named(files: dict[str, Path]) -> None:
    broken = files["folder"] / "operator.pem"
    broken.write_bytes(b"junk")
    failed(run("sign", files["policy"], "--key", broken), "operator.pem", "not a private key")
    broken.write_bytes(files["pin"].read_bytes())
    failed(run("sign", files["policy"], "--key", broken), "not a private key")
    failed(run("sign", files["policy"], "--key", files["folder"] / "no"), "does not exist")
    curve = ec.generate_private_key(ec.SECP384R1())
    broken.write_bytes(curve.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    failed(run("sign", files["policy"], "--key", broken), "neither an Ed25519 key")
    secret = BestAvailableEncryption(b"secret")
    broken.write_bytes(KEY.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, secret))
    failed(run("sign", files["policy"], "--key", broken), "is encrypted")
    assert not (files["folder"] / "policy.toml.sig").exists()


def test_reference_values_are_printed_as_a_policy_writes_them(tmp_path: Path) -> None:
    initdata = tmp_path / "initdata.toml"
    initdata.write_text('algorithm = "sha256"\nversion = "0.1.0"\n[data]\n')
    printed = run("reference", "initdata", initdata, "--name", "v1")
    policy = parse_policy(printed.stdout.encode())
    assert [item.claim for item in policy.references] == ["host_data", "mrconfigid"]
    assert policy.references[0].value == hashlib.sha256(initdata.read_bytes()).digest()
    image = run("reference", "image", f"app@sha256:{APP.hex()}")
    assert parse_policy(image.stdout.encode()).references[0].value == APP
    failed(run("reference", "image", "app:latest"), "not an image by digest")
    failed(run("reference", "event-log", initdata), "initdata.toml")
    failed(run("reference", "event-log", initdata, "--events"), "initdata.toml")
    failed(run("reference", "event-log", initdata, "--events", "--tee", "tpm"), "is for tdx")
    failed(run("reference", "initdata", tmp_path / "no"), "does not exist")
    failed(run("reference", "snp", "--ovmf", tmp_path / "no", "--vcpus", "1"), "does not exist")
    initdata.write_text("algorithm = 'md5'")
    failed(run("reference", "initdata", initdata), "algorithm")


def test_a_policy_that_pins_no_launch_is_an_error_of_lint(files: dict[str, Path]) -> None:
    hosted = POLICY.replace('"sample"', '"snp", "sample"').replace("software", "host_data")
    files["policy"].write_text(hosted + '[coordinator]\naccept = ["tdx"]\n')
    result = run("lint", files["policy"])
    assert result.exit_code == 1
    for words in (
        "error: nothing pins the launch (launch or id_key_digest) of snp",
        "error: nothing pins the software that it reports (software or launch) of sample",
        "error: coordinator: nothing pins the firmware (mrtd); the kernel (rtmr1)",
    ):
        assert words in result.output
    document = json.loads(run("lint", files["policy"], "--json").stdout)
    assert len(document["errors"]) == 3
    refused = run("explain", *arguments(files))
    assert refused.exit_code == 2
    assert "refused  launch_identity" in refused.output
    assert "found     nothing pins the software that it reports" in refused.output


def test_a_key_that_signs_policies_is_made_once_and_named_by_its_digest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(main, ["policy", "keygen", "--json"])
    assert done.exit_code == 0, done.output
    made = json.loads(done.stdout)
    Path("policy.toml").write_text('version = 1\nname = "p"\naccept = []\n')
    signed = CliRunner().invoke(main, ["policy", "sign", "policy.toml", "--key", made["private"]])
    assert signed.exit_code == 0, signed.output
    assert f"signed by {made['sha256']}" in signed.output
    before = Path("policy-key.pem").read_bytes()
    assert "policy-key.pem: exists" in CliRunner().invoke(main, ["policy", "keygen"]).output
    assert Path("policy-key.pem").read_bytes() == before
    wrong = CliRunner().invoke(main, ["policy", "sign", "policy.toml", "--key", made["public"]])
    assert "fedlearn policy keygen --out NEW.pem" in wrong.output
