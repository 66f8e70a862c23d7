"""Converts a torch ``state_dict`` to :class:`fedlearn.update.arrays.Update` and back.

Element types are kept as they are: bfloat16 becomes :data:`fedlearn.update.arrays.BF16`, half
stays half, integer buffers stay integers. A type without a safetensors name here (complex,
float8, quantised) is refused by name.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import numpy as np
import torch

from fedlearn.errors import UpdateRejected
from fedlearn.update.arrays import BF16, DTYPES, Array, Update, dtype_name

__all__ = ["from_state_dict", "to_state_dict", "to_tensor"]

_TORCH: Final[Mapping[str, torch.dtype]] = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "U16": torch.uint16,
    "I16": torch.int16,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "U32": torch.uint32,
    "I32": torch.int32,
    "F32": torch.float32,
    "U64": torch.uint64,
    "I64": torch.int64,
    "F64": torch.float64,
}
_NAMES: Final = {dtype: name for name, dtype in _TORCH.items()}


def from_state_dict(state: Mapping[str, torch.Tensor]) -> Update:
    """Return the tensors of ``state`` as an update, in its order.

    A contiguous tensor on the CPU is shared, not copied: use the update before training
    continues, or clone the state.

    :raises UpdateRejected: for a value that is not a dense tensor of a known element type.
    """
    return Update({name: _to_array(name, tensor) for name, tensor in state.items()})


def to_tensor(array: Array, *, device: torch.device | str | None = None) -> torch.Tensor:
    """Return a tensor with a copy of ``array``, on the CPU or on ``device``."""
    tensor = torch.empty(array.shape, dtype=_TORCH[dtype_name(array.dtype)])
    _fill(tensor, array)
    return tensor if device is None else tensor.to(device)


def to_state_dict(
    arrays: Mapping[str, Array], *, device: torch.device | str | None = None
) -> dict[str, torch.Tensor]:
    """Return copies of ``arrays`` as tensors, in the same order and of the same types."""
    return {name: to_tensor(array, device=device) for name, array in arrays.items()}


def _to_array(name: str, tensor: object) -> Array:
    if not isinstance(tensor, torch.Tensor) or tensor.layout is not torch.strided:
        raise UpdateRejected(f"{name}: is not a dense tensor", hint="send dense tensors only")
    label = _NAMES.get(tensor.dtype)
    if label is None:
        raise UpdateRejected(
            f"{name}: a tensor of {tensor.dtype} cannot be sent",
            hint=f"convert it to one of {', '.join(DTYPES)}",
        )
    plain = tensor.detach().cpu().contiguous()
    if tensor.dtype is torch.bfloat16:
        bits: Array = plain.view(torch.int16).numpy()
        return bits.view(BF16)
    array: Array = plain.numpy()
    return array


def _fill(tensor: torch.Tensor, array: Array) -> None:
    """Copy ``array`` into the memory of a contiguous CPU tensor of the same type."""
    plain = tensor.detach()
    if array.dtype == BF16:
        np.copyto(plain.view(torch.int16).numpy(), array.view(np.int16))
    else:
        np.copyto(plain.numpy(), array, casting="equiv")
