"""Whole jobs with the lowest and the highest release of Flower that pip resolves."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_jobs_run_with_every_release_of_flower_that_is_promised() -> None:
    command = [sys.executable, "tools/flower_releases.py", "tests/e2e/test_flower_rounds.py"]
    done = subprocess.run(command, cwd=ROOT, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    assert done.stdout.count("flwr 1.") == 2
