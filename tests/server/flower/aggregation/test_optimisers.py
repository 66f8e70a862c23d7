"""FedAvgM, FedAdagrad, FedAdam and FedYogi over two rounds against their papers, and q-FedAvg.

FedAvgM is Hsu et al. 2019 (arXiv:1909.06335); the adaptive ones are Reddi et al. 2021
(arXiv:2003.00295, algorithm 2). Two things are Flower's: the second moment begins at 0, where the
paper has at least ``tau^2``, and FedAdam corrects the bias of its moments as in round ``t + 1`` of
Kingma and Ba 2015 (arXiv:1412.6980).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from flwr.app import ConfigRecord, Message, MetricRecord, RecordDict
from flwr.supercore.task_identity import TaskIdentity
from numpy.typing import NDArray

from fedlearn.app.array_records import arrays_of, record_of
from server.flower.aggregation.builtin import BuiltIn
from tests.server.flower.aggregation.test_builtin import FEW, Grid

ROUNDS = (
    (([1.0, -3.0, 0.0], 3), ([2.0, 1.0, 0.5], 1)),
    (([-1.0, -1.0, 2.0], 2), ([0.0, 4.0, 1.0], 2)),
)
"""Two rounds of two updates, with their numbers of examples."""
ETA, BETA_1, BETA_2, TAU = 0.3, 0.9, 0.99, 0.01


def run(name: str, rounds: Any = ROUNDS, **options: Any) -> NDArray[np.float64]:
    TaskIdentity.run_id = TaskIdentity.node_id = TaskIdentity.task_id = 1
    strategy, model = BuiltIn(name, {**FEW, **options}), record_of({"w": np.zeros(3)})
    for number, updates in enumerate(rounds, start=1):
        strategy.configure_train(number, model, ConfigRecord(), Grid())
        replies = []
        for node, (values, examples, *loss) in enumerate(updates, start=1):
            metrics = MetricRecord({"num-examples": examples})
            if loss:
                metrics["train_loss"] = loss[0]
            content = RecordDict({"arrays": record_of({"w": np.array(values)}), "m": metrics})
            replies.append(Message(content, reply_to=Message(RecordDict(), node, "train")))
        made, _ = strategy.aggregate_train(number, replies)
        assert made is not None
        model = made
    return np.array(arrays_of(model)["w"])


def means() -> list[NDArray[np.float64]]:
    return [
        np.average([each for each, _ in updates], axis=0, weights=[n for _, n in updates])
        for updates in ROUNDS
    ]


def test_momentum() -> None:
    model, velocity = np.zeros(3), np.zeros(3)
    for mean in means():
        velocity = 0.8 * velocity + (model - mean)
        model = model - 0.5 * velocity
    found = run("fedavgm", server_learning_rate=0.5, server_momentum=0.8)
    np.testing.assert_allclose(found, model, rtol=1e-12)


@pytest.mark.parametrize("name", ["fedadagrad", "fedadam", "fedyogi"])
def test_an_adaptive_optimiser(name: str) -> None:
    model, first, second = np.zeros(3), np.zeros(3), np.zeros(3)
    beta_1 = 0.0 if name == "fedadagrad" else BETA_1
    for number, mean in enumerate(means(), start=1):
        change = mean - model
        first = beta_1 * first + (1 - beta_1) * change
        squared, rate = change**2, ETA
        if name == "fedadagrad":
            second = second + squared
        elif name == "fedyogi":
            second = second - (1 - BETA_2) * squared * np.sign(second - squared)
        else:
            second = BETA_2 * second + (1 - BETA_2) * squared
            after = number + 1
            rate = ETA * np.sqrt(1 - BETA_2**after) / (1 - BETA_1**after)
        model = model + rate * first / (np.sqrt(second) + TAU)
    moments = {} if name == "fedadagrad" else {"beta_1": BETA_1, "beta_2": BETA_2}
    np.testing.assert_allclose(run(name, eta=ETA, tau=TAU, **moments), model, rtol=1e-12)


@pytest.mark.parametrize("q", [0.0, 0.5, 2.0])
def test_q_fedavg(q: float) -> None:
    """Li et al. 2020 (arXiv:1905.10497), algorithm 2, with the losses of the received model."""
    updates, losses, rate = np.array([[1.0, -3.0, 0.0], [2.0, 1.0, 0.5]]), np.array([0.2, 1.5]), 0.1
    smooth = 1 / rate
    steps = smooth * (0 - updates)
    deltas = losses[:, None] ** q * steps
    h = q * losses ** (q - 1) * (steps**2).sum(axis=1) + smooth * losses**q
    expected = 0 - deltas.sum(axis=0) / h.sum()
    rounds = [[(each, 1, loss) for each, loss in zip(updates.tolist(), losses, strict=True)]]
    found = run("qfedavg", rounds, q=q, client_learning_rate=rate)
    np.testing.assert_allclose(found, expected, rtol=1e-6)
