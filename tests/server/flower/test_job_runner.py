"""The process of a job's aggregator."""

from __future__ import annotations

from pathlib import Path

import pytest

from fedlearn.errors import JobError
from server.flower.application.app_process import environment
from server.flower.job_runner import JobRunner, aggregator_environment
from tests.harness.flower_federation import Channel
from tests.harness.job_plans import job_plan

THREADS = ("MKL_NUM_THREADS", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS")


def test_an_aggregators_libraries_use_one_thread_and_an_applications_those_of_the_operator(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in THREADS:
        monkeypatch.setenv(name, "7")
    found = aggregator_environment(tmp_path)
    assert {found[name] for name in THREADS} == {"1"}
    usual = environment(tmp_path)
    assert {usual[name] for name in THREADS} == {"7"}
    assert found["HOME"] == usual["HOME"] == str(tmp_path)


def test_a_run_that_has_ended_leaves_the_folder_to_the_one_that_is_resumed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def refused(self: JobRunner, _: object) -> None:
        raise JobError("planted")

    monkeypatch.setattr(JobRunner, "_start_application", refused)
    folder = tmp_path / "j"
    runner = JobRunner(job_plan(), Channel(lambda: ()), directory=folder)
    runner.start()
    outcome = runner.wait(10)
    assert outcome is not None
    assert not folder.exists()
    folder.mkdir()  # of the run that was resumed meanwhile
    runner.close()
    assert folder.exists()
