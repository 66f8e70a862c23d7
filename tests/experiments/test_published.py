"""The experiments of ``experiments/``: each file makes valid cells, and each tiny form runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from fedlearn.experiment.cells import grid_cells
from fedlearn.experiment.experiment import Experiment
from fedlearn.experiment.orders import Orders
from fedlearn.experiment.simulated import run_simulated
from fedlearn.experiment.spec import ExperimentSpec

ROOT = Path(__file__).resolve().parents[2] / "experiments"
FILES = sorted(path.relative_to(ROOT).as_posix() for path in ROOT.glob("*/*.toml"))
FILES = [
    name for name in FILES if Path(name).name not in ("audit.toml", "job.toml", "simulation.toml")
]
TINY = [name for name in FILES if name.endswith("tiny.toml")]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def test_there_are_experiments_with_a_tiny_form_each() -> None:
    assert "niid/experiment.toml" in FILES
    folders = {Path(name).parent for name in FILES}
    assert {Path(name).parent for name in TINY} == folders


@pytest.mark.parametrize("name", FILES)
def test_every_cell_is_a_valid_job(name: str) -> None:
    spec = ExperimentSpec.load(ROOT / name)
    orders = Orders(spec)
    cells = [cell for cell in grid_cells(spec) if cell.seed == spec.seeds[0]]
    assert len({orders.order(cell).key for cell in cells}) == len(cells)


@pytest.mark.parametrize("name", TINY)
def test_the_first_cell_of_a_tiny_form_runs(name: str, tmp_path: Path) -> None:
    spec = ExperimentSpec.load(ROOT / name)
    order = Orders(spec).order(grid_cells(spec)[0])
    (tmp_path / "cell").mkdir()
    found = run_simulated(order, tmp_path / "cell")
    assert found.rounds[-1].round == order.rounds
    assert 0 <= found.rounds[-1].metrics[spec.metric] <= 1
    assert found.rounds[-1].bytes_up > 0
    assert "attestation" in found.insecure


@pytest.mark.long
@pytest.mark.parametrize("name", TINY)
def test_a_tiny_form_runs_and_is_reported(name: str, tmp_path: Path) -> None:
    experiment = Experiment.load(ROOT / name, results=tmp_path / "results")
    assert experiment.run(jobs=2).complete
    report = experiment.report()
    assert (tmp_path / "results" / "report" / "report.html").is_file()
    if "attacks" in name:
        assert "accuracy-against-attackers" in [f.name for f in report.figures.drawn]
    assert "accuracy-by-round" in "".join(figure.name for figure in report.figures.drawn)
