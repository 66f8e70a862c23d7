"""Ditto: the personal model's fixed point, what is kept, and numbers that are none."""

from __future__ import annotations

import pytest
import torch

from fedlearn.errors import JobError
from fedlearn.training import Ditto
from tests.fedlearn.training.rounds import CENTER, CURVATURE, Quadratic, context, descend


def at(value: float) -> Quadratic:
    model = Quadratic()
    with torch.no_grad():
        model.w.fill_(value)
    return model


def test_the_personal_model_ends_between_the_sites_optimum_and_the_shared_model() -> None:
    kept, shared = context(), at(2.0)
    for _ in range(3):  # the second round goes on from the first one's model
        ditto = Ditto(kept, shared, weight=0.5)
        optimizer = torch.optim.SGD(ditto.model.parameters(), lr=0.1)
        ditto.attach(optimizer)
        descend(ditto.model, optimizer, 0, 40)
        ditto.keep()
    least = (CURVATURE[0] * CENTER[0] + 0.5 * 2.0) / (CURVATURE[0] + 0.5)
    assert ditto.model.w.tolist() == pytest.approx([least] * 2, abs=1e-6)
    assert shared.w.tolist() == [2.0, 2.0]


def test_the_first_personal_model_is_the_shared_one_and_the_next_the_sites() -> None:
    kept = context()
    first = Ditto(kept, at(2.0), weight=1.0)
    assert first.model.w.tolist() == [2.0, 2.0]
    with torch.no_grad():
        first.model.w.fill_(7.0)
    first.keep()
    assert Ditto(kept, at(3.0), weight=1.0).model.w.tolist() == [7.0, 7.0]


def test_without_weight_it_is_training_on_the_sites_data() -> None:
    ditto = Ditto(context(), at(2.0), weight=0.0)
    optimizer = torch.optim.SGD(ditto.model.parameters(), lr=0.1)
    ditto.attach(optimizer)
    descend(ditto.model, optimizer, 1, 200)
    assert ditto.model.w.tolist() == pytest.approx([CENTER[1]] * 2)


def test_a_weight_that_is_none_and_another_model_in_the_state_are_refused() -> None:
    with pytest.raises(JobError, match="must be a finite number from 0"):
        Ditto(context(), at(0.0), weight=-1.0)
    kept = context()
    Ditto(kept, torch.nn.Linear(2, 2), weight=1.0).keep()
    with pytest.raises(JobError, match="does not fit the model"):
        Ditto(kept, torch.nn.Linear(2, 3), weight=1.0)
