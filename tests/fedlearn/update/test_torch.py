"""The way to torch and back keeps every bit and every element type."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fedlearn.errors import UpdateRejected
from fedlearn.update.arrays import BF16, decode, encode
from fedlearn.update.torch import from_state_dict, to_state_dict


class Net(torch.nn.Module):
    """Parameters, a bfloat16 layer, and integer buffers."""

    def __init__(self) -> None:
        super().__init__()
        self.first = torch.nn.Linear(3, 4)
        self.norm = torch.nn.BatchNorm1d(4)
        self.last = torch.nn.Linear(4, 2, bias=False, dtype=torch.bfloat16)


def test_a_module_survives_the_wire_bit_for_bit() -> None:
    net = Net()
    update = from_state_dict(net.state_dict())
    assert update["last.weight"].dtype == BF16
    assert update["norm.num_batches_tracked"].shape == ()
    other = Net()
    other.load_state_dict(to_state_dict(decode(encode(update))))
    for name, tensor in net.state_dict().items():
        twin = other.state_dict()[name]
        assert twin.dtype is tensor.dtype
        assert torch.equal(twin, tensor)


def test_tensors_made_from_an_update_are_copies() -> None:
    update = from_state_dict({"w": torch.ones(2), "b": torch.ones(2, dtype=torch.bfloat16)})
    state = to_state_dict(decode(encode(update)))
    state["w"][0] = 9
    assert update["w"][0] == 1
    assert state["b"].dtype is torch.bfloat16


def test_transposed_and_tracked_tensors_are_taken_by_value() -> None:
    tensor = torch.arange(6.0, requires_grad=True).reshape(2, 3).T
    np.testing.assert_array_equal(from_state_dict({"t": tensor})["t"], tensor.detach().numpy())


def test_types_without_a_name_are_refused() -> None:
    with pytest.raises(UpdateRejected, match=r"c: a tensor of torch\.complex64"):
        from_state_dict({"c": torch.ones(1, dtype=torch.complex64)})
    with pytest.raises(UpdateRejected, match="s: is not a dense tensor"):
        from_state_dict({"s": torch.eye(2).to_sparse()})
