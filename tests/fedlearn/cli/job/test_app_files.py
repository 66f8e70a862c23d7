"""``fedlearn job files``: who may open an application's files gets them, and nobody else."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from fedlearn.cli import main
from server.flower.application.app_files import as_arrays, kept_as
from server.identity.pki import CertificateAuthority
from server.keys.key_protectors import RecoveryKey
from server.keys.service import KeyService
from server.ledger import LEDGER_FILE, LedgerReader
from tests.harness.bound_state import bound_state

FILES = {"plots/loss.svg": b"<svg/>", "notes.txt": b"", "fedlearn.state": b"abc"}


@dataclass(frozen=True)
class Setup:
    state: Path
    unlocked: tuple[str, ...]
    sealed: Path
    mine: tuple[str, ...]
    other: Path


def pem(path: Path, key: X25519PrivateKey) -> Path:
    path.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    path.chmod(0o600)
    return path


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Setup:
    monkeypatch.setenv("FEDLEARN_OPERATOR", str(tmp_path / "no-login"))
    recovery, owner = X25519PrivateKey.generate(), X25519PrivateKey.generate()
    state = tmp_path / "state"
    keys = KeyService.create(
        state / "keys", [RecoveryKey(recovery.public_key().public_bytes_raw())]
    )
    ca = CertificateAuthority.create("models.example", datetime.now(UTC))
    keys.keep("ca-key", ca.private_bytes())
    (state / "ca.pem").write_bytes(ca.certificate_pem)
    recipients = [owner.public_key().public_bytes_raw()]
    with bound_state(state, keys, signer=ca.file_signer) as (_, store):
        store.write("demo", {"w": np.ones(2)}, round=1, recipients=recipients)
        stored = store.write(
            kept_as("demo"),
            as_arrays(FILES),
            round=1,
            job="demo",
            recipients=recipients,
            entry="files",
        )
    return Setup(
        state=state,
        unlocked=("--state", str(state), "--recovery-key", str(pem(tmp_path / "r.pem", recovery))),
        sealed=stored.path,
        mine=("--key", str(pem(tmp_path / "o.pem", owner)), "--ca-pin", ca.key_digest.hex()),
        other=pem(tmp_path / "other.pem", X25519PrivateKey.generate()),
    )


def run(capsys: pytest.CaptureFixture[str], *words: str | Path) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as caught:
        main(["job", "files", *map(str, words)])
    captured = capsys.readouterr()
    assert "Traceback" not in captured.err + captured.out
    assert isinstance(caught.value.code, int)
    return caught.value.code, captured.out, captured.err


def found_in(folder: Path) -> dict[str, bytes]:
    paths = [path for path in folder.rglob("*") if path.is_file()]
    assert {path.stat().st_mode & 0o777 for path in paths} == {0o600}
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def test_the_owner_and_the_operator_get_the_files_for_themselves_alone(
    capsys: pytest.CaptureFixture[str], place: Setup, tmp_path: Path
) -> None:
    mine, theirs = tmp_path / "mine", tmp_path / "theirs"
    code, out, _ = run(capsys, place.sealed, *place.mine, "--out", mine, "--json")
    assert code == 0
    reported = json.loads(out)
    assert reported["files"] == {name: len(data) for name, data in FILES.items()}
    assert (reported["authenticated"], reported["origin"]) == (True, "signature")
    code, out, _ = run(capsys, "demo", *place.unlocked, "--out", theirs)
    assert code == 0
    assert "3 files in plaintext" in out
    for folder in (mine, theirs):
        assert folder.stat().st_mode & 0o777 == 0o700
        assert found_in(folder) == FILES
    # Only what an operator took is an entry: the owner's copy is the owner's.
    [entry] = LedgerReader(place.state / LEDGER_FILE).entries(kind="export")
    assert (entry.body["model"], entry.body["job"]) == ("demo.files", "demo")


def test_nobody_else_does(capsys: pytest.CaptureFixture[str], place: Setup, tmp_path: Path) -> None:
    out = tmp_path / "out"
    inside, pin = place.state / "out", place.mine[2:]
    damaged = tmp_path / "damaged"
    damaged.write_bytes(place.sealed.read_bytes()[:-1] + b"\0")
    model = next((place.state / "store").rglob("demo.1.*"))
    cases: list[tuple[tuple[Any, ...], int, str]] = [
        ((place.sealed, "--key", place.other, *pin, "--out", out), 2, "not for this key"),
        ((place.sealed, *place.mine[:2], "--ca-pin", "00" * 32, "--out", out), 2, "ca"),
        ((place.sealed, "--out", out), 1, "--key"),
        ((model, *place.mine, "--out", out), 1, "is an array of a model"),
        ((damaged, *place.mine, "--out", out), 2, "did not sign this file"),
        (("other", *place.unlocked, "--out", out), 1, "no files of a job 'other'"),
        (("demo", *place.unlocked, *place.mine, "--out", out), 1, "leave out"),
        (("demo", *place.unlocked, "--out", inside), 1, "contains no plaintext"),
        (("demo", *place.unlocked, "--out", tmp_path), 1, "exists already"),
        (("demo", *place.unlocked, "--out", tmp_path / "no" / "out"), 1, "no such file"),
    ]
    for words, status, why in cases:
        code, reported, err = run(capsys, *words)
        assert (code, reported) == (status, ""), (words, err)
        assert why in err.lower() or why in err, err
        assert not out.exists()
        assert not inside.exists()
    assert [path.name for path in tmp_path.iterdir() if path.name.endswith(".tmp")] == []
