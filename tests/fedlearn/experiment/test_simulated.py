"""A cell in the simulator: its hooks, its metrics, and an interruption."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from fedlearn.errors import ConfigError
from fedlearn.experiment.cells import grid_cells
from fedlearn.experiment.experiment import Experiment
from fedlearn.experiment.orders import Order, Orders
from fedlearn.experiment.simulated import rounds_of, run_simulated
from fedlearn.simulation import SimulatedRound
from tests.fedlearn.experiment.conftest import HEAD, JOB, PROJECT

APP = """
from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp
from flwr.serverapp.strategy import FedAvg
import numpy as np

client, server = ClientApp(), ServerApp()

@client.train()
def train(message, context):
    model = [a + context.run_config["rate"] for a in message.content["arrays"].to_numpy_ndarrays()]
    metrics = MetricRecord({"num-examples": 1, "accuracy": 0.25})
    return Message(RecordDict({"a": ArrayRecord(model), "m": metrics}), reply_to=message)

@client.evaluate()
def evaluate(message, context):
    (model,) = message.content["arrays"].to_numpy_ndarrays()
    metrics = {"num-examples": 1, "accuracy": float(model[0]) / 10}
    return Message(RecordDict({"m": MetricRecord(metrics)}), reply_to=message)

@server.main()
def main(grid, context):
    FedAvg().start(grid=grid, initial_arrays=ArrayRecord([np.zeros(3)]), num_rounds=3)
"""
HOOKS = """
from fedlearn.simulation import Hook

class Double(Hook):
    def __init__(self, sites):
        self.sites = sites
    def answered(self, call, asked, arrays, metrics):
        if call.kind == "train" and call.site in self.sites:
            return {name: asked[name] + 2 * (value - asked[name]) for name, value in arrays.items()}
        return arrays

def make(values, sites, seed):
    assert seed == 1
    return [Double(sites[: round(values["share"] * len(sites))])]
"""


@pytest.fixture
def order(write: Callable[..., Path]) -> Callable[..., list[Order]]:
    def made(grid: str = "", hooks: str = "") -> list[Order]:
        extra = f'hooks = "{hooks}"\n' if hooks else ""
        head = HEAD.replace("[1, 2, 3]", "[1]") + extra
        path = write(grid, head, JOB)
        app = path.parent / "app"
        (app / "tiny_app.py").write_text(APP)
        (app / "pyproject.toml").write_text(PROJECT)
        (path.parent / "hooks.py").write_text(HOOKS)
        spec = Experiment.load(path).spec
        return [Orders(spec).order(cell) for cell in grid_cells(spec)]

    return made


def test_a_cell_has_the_metrics_of_all_parties_and_of_each_client(
    order: Callable[..., list[Order]], tmp_path: Path
) -> None:
    (one,) = order()
    found = run_simulated(one, tmp_path)
    last = found.rounds[-1]
    assert last.round == 3
    assert last.metrics["evaluate.accuracy"] == pytest.approx(0.15)
    assert last.metrics["train.accuracy"] == 0.25
    # The clients' evaluation counts for more than their training.
    assert last.metrics["accuracy"] == last.metrics["evaluate.accuracy"]
    assert found.clients["accuracy"] == pytest.approx({f"client-{i:04}": 0.15 for i in range(4)})
    assert (tmp_path / "progress").read_text() == "2/3"
    assert "attestation, TLS and sealing were left out" in found.insecure


def test_hooks_get_their_keys_the_sites_and_the_seed(
    order: Callable[..., list[Order]], tmp_path: Path
) -> None:
    grid = '[[grid]]\nzip = { "hook.share" = [0.0, 0.5] }\n'
    none, half = order(grid, "hooks.py:make")
    assert none.key != half.key
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    assert run_simulated(none, tmp_path / "a").rounds[-1].metrics["accuracy"] == pytest.approx(0.15)
    # Half of the sites move the model twice as far.
    found = run_simulated(half, tmp_path / "b")
    assert found.rounds[-1].metrics["accuracy"] == pytest.approx(0.225)


@pytest.mark.parametrize("hooks", ["none.py:make", "hooks.py:other", "no.such.module:make"])
def test_hooks_that_are_not_there_are_refused(
    order: Callable[..., list[Order]], tmp_path: Path, hooks: str
) -> None:
    with pytest.raises(ConfigError, match=r"hooks|does not exist"):
        run_simulated(order("", hooks)[0], tmp_path)


def test_a_change_of_the_hooks_is_another_cell(order: Callable[..., list[Order]]) -> None:
    (before,) = order("", "hooks.py:make")
    (before.job.parent / "hooks.py").write_text(HOOKS + "\n")
    spec = Experiment.load(before.job.parent / "experiment.toml").spec
    (after,) = [Orders(spec).order(cell) for cell in grid_cells(spec)]
    assert before.key != after.key


def test_a_cell_in_virtual_time_depends_on_its_trace(
    order: Callable[..., list[Order]], tmp_path: Path
) -> None:
    folder = order()[0].job.parent
    time = '[time]\nspeed = "trace"\nspeed_trace = "speed.csv"\n'
    (folder / "simulation.toml").write_text("[clients]\ncount = 2\n" + time)
    trace = folder / "speed.csv"

    def ordered() -> Order:
        spec = Experiment.load(folder / "experiment.toml").spec
        (cell,) = grid_cells(spec)
        return Orders(spec).order(cell)

    trace.write_text("site,seconds\nclient-0000,2\nclient-0001,5\n")
    one = ordered()
    found = run_simulated(one, tmp_path)
    assert [each.virtual_seconds for each in found.rounds] == [5.0, 10.0, 15.0]
    trace.write_text("site,seconds\nclient-0000,2\nclient-0001,6\n")
    assert ordered().key != one.key


def test_virtual_time_is_the_clock_at_the_end_of_a_round_and_the_server_s_metrics_come_first() -> (
    None
):
    history = (
        SimulatedRound(number=0, server={"accuracy": 0.1}),
        SimulatedRound(
            number=1,
            server={"accuracy": 0.5, "text": "no"},
            evaluate={"accuracy": 0.4},
            virtual_seconds=3.0,
        ),
        SimulatedRound(number=2, evaluate={"accuracy": 0.6}, virtual_seconds=2.0),
    )
    found = rounds_of(history, {2: 1.5})
    assert [each.virtual_seconds for each in found] == [0.0, 3.0, 5.0]
    assert [each.metrics.get("accuracy") for each in found] == [0.1, 0.5, None]
    assert [each.epsilon for each in found] == [None, None, 1.5]
