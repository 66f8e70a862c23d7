"""Converts a torch ``state_dict`` to :class:`fedlearn.update.arrays.Update` and back.

Element types are kept as they are: bfloat16 becomes :data:`fedlearn.update.arrays.BF16`, half
stays half, integer buffers stay integers. A type without a safetensors name here (complex,
float8, quantised) is refused by name.

Tensors may be on any device. :func:`encode_state_dict` writes them into the document that is sent,
and :func:`fill_state_dict` reads the received one into the tensors that will be trained. Between a
GPU and the document there is one copy by the processor: the GPU writes to, or reads from, two
page-locked buffers in turn, while the processor moves the content of the other one
(CUDA C++ Programming Guide, sections *Page-Locked Host Memory* and *Overlapping Data Transfers*).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from typing import Final

import numpy as np
import torch

from fedlearn.errors import UpdateRejected
from fedlearn.sandbox.memory_file import FilePart, MemoryFile
from fedlearn.update.arrays import (
    BF16,
    DTYPES,
    Array,
    Update,
    check_like,
    dtype_name,
    safetensors_header,
)

__all__ = [
    "State",
    "encode_state_dict",
    "fill_state_dict",
    "from_state_dict",
    "to_state_dict",
    "to_tensor",
]

State = Mapping[str, torch.Tensor]
"""What ``state_dict()`` of a module returns: tensors by name, in order."""

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
_STAGE_BYTES: Final = 8 << 20
"""Of each page-locked buffer: large enough for the full rate of a PCIe or NVLink transfer."""


def from_state_dict(state: State) -> Update:
    """Return the tensors of ``state`` as an update, in its order.

    A contiguous tensor on the CPU is shared, not copied: use the update before training
    continues, or clone the state.

    :raises UpdateRejected: for a value that is not a dense tensor of a known element type.
    """
    return Update({name: _to_array(name, tensor) for name, tensor in state.items()})


def encode_state_dict(state: State) -> FilePart:
    """Return the canonical encoding of ``state``, in a file in memory.

    The bytes are those of ``from_state_dict(state).to_bytes()``. Each tensor is copied once by the
    processor, whatever device it is on. ``state`` may change afterwards.

    :raises UpdateRejected: for a value that is not a dense tensor of a known element type.
    :raises OSError: when there is no memory for it.
    """
    header, layout = safetensors_header(
        {name: (_label(name, tensor), tuple(tensor.shape)) for name, tensor in state.items()}
    )
    file = MemoryFile.create()
    file.append(header)
    stages = _Stages()
    for name in layout:
        tensor = state[name].detach().contiguous()
        if tensor.device.type == "cuda":
            for piece in stages.read(_bytes_of(tensor)):
                file.append(piece)
        else:
            file.append(_bytes_of(tensor.cpu()).numpy().data)
    return file.seal().part()


def fill_state_dict(state: State, arrays: Mapping[str, Array]) -> None:
    """Copy ``arrays`` into the tensors of ``state``, in place, whatever device they are on.

    :raises UpdateRejected: when names, order, element types or shapes differ; then no tensor
        was changed.
    """
    like = {
        name: np.broadcast_to(np.empty((), DTYPES[_label(name, tensor)]), tensor.shape)
        for name, tensor in state.items()
    }
    check_like(arrays, like)
    stages = _Stages()
    with torch.no_grad():
        for name, tensor in state.items():
            if tensor.device.type != "cuda":
                tensor.detach().copy_(to_tensor(arrays[name]))
                continue
            plain = tensor.detach()
            target = (
                plain
                if plain.is_contiguous()
                else torch.empty_like(plain, memory_format=torch.contiguous_format)
            )
            stages.write(_bytes_of(target), arrays[name])
            if target is not plain:
                plain.copy_(target)
    stages.settle()


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


class _Stages:
    """Two page-locked buffers between a GPU and the memory of this process."""

    def __init__(self) -> None:
        self._buffers: list[torch.Tensor] = []
        self._events: list[torch.cuda.Event | None] = [None, None]
        self._turns = itertools.cycle((0, 1))

    def read(self, source: torch.Tensor) -> Iterator[memoryview]:
        """Yield the bytes of a tensor on a GPU; each piece is valid until the next but one."""
        waiting: tuple[int, int] | None = None
        for start in range(0, len(source), _STAGE_BYTES):
            piece = source[start : start + _STAGE_BYTES]
            turn = self._free()
            self._buffer(turn)[: len(piece)].copy_(piece, non_blocking=True)
            self._note(turn, source)
            if waiting is not None:
                yield self._content(*waiting)
            waiting = turn, len(piece)
        if waiting is not None:
            yield self._content(*waiting)

    def write(self, target: torch.Tensor, array: Array) -> None:
        """Copy an array to a tensor on a GPU. The last pieces may be under way afterwards."""
        data = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        for start in range(0, len(data), _STAGE_BYTES):
            piece = data[start : start + _STAGE_BYTES]
            turn = self._free()
            staged = self._buffer(turn)[: len(piece)]
            np.copyto(staged.numpy(), piece)
            target[start : start + len(piece)].copy_(staged, non_blocking=True)
            self._note(turn, target)

    def settle(self) -> None:
        """Wait until every copy is complete."""
        for event in self._events:
            if event is not None:
                event.synchronize()

    def _buffer(self, turn: int) -> torch.Tensor:
        while len(self._buffers) <= turn:
            self._buffers.append(torch.empty(_STAGE_BYTES, dtype=torch.uint8, pin_memory=True))
        return self._buffers[turn]

    def _free(self) -> int:
        """Return the buffer whose turn it is, once its last copy is complete."""
        turn = next(self._turns)
        event = self._events[turn]
        if event is not None:
            event.synchronize()
        return turn

    def _note(self, turn: int, on: torch.Tensor) -> None:
        event = self._events[turn] = torch.cuda.Event()
        event.record(torch.cuda.current_stream(on.device))

    def _content(self, turn: int, size: int) -> memoryview:
        event = self._events[turn]
        assert event is not None
        event.synchronize()
        return self._buffers[turn][:size].numpy().data


def _bytes_of(tensor: torch.Tensor) -> torch.Tensor:
    """Return a contiguous tensor as bytes, in place."""
    return tensor.reshape(-1).view(torch.uint8)


def _label(name: str, tensor: object) -> str:
    """Return the safetensors name of a tensor's element type.

    :raises UpdateRejected: when it is not a dense tensor, or there is no such name.
    """
    if not isinstance(tensor, torch.Tensor) or tensor.layout is not torch.strided:
        raise UpdateRejected(f"{name}: is not a dense tensor", hint="send dense tensors only")
    label = _NAMES.get(tensor.dtype)
    if label is None:
        raise UpdateRejected(
            f"{name}: a tensor of {tensor.dtype} cannot be sent",
            hint=f"convert it to one of {', '.join(DTYPES)}",
        )
    return label


def _to_array(name: str, tensor: torch.Tensor) -> Array:
    _label(name, tensor)
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
