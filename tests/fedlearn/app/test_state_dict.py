"""Records from and into a torch state_dict, with the bytes that Flower's own way leads to."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from flwr.app import ArrayRecord, RecordDict

from fedlearn.app.array_records import document_of, record_of
from fedlearn.app.flower import Packer
from fedlearn.app.state_dict import load_record, record_of_state_dict
from fedlearn.errors import UpdateRejected


def model() -> torch.nn.Sequential:
    torch.manual_seed(2)
    return torch.nn.Sequential(torch.nn.Linear(7, 5), torch.nn.BatchNorm1d(5))


def test_a_record_is_sent_as_flowers_own_would_be() -> None:
    state = model().state_dict()
    ours, theirs = record_of_state_dict(state), ArrayRecord(state)
    assert bytes(document_of(ours)) == bytes(document_of(theirs))
    packed = Packer().content(RecordDict({"arrays": ours}))
    assert next(iter(packed.array_records.values()))["packed"].data is document_of(ours)
    for name, tensor in ours.to_torch_state_dict().items():
        assert torch.equal(tensor, state[name])


def test_a_received_record_is_read_into_the_tensors_of_a_model() -> None:
    sent, twin = model(), model()
    with torch.no_grad():
        for each in twin.parameters():
            each.zero_()
    own = twin.state_dict()
    load_record(own, record_of_state_dict(sent.state_dict()))
    assert torch.equal(own["0.weight"], sent.state_dict()["0.weight"])
    load_record(own, ArrayRecord(sent.state_dict()))


def test_a_record_of_another_model_changes_nothing() -> None:
    twin = model()
    before = {name: each.clone() for name, each in twin.state_dict().items()}
    other = record_of({"0.weight": np.zeros((7, 5), np.float32)})
    with pytest.raises(UpdateRejected, match=r"'0\.bias' is missing"):
        load_record(twin.state_dict(), other)
    assert all(torch.equal(each, before[name]) for name, each in twin.state_dict().items())
