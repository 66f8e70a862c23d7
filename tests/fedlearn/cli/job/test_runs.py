"""``fedlearn job delete`` and ``clone``, over real gRPC."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from fedlearn.api.validation import examine
from fedlearn.cli.job import template
from fedlearn.wire import fedlearn_pb2 as pb
from tests.fakes.lone_coordinator import LoneCoordinator


@pytest.fixture
def deployment(tmp_path: Path) -> Iterator[LoneCoordinator]:
    with LoneCoordinator.started(tmp_path) as running:
        yield running


@pytest.fixture
def job(deployment: LoneCoordinator, tmp_path: Path) -> Path:
    """A job that was submitted twice; the second run is over."""
    template.write(tmp_path / "heart", "heart")
    job = tmp_path / "heart/job.toml"
    assert deployment.run("job", "submit", job).exit_code == 0
    state = deployment.coordinator.jobs["heart"]
    state.status, state.run, state.run_id, state.model = "finished", 2, "heart.2", "heart.2"
    deployment.coordinator.jobs["heart@2"] = state
    return job


def test_delete_asks_only_where_somebody_can_answer(deployment: LoneCoordinator, job: Path) -> None:
    done = deployment.run("job", "delete", "heart")
    assert done.exit_code == 1
    assert "deletes run heart@2 (finished) and its sealed model" in done.stderr
    assert "--yes" in done.stderr
    assert deployment.coordinator.deleted == []
    done = deployment.run("job", "delete", "heart", "--yes")
    assert done.stdout.splitlines() == ["run heart@2 is deleted"]
    done = deployment.run("job", "delete", "heart@2", "--yes", "--keep-model", "--json")
    assert json.loads(done.stdout) == {
        "job": "heart",
        "run": 2,
        "run_id": "heart.2",
        "model": "heart.2",
        "schema": "fedlearn job delete/1",
    }
    # By its number, whatever was typed: the name may stand for a later run by then.
    assert deployment.coordinator.deleted == [
        pb.DeleteJobRequest(name="heart@2"),
        pb.DeleteJobRequest(name="heart@2", keep_model=True),
    ]


def test_delete_names_a_run_that_is_not_there(deployment: LoneCoordinator, job: Path) -> None:
    done = deployment.run("job", "delete", "heart@7", "--yes")
    assert done.exit_code == 1
    assert "heart@7" in done.stderr
    assert deployment.run("job", "delete", "heart@x", "--yes").exit_code != 0
    assert deployment.coordinator.deleted == []


def test_a_clone_is_the_job_that_was_submitted(
    deployment: LoneCoordinator, job: Path, tmp_path: Path
) -> None:
    out = tmp_path / "again"
    done = deployment.run("job", "clone", "heart", "--out", out, "--json")
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert (found["job"], found["run"]) == ("heart", 2)
    assert found["files"] == [str(out / name) for name in ("job.toml", "policy.toml", "app")]
    first, second = examine(job), examine(out / "job.toml")
    assert second.bundle == first.bundle
    assert second.policy_toml == first.policy_toml
    assert dataclasses.replace(second.spec, app=first.spec.app) == first.spec
    # Ready to edit: a changed policy is not another one than the job names.
    policy = out / "policy.toml"
    policy.write_text(policy.read_text().replace("version = 1", "version = 2"))
    assert examine(out / "job.toml").spec.policy_digest != first.spec.policy_digest


def test_a_clone_overwrites_nothing(deployment: LoneCoordinator, job: Path, tmp_path: Path) -> None:
    done = deployment.run("job", "clone", "heart", "--out", job.parent)
    assert done.exit_code == 1
    assert "is not empty" in done.stderr
    assert "--out" in done.stderr


def test_a_clone_of_other_code_than_was_submitted_is_refused(
    deployment: LoneCoordinator, job: Path, tmp_path: Path
) -> None:
    deployment.coordinator.cut = 1
    done = deployment.run("job", "clone", "heart", "--out", tmp_path / "again")
    assert done.exit_code == 1
    assert "the bundle that the coordinator returned is not the one that was submitted" in (
        done.stderr
    )
    assert not (tmp_path / "again").exists()


def test_notes_of_a_submission_are_shown(deployment: LoneCoordinator, job: Path) -> None:
    note = "site north: a person there has to approve the app"
    deployment.coordinator.notes.append(note)
    done = deployment.run("job", "submit", job)
    assert f"  note  {note}" in done.stdout.splitlines()
    found = json.loads(deployment.run("job", "submit", job, "--json").stdout)
    assert found["notes"] == [note]
