"""``job events, metrics, report, compare`` against a coordinator's control port and run folders."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fedlearn.cli.job import template
from tests.fakes.lone_coordinator import LoneCoordinator
from tests.fedlearn.results.story import STORY


@pytest.fixture
def deployment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LoneCoordinator]:
    monkeypatch.chdir(tmp_path)
    template.write(tmp_path / "heart", "heart")
    with LoneCoordinator.started(tmp_path) as running:
        running.coordinator.story = [*STORY]
        assert running.run("job", "submit", tmp_path / "heart/job.toml").exit_code == 0
        yield running


def lines(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def test_every_event_is_exported(deployment: LoneCoordinator) -> None:
    done = deployment.run("job", "events", "heart")
    assert done.exit_code == 0, done.output
    rows = lines(done.stdout)
    assert [row["kind"] for row in rows] == [event.kind for event in STORY]
    assert {row["schema"] for row in rows} == {"fedlearn event/1"}
    assert deployment.run("job", "events", "heart", "--json").stdout == done.stdout
    assert rows[7] == {
        **STORY[7].to_json(),
        "unix_ms": rows[7]["unix_ms"],
        "schema": rows[7]["schema"],
    }
    as_csv = deployment.run("job", "events", "heart", "--format", "csv")
    assert len(list(csv.DictReader(io.StringIO(as_csv.stdout)))) == len(STORY)


def test_metrics_by_round_and_by_site(deployment: LoneCoordinator, tmp_path: Path) -> None:
    shown = deployment.run("job", "metrics", "heart")
    columns = "round state seconds asked sites bytes bytes_received bytes_saved epsilon auc loss"
    assert shown.stdout.splitlines()[0].split() == columns.split()
    assert "finished" in shown.stdout
    (row,) = lines(deployment.run("job", "metrics", "heart", "--json").stdout)
    assert row["metrics"] == {"auc": 0.66, "loss": 0.5}
    assert row["schema"] == "fedlearn job metrics/1"
    sites = lines(deployment.run("job", "metrics", "heart", "--by", "site", "--json").stdout)
    assert [(row["site"], row["state"]) for row in sites] == [("a", "received"), ("b", "rejected")]


def test_the_name_of_a_file_is_its_format(deployment: LoneCoordinator, tmp_path: Path) -> None:
    done = deployment.run("job", "metrics", "heart", "--out", "m.csv")
    assert done.stdout == "1 row written to m.csv\n"
    assert next(csv.DictReader((tmp_path / "m.csv").open()))["auc"] == "0.66"
    done = deployment.run("job", "metrics", "heart", "--out", "m.jsonl", "--json")
    (answer,) = lines(done.stdout)
    assert (answer["out"], answer["format"], answer["rows"]) == ("m.jsonl", "json", 1)
    (row,) = lines((tmp_path / "m.jsonl").read_text())
    assert row["schema"] == "fedlearn job metrics/1"
    pytest.importorskip("pyarrow", reason="extra parquet")
    deployment.run("job", "events", "heart", "--out", "e.parquet")
    assert (tmp_path / "e.parquet").read_bytes().startswith(b"PAR1")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["metrics", "heart", "--format", "parquet"], "a Parquet file is not text"),
        (["metrics", "no job"], "is neither a job"),
        (["metrics", "<b>x"], "is neither a job"),
        (["metrics", "other"], "there is no job"),
        (["compare", "heart"], "1 runs are named; 2 to 8"),
        (["compare", "heart", "heart"], "heart is named twice"),
        (["report", "heart", "--out", "no/such/folder/r.html"], "no such file"),
    ],
)
def test_what_cannot_be_done_is_refused(
    deployment: LoneCoordinator, arguments: list[str], words: str
) -> None:
    done = deployment.run("job", *arguments)
    assert done.exit_code == 1
    assert words in done.stderr
    assert done.stdout == ""


def test_with_json_rows_are_json(deployment: LoneCoordinator) -> None:
    done = deployment.run("job", "metrics", "heart", "--format", "csv", "--json")
    assert done.exit_code == 1
    assert "exclude each other" in lines(done.stdout)[0]["error"]["message"]


def test_the_report_of_a_job_is_one_page(deployment: LoneCoordinator, tmp_path: Path) -> None:
    done = deployment.run("job", "report", "heart", "--metric", "auc")
    assert done.stdout == "the report of heart is in report.html\n"
    page = (tmp_path / "report.html").read_text()
    assert "coordinator" in page
    assert page.index("<h3>auc</h3>") < page.index("<h3>loss</h3>")
    done = deployment.run("job", "report", "heart", "--out", "r.html", "--json")
    assert lines(done.stdout)[0]["out"] == "r.html"


def test_runs_are_compared(deployment: LoneCoordinator, tmp_path: Path) -> None:
    template.write(tmp_path / "other", "other")
    assert deployment.run("job", "submit", tmp_path / "other/job.toml").exit_code == 0
    done = deployment.run("job", "compare", "heart", "other", "--out", "c.html")
    assert done.exit_code == 0, done.output
    head, heart, other, plot = done.stdout.splitlines()
    assert head.split()[:5] == ["run", "status", "rounds", "loss", "auc"]
    assert (heart.split()[0], other.split()[0]) == ("heart", "other")
    assert plot == "the plot is in c.html"
    assert 'class="curve s1"' in (tmp_path / "c.html").read_text()
    (answer,) = lines(deployment.run("job", "compare", "heart", "other", "--json").stdout)
    assert [run["run"] for run in answer["runs"]] == ["heart", "other"]
    done = deployment.run("job", "compare", "heart", "other", "--metric", "f1")
    assert "no run reports the metric 'f1'; there are: auc, loss" in done.stderr


def test_a_folder_of_a_trial_is_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from click.testing import CliRunner

    from fedlearn.cli import main
    from fedlearn.results.run_folder import About, RunFolder

    monkeypatch.chdir(tmp_path)
    about = About(job="heart", metric="auc", tee="sample", digest=bytes(32), bundle=bytes(32))
    for number in (1, 2):
        folder = RunFolder.create(tmp_path / f"heart-{number}", about)
        with folder.record() as recorder:
            for sequence, event in enumerate(STORY, 1):
                recorder.add(event, unix_ms=1000 * sequence, sequence=sequence)
    runner = CliRunner()
    done = runner.invoke(main, ["job", "metrics", "./heart-1", "--json"])
    assert lines(done.stdout)[0]["metrics"]["auc"] == 0.66
    done = runner.invoke(main, ["job", "compare", "./heart-1", "heart-2/", "--json"])
    assert [run["run"] for run in lines(done.stdout)[0]["runs"]] == ["heart-1", "heart-2"]
    done = runner.invoke(main, ["job", "report", "./heart-1"])
    page = (tmp_path / "report.html").read_text()
    assert "This run was a trial on one machine: its evidence (sample)" in page
    done = runner.invoke(main, ["job", "metrics", "./"])
    assert done.exit_code == 1
    assert "is not the folder of a run" in done.stderr
