"""The process of a job's aggregator."""

from __future__ import annotations

from pathlib import Path

import pytest

from server.flower.application.app_process import environment
from server.flower.job_runner import aggregator_environment

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
