"""The experiments of ``experiments/``: each file makes valid cells, and each tiny form runs."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

from fedlearn.experiment.cells import Cell, grid_cells
from fedlearn.experiment.experiment import Experiment
from fedlearn.experiment.orders import Orders
from fedlearn.experiment.simulated import run_simulated
from fedlearn.experiment.spec import ExperimentSpec
from fedlearn.experiment.store import CellResult, RoundResult, Store

ROOT = Path(__file__).resolve().parents[2] / "experiments"
FILES = sorted(path.relative_to(ROOT).as_posix() for path in ROOT.glob("*/*.toml"))
FILES = [
    name
    for name in FILES
    if Path(name).name not in ("audit.toml", "job.toml", "published.toml", "simulation.toml")
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


def test_what_was_published_is_compared_with_results(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(ROOT / "niid")
    compare = importlib.import_module("compare")
    spec = ExperimentSpec.load(ROOT / "niid" / "experiment.toml")
    store = Store(tmp_path)
    for cell in grid_cells(spec):
        if cell.arm in ("IID/FedAvg", "IID/FedProx 0.1", "IID/FedProx 1"):
            value = 0.9 if cell.arm.endswith("0.1") else 0.88
            store.write_result(result(cell, value, key=f"{len(list(tmp_path.rglob('*'))):032x}"))
    compare.main([str(ROOT / "niid" / "experiment.toml"), str(tmp_path)])
    shown = capsys.readouterr().out
    assert "| IID | FedAvg | 89.23 ± 0.45 | 88.00 ± 0.00 | 3 | 10 | -1.23 |" in shown
    assert "| IID | FedProx 0.1 | 89.42 ± 0.09 | 90.00 ± 0.00 | 3 | 10 | +0.58 |" in shown
    assert "| IID | SCAFFOLD | 89.33 ± 0.27 | not run |" in shown
    assert "Fewer than 50 rounds" in shown


def result(cell: Cell, value: float, *, key: str) -> CellResult:
    return CellResult(
        key=key,
        cell=cell,
        content={},
        environment={},
        finished_unix_ms=1,
        seconds=1,
        cpu_seconds=1,
        rounds=(
            RoundResult(round=10, seconds=1, bytes_down=1, bytes_up=1, metrics={"accuracy": value}),
        ),
    )
