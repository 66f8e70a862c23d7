"""FedNova: a round by hand, the norms of steps in closed form, and replies without a norm."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.supercore.task_identity import TaskIdentity

from fedlearn.app.algorithm_names import FEDNOVA_NORM
from fedlearn.app.array_records import arrays_of, record_of
from fedlearn.errors import JobError
from fedlearn.training import FedNova, Proximal
from server.flower.aggregation.builtin import BuiltIn
from server.flower.ipc.strategy_state import capture
from tests.fedlearn.training.rounds import BEST, FEW, Nodes, Quadratic, descend, run

STEPS = (1, 12, 3)
MODEL: dict[str, Any] = {
    "w": np.array([1.0, 2.0], np.float32),
    "bn.running_var": np.array([1.0], np.float32),
    "n": np.zeros((), np.int64),
}


def nova(message: Message, kept: Context, model: Quadratic, site: int) -> dict[str, float]:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.002, momentum=0.9)
    part = FedNova()
    part.attach(optimizer)
    descend(model, optimizer, site, STEPS[site])
    return part.finish()


def test_it_is_closer_to_the_optimum_than_fedavg() -> None:
    found = run(BuiltIn("fednova", FEW), nova, rounds=100)
    drifted = run(BuiltIn("fedavg", FEW), nova, rounds=100)
    assert abs(found[0] - BEST) < 0.1 * abs(drifted[0] - BEST)


def test_the_order_of_the_updates_changes_no_bit() -> None:
    first, second = (
        run(BuiltIn("fednova", FEW), nova, rounds=4, examples=(3, 5, 9), backwards=backwards)
        for backwards in (False, True)
    )
    assert first.tobytes() == second.tobytes()


def aggregated(
    replies: list[tuple[int, Mapping[str, Any], Mapping[str, Any]]], **options: Any
) -> tuple[dict[str, Any], Nodes]:
    TaskIdentity.run_id = TaskIdentity.node_id = TaskIdentity.task_id = 1
    strategy, grid = BuiltIn("fednova", {**FEW, **options}), Nodes()
    strategy.configure_train(1, record_of(MODEL), ConfigRecord(), grid)
    messages = []
    for node, (examples, arrays, metrics) in enumerate(replies, start=1):
        record = MetricRecord({"num-examples": examples, **metrics})
        content = RecordDict({"arrays": record_of(MODEL | dict(arrays)), "m": record})
        messages.append(Message(content, reply_to=Message(RecordDict(), node, "train")))
    made, _ = strategy.aggregate_train(1, messages)
    assert made is not None
    assert capture({"strategy": strategy})[1] == {}
    return arrays_of(made), grid


def test_a_round_by_hand() -> None:
    """Shares 1/4 and 3/4 of the examples, norms 2 and 4: tau_eff is 3.5."""
    first = {"w": np.array([3.0, 2.0], "f4"), "bn.running_var": np.array([2.0], "f4")}
    second = {"w": np.array([1.0, 6.0], "f4"), "bn.running_var": np.array([4.0], "f4")}
    counted = {"n": np.asarray(8)}
    found, _ = aggregated(
        [(1, first | counted, {FEDNOVA_NORM: 2.0}), (3, second | counted, {FEDNOVA_NORM: 4.0})]
    )
    # d = 1/4 (2, 0) / 2 + 3/4 (0, 4) / 4 = (0.25, 0.75)
    assert found["w"].tolist() == [1 + 3.5 * 0.25, 2 + 3.5 * 0.75]
    # Statistics and counters are averaged as they are.
    assert found["bn.running_var"].tolist() == [3.5]
    assert found["n"] == 8


def test_with_equal_norms_it_is_fedavg() -> None:
    w = np.random.default_rng(3).normal(size=(2, 2)).astype("f4")
    found, _ = aggregated([(2, {"w": each}, {FEDNOVA_NORM: 0.7}) for each in w])
    np.testing.assert_allclose(found["w"], w.mean(axis=0), rtol=1e-6)


@pytest.mark.parametrize("norm", [None, 0.0, -1.0, float("nan"), float("inf"), 1e30, [2.0]])
def test_a_reply_without_a_norm_is_refused_by_name(norm: Any) -> None:
    metrics = {} if norm is None else {FEDNOVA_NORM: norm}
    good = (1, {"w": np.array([3.0, 2.0], "f4")}, {FEDNOVA_NORM: 2.0})
    found, grid = aggregated([good, (1, {}, metrics)])
    assert found["w"].tolist() == [3.0, 2.0]
    assert "'fedlearn.fednova.norm' is" in grid.refused[2]


@pytest.mark.parametrize(
    ("options", "mu"),
    [
        ({}, 0.0),
        ({"momentum": 0.9}, 0.0),
        ({"momentum": 0.8, "nesterov": True}, 0.0),
        ({"momentum": 0.8, "dampening": 0.3}, 0.0),
        ({}, 0.5),
        ({"momentum": 0.9}, 0.5),
    ],
)
def test_the_norm_is_how_far_the_optimiser_goes_for_gradients_of_1(
    options: dict[str, Any], mu: float
) -> None:
    model = torch.nn.Linear(1, 1, bias=False, dtype=torch.float64)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, **options)
    part, before, tau = FedNova(mu=mu), model.weight.item(), 9
    Proximal(model, mu).attach(optimizer)
    part.attach(optimizer)
    for _ in range(tau):
        model.weight.grad = torch.ones_like(model.weight)
        optimizer.step()
    found = part.finish()[FEDNOVA_NORM]
    assert found == pytest.approx(before - model.weight.item(), rel=1e-12)
    rho = options.get("momentum", 0.0)
    if set(options) <= {"momentum"} and not (mu and rho):
        paper = (1 - (1 - 0.1 * mu) ** tau) / (mu * 0.1) if mu else tau
        if rho:
            paper = (tau - rho * (1 - rho**tau) / (1 - rho)) / (1 - rho)
        assert found == pytest.approx(0.1 * paper, rel=1e-12)


def test_an_optimiser_without_a_norm_and_a_round_without_a_step_are_refused() -> None:
    model = Quadratic()
    with pytest.raises(JobError, match="Adam is not linear in the gradients"):
        FedNova().attach(torch.optim.Adam(model.parameters()))
    with pytest.raises(JobError, match="no optimiser was attached"):
        FedNova().finish()
    part = FedNova()
    part.attach(torch.optim.SGD(model.parameters(), lr=0.1))
    with pytest.raises(JobError, match="made 0 steps"):
        part.finish()
    linear = torch.nn.Linear(1, 1)
    groups: list[dict[str, Any]] = [
        {"params": [linear.weight], "momentum": 0.9},
        {"params": [linear.bias]},
    ]
    with pytest.raises(JobError, match="different momentum"):
        FedNova().attach(torch.optim.SGD(groups, lr=0.1))
