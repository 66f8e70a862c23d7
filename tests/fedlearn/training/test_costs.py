"""What each algorithm exchanges and keeps is what the page about algorithms states."""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity

from fedlearn.app.array_records import arrays_of, records_of
from fedlearn.job.strategies import MEAN_FAMILY
from server.flower.aggregation.builtin import BuiltIn
from server.flower.ipc.strategy_state import capture
from tests.fedlearn.training.rounds import FEW, Nodes

ROOT = Path(__file__).resolve().parents[3]
APP = ROOT / "tests/apps/algorithms"
PAGE = ROOT / "docs/explanation/algorithms.md"
CONFIG = {
    "features": 64,
    "classes": 10,
    "learning-rate": 0.05,
    "momentum": 0.0,
    "local-epochs": 1,
    "batch": 32,
}
OPTIONS = {"fedprox": {"proximal_mu": 0.1}, "qfedavg": {"client_learning_rate": 0.05}}
OPTIONS["fedavgm"] = {"server_momentum": 0.9}


def rows() -> dict[str, dict[str, str]]:
    """The table of the page by algorithm."""
    lines = [line for line in PAGE.read_text().splitlines() if line.startswith("|")]
    head, _, *body = ([cell.strip() for cell in line.strip("|").split("|")] for line in lines)
    table = [dict(zip(head, cells, strict=True)) for cells in body]
    return {re.split(r",", row["algorithm"])[0]: row for row in table}


@pytest.fixture(scope="module")
def client_app() -> Iterator[Any]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(APP)
        yield importlib.import_module("algorithms_app.client_app")
        for name in [each for each in sys.modules if each.startswith("algorithms_app")]:
            del sys.modules[name]


@dataclass
class Measured:
    """Bytes of arrays, as multiples of the model's."""

    down: float = 0
    up: float = 0
    site: float = 0
    server: float = 0
    accuracy: list[float] = field(default_factory=list)


def nbytes(content: RecordDict) -> int:
    found = records_of(content, ArrayRecord).values()
    return sum(each.nbytes for record in found for each in arrays_of(record).values())


def measure(client: Any, algorithm: str, strategy: str, folder: Path, rounds: int = 2) -> Measured:
    TaskIdentity.run_id = TaskIdentity.node_id = TaskIdentity.task_id = 1
    draw = np.random.default_rng(5)
    for node in (1, 2, 3):
        (folder / str(node)).mkdir(exist_ok=True)
        y = draw.integers(0, 10, 96)
        x = draw.normal(size=(96, 64)) + np.eye(10, 64)[y] * 4
        np.savez(folder / str(node) / "data.npz", x=x.astype("f4"), y=y)
    torch.manual_seed(0)
    config = CONFIG | {"algorithm": algorithm}
    contexts = {
        node: Context(0, 0, {"data": str(folder / str(node))}, RecordDict(), dict(config))
        for node in (1, 2, 3)
    }
    made = BuiltIn(strategy, {**FEW, **OPTIONS.get(strategy, {})}, sites=3)
    arrays = ArrayRecord(client.task.new_model(config).state_dict())
    size, found = nbytes(RecordDict({"arrays": arrays})), Measured()
    for number in range(1, rounds + 1):
        grid, replies = Nodes(), []
        for message in made.configure_train(number, arrays, ConfigRecord(), grid):
            reply = client.train(message, contexts[message.metadata.dst_node_id])
            if strategy == "qfedavg":
                reply.content["metrics"]["train_loss"] = 1.0
            found.down, found.up = nbytes(message.content) / size, nbytes(reply.content) / size
            replies.append(reply)
        after, _ = made.aggregate_train(number, replies)
        assert after is not None
        assert grid.refused == {}
        arrays = after
        found.site = nbytes(contexts[1].state) / size
        found.server = sum(each.nbytes for each in capture({"s": made})[1].values()) / size
        question = Message(RecordDict({"arrays": arrays}), 1, "evaluate")
        judged = client.evaluate(question, contexts[1]).content["metrics"]
        found.accuracy.append(float(judged["accuracy"]))
    return found


@pytest.mark.parametrize("algorithm", sorted(rows()))
def test_the_page_states_what_an_algorithm_costs(
    client_app: Any, tmp_path: Path, algorithm: str
) -> None:
    row = rows()[algorithm]
    strategy = row["strategy"].strip("`")
    name = algorithm.lower().replace("-", "")
    if row["ClientApp"] in {"", "a loss in the metrics"}:
        name = "fedavg"
    found = measure(client_app, name, strategy, tmp_path)
    for column in ("down", "up", "site", "server"):
        value = getattr(found, column)
        if row[column] == "part":
            assert 0 < value < 0.5, (column, value)
        else:
            assert value == pytest.approx(float(row[column]), abs=0.1), column
    assert row["with `[privacy]`"] == ("yes" if strategy in MEAN_FAMILY else "no")


@pytest.mark.parametrize(
    ("algorithm", "strategy"),
    [
        ("fedavg", "fedavg"),
        ("fedprox", "fedprox"),
        ("scaffold", "scaffold"),
        ("fednova", "fednova"),
        ("feddyn", "feddyn"),
        ("moon", "fedavg"),
        ("fedbn", "fedavg"),
        ("fedrep", "fedavg"),
        ("ditto", "fedavg"),
    ],
)
def test_each_learns(client_app: Any, tmp_path: Path, algorithm: str, strategy: str) -> None:
    found = measure(client_app, algorithm, strategy, tmp_path, rounds=8)
    assert found.accuracy[-1] > 0.4  # one of ten classes


def test_an_algorithm_that_the_app_does_not_have_is_refused(
    client_app: Any, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match="'fedsgd' is not one of this app"):
        measure(client_app, "fedsgd", "fedavg", tmp_path)
