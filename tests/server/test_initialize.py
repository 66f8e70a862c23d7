"""``fedlearn-server init``: the first operator's key stays with the operator. Real commands."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.types import CertificateIssuerPrivateKeyTypes

from edge.protocol.rpc import enroll
from fedlearn.cli import main as fedlearn
from fedlearn.config.development_key import make_key
from fedlearn.identity.login import OperatorLogin, ca_pin
from fedlearn.wire.operator import OperatorClient
from server.config import ServerConfig
from server.main import main as server
from server.service import serve
from tests.harness.cluster import reserve_port

CONFIG = """\
state = "state"
trust_domain = "test.example"
[listen]
gate = "127.0.0.1:0"
control = "127.0.0.1:{port}"
fleet = "127.0.0.1:0"
[keys]
protect = ["passphrase"]
passphrase_file = "passphrase"
[attester]
kind = "insecure-sample"
key = "sample.key"
"""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "server.toml").write_text(CONFIG.format(port=reserve_port()))
    (tmp_path / "passphrase").write_text("correct horse battery staple\n")
    key = ec.generate_private_key(ec.SECP256R1())
    (tmp_path / "sample.key").write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    return tmp_path


def run(*arguments: str, command: click.Group = server) -> Result:
    return CliRunner().invoke(command, list(arguments), catch_exceptions=False)


def operator(*arguments: str) -> Result:
    return run("operator", *arguments, command=fedlearn)


def pin() -> str:
    return ca_pin(Path("state/ca.pem").read_bytes())


def refused(result: Result, *words: str) -> None:
    assert result.exit_code != 0, result.output
    assert "Traceback" not in result.output
    for word in words:
        assert word in result.output, result.output


def test_the_first_operators_key_is_never_at_the_coordinator(place: Path) -> None:
    assert operator("request", "alice", "--operator", "mine").exit_code == 0
    done = run("init", "--operator-csr", "mine/operator.csr", "--json")
    assert done.exit_code == 0, done.output
    received = json.loads(done.stdout)
    assert received["operator"] == str(place / "state/operator.toml")
    for path in (place / "state").rglob("*"):
        assert path.is_dir() or b"PRIVATE KEY" not in path.read_bytes(), path
    assert not (place / "state/operator").exists()

    login = ("login", "state/operator.toml", "--operator", "mine")
    refused(operator(*login, "--ca-pin", "0" * 64), "the CA is", received["ca_pin"])
    with serve(*ServerConfig.read(place / "server.toml")) as service:
        done = operator(*login, "--ca-pin", received["ca_pin"])
        assert done.exit_code == 0, done.output
        done = operator("list", "--operator", "mine", "--json")
        (row,) = json.loads(done.stdout)["operators"]
        assert (row["name"], row["by"], row["revoked"]) == ("alice", "(coordinator)", False)
        entries = list(service.directory.ledger.entries(kind="operator"))
    assert [(e.body["operator"], e.body["change"]) for e in entries] == [("alice", "added")]


def test_a_key_at_the_coordinator_is_asked_for_by_name(place: Path) -> None:
    refused(run("init"), "--operator-csr", "fedlearn operator request NAME")
    assert not (place / "state").exists()
    both = ("--operator-csr", "x.csr", "--insecure-operator-key-here")
    refused(run("init", *both), "exclude each other")
    done = run("init", "--insecure-operator-key-here")
    assert done.exit_code == 0
    assert "INSECURE" in done.output
    assert OperatorLogin.load(place / "state/operator").key.startswith(b"-----BEGIN PRIVATE")


def test_a_configuration_is_written_from_flags(place: Path) -> None:
    assert operator("request", "alice", "--operator", "mine").exit_code == 0
    owner = ("model", "keygen", "--out", "recovery.pem")
    assert run(*owner, command=fedlearn).exit_code == 0
    where = ("--config", "new/server.toml", "--operator-csr", "mine/operator.csr")
    digest = "ab" * 32
    keys = ("--passphrase-file", "passphrase", "--recovery-key", "recovery.pub.pem")
    network = ("--host", "0.0.0.0", "--port", "7001", "--advertise", "coordinator.example")
    done = run("init", *where, *keys, *network, "--policy-key", digest, "--attester", "tpm")
    assert done.exit_code == 0, done.output
    config = ServerConfig.load(Path("new/server.toml"))
    assert config.keys.protect == ("recovery-key", "passphrase")
    assert config.keys.passphrase_file is not None
    assert config.keys.passphrase_file.samefile("passphrase")
    assert config.state == place / "new/state"
    assert config.listen.fleet == "0.0.0.0:7003"
    assert config.advertise.control == "coordinator.example:7002"
    assert config.trust.policy_keys == (bytes.fromhex(digest),)
    assert config.attester.kind == "tpm"
    assert not (place / "new/state/insecure-development.key").exists()
    refused(run("init", *where, "--tpm"), "exists, and --tpm would change it")


def test_a_trial_without_a_tee_needs_no_edit(place: Path) -> None:
    digest = make_key(place / "site").hex()
    where = ("--config", "new/server.toml", "--insecure-development")
    trust = ("--insecure-trust-sample-key", "site/insecure-development.pub.pem")
    done = run("init", *where, *trust, "--json")
    assert done.exit_code == 0, done.output
    made = json.loads(done.stdout)
    config = ServerConfig.load(Path("new/server.toml"))
    assert config.keys.insecure
    assert config.trust.insecure_sample_keys == (bytes.fromhex(digest),)
    shown = run(
        "evidence", "development-key", "new/state/insecure-development.key", command=fedlearn
    )
    assert shown.stdout.strip() == made["insecure_sample_key"] != digest
    assert made["operator"] == str(place / "new/state/operator")


def test_the_login_is_installed_where_that_is_asked_for(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(place / "home"))
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
    monkeypatch.delenv("FEDLEARN_OPERATOR", raising=False)
    where = ("--config", "new/server.toml", "--insecure-development", "--install-login")
    refused(run("init", *where, "--operator-csr", "x.csr"), "for a key that is made here")
    assert run("init", *where).exit_code == 0
    installed = OperatorLogin.load(place / "home/.config/fedlearn/operator")
    assert installed.key == OperatorLogin.load(place / "new/state/operator").key
    again = ("--config", "other/server.toml", "--insecure-development", "--install-login")
    refused(run("init", *again), "a login is installed there already", "--operator")
    assert not (place / "other").exists()


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ((), "nothing states what keeps the root key"),
        (("--passphrase-file", "none"), "umask 077"),
        (("--recovery-key", "sample.key", "--passphrase-file", "passphrase"), "X25519"),
        (("--tpm", "--trust-domain", "A B"), "trust_domain: must be a lower-case DNS name"),
        (("--tpm", "--host", "0.0.0.0"), "needs advertise.gate"),
        (("--insecure-development", "--policy-key", "abc"), "is not a SHA-256"),
        (("--insecure-development", "--insecure-trust-sample-key", "sample.key"), "private key"),
        (("--insecure-development", "--attester", "magic"), "is not one of"),
    ],
)
def test_wrong_flags_write_nothing(place: Path, flags: tuple[str, ...], words: str) -> None:
    before = {path for path in place.rglob("*") if path.is_file()}
    refused(run("init", "--config", "server2.toml", "--insecure-operator-key-here", *flags), words)
    assert {path for path in place.rglob("*") if path.is_file()} == before


def _csr(key: CertificateIssuerPrivateKeyTypes, name: x509.Name, uri: str = "") -> bytes:
    builder = x509.CertificateSigningRequestBuilder().subject_name(name)
    if uri:
        names = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(uri)])
        builder = builder.add_extension(names, critical=False)
    return builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


def _tampered(pem: bytes) -> bytes:
    der = bytearray(x509.load_pem_x509_csr(pem).public_bytes(serialization.Encoding.DER))
    der[-1] ^= 1
    return x509.load_der_x509_csr(bytes(der)).public_bytes(serialization.Encoding.PEM)


ALICE = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "alice")])
P256 = ec.generate_private_key(ec.SECP256R1())
BROKEN: dict[str, tuple[Callable[[], bytes], str]] = {
    "no file": (lambda: b"", "not a certification request"),
    "no PEM": (lambda: b"\x30\x82", "not a certification request"),
    "RSA of 1024 bits": (
        lambda: _csr(rsa.generate_private_key(public_exponent=65537, key_size=1024), ALICE),
        "another kind of key",
    ),
    "P-384": (
        lambda: _csr(ec.generate_private_key(ec.SECP384R1()), ALICE),
        "another kind of key",
    ),
    "tampered": (lambda: _tampered(_csr(P256, ALICE)), "not signed by its own key"),
    "nobody": (lambda: _csr(P256, x509.Name([])), "names no operator"),
    "a site": (lambda: _csr(P256, ALICE, "spiffe://test.example/site/a"), "asks for the identity"),
    "a client": (
        lambda: _csr(P256, ALICE, "spiffe://test.example/job/j/site/a/client/c"),
        "asks for the identity",
    ),
    "a key": (
        lambda: P256.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        ),
        "contains a private key",
    ),
}


@pytest.mark.parametrize("case", list(BROKEN))
def test_a_request_that_is_none_initializes_nothing(place: Path, case: str) -> None:
    make, why = BROKEN[case]
    (place / "alice.csr").write_bytes(make())
    refused(run("init", "--operator-csr", "alice.csr"), why)
    assert not (place / "state").exists()


def test_an_operator_is_let_in_where_none_is_left(place: Path) -> None:
    operator("request", "alice", "--operator", "alice")
    operator("request", "bob", "--operator", "bob")
    assert run("init", "--operator-csr", "alice/operator.csr").exit_code == 0
    taken = run("operator", "alice", "bob/operator.csr", "--out", "bob.toml")
    refused(taken, "the request is for bob, not for alice")
    refused(run("operator", "alice", "alice/operator.csr"), "used for operator alice before")
    assert not (place / "alice.toml").exists()
    done = run("operator", "bob", "bob/operator.csr")
    assert done.exit_code == 0, done.output
    with serve(*ServerConfig.read(place / "server.toml")):
        done = operator("login", "bob.toml", "--operator", "bob", "--ca-pin", pin())
        assert done.exit_code == 0, done.output
        login = OperatorLogin.load(place / "bob")
        with OperatorClient(
            address=login.address, ca=login.ca, chain=login.chain, key=login.key
        ) as client:
            assert [one.name for one in client.list_operators()] == ["alice", "bob"]
            client.revoke_operator(name="alice", reason="lost the key")
    # It is in the ledger, so that the next start knows.
    with serve(*ServerConfig.read(place / "server.toml")) as service:
        with OperatorClient(
            address=service.control_address, ca=login.ca, chain=login.chain, key=login.key
        ) as client:
            status = {one.name: one.revoked for one in client.list_operators()}
        assert status == {"alice": True, "bob": False}


def test_the_lifetimes_of_server_toml_are_those_of_tokens_and_sites(place: Path) -> None:
    with (place / "server.toml").open("a") as file:
        file.write("[certificates]\nsite_days = 3\ntoken_s = 120\n")
    operator("request", "alice", "--operator", "alice")
    assert run("init", "--operator-csr", "alice/operator.csr").exit_code == 0
    operator("login", "state/operator.toml", "--operator", "alice", "--ca-pin", pin())
    login = OperatorLogin.load(place / "alice")
    with (
        serve(*ServerConfig.read(place / "server.toml")),
        OperatorClient(
            address=login.address, ca=login.ca, chain=login.chain, key=login.key
        ) as client,
    ):
        invitation = client.create_token("site-a", needs_approval=False)
        identity = enroll(invitation.token)
        longer = client.create_token("site-b", lifetime=timedelta(hours=2))
    now = datetime.now(UTC)
    assert timedelta(seconds=60) < invitation.expires - now <= timedelta(seconds=120)
    assert timedelta(hours=1) < longer.expires - now <= timedelta(hours=2)
    assert identity.expires is not None
    assert timedelta(days=2, hours=23) < identity.expires - now <= timedelta(days=3)
