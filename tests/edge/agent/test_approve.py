"""``fedlearn-edge approve``: a file that the agent reads, and an answer for programs."""

from __future__ import annotations

import json
from pathlib import Path

from click.testing import CliRunner, Result

from edge.main import main

BUNDLE = "ab" * 32


def approve(folder: Path, *words: str) -> Result:
    config = folder / "site.toml"
    config.write_text('state = "state"\n')
    return CliRunner().invoke(main, ["approve", "heart", *words, "--config", str(config)])


def test_an_approval_is_made_and_withdrawn(tmp_path: Path) -> None:
    approvals = tmp_path / "state/approvals"
    made = approve(tmp_path, BUNDLE, "--json")
    assert json.loads(made.stdout) == {
        "job": "heart",
        "bundle": BUNDLE,
        "approved": True,
        "schema": "fedlearn-edge approve/1",
    }
    assert len(list(approvals.iterdir())) == 1
    assert "heart is no longer approved" in approve(tmp_path, BUNDLE, "--withdraw").stdout
    assert list(approvals.iterdir()) == []
    withdrawn = approve(tmp_path, BUNDLE, "--withdraw", "--json")
    assert json.loads(withdrawn.stdout)["approved"] is False
    assert "may run the code abababababababab... here" in approve(tmp_path, BUNDLE).stdout


def test_what_is_no_digest_is_refused(tmp_path: Path) -> None:
    done = approve(tmp_path, "abcd")
    assert done.exit_code == 1
    assert "must be a SHA-256" in done.stderr
    assert not (tmp_path / "state").exists()
