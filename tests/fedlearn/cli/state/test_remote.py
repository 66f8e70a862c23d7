"""Models and the ledger over a login, and as an owner: the commands, against real listeners."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from fedlearn.cli import main
from fedlearn.identity.login import LEDGER_HEAD, OperatorLogin
from server.flower.application.app_files import as_arrays
from server.ledger import Json
from tests.harness.deployment import key_pem
from tests.harness.listeners import DeploymentListeners

WEIGHTS = {"w": np.arange(6, dtype=np.float32).reshape(2, 3)}


@dataclass(frozen=True)
class RemoteCommands:
    listeners: DeploymentListeners
    login: Path
    owner: Path
    other: Path
    folder: Path

    @property
    def as_owner(self) -> tuple[str, ...]:
        pin = self.listeners.deployment.ca.key_digest.hex()
        gate = ("--coordinator", self.listeners.gate, "--ca-pin", pin)
        return ("--key", str(self.owner), *gate)


def private(path: Path, key: X25519PrivateKey) -> Path:
    path.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    path.chmod(0o600)
    return path


@pytest.fixture
def place(
    listeners: DeploymentListeners, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> RemoteCommands:
    """A home with a login and an owner's key, and nothing else."""
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.delenv("FEDLEARN_OPERATOR", raising=False)
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
    monkeypatch.chdir(home)
    chain, key = listeners.deployment.operator()
    login = home / ".config" / "fedlearn" / "operator"
    OperatorLogin(
        address=listeners.control,
        ca=listeners.deployment.ca.certificate_pem,
        chain=chain,
        key=key_pem(key),
    ).save(login)
    owner = X25519PrivateKey.generate()
    mine = (owner.public_key().public_bytes_raw(),)
    store = listeners.store
    store.write("heart", {"w": 0 * WEIGHTS["w"]}, round=1, recipients=mine)
    store.write("heart", WEIGHTS, round=2, recipients=mine)
    files = as_arrays({"plot.svg": b"<svg/>"})
    store.write("heart.files", files, round=2, job="heart", recipients=mine, entry="files")
    store.write("lung", WEIGHTS, round=1)
    return RemoteCommands(
        listeners=listeners,
        login=login,
        owner=private(home / "owner.pem", owner),
        other=private(home / "other.pem", X25519PrivateKey.generate()),
        folder=home,
    )


def run(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as caught:
        main([*map(str, arguments)])
    captured = capsys.readouterr()
    assert "Traceback" not in captured.err + captured.out
    assert isinstance(caught.value.code, int)
    return caught.value.code, captured.out, captured.err


def refused(capsys: pytest.CaptureFixture[str], *arguments: str | Path, status: int = 1) -> str:
    code, out, err = run(capsys, *arguments)
    assert (code, out) == (status, "")
    return err


def rows(text: str) -> list[list[str]]:
    return [row.split() for row in text.splitlines()]


def test_the_whole_way_from_a_login_and_a_key(
    capsys: pytest.CaptureFixture[str], place: RemoteCommands
) -> None:
    code, out, _ = run(capsys, "model", "list", "heart")
    assert code == 0
    assert [row[:4] for row in rows(out)] == [
        ["MODEL", "VERSION", "JOB", "ROUND"],
        ["heart", "1", "heart", "1"],
        ["heart", "2", "heart", "2"],
        ["heart.files", "1", "heart", "2"],
    ]
    assert len(rows(run(capsys, "model", "list")[1])) == 5
    code, out, _ = run(capsys, "model", "download", "heart")
    assert code == 0
    assert "heart, version 2, after round 2" in out
    assert "next: fedlearn model open heart.flsw --key owner.pem" in out
    code, out, _ = run(capsys, "model", "open", "heart.flsw", "--key", place.owner)
    assert code == 0
    assert "every chunk authentic: signed by the coordinator whose CA is" in out
    arguments = ("model", "export", "heart.flsw", "--key", place.owner, "--out", "w.safetensors")
    assert run(capsys, *arguments)[0] == 0
    found = safetensors.numpy.load_file("w.safetensors")
    assert np.array_equal(found["w"], WEIGHTS["w"])
    code, out, _ = run(capsys, "job", "files", "heart", "--key", place.owner, "--out", "files")
    assert code == 0
    assert (place.folder / "files" / "plot.svg").read_bytes() == b"<svg/>"
    assert run(capsys, "ledger", "verify")[0] == 0


def test_the_owner_needs_no_login(
    capsys: pytest.CaptureFixture[str], place: RemoteCommands, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FEDLEARN_OPERATOR", str(place.folder / "none"))
    code, out, _ = run(capsys, "model", "list", *place.as_owner, "--json")
    assert code == 0
    assert [(found["model"], found["version"]) for found in json.loads(out)["models"]] == [
        ("heart", 1),
        ("heart", 2),
        ("heart.files", 1),
    ]
    arguments = ("model", "download", "heart", "--version", "1", *place.as_owner)
    code, out, _ = run(capsys, *arguments, "--out", "one", "--json")
    assert (code, json.loads(out)["version"]) == (0, 1)
    pin = place.as_owner[-1]
    opened = ("model", "open", "one", "--key", place.owner, "--ca-pin", pin)
    assert run(capsys, *opened)[0] == 0
    other = ("--key", str(place.other), *place.as_owner[2:])
    assert run(capsys, "model", "list", *other)[1] == "no models\n"
    assert "there is no model 'heart'" in refused(capsys, "model", "download", "heart", *other)
    wrong = (*place.as_owner[:-1], "0" * 64)
    assert "does not have the pinned key" in refused(capsys, "model", "list", *wrong)


def test_the_key_of_another_owner_opens_nothing(
    capsys: pytest.CaptureFixture[str], place: RemoteCommands
) -> None:
    assert run(capsys, "model", "download", "heart")[0] == 0
    for command in (("open",), ("export", "--out", "w.safetensors")):
        arguments = ("model", *command, "heart.flsw", "--key", str(place.other))
        assert "sealed for" in refused(capsys, *arguments, status=2)
    assert not (place.folder / "w.safetensors").exists()


def test_options_that_do_not_fit_are_refused(
    capsys: pytest.CaptureFixture[str], place: RemoteCommands
) -> None:
    cases: tuple[tuple[tuple[str | Path, ...], str], ...] = (
        (("--key", place.owner), "--coordinator HOST:PORT"),
        (("--coordinator", "a:1"), "name the private key with --key"),
        (("--ca-pin", "00" * 32), "name the private key with --key"),
        (("--ca-pin", "00"), "SHA-256 of 32 bytes"),
        ((*place.as_owner, "--operator", place.login), "name one"),
        (("--operator", place.folder / "nothing"), "no operator login here"),
    )
    for arguments, why in cases:
        assert why in refused(capsys, "model", "list", *arguments)
        assert why in refused(capsys, "model", "download", "heart", *arguments)
    state = ("--state", place.folder, "--operator", place.login)
    assert "name one" in refused(capsys, "model", "list", *state)
    for command in ("show", "head", "verify", "contributions --job x"):
        assert "name one" in refused(capsys, "ledger", *command.split(), *state)


def test_without_a_login_the_other_ways_are_named(
    capsys: pytest.CaptureFixture[str], place: RemoteCommands, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FEDLEARN_OPERATOR", str(place.folder / "none"))
    for command in ("model list", "ledger verify", "model download heart"):
        err = refused(capsys, *command.split())
        assert "no operator login here" in err
        assert "--operator DIR" in err
        assert "--state DIR" in err


def test_a_model_that_is_not_there_or_exists_is_refused(
    capsys: pytest.CaptureFixture[str], place: RemoteCommands
) -> None:
    assert "there is no model 'nope'" in refused(capsys, "model", "download", "nope")
    assert "no version 9" in refused(capsys, "model", "download", "heart", "--version", "9")
    assert "for the coordinator alone" in refused(capsys, "model", "download", "lung")
    (place.folder / "heart.flsw").write_text("mine")
    assert "exists" in refused(capsys, "model", "download", "heart")
    assert (place.folder / "heart.flsw").read_text() == "mine"
    assert run(capsys, "model", "download", "heart", "--replace")[0] == 0
    assert "is not a name" in refused(capsys, "model", "list", "NOT A JOB")
    assert run(capsys, "model", "list", "other")[1] == "no models of other\n"
    (place.folder / "heart.flsw").unlink()
    (place.folder / "heart.flsw.part").write_bytes(
        place.listeners.store.version("heart").path.read_bytes()[:-70] + bytes(40)
    )
    assert "its digest is" in refused(capsys, "model", "download", "heart", status=2)
    assert not (place.folder / "heart.flsw").exists()


def test_files_of_a_job_are_downloaded_and_opened(
    capsys: pytest.CaptureFixture[str], place: RemoteCommands
) -> None:
    arguments = ("job", "files", "heart", "--out", "files", "--operator", place.login)
    assert run(capsys, *arguments, "--key", place.owner)[0] == 0
    other = ("job", "files", "heart", "--out", "more", "--key", place.other)
    assert "sealed for" in refused(capsys, *other, status=2)
    absent = ("job", "files", "lung", "--out", "more", "--key", place.owner)
    assert "there is no model 'lung.files'" in refused(capsys, *absent)
    missing = ("job", "files", "no/file", "--out", "more", "--key", place.owner)
    assert "no such file" in refused(capsys, *missing)
    assert not (place.folder / "more").exists()


def test_the_ledger_over_a_login(capsys: pytest.CaptureFixture[str], place: RemoteCommands) -> None:
    ledger = place.listeners.ledger
    code, out, err = run(capsys, "ledger", "verify")
    assert (code, err) == (0, "")
    assert f"intact: {len(list(ledger.entries()))} entries" in out
    assert "the head is kept in the login" in out
    ledger.append("round", {"job": "heart", "round": 3, "phase": "started"})
    code, out, _ = run(capsys, "ledger", "verify", "--operator", place.login, "--json")
    found = json.loads(out)
    assert (found["intact"], found["head_checked"]) == (True, True)
    assert found["former_head"].startswith(f"{found['entries'] - 1}:")
    code, out, _ = run(capsys, "ledger", "head", "--out", "head.json")
    assert out.strip() == found["head"]
    assert run(capsys, "ledger", "verify", "--head", "head.json")[0] == 0
    code, out, _ = run(capsys, "ledger", "show", "--kind", "round", "--json")
    assert [json.loads(text)["body"]["round"] for text in out.splitlines()] == [3]
    remote = run(capsys, "ledger", "show")[1]
    assert remote == run(capsys, "ledger", "show", "--state", place.listeners.state)[1]


def test_a_ledger_that_was_set_back_is_named(
    capsys: pytest.CaptureFixture[str], place: RemoteCommands
) -> None:
    assert run(capsys, "ledger", "verify")[0] == 0
    head = json.loads((place.login / LEDGER_HEAD).read_text())
    later = {**head, "sequence": head["sequence"] + 5, "signature": ""}
    (place.login / LEDGER_HEAD).write_text(json.dumps(later))
    err = refused(capsys, "ledger", "verify", status=2)
    assert f"damaged: entry {head['sequence'] + 1}: missing" in err
    assert "the head that this login kept" in err
    assert refused(capsys, "ledger", "head", status=2) == err
    code, out, _ = run(capsys, "ledger", "verify", "--json")
    assert (code, json.loads(out)["entry"]) == (2, head["sequence"] + 1)


def test_contributions_are_a_table(
    capsys: pytest.CaptureFixture[str], place: RemoteCommands
) -> None:
    ledger = place.listeners.ledger
    measured: dict[str, Json] = {
        "app": "aa" * 32,
        "pcr0": "bb" * 32,
        "pcr16": "00" * 32,
        "pcr20": "ff" * 48,
        "other/lung/app": "cc" * 32,
    }
    admitted: dict[str, Json] = {"tee": "tpm", "policy": "77" * 32, "measurements": measured}
    update: dict[str, Json] = {"digest": "dd" * 32, "examples": 1200, "accepted": True}
    for run_id, rounds in (("heart", 1), ("heart.2", 2)):
        ledger.append("job", {"job": run_id, "change": "submitted"})
        for site in ("north", "south"):
            ledger.append(
                "admission", {"job": run_id, "site": site, "key_thumbprint": site, **admitted}
            )
        for number in range(1, rounds + 1):
            round_: dict[str, Json] = {"job": run_id, "round": number}
            ledger.append("round", {**round_, "phase": "started"})
            for site in ("north", "south"):
                ledger.append("update", {**round_, "site": site, "key_thumbprint": site, **update})
            ledger.append("round", {**round_, "phase": "finished"})
    code, out, _ = run(capsys, "ledger", "contributions", "--job", "heart@1")
    assert code == 0
    assert out.splitlines() == [
        "ROUND  SITE   TEE  EXAMPLES  UPDATE            POLICY            MEASURED",
        "    1  north  tpm      1200  dddddddddddddddd  7777777777777777  [1]",
        "    1  south  tpm      1200  dddddddddddddddd  7777777777777777  [1]",
        "",
        "[1]",
        "  app   " + "aa" * 32,
        "  pcr0  " + "bb" * 32,
    ]
    code, out, _ = run(capsys, "ledger", "contributions", "--job", "heart", "--json")
    found = json.loads(out)["contributions"]
    assert {item["job"] for item in found} == {"heart.2"}
    assert found[0]["measurements"] == measured
    remote = run(capsys, "ledger", "contributions", "--job", "heart")[1]
    state = ("--state", place.listeners.state)
    assert remote == run(capsys, "ledger", "contributions", "--job", "heart", *state)[1]
    assert "no finished round" in refused(capsys, "ledger", "contributions", "--job", "none")
