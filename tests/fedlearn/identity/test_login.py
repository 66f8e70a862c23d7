"""An operator's key and request, and what is taken as the answer to it. Real certificates."""

from __future__ import annotations

import stat
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from fedlearn.errors import ConfigError
from fedlearn.identity.login import (
    LoginGrant,
    OperatorLogin,
    accept_grant,
    ca_pin,
    csr_der,
    request_login,
)
from server.identity.pki import CertificateAuthority

NOW = datetime.now(UTC)
ADDRESS = "coordinator.example:9444"


@pytest.fixture(scope="module")
def ca() -> CertificateAuthority:
    return CertificateAuthority.create("test.example", NOW)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A login that waits for its certificate."""
    request_login(tmp_path / "alice", "alice")
    return tmp_path / "alice"


def granted(place: Path, chain: bytes, address: str = ADDRESS) -> Path:
    path = place / "answer.toml"
    path.write_text(LoginGrant(address=address, certificates=chain.decode()).to_toml())
    return path


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_request_names_its_operator_and_keeps_its_key(folder: Path) -> None:
    assert set(contents(folder)) == {"operator.key", "operator.csr"}
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert stat.S_IMODE((folder / "operator.key").stat().st_mode) == 0o600
    request = x509.load_der_x509_csr(csr_der(folder / "operator.csr"))
    assert request.is_signature_valid
    assert request.subject.rfc4514_string() == "CN=alice"
    key = load_pem_private_key((folder / "operator.key").read_bytes(), None)
    assert request.public_key() == key.public_key()
    assert b"PRIVATE" not in (folder / "operator.csr").read_bytes()
    with pytest.raises(ConfigError, match="exists"):
        request_login(folder, "alice")
    with pytest.raises(ConfigError, match="not a name"):
        request_login(folder.with_name("other"), "Alice A")
    assert not folder.with_name("other").exists()


def test_an_answer_makes_it_a_login(ca: CertificateAuthority, folder: Path, tmp_path: Path) -> None:
    key = (folder / "operator.key").read_bytes()
    chain = ca.issue_operator(csr_der(folder / "operator.csr"), name="alice", now=NOW).chain_pem
    answer = granted(tmp_path, chain)
    with pytest.raises(ConfigError, match="waits for its certificate"):
        OperatorLogin.load(folder)
    accept_grant(folder, answer, now=NOW, pin=ca.key_digest.hex())
    login = OperatorLogin.load(folder)
    assert (login.address, login.ca, login.key) == (ADDRESS, ca.certificate_pem, key)
    assert login.chain == chain
    assert ca_pin(login.ca) == ca.key_digest.hex()
    assert stat.S_IMODE((folder / "operator.key").stat().st_mode) == 0o600
    assert sorted(path.name for path in tmp_path.iterdir()) == ["alice", "answer.toml"]
    # It is taken once.
    with pytest.raises(ConfigError, match="no request was made here"):
        accept_grant(folder, answer, now=NOW, pin=ca.key_digest.hex())


def test_there_is_no_trust_on_first_use(
    ca: CertificateAuthority, folder: Path, tmp_path: Path
) -> None:
    chain = ca.issue_operator(csr_der(folder / "operator.csr"), name="alice", now=NOW).chain_pem
    before = contents(folder)
    with pytest.raises(ConfigError, match="compare that with the coordinator") as caught:
        accept_grant(folder, granted(tmp_path, chain), now=NOW, pin="")
    assert caught.value.hint == f"if it is the same: --ca-pin {ca.key_digest.hex()}"
    assert contents(folder) == before


def test_the_address_may_be_another_here(
    ca: CertificateAuthority, folder: Path, tmp_path: Path
) -> None:
    chain = ca.issue_operator(csr_der(folder / "operator.csr"), name="alice", now=NOW).chain_pem
    accept_grant(
        folder,
        granted(tmp_path, chain),
        now=NOW,
        pin=ca.key_digest.hex(),
        control="127.0.0.1:19444",
    )
    assert OperatorLogin.load(folder).address == "127.0.0.1:19444"


def _answers(ca: CertificateAuthority, folder: Path, place: Path) -> dict[str, tuple[bytes, str]]:
    csr = csr_der(folder / "operator.csr")
    mine = ca.issue_operator(csr, name="alice", now=NOW)
    leaf = mine.chain_pem.removesuffix(ca.certificate_pem)
    other_csr = csr_der(request_login(place / "other", "alice"))
    other_ca = CertificateAuthority.create("test.example", NOW)
    past = NOW - timedelta(days=100)
    return {
        "another key": (ca.issue_operator(other_csr, name="alice", now=NOW).chain_pem, "other key"),
        "another name": (ca.issue_operator(csr, name="bob", now=NOW).chain_pem, "for operator bob"),
        "a site": (ca.issue_site(csr, site="alice", now=NOW).chain_pem, "not an operator's"),
        "a server": (ca.issue_server(csr, now=NOW).chain_pem, "not an operator's"),
        "expired": (ca.issue_operator(csr, name="alice", now=past).chain_pem, "and not now"),
        "early": (
            ca.issue_operator(csr, name="alice", now=NOW + timedelta(days=1)).chain_pem,
            "and not now",
        ),
        "another CA's root": (
            leaf + other_ca.certificate_pem,
            "does not contain an operator's certificate",
        ),
        "no root": (leaf, "does not contain an operator's certificate"),
        "the root first": (ca.certificate_pem + leaf, "does not contain an operator's certificate"),
        "a leaf as root": (leaf + leaf, "does not contain an operator's certificate"),
        "no PEM": (b"nothing", "does not contain an operator's certificate"),
        "another CA": (
            other_ca.issue_operator(csr, name="alice", now=NOW).chain_pem,
            "the CA is",
        ),
    }


@pytest.mark.parametrize(
    "case",
    ["another key", "another name", "a site", "a server", "expired", "early", "another CA's root",
     "no root", "the root first", "a leaf as root", "no PEM", "another CA"],
)  # fmt: skip
def test_another_answer_is_refused_and_changes_nothing(
    ca: CertificateAuthority, folder: Path, tmp_path: Path, case: str
) -> None:
    chain, why = _answers(ca, folder, tmp_path)[case]
    before = contents(folder)
    with pytest.raises(ConfigError, match=why.replace("other key", "another key")):
        accept_grant(folder, granted(tmp_path, chain), now=NOW, pin=ca.key_digest.hex())
    assert contents(folder) == before


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "needs the key"),
        ('address = "nowhere"\ncertificates = "x"', "address"),
        ('address = "a:1"\ncertificates = ""', "certificates"),
        ('address = "a:1"\ncertificates = "x"\nkey = "y"', "key"),
        ("\0", "answer.toml"),
        ('address = "a:1"\ncertificates = "' + "x" * 70_000 + '"', "certificates"),
    ],
    ids=["empty", "address", "certificates", "more", "binary", "long"],
)
def test_a_broken_answer_is_named(folder: Path, tmp_path: Path, text: str, why: str) -> None:
    (tmp_path / "answer.toml").write_text(text)
    with pytest.raises(ConfigError, match=why):
        accept_grant(folder, tmp_path / "answer.toml", now=NOW, pin="00" * 32)


def test_a_renewed_login_is_whole_or_as_it_was(
    ca: CertificateAuthority, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chain = ca.issue_operator(csr_der(folder / "operator.csr"), name="alice", now=NOW).chain_pem
    login = accept_grant(folder, granted(tmp_path, chain), now=NOW, pin=ca.key_digest.hex())
    before = contents(folder)
    rename = Path.rename

    def broken(path: Path, target: Path) -> Path:
        if path.name == ".alice.new":
            raise OSError("the disk is full")
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", broken)
    with pytest.raises(OSError, match="full"):
        login.replace_folder(folder)
    assert contents(folder) == before
