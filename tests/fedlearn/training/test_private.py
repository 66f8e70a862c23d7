"""DP-SGD clips, draws and adds noise as its job states; the mean over users is clipped per user."""

from __future__ import annotations

import math
import random
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Context, RecordDict
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from fedlearn.errors import ConfigError, PrivacyError
from fedlearn.privacy import PrivacySpec
from fedlearn.privacy.app_config import PREFIX, app_config
from fedlearn.training.private import make_private, train_users, users_of

pytestmark = pytest.mark.filterwarnings("ignore")

EXAMPLE: dict[str, Any] = {
    "mechanism": "dp-sgd",
    "unit": "example",
    "clip": 1.0,
    "noise_multiplier": 1.5,
    "epsilon": 1e3,
    "delta": 1e-5,
    "batch_rate": 0.1,
    "steps": 3,
}
USER: dict[str, Any] = {
    "unit": "user",
    "clip": 1.0,
    "noise_multiplier": 1.5,
    "epsilon": 1e3,
    "delta": 1e-5,
    "users": 4,
    "user_column": "patient",
}
INPUTS = 2_000


def context(table: dict[str, Any], **changes: Any) -> Context:
    spec = PrivacySpec(**{**table, **changes})
    config = app_config(spec, bytes(32))
    return Context(run_id=0, node_id=0, node_config=config, state=RecordDict(), run_config={})


def linear(size: int = 100) -> tuple[nn.Linear, DataLoader[Any]]:
    torch.manual_seed(1)
    model = nn.Linear(INPUTS, 1, bias=False)
    data = TensorDataset(torch.randn(size, INPUTS) * 10, torch.randn(size, 1))
    return model, DataLoader(data, batch_size=10)


def steps(found: tuple[Any, Any, Any], *, scale: float = 1.0) -> int:
    model, optimizer, loader = found
    count = 0
    for inputs, labels in loader:
        optimizer.zero_grad()
        (nn.functional.mse_loss(model(inputs), labels) * scale).backward()
        optimizer.step()
        count += 1
    return count


def test_the_noise_of_the_steps_is_what_the_job_claims() -> None:
    model, loader = linear()
    before = model.weight.detach().clone()
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    # A loss of zero leaves the noise alone: 3 steps of 1.5 * clip / (0.1 * 100).
    assert steps(make_private(model, optimizer, loader, context(EXAMPLE)), scale=0.0) == 3
    moved = (model.weight.detach() - before).numpy().reshape(-1)
    deviation = math.sqrt(3) * 1.5 * 1.0 / 10 * (1 + 2.0**-10)
    statistic = float(np.sum(np.square(moved / deviation)))
    assert abs(statistic - INPUTS) < 4.9 * math.sqrt(2 * INPUTS)
    assert abs(statistic * (deviation / (deviation * 1.2)) ** 2 - INPUTS) > 4.9 * math.sqrt(
        2 * INPUTS
    )


def test_the_gradient_of_each_example_is_clipped() -> None:
    model, loader = linear(size=40)
    before = model.weight.detach().clone()
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    asked = context(EXAMPLE, noise_multiplier=0.05, batch_rate=1.0, steps=1)
    steps(make_private(model, optimizer, loader, asked))
    norm = float((model.weight.detach() - before).norm())
    # Each gradient is hundreds long. The mean of 40 clipped ones is at most 1, the noise of
    # 0.05 / 40 on 2,000 numbers has a norm of 0.056.
    assert 0.1 < norm < 1.06


def test_an_example_is_drawn_at_the_rate_of_the_job_and_a_batch_may_be_empty() -> None:
    model, loader = linear()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    found = make_private(model, optimizer, loader, context(EXAMPLE, steps=400))
    sizes = [len(inputs) for inputs, _ in found[2]]
    assert np.mean(sizes) == pytest.approx(10, abs=5 * math.sqrt(9 / 400))
    assert np.var(sizes) == pytest.approx(9, rel=0.4)
    model, loader = linear()
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    before = model.weight.detach().clone()
    rare = make_private(model, optimizer, loader, context(EXAMPLE, batch_rate=1e-9, steps=2))
    assert steps(rare) == 2
    # An empty batch adds its noise as well: it does not show that nobody was drawn.
    assert float((model.weight.detach() - before).abs().min()) > 0


def test_draws_and_noise_are_fresh_unless_they_may_be_known() -> None:
    def weights(**changes: Any) -> np.ndarray[Any, Any]:
        model, loader = linear()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        random.seed(4)
        steps(make_private(model, optimizer, loader, context(EXAMPLE, **changes)))
        return np.asarray(model.weight.detach().numpy())

    assert not np.array_equal(weights(), weights())
    known = {"insecure_deterministic_noise": True}
    assert np.array_equal(weights(**known), weights(**known))
    assert f"{PREFIX}insecure-secret" not in context(EXAMPLE).node_config


def test_a_step_beyond_those_of_the_job_is_refused() -> None:
    model, loader = linear()
    found = make_private(
        model, torch.optim.SGD(model.parameters(), lr=0.1), loader, context(EXAMPLE)
    )
    assert steps(found) == 3
    with pytest.raises(PrivacyError, match="allows 3 steps"):
        steps(found)


def test_a_model_that_mixes_examples_and_data_without_one_are_refused() -> None:
    _, loader = linear()
    model = nn.Sequential(nn.Linear(INPUTS, 4), nn.BatchNorm1d(4))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(PrivacyError, match="cannot be trained with DP-SGD"):
        make_private(model, optimizer, loader, context(EXAMPLE))
    empty: DataLoader[Any] = DataLoader(
        TensorDataset(torch.zeros(0, INPUTS)), sampler=torch.utils.data.SequentialSampler([])
    )
    plain, _ = linear()
    with pytest.raises(PrivacyError, match="at least one example"):
        make_private(plain, torch.optim.SGD(plain.parameters(), lr=0.1), empty, context(EXAMPLE))


def test_a_job_of_another_unit_is_refused() -> None:
    model, loader = linear()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(ConfigError, match='no unit = "example"'):
        make_private(model, optimizer, loader, context(USER))
    with pytest.raises(ConfigError, match='no unit = "user"'):
        users_of({"patient": [1]}, context(EXAMPLE))
    plain = Context(run_id=0, node_id=0, node_config={}, state=RecordDict(), run_config={})
    with pytest.raises(ConfigError):
        train_users(model, {}, lambda own, positions: None, plain)


def test_records_are_grouped_by_the_column_of_the_job() -> None:
    found = users_of({"patient": ["b", "a", "b"], "age": [1, 2, 3]}, context(USER))
    assert {user: list(at) for user, at in found.items()} == {"b": [0, 2], "a": [1]}
    with pytest.raises(PrivacyError, match="no column 'patient'") as caught:
        users_of({"person": [1], "age": [2]}, context(USER))
    assert "age, person" in str(caught.value)


def test_each_user_is_clipped_and_the_sum_divided_by_the_number_of_the_job() -> None:
    model = nn.Linear(2, 1)
    before = [each.detach().clone() for each in model.parameters()]
    # By hand: user 0 moves all three numbers by 0.1 (a norm of 0.173), user 1 by 10 (clipped to
    # 1, which is 0.577 for each). The sum is divided by the 4 of the job.
    seen = []

    def train(own: nn.Module, positions: Any) -> None:
        seen.append(list(positions))
        with torch.no_grad():
            for each in own.parameters():
                each.add_(0.1 if positions[0] == 0 else 10.0)

    users = {"zero": np.array([0, 2]), "one": np.array([1])}
    train_users(model, users, train, context(USER))
    assert seen == [[0, 2], [1]]
    expected = (0.1 + 1 / math.sqrt(3)) / 4
    for after, base in zip(model.parameters(), before, strict=True):
        assert torch.allclose(after.detach() - base, torch.tensor(expected), atol=1e-6)


def test_a_user_whose_training_diverges_is_an_error() -> None:
    def train(own: nn.Module, positions: Any) -> None:
        with torch.no_grad():
            next(own.parameters()).fill_(float("nan"))

    with pytest.raises(PrivacyError, match="NaN"):
        train_users(nn.Linear(2, 1), {"a": np.array([0])}, train, context(USER))
