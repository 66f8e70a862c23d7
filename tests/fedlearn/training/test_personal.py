"""Personal layers: what stays at a site, what is sent, and names that are none."""

from __future__ import annotations

import pytest
import torch
from flwr.app import ArrayRecord
from torch import nn

from fedlearn.app.array_records import arrays_of
from fedlearn.errors import JobError
from fedlearn.training import PersonalLayers, batch_norm, matching, only
from tests.fedlearn.training.rounds import context


def new() -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2), nn.Linear(2, 1))


def train(model: nn.Module, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        model(torch.randn(8, 3, generator=generator)).square().sum().backward()
        optimizer.step()


def test_batch_normalisation_stays_and_all_else_is_sent() -> None:
    kept, received = context(), ArrayRecord(new().state_dict())
    model = new()
    personal = PersonalLayers(kept, batch_norm(model))
    personal.load(model, received)
    train(model, 7)
    sent = arrays_of(personal.shared(model))
    before, after = new().state_dict(), model.state_dict()
    for name, array in sent.items():
        expected = before if name.startswith("1.") else after
        assert array.tobytes() == expected[name].numpy().tobytes(), name
    assert not torch.equal(before["1.running_mean"], after["1.running_mean"])

    # The next round brings another model; the site's layers are those that it had.
    other = {name: each + 1 for name, each in after.items()}
    again = new()
    PersonalLayers(kept, batch_norm(again)).load(again, ArrayRecord(other))
    for name, found in again.state_dict().items():
        assert torch.equal(found, after[name] if name.startswith("1.") else other[name]), name


def test_the_order_of_the_arrays_in_a_message_does_not_matter() -> None:
    backwards = ArrayRecord(dict(reversed(new().state_dict().items())))
    model = new()
    personal = PersonalLayers(context(), matching(model, "2.*"))
    personal.load(model, backwards)
    assert list(personal.shared(model)) == list(model.state_dict())


def test_the_head_is_trained_with_the_body_fixed_and_then_the_body() -> None:
    model = new()
    head = matching(model, "2.*")
    before = {name: each.clone() for name, each in model.named_parameters()}
    with only(model, head) as parameters:
        assert parameters == [model[2].weight, model[2].bias]
        train(model, 1)
    moved = {name for name, each in model.named_parameters() if not torch.equal(each, before[name])}
    assert moved == head
    assert all(each.requires_grad for each in model.parameters())


def test_names_that_are_none_are_refused() -> None:
    model = new()
    with pytest.raises(JobError, match=r"matches 'head\.\*'; it has 0\.weight"):
        matching(model, "head.*")
    with pytest.raises(JobError, match="no array of the model is personal"):
        PersonalLayers(context(), batch_norm(nn.Linear(2, 2)))
    with pytest.raises(JobError, match="has no array 'head'"):
        PersonalLayers(context(), {"head"}).load(model, ArrayRecord(model.state_dict()))
    with pytest.raises(JobError, match="no model was loaded"):
        PersonalLayers(context(), {"2.bias"}).shared(model)
    with pytest.raises(JobError, match="does not fit the model"):
        PersonalLayers(context(), {"2.bias"}).load(model, ArrayRecord(nn.Linear(3, 2).state_dict()))
    with pytest.raises(JobError, match="none of the named arrays"), only(model, {"1.running_mean"}):
        pass


def test_layers_of_another_model_in_the_state_are_refused() -> None:
    kept, model = context(), new()
    personal = PersonalLayers(kept, {"2.weight"})
    personal.load(model, ArrayRecord(model.state_dict()))
    personal.shared(model)
    wider = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))
    with pytest.raises(JobError, match=r"does not fit the model: 2\.weight"):
        PersonalLayers(kept, {"2.weight"}).load(wider, ArrayRecord(wider.state_dict()))
