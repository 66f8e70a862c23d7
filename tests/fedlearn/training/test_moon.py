"""MOON: its term by hand, its gradient, what is kept, and numbers that are none."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from fedlearn.errors import JobError
from fedlearn.training import Moon
from tests.fedlearn.training.rounds import context


def new(*rows: list[float]) -> nn.Linear:
    model = nn.Linear(2, 2, bias=False)
    with torch.no_grad():
        model.weight.copy_(torch.tensor(rows))
    return model


X = torch.tensor([[1.0, 0.0]])


def test_the_term_by_hand() -> None:
    """The cosine to the received model is 0.6, to the one before 0.8; t is 0.5 and mu is 3."""
    kept = context()
    before, shared, trained = (
        new([4.0, 0.0], [3.0, 0.0]),
        new([3.0, 0.0], [4.0, 0.0]),
        new([1.0, 0.0], [0.0, 0.0]),
    )
    Moon(kept, shared).keep(before)
    moon = Moon(kept, shared, mu=3.0, temperature=0.5)
    z = trained(X)
    loss = moon.loss(lambda model: model(X), z)
    near, far = math.exp(0.6 / 0.5), math.exp(0.8 / 0.5)
    assert loss.item() == pytest.approx(3 * -math.log(near / (near + far)), rel=1e-6)
    loss.backward()
    # A step against the gradient turns the representation towards the received model.
    assert trained.weight.grad is not None
    assert trained.weight.grad[1, 0] < 0
    assert all(each.grad is None for each in (*shared.parameters(), *before.parameters()))


def test_in_the_first_round_the_term_has_no_gradient() -> None:
    model = new([1.0, 2.0], [3.0, 4.0])
    moon = Moon(context(), new([2.0, 0.0], [1.0, 0.0]))
    loss = moon.loss(lambda each: each(X), model(X))
    assert loss.item() == pytest.approx(math.log(2))
    loss.backward()
    assert model.weight.grad is not None
    assert model.weight.grad.abs().max() < 1e-6


def test_what_is_none_is_refused() -> None:
    model = new([1.0, 0.0], [0.0, 1.0])
    with pytest.raises(JobError, match="mu is nan"):
        Moon(context(), model, mu=float("nan"))
    with pytest.raises(JobError, match="temperature is 0"):
        Moon(context(), model, temperature=0)
    with pytest.raises(JobError, match=r"z has the shape \(1, 1\), and represent\(\) returns"):
        Moon(context(), model).loss(lambda each: each(X), torch.ones(1, 1))
    kept = context()
    Moon(kept, model).keep(model)
    with pytest.raises(JobError, match="does not fit the model"):
        Moon(kept, nn.Linear(3, 2, bias=False))
