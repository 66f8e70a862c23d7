"""Blocks: pieces of the arrays of a model, of a size that stays in a processor's cache.

A block holds pieces of arrays of one working type, small arrays together. The blocks are dealt to
:data:`LANES` lanes whatever the number of processors is, and threads take whole lanes: a sum that
each lane makes for itself, added in the order of the lanes, has the same bits for any number of
threads.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar

import numpy as np
from numpy.typing import NDArray

from fedlearn.update.arrays import BF16, Array, to_bfloat16

__all__ = [
    "LANES",
    "Arrays",
    "Block",
    "as_type",
    "empty_like",
    "flat",
    "in_lanes",
    "lanes_of",
    "load",
    "ordered_type",
    "store",
    "wide_type",
]

Arrays = Mapping[str, Array]
"""The arrays of a model, or of an update of it."""

LANES: Final = 8
_BYTES: Final = 1 << 20
"""Of a block, over all updates: it fits the second level of the cache."""
_FEWEST: Final = 1 << 10
_MOST: Final = 1 << 15
"""Elements of a block: with fewer, calls cost more than arithmetic."""
_ALONE: Final = 1 << 18
"""Elements of all updates together that one thread handles sooner than several."""

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class _Piece:
    """Elements ``start`` to ``stop`` of the flat array ``name``, from ``at`` on in a block."""

    name: str
    start: int
    stop: int
    at: int

    @property
    def place(self) -> slice:
        return slice(self.at, self.at + self.stop - self.start)


@dataclass(slots=True)
class Block:
    """Pieces whose working type is ``dtype``; ``size`` elements in all."""

    dtype: np.dtype[Any]
    pieces: list[_Piece] = field(default_factory=list)
    size: int = 0


def ordered_type(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """Return the type in which values are compared: exact, with the same order."""
    if dtype == BF16 or dtype == np.float16:
        return np.dtype(np.float32)
    return np.dtype(np.uint8) if dtype.kind == "b" else dtype


def wide_type(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """Return the type in which values are multiplied: float64."""
    return np.dtype(np.float64)


def lanes_of(
    like: Arrays, count: int, type_of: Callable[[np.dtype[Any]], np.dtype[Any]]
) -> list[list[Block]]:
    """Part the arrays of a model into blocks, and deal these to the lanes.

    :param count: how many rows of a block are in memory at once.
    :param type_of: returns the working type for an element type.
    """
    blocks: list[Block] = []
    open_: dict[np.dtype[Any], Block] = {}
    for name, array in like.items():
        dtype, start = type_of(array.dtype), 0
        most = max(_FEWEST, min(_MOST, _BYTES // (max(1, count) * dtype.itemsize)))
        while start < array.size:
            block = open_.get(dtype)
            if block is None or block.size == most:
                block = open_[dtype] = Block(dtype)
                blocks.append(block)
            stop = min(array.size, start + most - block.size)
            block.pieces.append(_Piece(name, start, stop, block.size))
            block.size += stop - start
            start = stop
    return [blocks[lane::LANES] for lane in range(LANES)]


def in_lanes(
    lanes: Sequence[Sequence[Block]], count: int, work: Callable[[Sequence[Block]], _T]
) -> list[_T]:
    """Return what ``work`` returns for each lane, in the order of the lanes.

    :param count: how many updates each block is read of.
    """
    elements = count * sum(block.size for lane in lanes for block in lane)
    threads = 1 if elements <= _ALONE else min(LANES, len(os.sched_getaffinity(0)))
    if threads == 1:
        return [work(lane) for lane in lanes]
    with ThreadPoolExecutor(threads, thread_name_prefix="aggregate") as pool:
        return list(pool.map(work, lanes))


def flat(arrays: Arrays) -> dict[str, Array]:
    """Return the arrays with one axis; views, unless an array is not contiguous."""
    return {name: array.reshape(-1) for name, array in arrays.items()}


def load(block: Block, arrays: Arrays, out: NDArray[Any]) -> None:
    """Write the elements of a block of flat arrays to ``out``, in the type of ``out``."""
    for piece in block.pieces:
        values, target = arrays[piece.name][piece.start : piece.stop], out[piece.place]
        if values.dtype == BF16:
            bits = np.left_shift(values["bfloat16"], 16, dtype=np.uint32)
            np.copyto(target, bits.view(np.float32))
        elif values.dtype.kind == "b":
            # A byte of a boolean array may hold another number than 0 and 1.
            np.copyto(target, values.view(np.uint8) != 0)
        else:
            np.copyto(target, values, casting="unsafe")


def store(block: Block, values: NDArray[Any], arrays: Arrays) -> None:
    """Write the values of a block to flat arrays, rounded to the types of these."""
    for piece in block.pieces:
        target = arrays[piece.name]
        target[piece.start : piece.stop] = as_type(values[piece.place], target.dtype)


def as_type(values: NDArray[Any], dtype: np.dtype[Any]) -> Array:
    """Return numbers rounded to an element type.

    Floating-point numbers become integers by rounding to the nearest, ties to even, within the
    bounds of the type; a boolean is whether a number is above 0.5.
    """
    if values.dtype == dtype:
        return values
    if dtype == BF16:
        return to_bfloat16(values.astype(np.float32))
    if dtype.kind == "b":
        return np.asarray(values > 0.5)
    if dtype.kind in "iu":
        bounds = np.iinfo(dtype)
        # The largest integer of 64 bits is not a float64; the float64 above it would wrap around.
        most = min(float(bounds.max), math.nextafter(float(bounds.max) + 1, 0))
        values = np.clip(np.rint(values.astype(np.float64)), float(bounds.min), most)
    # An array without axes comes out of arithmetic as a scalar.
    return np.asarray(values).astype(dtype)


def empty_like(like: Arrays) -> tuple[dict[str, Array], dict[str, Array]]:
    """Return new arrays like those of a model, and flat views to write them by."""
    found = {name: np.empty(array.shape, array.dtype) for name, array in like.items()}
    return found, flat(found)
