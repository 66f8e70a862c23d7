"""An experiment in a folder, whose cells are synthetic."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from fedlearn.experiment import schedule
from fedlearn.experiment.experiment import Experiment

JOB = """
name = "tiny"
app = "app"
rounds = 3
sites = ["north", "south"]
policy = "policy.toml"
[config]
rate = 0.5
"""
PROJECT = """
[project]
name = "tiny"
version = "1.0.0"
[tool.flwr.app]
publisher = "tests"
[tool.flwr.app.components]
serverapp = "tiny_app:server"
clientapp = "tiny_app:client"
[tool.flwr.app.config]
rate = 0.5
end = "no"
"""
HEAD = """
name = "tiny"
job = "job.toml"
setup = "simulation.toml"
metric = "accuracy"
seeds = [1, 2, 3]
"""
RATES = """
[[grid]]
name = "rate"
zip = { "config.rate" = [0.1, 0.9] }
"""


@pytest.fixture(autouse=True)
def synthetic(monkeypatch: pytest.MonkeyPatch) -> None:
    program = Path(__file__).with_name("synthetic_cell.py")
    monkeypatch.setattr(schedule, "COMMAND", (sys.executable, str(program)))
    monkeypatch.setattr(schedule, "_EVERY_SECONDS", 0.03)


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    """Write the files of an experiment and return the path of its ``experiment.toml``."""

    def written(grid: str = RATES, head: str = HEAD, job: str = JOB) -> Path:
        app = tmp_path / "app"
        app.mkdir(exist_ok=True)
        (app / "tiny_app.py").write_text("one = 1\n")
        (app / "pyproject.toml").write_text(PROJECT)
        (tmp_path / "job.toml").write_text(job)
        (tmp_path / "simulation.toml").write_text("[clients]\ncount = 4\n")
        path = tmp_path / "experiment.toml"
        path.write_text(head + grid)
        return path

    return written


@pytest.fixture
def experiment(write: Callable[..., Path]) -> Callable[..., Experiment]:
    """Return an experiment; its arguments are those of ``write``."""

    def made(grid: str = RATES, head: str = HEAD, job: str = JOB) -> Experiment:
        return Experiment.load(write(grid, head, job))

    return made
