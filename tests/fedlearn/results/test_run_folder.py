"""The folder of a run: events are kept as they were, and a damaged folder is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fedlearn.errors import ConfigError
from fedlearn.job import events
from fedlearn.results.run_folder import About, RunFolder

ABOUT = About(job="heart", tee="sample", digest=bytes(32), bundle=bytes(32))
STORY: list[events.Event] = [
    events.JobStarted(job="heart", rounds=1, sites=("north",)),
    events.RoundFinished(
        round=1, seconds=0.5, sites=1, bytes=3, metrics={"loss": float("nan"), "ü\n": 1.0}
    ),
    events.OtherEvent(name="new.kind", body={"x": 1}),
]


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    made = RunFolder.create_below(tmp_path / "runs", ABOUT)
    with made.record() as recorder:
        for number, event in enumerate(STORY, 1):
            recorder.add(event, unix_ms=number * 1000, sequence=number)
    return made


def test_events_are_kept_as_they_were(folder: RunFolder) -> None:
    again = RunFolder.load(folder.path)
    assert again.about == ABOUT
    assert repr(list(again.events())) == repr([(e, n * 1000) for n, e in enumerate(STORY, 1)])
    assert again.history().finished[0].sites == 1
    lines = (folder.path / "events.jsonl").read_text().splitlines()
    assert {json.loads(line)["schema"] for line in lines} == {"fedlearn event/1"}
    assert folder.path.stat().st_mode & 0o777 == 0o700


def test_a_line_that_was_not_written_completely_is_written_again(folder: RunFolder) -> None:
    file = folder.path / "events.jsonl"
    whole = file.read_bytes()
    file.write_bytes(whole[:-5])
    assert len(list(folder.events())) == 2
    with folder.record() as recorder:
        assert recorder.sequence == 2
        recorder.add(STORY[2], unix_ms=3000, sequence=3)
    assert file.read_bytes() == whole


@pytest.mark.parametrize(
    "line",
    [
        "nonsense",
        "[]",
        '{"kind": 3}',
        '{"kind": "log", "line": "x", "schema": "fedlearn event/2"}',
        '{"kind": "log", "line": 5}',
        '{"kind": "log", "line": "x", "unix_ms": "now"}',
        '{"kind": "log", "line": "%s"}' % ("x" * 2_000_000),
        "[" * 100_000,
    ],
    ids=lambda line: line[:40],
)
def test_a_line_that_is_no_event_is_named(folder: RunFolder, line: str) -> None:
    with (folder.path / "events.jsonl").open("a") as file:
        file.write(line + "\n")
    with pytest.raises(ConfigError, match=r"events\.jsonl:4: "):
        list(folder.events())
    with pytest.raises(ConfigError), folder.record():
        pass


def test_only_one_process_may_write(folder: RunFolder) -> None:
    with (
        folder.record(),
        pytest.raises(ConfigError, match="this run goes on in another process"),
        folder.record(),
    ):
        pass


def test_folders_are_counted_and_the_newest_is_found(folder: RunFolder, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    assert folder.path.name == "heart-1"
    (runs / "heart-9").mkdir()
    (runs / "heart-attack-12").mkdir()
    assert RunFolder.create_below(runs, ABOUT).path.name == "heart-10"
    assert RunFolder.newest(runs, "heart").path.name == "heart-10"


def test_what_is_no_run_is_refused(folder: RunFolder, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="exists"):
        RunFolder.create(folder.path, ABOUT)
    with pytest.raises(ConfigError, match=r"it has no run\.toml") as refused:
        RunFolder.load(tmp_path)
    assert "fedlearn job try" in refused.value.hint
    with pytest.raises(ConfigError, match="holds no run of the job 'lung'"):
        RunFolder.newest(tmp_path / "runs", "lung")
    (folder.path / "run.toml").write_text('job = "heart"\ntee = "sample"\n')
    with pytest.raises(ConfigError, match="needs the key 'digest'"):
        RunFolder.load(folder.path)
