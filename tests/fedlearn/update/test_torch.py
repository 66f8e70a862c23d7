"""The way to torch and back keeps every bit and every element type."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from fedlearn.errors import UpdateRejected
from fedlearn.update.arrays import BF16, decode, encode
from fedlearn.update.torch import (
    encode_state_dict,
    fill_state_dict,
    from_state_dict,
    to_state_dict,
)


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


def mixed(device: str = "cpu") -> dict[str, torch.Tensor]:
    """Tensors of several types and layouts, one larger than what is staged at a time."""
    torch.manual_seed(7)
    found = {
        "large": torch.randn(5_000_003),
        "turned": torch.randn(30, 70).T,
        "half": torch.randn(9).half(),
        "bf16": torch.randn(3, 3).bfloat16(),
        "mask": torch.tensor([True, False, True]),
        "steps": torch.tensor(2**40 + 1),
        "nothing": torch.empty(0, 4),
    }
    return {name: tensor.to(device) for name, tensor in found.items()}


def check_round_trip(device: str) -> None:
    state = mixed(device)
    part = encode_state_dict(state)
    assert bytes(part) == from_state_dict(mixed()).to_bytes()
    other = {name: torch.zeros_like(tensor) for name, tensor in state.items()}
    fill_state_dict(other, decode(part.view()))
    for name, tensor in state.items():
        assert torch.equal(other[name], tensor), name
        assert other[name].device == tensor.device


def test_a_state_is_encoded_into_memory_and_read_back_in_place() -> None:
    check_round_trip("cpu")


def test_what_is_encoded_does_not_change_with_the_model() -> None:
    state = mixed()
    part = encode_state_dict(state)
    before = bytes(part)
    state["large"].zero_()
    assert bytes(part) == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda found: found.pop("half"), "'half' is missing"),
        (lambda found: found.update(more=np.ones(1)), "'more' is not part of the model"),
        (lambda found: found.update(half=np.ones(8, np.float16)), "half: has shape"),
        (lambda found: found.update(half=np.ones(9, np.float32)), "half: is F32"),
    ],
)
def test_arrays_that_do_not_fit_change_no_tensor(
    change: Callable[[dict[str, np.ndarray]], object], message: str
) -> None:
    arrays = dict(decode(encode_state_dict(mixed()).view()))
    change(arrays)
    state = {name: torch.zeros_like(tensor) for name, tensor in mixed().items()}
    with pytest.raises(UpdateRejected, match=message):
        fill_state_dict(state, arrays)
    assert not any(bool(tensor.any()) for tensor in state.values())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
def test_a_state_on_a_gpu_has_the_same_encoding() -> None:
    check_round_trip("cuda")
