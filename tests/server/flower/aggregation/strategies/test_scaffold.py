"""SCAFFOLD: its optimum, a round by hand, and replies without what it needs."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.supercore.task_identity import TaskIdentity

from fedlearn.app.algorithm_names import SCAFFOLD_CONTROL, SCAFFOLD_STEP_SUM
from fedlearn.app.array_records import arrays_of, record_of
from fedlearn.errors import JobError, PrivacyError
from fedlearn.privacy import PrivacySpec, ServerPrivacy
from fedlearn.training import Scaffold
from server.flower.aggregation.builtin import BuiltIn
from server.flower.ipc.strategy_state import capture, restore
from tests.fedlearn.training.rounds import BEST, FEW, Nodes, Quadratic, context, descend, run

STEPS = (2, 7, 4)
RATE = 0.1


def scaffold(message: Message, kept: Context, model: Quadratic, site: int) -> dict[str, float]:
    part = Scaffold(message, kept, model)
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE)
    part.attach(optimizer)
    descend(model, optimizer, site, STEPS[site])
    return part.finish()


def plain(message: Message, kept: Context, model: Quadratic, site: int) -> dict[str, float]:
    descend(model, torch.optim.SGD(model.parameters(), lr=RATE), site, STEPS[site])
    return {}


def made(sites: int = 3, **options: Any) -> BuiltIn:
    return BuiltIn("scaffold", {**FEW, **options}, sites=sites)


def test_it_reaches_the_optimum_where_fedavg_does_not() -> None:
    drifted = run(BuiltIn("fedavg", FEW), plain, rounds=60)
    assert abs(drifted[0] - BEST) > 0.1
    found = run(made(), scaffold, rounds=60)
    np.testing.assert_allclose(found, BEST, atol=1e-6)


def test_it_reaches_the_optimum_with_a_part_of_the_sites_in_each_round() -> None:
    def asked(number: int) -> list[int]:
        return [1 + number % 3, 1 + (number + 1) % 3]

    found = run(made(), scaffold, rounds=120, asked=asked)
    np.testing.assert_allclose(found, BEST, atol=1e-4)


def test_the_order_of_the_updates_changes_no_bit() -> None:
    first, second = (
        run(made(), scaffold, rounds=5, examples=(3, 5, 9), backwards=backwards)
        for backwards in (False, True)
    )
    assert first.tobytes() == second.tobytes()


MODEL: dict[str, Any] = {"w": np.array([1.0, 2.0], np.float32), "n": np.zeros((), np.int64)}


def reply(
    node: int, w: list[float], metrics: Mapping[str, Any], more: Mapping[str, Any] | None = None
) -> Message:
    arrays = {"w": np.array(w, np.float32), "n": np.asarray(4), **(more or {})}
    content = RecordDict(
        {"arrays": record_of(arrays), "m": MetricRecord({"num-examples": 1, **metrics})}
    )
    return Message(content, reply_to=Message(RecordDict(), node, "train"))


def began(strategy: BuiltIn, model: Mapping[str, Any] = MODEL) -> tuple[Nodes, Message]:
    TaskIdentity.run_id = TaskIdentity.node_id = TaskIdentity.task_id = 1
    grid = Nodes()
    messages = list(strategy.configure_train(1, record_of(model), ConfigRecord(), grid))
    return grid, messages[0]


def test_a_round_by_hand() -> None:
    """Two of four sites answer, with step sums 0.5 and 2, and eta_g is 0.5."""
    strategy = made(sites=4, server_learning_rate=0.5)
    _, message = began(strategy)
    sent = arrays_of(message.content[SCAFFOLD_CONTROL])
    assert {name: each.tolist() for name, each in sent.items()} == {"w": [0.0, 0.0]}
    replies = [
        reply(1, [0.0, 2.0], {SCAFFOLD_STEP_SUM: 0.5, "loss": 3.0}),
        reply(2, [3.0, 4.0], {SCAFFOLD_STEP_SUM: 2.0, "loss": 5.0}),
    ]
    arrays, metrics = strategy.aggregate_train(1, replies)
    assert arrays is not None
    found = arrays_of(arrays)
    # The mean is (1.5, 3), halfway from (1, 2).
    assert found["w"].tolist() == [1.25, 2.5]
    assert found["n"] == 4
    # Gradients (2, 0) and (-1, -1); their mean (0.5, -0.5) for 2 of 4 sites.
    _, message = began(strategy)
    assert arrays_of(message.content[SCAFFOLD_CONTROL])["w"].tolist() == [0.25, -0.25]
    assert metrics == {"loss": 4.0}


ODD: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "no step sum": ({}, {}, "'fedlearn.scaffold.step-sum' is missing"),
    "a step sum of 0": ({SCAFFOLD_STEP_SUM: 0.0}, {}, "is 0.0; it must be from 1e-12"),
    "a negative one": ({SCAFFOLD_STEP_SUM: -1.0}, {}, "is -1.0"),
    "NaN": ({SCAFFOLD_STEP_SUM: float("nan")}, {}, "is nan"),
    "infinity": ({SCAFFOLD_STEP_SUM: float("inf")}, {}, "is inf"),
    "a list": ({SCAFFOLD_STEP_SUM: [1.0]}, {}, r"is \[1.0\]"),
    "NaN in the model": ({SCAFFOLD_STEP_SUM: 1.0}, {"w": np.array([1, np.nan], "f4")}, "w: .*NaN"),
    "a change that overflows": (
        {SCAFFOLD_STEP_SUM: 1e-12},
        {"w": np.array([1, 1e30], "f4")},
        "divided by 1e-12",
    ),
    "another shape": ({SCAFFOLD_STEP_SUM: 1.0}, {"w": np.zeros(3, "f4")}, "w"),
    "one more array": ({SCAFFOLD_STEP_SUM: 1.0}, {"v": np.zeros(3, "f4")}, "v"),
}


@pytest.mark.parametrize("odd", sorted(ODD))
def test_an_odd_reply_is_refused_by_name_and_changes_nothing_else(odd: str) -> None:
    metrics, arrays, reason = ODD[odd]
    results = []
    for with_it in (False, True):
        strategy = made()
        grid, _ = began(strategy)
        replies = [reply(1, [0.5, 2.0], {SCAFFOLD_STEP_SUM: 0.3})]
        replies += [reply(2, [0.0, 0.0], metrics, arrays)] if with_it else []
        found, _ = strategy.aggregate_train(1, replies)
        assert found is not None
        results.append((found["w"].numpy().tobytes(), strategy.inner.control["w"].tobytes()))
    assert results[0] == results[1]
    assert list(grid.refused) == [2]
    assert re.search(reason, grid.refused[2])


def test_its_control_variate_is_in_the_checkpoint_and_nothing_else_is() -> None:
    strategy = made()
    began(strategy)
    strategy.aggregate_train(1, [reply(1, [0.5, 2.0], {SCAFFOLD_STEP_SUM: 0.3})])
    state, arrays = capture({"strategy": strategy})
    assert [each.shape for each in arrays.values()] == [(2,)]
    again = made()
    restore({"strategy": again}, (state, arrays))
    assert again.inner.control["w"].tobytes() == strategy.inner.control["w"].tobytes()


def test_privacy_excludes_it_with_the_reason() -> None:
    spec = PrivacySpec(clip=1.0, noise_multiplier=1.0, epsilon=100.0, delta=1e-5)
    with pytest.raises(PrivacyError, match="scaffold needs a number of each site beside the mean"):
        BuiltIn("scaffold", FEW, privacy=ServerPrivacy.from_spec(spec, bytes(32)))


# The site's part


def question(**control: Any) -> Message:
    TaskIdentity.run_id = TaskIdentity.node_id = TaskIdentity.task_id = 1
    content = RecordDict({"arrays": ArrayRecord(Quadratic().state_dict())})
    if control:
        content[SCAFFOLD_CONTROL] = record_of(control)
    return Message(content, 1, "train")


@pytest.mark.parametrize(
    ("control", "reason"),
    [
        ({}, "has no control variate"),
        ({"v": np.zeros(2)}, "has no array 'w'"),
        ({"w": np.zeros(3)}, "does not fit the model: w"),
        ({"w": np.zeros(2, np.float32)}, "does not fit the model: w"),
    ],
)
def test_a_message_without_the_models_control_variate_is_refused(
    control: dict[str, Any], reason: str
) -> None:
    with pytest.raises(JobError, match=reason):
        Scaffold(question(**control), context(), Quadratic())


def test_a_round_without_a_step_is_refused() -> None:
    model = Quadratic()
    part = Scaffold(question(w=np.zeros(2)), context(), model)
    with pytest.raises(JobError, match="no optimiser was attached"):
        part.finish()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    part.attach(optimizer)
    with pytest.raises(JobError, match="made 0 steps"):
        part.finish()
    with pytest.raises(JobError, match="attached already"):
        part.attach(optimizer)


def test_two_learning_rates_are_refused() -> None:
    model = nn_of_two()
    control = {name: each.detach().numpy() * 0 for name, each in model.state_dict().items()}
    part = Scaffold(question(**control), context(), model)
    groups = [{"params": [model.weight], "lr": 0.1}, {"params": [model.bias], "lr": 0.2}]
    with pytest.raises(JobError, match=r"learning rates 0\.1, 0\.2"):
        part.attach(torch.optim.SGD(groups))


def nn_of_two() -> torch.nn.Linear:
    return torch.nn.Linear(2, 1)
