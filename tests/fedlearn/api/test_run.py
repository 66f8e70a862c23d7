"""The public API against a coordinator's control port: real TLS, real gRPC, both ends."""

from __future__ import annotations

import contextlib
import io
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import fedlearn
from fedlearn.cli.job import template
from fedlearn.errors import ConfigError, FedlearnError, Interrupted, JobError, TransportError
from fedlearn.job import events
from fedlearn.job.state import JobStatus
from tests.fakes.interrupt import interrupted
from tests.fakes.lone_coordinator import LoneCoordinator

STORY = [
    events.JobStarted(job="heart", rounds=2, sites=("site-a", "site-b")),
    events.RoundStarted(round=1, rounds=2, sites=("site-a", "site-b")),
    events.RoundFinished(
        round=1, rounds=2, seconds=0.3, sites=2, bytes=9, metrics={"accuracy": 0.5, "loss": 2.0}
    ),
    events.PrivacySpent(
        round=1, epsilon=0.7, delta=1e-5, unit="site", sampling="all", accountant="rdp"
    ),
    events.RoundStarted(round=2, rounds=2, sites=("site-a", "site-b")),
    events.RoundFinished(round=2, rounds=2, seconds=0.2, sites=1, bytes=8, metrics={"loss": 1.0}),
    events.JobFinished(model="heart"),
]


@pytest.fixture
def there(tmp_path: Path) -> Iterator[LoneCoordinator]:
    with LoneCoordinator.started(tmp_path) as running:
        running.coordinator.story = [*STORY]
        yield running


@pytest.fixture
def job(tmp_path: Path) -> fedlearn.Job:
    template.write(tmp_path / "heart", "heart")
    return fedlearn.Job.load(tmp_path / "heart")


def test_a_job_is_read_checked_submitted_and_followed(
    there: LoneCoordinator, job: fedlearn.Job, capsys: pytest.CaptureFixture[str]
) -> None:
    assert job.name == "heart"
    assert job.validate().spec.digest() == job.spec.digest()
    with fedlearn.connect(there.login) as coordinator:
        run = coordinator.submit(job)
        assert run.state.status is JobStatus.RUNNING
        result = run.follow()
        assert run.status is JobStatus.FINISHED
        assert [state.name for state in coordinator.jobs()] == ["heart"]
        assert coordinator.job("heart").wait().status == "finished"
    assert "round 2/2: 1 sites" in capsys.readouterr().out
    assert result.history.model == "heart"
    assert [(row["round"], row["sites"], row["bytes"]) for row in result.rows] == [
        (1, 2, 9),
        (2, 1, 8),
    ]
    assert [(row["accuracy"], row["loss"], row["epsilon"]) for row in result.rows] == [
        (0.5, 2.0, 0.7),
        (None, 1.0, None),
    ]
    assert repr(result) == "Result('heart', 'finished', round 2/2)"


def test_a_submission_notes_what_the_job_replaces_in_its_app(
    there: LoneCoordinator, tmp_path: Path, job: fedlearn.Job
) -> None:
    file = tmp_path / "heart" / "job.toml"
    text = file.read_text()
    assert 'name = "app"' in text
    file.write_text(text.replace('name = "app"', 'name = "fedadam"'))
    with fedlearn.connect(there.login) as coordinator:
        assert coordinator.submit(job).state.notes == ()  # as it was read
        (note,) = coordinator.submit(fedlearn.Job.load(file)).state.notes
    assert "fedadam" in note
    assert "server_app.py" in note


def test_metrics_are_a_frame_where_pandas_is_there(
    there: LoneCoordinator, job: fedlearn.Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    coordinator = fedlearn.connect(there.login)
    result = coordinator.submit(job).wait()
    coordinator.close()
    frame = result.metrics
    assert list(frame.index) == [1, 2]
    assert frame.loss.to_list() == [2.0, 1.0]
    assert frame.accuracy.isna().to_list() == [False, True]
    monkeypatch.setitem(sys.modules, "pandas", None)
    assert result.metrics == result.rows


def test_a_result_without_a_round_has_no_rows(there: LoneCoordinator, job: fedlearn.Job) -> None:
    there.coordinator.story = STORY[:2]
    result = fedlearn.connect(there.login).submit(job).result()
    assert (result.rows, len(result.metrics), result.status) == ([], 0, "running")


def test_a_result_is_plotted_and_reported(
    there: LoneCoordinator, job: fedlearn.Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = fedlearn.connect(there.login).submit(job).wait()
    both, one = result.plot(), result.plot("loss")
    assert [axis.get_ylabel() for axis in both.axes] == ["accuracy", "loss"]
    assert np.array_equal(one.axes[0].lines[0].get_xydata(), [[1.0, 2.0], [2.0, 1.0]])
    one.savefig(tmp_path / "loss.png")
    with pytest.raises(ValueError, match="no round has the metric 'auc'; there are accuracy, loss"):
        result.plot("auc")
    page = result.report(tmp_path / "report.html").read_text()
    assert there.address in page
    with pytest.raises(ConfigError, match="exists"):
        result.report(tmp_path / "report.html")
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ConfigError, match="a plot needs the package 'matplotlib'") as refused:
        result.plot()
    assert refused.value.hint == "pip install 'fedlearn[plot]'"


def test_a_result_without_a_round_has_an_empty_plot(
    there: LoneCoordinator, job: fedlearn.Job
) -> None:
    there.coordinator.story = STORY[:2]
    (axis,) = fedlearn.connect(there.login).submit(job).result().plot().axes
    assert not axis.lines


def test_a_closed_connection_is_opened_again(there: LoneCoordinator, job: fedlearn.Job) -> None:
    coordinator = fedlearn.connect(there.login)
    run = coordinator.submit(job)
    coordinator.close()
    assert run.wait().status == "finished"
    coordinator.close()


def test_an_interrupted_wait_leaves_the_job_running_and_states_so(
    there: LoneCoordinator, job: fedlearn.Job
) -> None:
    there.coordinator.story, there.coordinator.goes_on = STORY[:3], True
    with fedlearn.connect(there.login) as coordinator:
        run = coordinator.submit(job)
        for wait in (run.follow, run.wait):
            with (
                pytest.raises(Interrupted, match="job heart goes on at the coordinator") as stopped,
                contextlib.redirect_stdout(io.StringIO()),
                interrupted(there.coordinator),
            ):
                wait()
            assert "`fedlearn job logs heart --follow`" in stopped.value.hint
            assert isinstance(stopped.value, KeyboardInterrupt)
        assert run.status is JobStatus.RUNNING
        assert [row["round"] for row in run.result().rows] == [1]
        assert run.cancel().status is JobStatus.CANCELLED
        assert run.resume().status is JobStatus.RUNNING


def test_ctrl_c_on_the_command_states_that_the_job_goes_on(
    there: LoneCoordinator, job: fedlearn.Job
) -> None:
    there.coordinator.story, there.coordinator.goes_on = STORY[:3], True
    with interrupted(there.coordinator):
        done = there.run("job", "submit", job.path, "--follow")
    assert done.exit_code == 130
    assert done.stderr.strip().splitlines() == [
        "stopped: job heart goes on at the coordinator",
        "hint: `fedlearn job logs heart --follow` follows it again, and "
        "`fedlearn job cancel heart` stops it",
    ]
    assert there.coordinator.jobs["heart"].status == "running"


@pytest.mark.parametrize(
    ("last", "error", "words"),
    [
        (events.JobFailed(detail="no quorum", hint="see the sites"), JobError, "failed: no quorum"),
        (events.JobCancelled(detail="by ada"), JobError, "was cancelled: by ada"),
        (events.Log(line="x"), TransportError, "ended the stream"),
    ],
)
def test_a_bad_end_is_an_error_and_the_result_is_there_all_the_same(
    there: LoneCoordinator,
    job: fedlearn.Job,
    last: events.Event,
    error: type[Exception],
    words: str,
) -> None:
    there.coordinator.story = [*STORY[:-1], last]
    with fedlearn.connect(there.login) as coordinator:
        run = coordinator.submit(job)
        with pytest.raises(error, match=words):
            run.wait()
        assert len(run.result().rows) == 2


def test_what_is_wrong_is_refused_before_anything_is_sent(
    there: LoneCoordinator, job: fedlearn.Job, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match="no operator login here"):
        fedlearn.connect(tmp_path / "nobody")
    with pytest.raises(ConfigError, match="does not exist"):
        fedlearn.Job.load(tmp_path / "nothing.toml")
    (tmp_path / "heart/app/heart_app/server_app.py").write_text("def broken(:")
    with fedlearn.connect(there.login) as coordinator:
        with pytest.raises(FedlearnError, match="nobody"):
            coordinator.job("nobody")
        with pytest.raises(FedlearnError, match="invalid syntax"):
            coordinator.submit(job)
    job.path.write_text(job.path.read_text().replace("rounds = 5", "rounds = 0"))
    with pytest.raises(ConfigError, match="rounds: must be"):
        fedlearn.Job.load(job.path)
    assert there.coordinator.submitted == []
