"""Runs are recorded with the real libraries, on disk: live, afterwards, again, and in vain."""

from __future__ import annotations

import json
import struct
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

import fedlearn
from fedlearn.cli.job import template
from fedlearn.errors import ConfigError, Interrupted
from fedlearn.job import events
from fedlearn.job.state import JobStatus
from fedlearn.results.history import RunHistory
from fedlearn.results.run_folder import About, RunFolder
from fedlearn.tracking.record import record
from fedlearn.tracking.tracker import TrackingError, flat, round_values
from tests.fakes.interrupt import interrupted
from tests.fakes.lone_coordinator import LoneCoordinator

Read = Callable[[Path], Mapping[str, list[tuple[int, float]]]]

SITES = ("site-a", "site-b")
START = 1_700_000_000_000


def _rounds(first: int, last: int) -> Iterator[events.Event]:
    for number in range(first, last + 1):
        yield events.RoundStarted(round=number, rounds=4, sites=SITES)
        yield events.RoundFinished(
            round=number,
            rounds=4,
            seconds=0.5,
            sites=2,
            bytes=100 * number,
            metrics={"loss": 1.0 / number, "auc/ü": 0.5},
        )
        yield events.PrivacySpent(
            round=number,
            epsilon=0.1 * number,
            delta=1e-5,
            unit="site",
            sampling="all",
            accountant="rdp",
        )


BEGIN = [
    events.JobSubmitted(job="heart", rounds=4, sites=SITES),
    events.JobStarted(job="heart", rounds=4, sites=SITES),
]
END = events.JobFinished(model="heart")
STORY = [*BEGIN, *_rounds(1, 4), END]
EXPECTED = {
    "loss": [(1, 1.0), (2, 0.5), (3, 1 / 3), (4, 0.25)],
    "privacy/epsilon": [(1, 0.1), (2, 0.2), (3, 0.3), (4, 0.4)],
    "round/bytes": [(1, 100.0), (2, 200.0), (3, 300.0), (4, 400.0)],
}


def _mlflow(place: Path) -> Mapping[str, list[tuple[int, float]]]:
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=f"sqlite:///{place}")
    experiment = client.get_experiment_by_name("fedlearn")
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.run_name == "heart"
    assert run.info.start_time == START
    assert run.data.params["strategy.name"] == "app"
    assert [item.path for item in client.list_artifacts(run.info.run_id)] == ["report.html"]
    return {
        name: [(m.step, m.value) for m in client.get_metric_history(run.info.run_id, name)]
        for name in run.data.metrics
    }


def _tensorboard(place: Path) -> Mapping[str, list[tuple[int, float]]]:
    (folder,) = (place / "fedlearn").iterdir()
    assert "heart" in (folder / "report.html").read_text()
    known = _events(place)
    (table,) = known.Tensors("parameters/text_summary")
    assert b"|strategy.name|app|" in table.tensor_proto.string_val[0]
    assert all(each.wall_time >= START / 1000 for each in known.Scalars("loss"))
    return _scalars(place)


def _events(place: Path) -> Any:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (folder,) = (place / "fedlearn").iterdir()
    return EventAccumulator(str(folder), size_guidance={"scalars": 0}).Reload()


def _scalars(place: Path) -> Mapping[str, list[tuple[int, float]]]:
    known = _events(place)
    return {
        name: [(each.step, each.value) for each in known.Scalars(name)]
        for name in known.Tags()["scalars"]
    }


def _wandb(place: Path) -> Mapping[str, list[tuple[int, float]]]:
    from wandb.proto.wandb_internal_pb2 import Record

    found: dict[str, list[tuple[int, float]]] = {}
    config: dict[str, Any] = {}
    artifacts = set()
    files = sorted(place.glob("wandb/offline-run-*/*.wandb"))
    assert len({file.name for file in files}) == 1  # one run, whose name is its id
    for file in files:
        for data in _records(file.read_bytes()):
            one = Record.FromString(data)
            config |= {item.key: json.loads(item.value_json) for item in one.run.config.update}
            config |= {item.key: json.loads(item.value_json) for item in one.config.update}
            artifacts.add(one.request.log_artifact.artifact.type)
            artifacts.add(one.artifact.type)
            values = {
                item.key or "/".join(item.nested_key): json.loads(item.value_json)
                for item in one.history.item
            }
            for name, value in values.items():
                found.setdefault(name, []).append((int(values["_step"]), value))
    assert config["strategy.name"] == "app"
    assert "report" in artifacts
    return found


def _records(data: bytes) -> Iterator[bytes]:
    """Yield the records of a file of wandb: LevelDB's log format behind seven bytes."""
    position, whole = 7, b""
    while len(data) - position >= 7:
        if (left := 32768 - position % 32768) < 7:
            position += left
            continue
        length, kind = struct.unpack_from("<HB", data, position + 4)
        whole += data[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):  # a whole record, or the end of one
            yield whole
            whole = b""


READ: dict[str, tuple[str, Read]] = {
    "mlflow": ("m.db", _mlflow),
    "tensorboard": ("boards", _tensorboard),
    "wandb": ("files", _wandb),
}


@pytest.fixture
def there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LoneCoordinator]:
    monkeypatch.chdir(tmp_path)  # where MLflow puts the artifacts of a database file
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    template.write(tmp_path / "heart", "heart")
    with LoneCoordinator.started(tmp_path) as running:
        running.coordinator.started_unix_ms = START
        running.coordinator.story = [*BEGIN, *_rounds(1, 2)]
        fedlearn.connect(running.login).submit(fedlearn.Job.load(tmp_path / "heart"))
        yield running


@pytest.mark.parametrize("to", READ)
def test_a_run_is_recorded_live_and_continued_and_never_twice(
    there: LoneCoordinator, tmp_path: Path, to: str
) -> None:
    name, read = READ[to]
    place = tmp_path / name
    at = f"sqlite:///{place}" if to == "mlflow" else str(place)
    command = ("job", "track", "heart", "--to", to, "--at", at)

    # The coordinator goes away while the job runs: what it reported is recorded.
    first = there.run(*command)
    assert first.exit_code == 1
    assert "ended the stream" in first.stderr
    assert there.coordinator.jobs["heart"].status == "running"
    assert [step for step, _ in read(place)["loss"]] == [1, 2]

    there.coordinator.story = STORY
    for _ in range(2):
        done = there.run(*command, "--json")
        assert done.exit_code == 0, done.output
        last = json.loads(done.stdout.splitlines()[-1])
        assert (last["rounds"], last["status"], last["run"]) == (4, "finished", "heart")
    found = read(place)
    for metric, expected in EXPECTED.items():
        assert [step for step, _ in found[metric]] == [step for step, _ in expected]
        assert [value for _, value in found[metric]] == pytest.approx([v for _, v in expected])
    assert [step for step, _ in found["auc/_"]] == [1, 2, 3, 4]


def test_the_folder_of_a_run_is_recorded(there: LoneCoordinator, tmp_path: Path) -> None:
    report = fedlearn.Job.load(tmp_path / "heart").validate()
    about = About(job="heart", tee="sample", digest=report.spec.digest(), bundle=bytes(32))
    folder = RunFolder.create_below(tmp_path / "runs", about)
    with folder.record() as recorder:
        for number, event in enumerate(STORY, 1):
            recorder.add(event, unix_ms=START + number, sequence=number)
    words = ("job", "track", folder.path, "--to", "tensorboard", "--at", tmp_path / "boards")
    early = there.run(*words)
    assert early.exit_code == 1
    assert "ended before its job was submitted" in early.stderr
    folder.job.write_text(report.spec.to_toml())
    for _ in range(2):
        done = there.run(*words)
        assert done.exit_code == 0, done.output
        assert done.stdout.startswith("heart-1: finished, 4 rounds in tensorboard\n")
    assert [step for step, _ in _tensorboard(tmp_path / "boards")["loss"]] == [1, 2, 3, 4]


def test_ctrl_c_leaves_the_job_running_and_what_is_recorded(
    there: LoneCoordinator, tmp_path: Path
) -> None:
    there.coordinator.goes_on = True
    with fedlearn.connect(there.login) as coordinator:
        run = coordinator.job("heart")
        with (
            pytest.raises(Interrupted, match=r"goes on.*the same again continues the record"),
            interrupted(there.coordinator),
        ):
            run.track("tensorboard", at=str(tmp_path / "boards"))
        assert run.status is JobStatus.RUNNING
        # The second round would have been recorded once the third began.
        assert [step for step, _ in _scalars(tmp_path / "boards")["loss"]] == [1]


def test_a_tracker_that_is_gone_does_not_touch_the_job_and_the_hint_states_what_to_do(
    there: LoneCoordinator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    done = there.run("job", "track", "heart", "--to", "mlflow", "--at", "http://127.0.0.1:1")
    assert done.exit_code == 1
    assert "error: mlflow at http://127.0.0.1:1: MlflowException: API request" in done.stderr
    assert "nothing is recorded, and the job is not affected; once mlflow answers" in done.stderr
    assert there.coordinator.jobs["heart"].status == "running"


def test_a_disk_that_fails_in_between_is_reported_with_what_is_recorded(
    there: LoneCoordinator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fedlearn.tracking import tensorboard

    write = tensorboard.TensorboardRun.round

    def fail(run: Any, step: int, values: Mapping[str, float], unix_ms: int) -> None:
        if step == 2:
            raise OSError(28, "No space left on device")
        write(run, step, values, unix_ms)

    monkeypatch.setattr(tensorboard.TensorboardRun, "round", fail)
    there.coordinator.story = STORY
    with fedlearn.connect(there.login) as coordinator:
        with pytest.raises(TrackingError, match="No space left on device") as failed:
            coordinator.job("heart").track("tensorboard", at=str(tmp_path / "boards"))
        assert failed.value.hint.startswith("rounds up to 1 are recorded, and the job is not")
        monkeypatch.undo()
        coordinator.job("heart").track("tensorboard", at=str(tmp_path / "boards"))
    assert [step for step, _ in _tensorboard(tmp_path / "boards")["loss"]] == [1, 2, 3, 4]


@pytest.mark.parametrize("to", ["mlflow", "tensorboard", "wandb", "trackio"])
def test_a_tracker_that_is_not_installed_names_its_extra(
    there: LoneCoordinator, monkeypatch: pytest.MonkeyPatch, to: str
) -> None:
    monkeypatch.setitem(sys.modules, to, None)
    done = there.run("job", "track", "heart", "--to", to)
    assert done.exit_code == 1
    assert done.stderr.splitlines()[-1] == f"hint: pip install 'fedlearn[{to}]'"


def test_a_run_without_an_event_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="has no event yet"):
        record([], to="tensorboard", name="x", project="p", page=str, at=str(tmp_path / "none"))
    assert not (tmp_path / "none").exists()


def test_parameters_and_names_are_bounded_and_plain() -> None:
    values = flat({"a": {"b/../c\n": "x" * 900, "": [1, 2]}, "p" * 900: True})
    assert {len(name) <= 202 for name in values} == {True}
    assert values["a.b/_/c_"].endswith("x…")
    assert (len(values["a.b/_/c_"]), values["a._"]) == (500, "1, 2")
    (each,) = RunHistory.of(
        [
            (
                events.RoundFinished(
                    round=1, seconds=1, sites=1, bytes=1, metrics={"../../etc": 1.0, "/": 2.0}
                ),
                0,
            )
        ]
    ).finished
    assert {"_/_/etc", "_/_"} <= round_values(each).keys()
