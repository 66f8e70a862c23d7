"""Every command with something broken: one message that names the remedy, and no partial file."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from attestation.config import dumps
from fedlearn.cli import main as fedlearn
from fedlearn.local.federation import program
from tests.harness.federation import write_app

pytestmark = pytest.mark.e2e

_SERVER: dict[str, Any] = {
    "state": "state",
    "trust_domain": "test.example",
    "keys": {"protect": ["insecure-plain-key-file"]},
    "attester": {"kind": "insecure-sample"},
}
_SITE: dict[str, Any] = {"state": "state", "attester": {"kind": "insecure-sample"}}
_JOB: dict[str, Any] = {
    "name": "trial",
    "app": "app",
    "rounds": 2,
    "sites": ["site-a"],
    "policy": "policy.toml",
}
_POLICY = """
version = 1
name = "trial"
accept = ["sample"]
insecure_sample = true
[[reference]]
claim = "software"
value = "ab"
[coordinator]
accept = ["sample"]
insecure_sample = true
[[coordinator.reference]]
claim = "software"
value = "ab"
"""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with files in order, in which commands are run."""
    write_app(tmp_path / "app")
    (tmp_path / "server.toml").write_text(dumps(_SERVER))
    (tmp_path / "site.toml").write_text(dumps(_SITE))
    (tmp_path / "job.toml").write_text(dumps(_JOB))
    (tmp_path / "policy.toml").write_text(_POLICY)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("FLWR_HOME", str(tmp_path / "flwr"))
    monkeypatch.delenv("FEDLEARN_OPERATOR", raising=False)
    return tmp_path


def _command(name: str) -> Any:
    if name == "fedlearn":
        return fedlearn
    if name == "fedlearn-server":
        from server.main import main

        return main
    from edge.main import main as edge

    return edge


def _files(place: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in place.rglob("*") if path.is_file()}


def refused(place: Path, command: str, *words: str) -> str:
    """Run a command that has to fail; return what it printed."""
    before = _files(place)
    done = CliRunner().invoke(_command(command), list(words), prog_name=command)
    reported = done.output
    assert done.exit_code not in {0, None}, reported
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    assert "Traceback" not in reported
    assert reported.strip(), "it prints nothing"
    assert len(reported.strip().splitlines()) <= 6, reported
    assert _files(place) == before, "something was left behind"
    return reported


def _write(name: str, text: str | bytes) -> Callable[[Path], object]:
    data = text if isinstance(text, bytes) else text.encode()
    return lambda place: (place / name).write_bytes(data)


def _with(file: str, table: dict[str, Any], /, **changes: object) -> Callable[[Path], object]:
    return _write(file, dumps({**table, **changes}))


_BINARY = b"\x7fELF\0\xff\xfe" * 50
_VALIDATE = ("fedlearn", "job", "validate")
_INIT = ("fedlearn-server", "init", "--insecure-operator-key-here")
_CHECK = ("fedlearn-server", "check")
_RUN = ("fedlearn-server", "run")
_EDGE = ("fedlearn-edge", "check")

FILES: dict[str, tuple[Callable[[Path], object], tuple[str, ...], tuple[str, ...]]] = {
    # job.toml
    "job is not there": (lambda p: (p / "job.toml").unlink(), _VALIDATE, ("job.toml",)),
    "job is binary": (_write("job.toml", _BINARY), _VALIDATE, ("job.toml",)),
    "job is not TOML": (_write("job.toml", "name = \n"), _VALIDATE, ("job.toml", "1")),
    "job is empty": (_write("job.toml", ""), _VALIDATE, ("job.toml", "name")),
    "unknown key": (_with("job.toml", _JOB, round=3), _VALIDATE, ("round", "rounds")),
    "no rounds": (_with("job.toml", _JOB, rounds=0), _VALIDATE, ("rounds", "1")),
    "rounds as text": (_with("job.toml", _JOB, rounds="3"), _VALIDATE, ("rounds",)),
    "quorum": (_with("job.toml", _JOB, quorum=2), _VALIDATE, ("quorum", "1")),
    "site twice": (_with("job.toml", _JOB, sites=["a", "a"]), _VALIDATE, ("sites",)),
    "bad name": (_with("job.toml", _JOB, name="Not OK"), _VALIDATE, ("name",)),
    "deadline": (_with("job.toml", _JOB, deadline_s=-1), _VALIDATE, ("deadline_s",)),
    "stragglers": (_with("job.toml", _JOB, stragglers="wait"), _VALIDATE, ("stragglers", "drop")),
    "strategy": (
        _with("job.toml", _JOB, strategy={"name": "fedawg"}),
        _VALIDATE,
        ("strategy.name", "fedavg"),
    ),
    "strategy's option": (
        _with("job.toml", _JOB, strategy={"name": "fedavg", "options": {"eta": 1.0}}),
        _VALIDATE,
        ("eta",),
    ),
    "data of nobody": (
        _with("job.toml", _JOB, data={"site-b": {"set": "x"}}),
        _VALIDATE,
        ("site-b", "site-a"),
    ),
    "data path": (
        _with("job.toml", _JOB, data={"site-a": {"path": "/a/../b"}}),
        _VALIDATE,
        ("path",),
    ),
    "privacy": (_with("job.toml", _JOB, privacy={"clip": -1.0}), _VALIDATE, ("privacy",)),
    "owner's key": (_with("job.toml", _JOB, owner_key="x25519:AAAA"), _VALIDATE, ("owner_key",)),
    "resources": (_with("job.toml", _JOB, resources={"cpu": 0}), _VALIDATE, ("cpu",)),
    "seed": (_with("job.toml", _JOB, seed=-1), _VALIDATE, ("seed",)),
    "no app": (_with("job.toml", _JOB, app="nowhere"), _VALIDATE, ("nowhere",)),
    # policy.toml
    "no policy": (lambda p: (p / "policy.toml").unlink(), _VALIDATE, ("policy.toml",)),
    "policy pins nothing": (
        _write("policy.toml", _POLICY.replace('"software"', '"app"')),
        _VALIDATE,
        ("policy.toml", "nothing pins", "coordinator: nothing pins", "[[reference]]"),
    ),
    "policy is binary": (_write("policy.toml", _BINARY), _VALIDATE, ("policy.toml",)),
    "policy's key": (
        _write("policy.toml", _POLICY.replace("accept", "acept", 1)),
        _VALIDATE,
        ("acept", "accept"),
    ),
    # server.toml
    "no server.toml": (lambda p: (p / "server.toml").unlink(), _INIT, ("server.toml",)),
    "server is binary": (_write("server.toml", _BINARY), _INIT, ("server.toml",)),
    "server's unknown key": (_with("server.toml", _SERVER, stat="x"), _INIT, ("stat", "state")),
    "trust domain": (_with("server.toml", _SERVER, trust_domain="A B"), _INIT, ("trust_domain",)),
    "address": (
        _with("server.toml", _SERVER, listen={"gate": "nowhere"}),
        _INIT,
        ("listen.gate",),
    ),
    "port twice": (
        _with("server.toml", _SERVER, listen={"gate": "127.0.0.1:1", "fleet": "127.0.0.1:1"}),
        _INIT,
        ("listen.fleet",),
    ),
    "everywhere": (
        _with("server.toml", _SERVER, listen={"gate": "0.0.0.0:9443"}),
        _INIT,
        ("advertise.gate",),
    ),
    "protector": (
        _with("server.toml", _SERVER, keys={"protect": ["hope"]}),
        _INIT,
        ("protect", "passphrase"),
    ),
    "passphrase file": (
        _with(
            "server.toml",
            _SERVER,
            keys={"protect": ["passphrase"], "passphrase_file": "nowhere.txt"},
        ),
        _INIT,
        ("nowhere.txt",),
    ),
    "recovery key": (
        _with(
            "server.toml",
            _SERVER,
            keys={"protect": ["recovery-key"], "recovery_key": "policy.toml"},
        ),
        _INIT,
        ("policy.toml", "key"),
    ),
    "certificates": (
        _with("server.toml", _SERVER, certificates={"renew_after_s": 600}),
        _INIT,
        ("renew_by_s",),
    ),
    "attester": (
        _with("server.toml", _SERVER, attester={"kind": "magic"}),
        _INIT,
        ("attester.kind",),
    ),
    "limits": (_with("server.toml", _SERVER, limits={"jobs": 0}), _INIT, ("limits.jobs",)),
    "never initialized": (lambda p: None, _CHECK, ("fedlearn-server init",)),
    "never initialized, run": (lambda p: None, _RUN, ("fedlearn-server init",)),
    # site.toml
    "no site.toml": (lambda p: (p / "site.toml").unlink(), _EDGE, ("site.toml",)),
    "site is binary": (_write("site.toml", _BINARY), _EDGE, ("site.toml",)),
    "site's unknown key": (_with("site.toml", _SITE, dta={}), _EDGE, ("dta", "data")),
    "launcher": (_with("site.toml", _SITE, launcher={"kind": "moon"}), _EDGE, ("launcher.kind",)),
    "hours": (_with("site.toml", _SITE, accept={"hours": "late"}), _EDGE, ("hours",)),
    "bundle digest": (_with("site.toml", _SITE, accept={"bundles": ["xyz"]}), _EDGE, ("bundles",)),
    "data set": (_with("site.toml", _SITE, data={"d": {}}), _EDGE, ("data.d",)),
    "not enrolled": (lambda p: None, _EDGE, ("enroll",)),
    "not enrolled, run": (lambda p: None, ("fedlearn-edge", "run"), ("enroll",)),
}


@pytest.fixture(autouse=True)
def _mask() -> Iterator[None]:
    """Give the process its mask back: services set their own, and these run in this one."""
    mask = os.umask(0o022)
    os.umask(mask)
    yield
    os.umask(mask)


@pytest.mark.parametrize("case", list(FILES))
def test_a_broken_file_is_named_with_what_would_be_right(place: Path, case: str) -> None:
    spoil, command, words = FILES[case]
    spoil(place)
    reported = refused(place, *command)
    for word in words:
        assert word in reported, reported


FLAGS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "no such command": (("fedlearn", "jbo"), ("job",)),
    "no such flag": (("fedlearn", "job", "submit", "--folow"), ("--follow",)),
    "no login": (("fedlearn", "job", "status"), ("operator",)),
    "login elsewhere": (("fedlearn", "site", "list", "--operator", "nowhere"), ("nowhere",)),
    "submit without login": (("fedlearn", "job", "submit"), ("operator",)),
    "lifetime": (("fedlearn", "site", "token", "a", "--lifetime", "soon"), ("soon",)),
    "token": (("fedlearn", "site", "enroll", "--state", "new", "--token-file", "no"), ("no",)),
    "state": (("fedlearn", "ledger", "show", "--state", "nowhere"), ("nowhere",)),
    "no ledger": (("fedlearn", "ledger", "verify", "--state", "app"), ("ledger",)),
    "limit": (("fedlearn", "ledger", "show", "--state", "app", "--limit", "0"), ("--limit",)),
    "contributions": (
        ("fedlearn", "ledger", "contributions", "--state", "app", "--job", "x"),
        ("ledger",),
    ),
    "no model": (("fedlearn", "model", "open", "nowhere.flsw", "--key", "k.pem"), ("",)),
    "export without out": (("fedlearn", "model", "export", "m"), ("--out",)),
    "version": (("fedlearn", "model", "open", "m", "--version", "0"), ("--version",)),
    "rounds": (("fedlearn", "demo", "--rounds", "0"), ("--rounds",)),
    "sites": (("fedlearn", "demo", "--sites", "0"), ("--sites",)),
    "tee": (("fedlearn", "demo", "--tee", "sgx9"), ("tpm",)),
    "data": (("fedlearn", "demo", "--data", "weather"), ("medpar",)),
    "init in a full place": (("fedlearn", "job", "init", "."), ("",)),
    "job's name": (("fedlearn", "job", "init", "new", "--name", "Not OK"), ("name",)),
    "server elsewhere": (("fedlearn-server", "run", "--config", "no.toml"), ("no.toml",)),
    "no operator's request": (("fedlearn-server", "init"), ("--operator-csr", "operator request")),
    "operator's request": (
        ("fedlearn-server", "init", "--operator-csr", "nowhere.csr"),
        ("nowhere.csr",),
    ),
    "operator's pin": (("fedlearn", "operator", "login", "x", "--ca-pin", "12"), ("--ca-pin",)),
    "operator's answer": (
        ("fedlearn", "operator", "login", "nowhere.toml", "--operator", "new"),
        ("operator request",),
    ),
    "operator nobody": (("fedlearn", "operator", "revoke"), ("NAME",)),
    "until": (("fedlearn", "job", "revoke", "j", "--site", "a", "--until", "soon"), ("soon",)),
    "no site": (("fedlearn", "job", "readmit", "j"), ("--site",)),
    "trust domain": (
        ("fedlearn-server", "init", "--config", "new.toml", "--trust-domain", "A B",
         "--insecure-development"),
        ("trust_domain",),
    ),
    "edge elsewhere": (("fedlearn-edge", "run", "--config", "no.toml"), ("no.toml",)),
    "approve": (("fedlearn-edge", "approve", "trial", "xyz"), ("SHA-256",)),
    "approve a name": (("fedlearn-edge", "approve", "Not OK", "ab" * 32), ("job",)),
    "policy file": (("fedlearn", "policy", "lint", "nowhere.toml"), ("nowhere.toml",)),
}  # fmt: skip


@pytest.mark.parametrize("case", list(FLAGS))
def test_a_broken_flag_is_named(place: Path, case: str) -> None:
    words, expected = FLAGS[case]
    reported = refused(place, *words)
    for word in expected:
        assert word in reported, reported


@pytest.mark.parametrize("name", ["fedlearn", "fedlearn-server", "fedlearn-edge"])
def test_the_real_commands_state_it_on_stderr_with_a_status(place: Path, name: str) -> None:
    words = ["job", "validate"] if name == "fedlearn" else ["check"]
    for file in ("job.toml", "server.toml", "site.toml"):
        (place / file).write_bytes(_BINARY)
    done = subprocess.run(
        [str(program(name)), *words], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
