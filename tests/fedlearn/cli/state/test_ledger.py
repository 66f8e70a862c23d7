"""``fedlearn ledger`` reports what is intact, what is damaged and what cannot be read."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from fedlearn.cli import main
from server.ledger import LEDGER_FILE, PUBLIC_KEY_FILE, Json, Ledger

KEY = ec.generate_private_key(ec.SECP256R1())


@pytest.fixture
def state(tmp_path: Path) -> Path:
    directory = tmp_path / "state"
    directory.mkdir()
    common = {"job": "demo", "site": "a", "thumbprint": "aa"}
    with Ledger.open(directory / LEDGER_FILE, KEY) as ledger:
        measured: dict[str, Json] = {"measurements": {"app": "0123"}, "tee": "tpm", "policy": "77"}
        ledger.append("admission", {**common, **measured})
        ledger.append("refusal", {"job": "demo", "site": "rogue", "reason": "bad \x1b[31m app"})
        ledger.append("round", {"job": "demo", "round": 1, "phase": "started"})
        ledger.append(
            "update", {**common, "round": 1, "digest": "dd", "examples": 3, "accepted": True}
        )
        ledger.append("round", {"job": "demo", "round": 1, "phase": "finished"})
        ledger.append("checkpoint", {"job": "demo", "round": 1, "version": 1})
    return directory


def damage(state: Path, statement: str) -> None:
    connection = sqlite3.connect(state / LEDGER_FILE)
    connection.execute("DROP TRIGGER entry_is_not_changed")
    connection.execute("DROP TRIGGER entry_is_not_deleted")
    connection.execute(statement)
    connection.commit()
    connection.close()


def run(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as caught:
        main(["ledger", *map(str, arguments)])
    captured = capsys.readouterr()
    assert "Traceback" not in captured.err
    code = caught.value.code
    assert isinstance(code, int)
    return code, captured.out, captured.err


def test_an_intact_ledger(state: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(capsys, "verify", "--state", state)
    assert (code, err) == (0, "")
    assert "intact: 6 entries" in out
    assert "--head" in out
    code, out, _ = run(capsys, "verify", "--state", state, "--json")
    found = json.loads(out)
    assert (code, found["intact"], found["entries"]) == (0, True, 6)
    assert found["head"].startswith("6:")


def test_a_damaged_entry_is_named(state: Path, capsys: pytest.CaptureFixture[str]) -> None:
    damage(state, "UPDATE entry SET time = time + 1 WHERE sequence = 4")
    code, out, err = run(capsys, "verify", "--state", state)
    assert (code, out) == (2, "")
    assert "entry 4" in err
    code, out, _ = run(capsys, "verify", "--state", state, "--json")
    assert code == 2
    assert json.loads(out)["entry"] == 4


def test_an_entry_that_cannot_be_shown_is_named(
    state: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    damage(state, "UPDATE entry SET body = x'ff' WHERE sequence = 3")
    code, out, err = run(capsys, "show", "--state", state)
    assert code == 2
    assert len(out.splitlines()) == 2
    assert "entry 3" in err


def test_a_cut_tail_is_named_with_a_head(
    state: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "head.json"
    code, word, _ = run(capsys, "head", "--state", state, "--out", file)
    assert code == 0
    for given in (file, word.strip()):
        assert run(capsys, "verify", "--state", state, "--head", given)[0] == 0
    damage(state, "DELETE FROM entry WHERE sequence > 4")
    assert run(capsys, "verify", "--state", state)[0] == 0
    for given in (file, word.strip()):
        code, _, err = run(capsys, "verify", "--state", state, "--head", given)
        assert code == 2
        assert "entry 5: missing" in err
    assert [path.name for path in tmp_path.iterdir() if "new" in path.name] == []


def test_entries_are_shown_and_chosen(state: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "show", "--state", state)
    assert code == 0
    assert len(out.splitlines()) == 6
    assert "\x1b" not in out
    _, out, _ = run(capsys, "show", "--state", state, "--kind", "round", "--after", "3", "--json")
    lines = [json.loads(text) for text in out.splitlines()]
    assert [entry["sequence"] for entry in lines] == [5]
    _, out, _ = run(capsys, "show", "--state", state, "--limit", "2")
    assert len(out.splitlines()) == 2


def test_contributions_of_a_model(state: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ("contributions", "--state", state, "--job", "demo", "--version", "1")
    code, out, _ = run(capsys, *arguments)
    assert code == 0
    assert out.splitlines() == [
        "ROUND  SITE  TEE  EXAMPLES  UPDATE  POLICY  MEASURED",
        "    1  a     tpm         3  dd      77      [1]",
        "",
        "[1]",
        "  app  0123",
    ]
    _, out, _ = run(capsys, *arguments, "--json")
    assert [item["site"] for item in json.loads(out)["contributions"]] == ["a"]
    code, _, err = run(capsys, "contributions", "--state", state, "--job", "else")
    assert code == 1
    assert "else" in err
    assert "hint" in err


def test_the_key_may_be_kept_elsewhere(
    state: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    key = tmp_path / "kept.pem"
    (state / PUBLIC_KEY_FILE).rename(key)
    assert run(capsys, "verify", "--state", state, "--key", key)[0] == 0
    code, _, err = run(capsys, "verify", "--state", state)
    assert code == 1
    assert PUBLIC_KEY_FILE in err
    other = ec.generate_private_key(ec.SECP256R1()).public_key()
    key.write_bytes(
        other.public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )
    )
    code, _, err = run(capsys, "verify", "--state", state, "--key", key)
    assert code == 2
    assert "entry 1" in err


@pytest.mark.parametrize("command", ["show", "verify", "head"])
def test_what_is_no_state_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    code, out, err = run(capsys, command, "--state", tmp_path / "nothing")
    assert (code, out) == (1, "")
    assert "nothing" in err
    code, out, err = run(capsys, command, "--state", tmp_path)
    assert (code, out) == (1, "")
    assert LEDGER_FILE in err
    (tmp_path / LEDGER_FILE).write_bytes(b"text " * 1000)
    assert run(capsys, command, "--state", tmp_path)[0] == 1
    code, out, _ = run(capsys, command, "--state", tmp_path, "--json")
    assert code == 1
    assert json.loads(out)["error"]["code"] == "ledger"


def test_an_empty_ledger_has_no_head(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Ledger.open(tmp_path / LEDGER_FILE, KEY).close()
    assert run(capsys, "verify", "--state", tmp_path)[0] == 0
    code, _, err = run(capsys, "head", "--state", tmp_path, "--out", tmp_path / "head.json")
    assert code == 1
    assert "empty" in err
    assert not (tmp_path / "head.json").exists()


@pytest.mark.parametrize("content", ["", "not a head", "{}", "5:abc"])
def test_a_broken_head_is_refused(
    state: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str
) -> None:
    file = tmp_path / "head.json"
    file.write_text(content)
    code, _, err = run(capsys, "verify", "--state", state, "--head", file)
    assert code == 1
    assert "--head" in err
    assert run(capsys, "verify", "--state", state, "--head", tmp_path / "none")[0] == 1
    assert run(capsys, "verify", "--state", state, "--head", "7:00")[0] == 1


@pytest.mark.parametrize(
    "arguments",
    [
        ("show",),
        ("show", "--state", ".", "--after", "-1"),
        ("show", "--state", ".", "--limit", "0"),
        ("show", "--state", ".", "--after", "x"),
        ("contributions", "--state", "."),
    ],
)
def test_broken_flags_are_refused(
    capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...]
) -> None:
    code, out, err = run(capsys, *arguments)
    assert (code, out) == (1, "")
    assert err.startswith("error:")
