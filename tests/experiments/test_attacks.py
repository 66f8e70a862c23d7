"""The figures of ``experiments/attacks``: the script refuses what it cannot do, and draws them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parents[2] / "experiments" / "attacks"


def run(*words: str | Path, cache: Path) -> subprocess.CompletedProcess[str]:
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    return subprocess.run(
        [FOLDER / "figures.sh", *words],
        check=False,
        capture_output=True,
        text=True,
        env={**os.environ, "PATH": path, "XDG_CACHE_HOME": str(cache), "OMP_NUM_THREADS": "1"},
    )


def test_a_wrong_size_and_a_folder_that_exists_are_refused(tmp_path: Path) -> None:
    done = run("huge", cache=tmp_path)
    assert (done.returncode, "the size is full or tiny, not huge" in done.stderr) == (2, True)
    done = run("tiny", tmp_path, cache=tmp_path)
    assert (done.returncode, "exists; name a new folder" in done.stderr) == (1, True)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.long
def test_the_tiny_form_draws_the_three_figures(tmp_path: Path) -> None:
    out = tmp_path / "figures"
    done = run("tiny", out, cache=tmp_path)
    assert done.returncode == 0, done.stderr
    assert {path.name for path in out.iterdir()} == {"robustness", "inversion", "membership"}
    for folder in out.iterdir():
        assert (folder / "figure.png").read_bytes().startswith(b"\x89PNG")
        assert "attestation" in json.loads((folder / "result.json").read_text())["note"]
