"""`fedlearn job try`: what it prints, for people and for programs, and what it leaves."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from fedlearn.cli.job import template

pytestmark = pytest.mark.e2e

_COUNTS = """
from flwr.common import log
from flwr.serverapp import ServerApp
from logging import INFO

app = ServerApp()


@app.main()
def main(grid, context):
    log(INFO, "an INFO line of the app")
    for number in range(300):
        print("line", number)
"""


def _try(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "from fedlearn.cli import main; main()"]
    return subprocess.run(
        [*command, "job", "try", "job.toml", "--tee", "sample", "--model", "out", *words],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
        env={**os.environ, "FLWR_HOME": str(folder / "flower")},
    )


def test_with_json_every_line_is_json_from_the_first_byte(tmp_path: Path) -> None:
    template.write(tmp_path / "tried", "tried")
    done = _try(tmp_path / "tried", "--json")
    assert done.returncode == 0, done.stderr
    reported = [json.loads(line) for line in done.stdout.splitlines()]
    assert reported[-1] == {"job": "tried", "model": "out", "rounds": 5}
    kinds = [item["kind"] for item in reported[:-1]]
    assert kinds[0] == "job.submitted"
    assert kinds[-1] == "job.finished"
    assert "insecure: " in done.stderr
    assert (tmp_path / "tried" / "out").stat().st_size > 0


def test_an_app_that_leaves_no_model_finishes_and_loses_no_line(tmp_path: Path) -> None:
    template.write(tmp_path / "counts", "counts")
    (tmp_path / "counts/app/counts_app/server_app.py").write_text(_COUNTS)
    done = _try(tmp_path / "counts")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert [f"server | line {number}" for number in range(300)] == [
        line for line in lines if line.startswith("server | line")
    ]
    assert any("an INFO line of the app" in line for line in lines)
    assert lines[-1] == "the job finished, and its app made no model"
    assert not (tmp_path / "counts" / "out").exists()
