"""FedDyn: its fixed point, a round by hand, privacy, and messages without an alpha."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.supercore.task_identity import TaskIdentity

from fedlearn.app.algorithm_names import FEDDYN_ALPHA
from fedlearn.app.array_records import arrays_of, record_of
from fedlearn.errors import JobError
from fedlearn.privacy import PrivacySpec, ServerPrivacy
from fedlearn.training import FedDyn
from server.flower.aggregation.builtin import BuiltIn
from tests.fedlearn.training.rounds import BEST, FEW, Nodes, Quadratic, context, descend, run

MODEL: dict[str, Any] = {
    "w": np.array([1.0, 2.0], np.float32),
    "bn.running_var": np.array([1.0], np.float32),
}


def dyn(message: Message, kept: Context, model: Quadratic, site: int) -> dict[str, float]:
    part = FedDyn(message, kept, model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.15)
    part.attach(optimizer)
    descend(model, optimizer, site, (5, 30, 10)[site])
    part.finish()
    return {}


def made(sites: int = 3, **options: Any) -> BuiltIn:
    return BuiltIn("feddyn", {**FEW, **options}, sites=sites)


def test_its_fixed_point_is_the_optimum_whatever_the_sites_examples() -> None:
    found = run(made(alpha=1.0), dyn, rounds=60, examples=(1, 100, 7))
    np.testing.assert_allclose(found, BEST, atol=1e-6)


def test_it_reaches_the_optimum_with_a_part_of_the_sites_in_each_round() -> None:
    def asked(number: int) -> list[int]:
        return [1 + number % 3, 1 + (number + 1) % 3]

    found = run(made(alpha=1.0), dyn, rounds=120, asked=asked)
    np.testing.assert_allclose(found, BEST, atol=1e-4)


def replies(*values: list[float], examples: int = 5) -> list[Message]:
    found = []
    for node, value in enumerate(values, start=1):
        arrays = {"w": np.array(value, "f4"), "bn.running_var": np.array([3.0], "f4")}
        metrics = MetricRecord({"num-examples": examples})
        content = RecordDict({"arrays": record_of(arrays), "m": metrics})
        found.append(Message(content, reply_to=Message(RecordDict(), node, "train")))
    return found


def test_two_rounds_by_hand() -> None:
    """Two of four sites answer: h / alpha is half of what the mean has moved, with the sign."""
    TaskIdentity.run_id = TaskIdentity.node_id = TaskIdentity.task_id = 1
    strategy, config = made(sites=4, alpha=0.5), ConfigRecord()
    strategy.configure_train(1, record_of(MODEL), config, Nodes())
    assert config[FEDDYN_ALPHA] == 0.5
    first, _ = strategy.aggregate_train(1, replies([3.0, 2.0], [1.0, 6.0]))
    assert first is not None
    # The mean is (2, 4), (1, 2) from the model; h / alpha is -(0.5, 1).
    found = arrays_of(first)
    assert found["w"].tolist() == [2.5, 5.0]
    assert found["bn.running_var"].tolist() == [3.0]  # a statistic gets the mean
    strategy.configure_train(2, first, config, Nodes())
    second, _ = strategy.aggregate_train(2, replies([2.5, 5.0], [4.5, 5.0]))
    assert second is not None
    # The mean moved by (1, 0), so h / alpha is -(1, 1).
    assert arrays_of(second)["w"].tolist() == [4.5, 6.0]


def test_under_privacy_its_state_follows_from_the_noised_mean() -> None:
    TaskIdentity.run_id = TaskIdentity.node_id = TaskIdentity.task_id = 1
    spec = PrivacySpec(clip=1.0, noise_multiplier=1.0, epsilon=100.0, delta=1e-5)
    found = []
    for name in ("fedavg", "feddyn"):
        privacy = ServerPrivacy.from_spec(spec, bytes(32))
        strategy = BuiltIn(name, FEW, privacy=privacy, sites=2)
        strategy.configure_train(1, record_of(MODEL), ConfigRecord(), Nodes())
        updates = replies([1.0, 2.0], [1.0, 2.0], examples=1)
        for each in updates:
            each.content["arrays"] = record_of(MODEL)
        arrays, _ = strategy.aggregate_train(1, updates)
        assert arrays is not None
        found.append(arrays_of(arrays)["w"])
    moved = found[0] - MODEL["w"]
    assert np.abs(moved).max() > 0.01
    # Both sites answered, so the model moves twice as far as the noised mean.
    np.testing.assert_allclose(found[1], MODEL["w"] + 2 * moved, rtol=1e-5)


def test_a_message_without_an_alpha_is_refused() -> None:
    TaskIdentity.run_id = TaskIdentity.node_id = TaskIdentity.task_id = 1
    message = Message(RecordDict({"config": ConfigRecord({})}), 1, "train")
    with pytest.raises(JobError, match="no number 'feddyn-alpha'"):
        FedDyn(message, context(), Quadratic())
    message.content["config"][FEDDYN_ALPHA] = 0.0
    with pytest.raises(JobError, match=r"alpha is 0\.0"):
        FedDyn(message, context(), Quadratic())
