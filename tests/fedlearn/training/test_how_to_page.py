"""Every example of the page about algorithms runs as it is written there."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.supercore.task_identity import TaskIdentity
from safetensors.torch import save_file
from torch import nn
from torch.nn.functional import cross_entropy

import fedlearn.training
from fedlearn.app.algorithm_names import FEDDYN_ALPHA, PROXIMAL_MU, SCAFFOLD_CONTROL
from fedlearn.job.strategies import STRATEGIES, option_fault

PAGE = Path(__file__).resolve().parents[3] / "docs/how-to/choose-an-algorithm.md"
PARTS = re.split(r"^## ", PAGE.read_text(), flags=re.M)[1:]


def blocks(language: str) -> list[Any]:
    return [
        pytest.param(found, id=f"{part.splitlines()[0]}-{number}")
        for part in PARTS
        for number, found in enumerate(re.findall(rf"```{language}\n(.*?)```", part, re.S))
    ]


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.ReLU())
        self.head = nn.Linear(3, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.head(self.features(x))
        return found


@pytest.mark.parametrize("code", blocks("python"))
def test_an_example_runs(code: str, tmp_path: Path) -> None:
    TaskIdentity.run_id = TaskIdentity.node_id = TaskIdentity.task_id = 1
    torch.manual_seed(1)
    model, x, y = Net(), torch.randn(40, 4), torch.randint(0, 2, (40,))
    state = model.state_dict()
    parameters = {name: torch.zeros_like(each) for name, each in model.named_parameters()}
    content = {
        "arrays": ArrayRecord(state),
        "config": ConfigRecord({PROXIMAL_MU: 0.1, FEDDYN_ALPHA: 0.1}),
        SCAFFOLD_CONTROL: ArrayRecord(parameters),
    }
    save_file(state, tmp_path / "base.safetensors")
    digest = hashlib.sha256((tmp_path / "base.safetensors").read_bytes()).hexdigest()
    node, run = {"data": str(tmp_path)}, {"base-sha256": digest}

    def fit(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        optimizer.zero_grad()
        cross_entropy(model(x), y).backward()
        optimizer.step()

    names: dict[str, Any] = {
        "ArrayRecord": ArrayRecord,
        "Message": Message,
        "MetricRecord": MetricRecord,
        "RecordDict": RecordDict,
        "context": Context(0, 0, node, RecordDict(), run),
        "cross_entropy": cross_entropy,
        "fit": fit,
        "message": Message(RecordDict(content), 1, "train"),
        "metrics": {"num-examples": 40},
        "model": model,
        "optimizer": torch.optim.SGD(model.parameters(), lr=0.05),
        "torch": torch,
        "x": x,
        "y": y,
    }
    exec(code, names)
    MetricRecord(names["metrics"])


@pytest.mark.parametrize("table", blocks("toml"))
def test_a_strategy_of_an_example_exists_with_its_options(table: str) -> None:
    import tomllib

    strategy = tomllib.loads(table).get("strategy", {"name": "fedavg"})
    assert strategy["name"] in STRATEGIES
    for option, value in strategy.get("options", {}).items():
        assert not option_fault(strategy["name"], option, value)


def test_everything_that_an_app_may_import_is_shown() -> None:
    text = PAGE.read_text()
    assert [name for name in fedlearn.training.__all__ if name not in text] == []
