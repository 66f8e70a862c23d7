"""``fedlearn experiment`` on the command line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from fedlearn.cli import main
from tests.fedlearn.experiment.conftest import HEAD

ONE_SEED = HEAD.replace("[1, 2, 3]", "[1]")
FAILS = '[[grid]]\nname = "end"\nzip = { "config.end" = ["no", "fail"] }\n'


def fedlearn(*words: str | Path) -> int:
    with pytest.raises(SystemExit) as ended:
        main(list(map(str, words)))
    assert isinstance(ended.value.code, int)
    return ended.value.code


def test_run_status_resume_and_report(
    write: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    file = write(FAILS, ONE_SEED)
    assert fedlearn("experiment", "resume", file) == 1
    assert "nothing of this experiment has run yet" in capsys.readouterr().err
    assert fedlearn("experiment", "run", file, "--jobs", "2") == 1
    shown = capsys.readouterr().out
    assert "attestation, TLS and sealing are left out" in shown
    assert "fail/seed-1 has failed: no such data" in shown
    assert "hint: make some" in shown
    assert "2 cells: 1 finished, 1 failed" in shown

    assert fedlearn("experiment", "status", file, "--json") == 0
    state = json.loads(capsys.readouterr().out)
    assert state["schema"] == "fedlearn experiment status/1"
    assert state["complete"] is False
    assert [(c["name"], c["state"], c["error"]) for c in state["cells"]] == [
        ("no/seed-1", "finished", ""),
        ("fail/seed-1", "failed", "no such data"),
    ]
    assert fedlearn("experiment", "resume", file, "--failed", "--json") == 0
    lines = [json.loads(text) for text in capsys.readouterr().out.splitlines()]
    assert [line["kind"] for line in lines[:-1]] == ["started", "finished"]
    assert lines[0]["schema"] == "fedlearn experiment progress/1"
    assert lines[-1]["complete"] is True

    assert fedlearn("experiment", "report", file, "--out", file.parent / "out") == 0
    shown = capsys.readouterr().out
    assert "the report is in" in shown
    assert "not in the report: accuracy against epsilon" in shown
    assert (file.parent / "out" / "report.html").is_file()


def test_a_file_that_is_wrong_is_named_with_its_line(
    write: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    file = write('[[grid]]\nzip = { "seed" = [1] }\n')
    assert fedlearn("experiment", "run", file) == 1
    assert "experiment.toml:8: grid[0].zip.seed: cannot be varied" in capsys.readouterr().err
    assert fedlearn("experiment", "run", file.with_name("none.toml")) == 1
    assert "does not exist" in capsys.readouterr().err


def test_a_report_without_results_states_what_to_run(
    write: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert fedlearn("experiment", "report", write()) == 1
    error = capsys.readouterr().err
    assert "no cell has a result" in error
    assert "`fedlearn experiment run` runs the cells" in error
