"""`fedlearn job try`: what it prints, for people and for programs, and what it leaves."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import fedlearn
from fedlearn.cli.job import template
from fedlearn.errors import ConfigError, JobError
from fedlearn.results.run_folder import About, RunFolder

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

_NEEDS_OK = """\
    import pathlib

    there = pathlib.Path(str(context.node_config["data"])) / "ok"
    if message.content["config"]["server-round"] == 3 and not there.exists():
        raise ValueError("planned failure")
    model = model_of("""


def _command(*words: str) -> list[str]:
    return [sys.executable, "-c", "from fedlearn.cli import main; main()", *words]


def _try(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        _command("job", "try", "job.toml", "--tee", "sample", *words),
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
        env={**os.environ, "FLWR_HOME": str(folder / "flower")},
    )


def test_an_interrupted_run_is_kept_and_continues_from_its_last_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "tried"
    template.write(folder, "tried")
    client = folder / "app/tried_app/client_app.py"
    client.write_text(
        client.read_text().replace("model = model_of(", "_wait()\n    model = model_of(")
    )
    client.write_text(client.read_text() + "\n\ndef _wait():\n    __import__('time').sleep(0.3)\n")
    running = subprocess.Popen(
        _command("job", "try", "job.toml", "--tee", "sample", "--json"),
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "FLWR_HOME": str(folder / "flower")},
    )
    assert running.stdout is not None
    first = []
    for text in running.stdout:
        first.append(json.loads(text))
        if first[-1]["kind"] == "round.finished" and first[-1]["round"] == 2:
            running.send_signal(signal.SIGINT)
    errors = running.communicate(timeout=60)[1].splitlines()
    assert running.returncode == 130
    assert "insecure: " in errors[0]
    assert errors[-2:] == [
        "stopped: the run is kept in runs/tried-1",
        "hint: `fedlearn job try job.toml --resume --run runs/tried-1` continues it",
    ]
    done = _try(folder, "--json", "--resume", "--model", "out")
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    last = {"job": "tried", "model": "out", "rounds": 5, "run": "runs/tried-1"}
    assert rows.pop() == {**last, "schema": "fedlearn job try/1"}
    assert rows[: len(first)] == first
    kinds = [row["kind"] for row in rows]
    assert kinds[0] == "job.submitted"
    assert kinds[-1] == "job.finished"
    assert sum(row["kind"] == "job.started" for row in rows) == 2
    finished = [row["round"] for row in rows if row["kind"] == "round.finished"]
    assert finished == [1, 2, 3, 4, 5]

    monkeypatch.chdir(folder)
    result = fedlearn.Result.load("runs/tried-1")
    assert (result.status, len(result.metrics)) == ("finished", 5)
    assert (folder / "out").read_bytes() == (folder / "runs/tried-1/model.safetensors").read_bytes()
    assert {name: array.shape for name, array in result.model().items()} == {
        "weight": (1, 4),
        "bias": (1,),
    }
    assert list(result.model(as_="torch")) == ["weight", "bias"]
    assert result.verify_ledger().head is not None
    page = (folder / "runs/tried-1/report.html").read_text()
    assert "This run was a trial on one machine" in page
    with pytest.raises(ConfigError, match="exists"):
        result.download("out")
    job = fedlearn.Job.load("job.toml")
    with pytest.raises(ConfigError, match="the run has finished"):
        job.try_(resume=True)
    assert not (folder / "runs/tried-1/federation").exists()
    assert sorted(path.name for path in (folder / "runs/tried-1/logs").iterdir()) == [
        "app.log",
        "coordinator.log",
        "site-a.log",
        "site-b.log",
    ]


@pytest.mark.long
def test_a_run_that_failed_continues_once_its_cause_is_gone(tmp_path: Path) -> None:
    folder = tmp_path / "bad"
    template.write(folder, "bad")
    job = folder / "job.toml"
    job.write_text(job.read_text().replace('stragglers = "drop"', 'stragglers = "fail"'))
    client = folder / "app/bad_app/client_app.py"
    client.write_text(client.read_text().replace("    model = model_of(", _NEEDS_OK, 1))
    failed = _try(folder)
    assert failed.returncode == 1
    assert "error: job bad failed: 0 of the 2 updates" in failed.stderr
    assert "--resume continues the run" in failed.stderr
    assert (folder / "runs/bad-1/report.html").is_file()
    for site in ("site-a", "site-b"):
        (folder / "data" / site / "ok").touch()
    done = _try(folder, "--resume")
    assert done.returncode == 0, done.stderr
    assert "job bad: started, continued after round 2" in done.stdout
    assert fedlearn.Result.load(folder / "runs/bad-1").history.resumed == 1


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("job", "the job was changed since this run began"),
        ("app", "the app was changed since this run began"),
        ("early", "the run ended before its job was submitted"),
    ],
)
def test_a_run_whose_job_was_changed_is_not_continued(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str, words: str
) -> None:
    monkeypatch.chdir(tmp_path)
    template.write(tmp_path / "tried", "tried")
    report = fedlearn.Job.load("tried").validate()
    bundle = hashlib.sha256(report.bundle).digest()
    about = About(job="tried", tee="sample", digest=report.spec.digest(), bundle=bundle)
    kept = RunFolder.create_below(tmp_path / "runs", about)
    kept.federation.mkdir()
    if change != "early":
        kept.job.write_text(report.spec.to_toml())
    if change == "job":
        job = tmp_path / "tried/job.toml"
        job.write_text(job.read_text().replace("rounds = 5", "rounds = 6"))
    if change == "app":
        with (tmp_path / "tried/app/tried_app/task.py").open("a") as file:
            file.write("# changed\n")
    with pytest.raises(ConfigError, match=words):
        fedlearn.Job.load("tried").try_(resume=True)


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
    assert lines[-2:] == [
        "the run is kept in runs/counts-1",
        "the job finished, and its app made no model",
    ]
    result = fedlearn.Result.load(tmp_path / "counts/runs/counts-1")
    with pytest.raises(JobError, match="has made no model"):
        result.model()


_FAILS = """
import logging

from flwr.clientapp import ClientApp

app = ClientApp()
print("imported")


@app.train()
def train(message, context):
    print("at", context.node_config["site"], "\\x1b[2J")
    logging.getLogger("mine").warning("rate %s", 0)
    context.run_config["learning_rate"]
"""


def test_what_the_app_writes_at_a_site_is_shown_with_the_traceback(tmp_path: Path) -> None:
    folder = tmp_path / "fails"
    template.write(folder, "fails")
    (folder / "app/fails_app/client_app.py").write_text(_FAILS)
    done = _try(folder)
    assert done.returncode != 0
    lines = done.stdout.splitlines()
    number = 1 + _FAILS.splitlines().index('    context.run_config["learning_rate"]')
    place = f'  File "fails_app/client_app.py", line {number}, in train'
    for site in ("site-a", "site-b"):
        assert f"{site} | imported" in lines
        assert f"{site} | at {site} \N{REPLACEMENT CHARACTER}[2J" in lines
        assert f"{site} | WARNING mine: rate 0 (fails_app/client_app.py:{number - 1})" in lines
        assert f"{site} | {place}" in lines
        assert f"{site} | KeyError: 'learning_rate'" in lines
        reason = f"fails_app/client_app.py:{number}: KeyError: 'learning_rate'"
        assert any(f"update of {site} dropped: {reason}" in line for line in lines)
    kept = (folder / "runs/fails-1/logs/app.log").read_text().splitlines()
    assert kept == [line for line in lines if line.startswith(("site-a | ", "site-b | "))]
