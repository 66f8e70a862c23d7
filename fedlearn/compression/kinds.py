"""How the numbers of one array are written in fewer bytes, block by block.

A block has 65,536 numbers, the last one of an array fewer. All arithmetic is that of IEEE 754 in
the *working type*: float64 for an array of float64, float32 for every other. Each operation is
rounded once, so the bytes of an update decode to the same bits on every machine.

``bf16, fp16``
    ``values``: each number rounded to nearest, ties to even, in 16 bits.
``int8``
    ``scales``: for each 4,096 numbers ``s = max|x| / 127``. ``values``: ``round(x / s)`` from -127
    to 127, to nearest, ties to even. Decoded is ``s * value``. Blocks keep an outlier from
    coarsening the whole array (Dettmers et al. 2022, arXiv:2110.02861, section 2.1).
``topk``
    Of each block of ``m`` numbers the ``ceil(fraction * m)`` of the largest magnitude, of equal
    ones the first; the others are zero (Stich et al. 2018, arXiv:1809.07599, definition 2.2).
    ``values``: these in ascending order of their place. ``offsets``: their places in the block, 16
    bits each; or ``bitmap``: one bit for each number, the least significant first, where that is
    shorter. How long they are follows from the size of the array alone, and so discloses nothing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Final, Protocol

import numpy as np
from numpy.typing import NDArray

from fedlearn.compression.spec import CompressionSpec
from fedlearn.errors import UpdateRejected
from fedlearn.update.arrays import BF16, Array

__all__ = ["BLOCK", "Kind", "Layout", "kind_of", "read_bf16", "write_bf16"]

BLOCK: Final = 1 << 16
"""Numbers that are encoded at a time, so that intermediate values stay in the cache."""

_SCALED: Final = 4096
"""Numbers with one scale; a block is a multiple of it."""
_STEPS: Final = 127
_BF16_INFINITY: Final = 0x7F80

Layout = dict[str, tuple[np.dtype[Any], int]]
"""The parts of one encoded array: element type and length of each."""
Values = NDArray[Any]
"""One block of numbers in the working type."""


class Kind(Protocol):
    """A way to write numbers. ``start`` is the place of a block in its array."""

    def layout(self, size: int, working: np.dtype[Any]) -> Layout:
        """Return the parts of an array of ``size`` numbers."""
        ...

    def encode(self, block: Values, start: int, parts: Mapping[str, Array]) -> None:
        """Write a block, which holds finite numbers, into the parts.

        :raises UpdateRejected: when a number is out of the range of the form.
        """
        ...

    def check(self, size: int, parts: Mapping[str, Array]) -> None:
        """Check the parts of an array of ``size`` numbers, which have the right layout.

        :raises UpdateRejected: when :meth:`encode` does not write such parts.
        """
        ...

    def decode(self, block: Values, start: int, parts: Mapping[str, Array]) -> None:
        """Set ``block`` to what the parts hold for it."""
        ...


def kind_of(spec: CompressionSpec) -> Kind:
    """Return the kind that a job declares, which is not ``none``."""
    if spec.update == "topk":
        assert spec.fraction is not None
        return _TopK(spec.fraction)
    kinds: dict[str, Kind] = {"bf16": _Bf16(), "fp16": _Fp16(), "int8": _Int8()}
    return kinds[spec.update]


class _Bf16:
    def layout(self, size: int, working: np.dtype[Any]) -> Layout:
        return {"values": (BF16, size)}

    def encode(self, block: Values, start: int, parts: Mapping[str, Array]) -> None:
        if not write_bf16(block, parts["values"][start : start + block.size]):
            raise UpdateRejected("a number is beyond bfloat16 (3.39e38)")

    def check(self, size: int, parts: Mapping[str, Array]) -> None:
        bits = parts["values"].view("<u2")
        if not all(_bf16_finite(bits[start : start + BLOCK]) for start in range(0, size, BLOCK)):
            raise UpdateRejected("contains NaN or infinity")

    def decode(self, block: Values, start: int, parts: Mapping[str, Array]) -> None:
        read_bf16(parts["values"][start : start + block.size], block)


class _Fp16:
    def layout(self, size: int, working: np.dtype[Any]) -> Layout:
        return {"values": (np.dtype("<f2"), size)}

    def encode(self, block: Values, start: int, parts: Mapping[str, Array]) -> None:
        written = parts["values"][start : start + block.size]
        with np.errstate(over="ignore"):
            written[:] = block
        if not np.isfinite(written).all():
            raise UpdateRejected('a number is beyond float16 (65504); use "bf16"')

    def check(self, size: int, parts: Mapping[str, Array]) -> None:
        if not np.isfinite(parts["values"]).all():
            raise UpdateRejected("contains NaN or infinity")

    def decode(self, block: Values, start: int, parts: Mapping[str, Array]) -> None:
        block[:] = parts["values"][start : start + block.size]


class _Int8:
    def layout(self, size: int, working: np.dtype[Any]) -> Layout:
        return {"values": (np.dtype("i1"), size), "scales": (working, -(-size // _SCALED))}

    def encode(self, block: Values, start: int, parts: Mapping[str, Array]) -> None:
        for first, last, row in _rows(block.size):
            numbers = block[first:last].reshape(row, -1)
            scales = np.maximum(numbers.max(axis=1), -numbers.min(axis=1)) / _STEPS
            with np.errstate(over="ignore"):
                beyond = np.isinf(scales * _STEPS)  # rounded up, at the end of the range
            scales[beyond] = np.nextafter(scales[beyond], 0)
            place = (start + first) // _SCALED
            parts["scales"][place : place + row] = scales
            scales[scales == 0] = 1  # zeros, or numbers that are far below the smallest scale
            steps = numbers / scales[:, None]
            np.rint(steps, out=steps)
            np.clip(steps, -_STEPS, _STEPS, out=steps)  # a subnormal scale is rounded coarsely
            parts["values"][start + first : start + last] = steps.reshape(-1)

    def check(self, size: int, parts: Mapping[str, Array]) -> None:
        scales = parts["scales"]
        if not (np.isfinite(scales).all() and (scales >= 0).all()):
            raise UpdateRejected("a scale is not a finite number from 0")
        if size and parts["values"].min() < -_STEPS:
            raise UpdateRejected("a value is -128; values go from -127 to 127")

    def decode(self, block: Values, start: int, parts: Mapping[str, Array]) -> None:
        for first, last, row in _rows(block.size):
            place = (start + first) // _SCALED
            scales = parts["scales"][place : place + row]
            values = parts["values"][start + first : start + last].reshape(row, -1)
            with np.errstate(over="ignore"):
                np.multiply(values, scales[:, None], out=block[first:last].reshape(row, -1))


class _TopK:
    def __init__(self, fraction: float) -> None:
        self._fraction = fraction

    def layout(self, size: int, working: np.dtype[Any]) -> Layout:
        total = self._place(size)
        bitmap = -(-size // 8)
        places: Layout = {"offsets": (np.dtype("<u2"), total)}
        if bitmap < 2 * total:
            places = {"bitmap": (np.dtype("u1"), bitmap)}
        return {"values": (working, total), **places}

    def encode(self, block: Values, start: int, parts: Mapping[str, Array]) -> None:
        size, count = block.size, self._count(block.size)
        magnitude = np.abs(block)
        least = np.partition(magnitude, size - count)[size - count]
        chosen = magnitude > least
        missing = count - int(np.count_nonzero(chosen))
        chosen[np.flatnonzero(magnitude == least)[:missing]] = True
        first, places = self._place(start), np.flatnonzero(chosen)
        parts["values"][first : first + count] = block[places]
        if "bitmap" in parts:
            bits = np.packbits(chosen, bitorder="little")
            parts["bitmap"][start // 8 : start // 8 + bits.size] = bits
        else:
            parts["offsets"][first : first + count] = places

    def check(self, size: int, parts: Mapping[str, Array]) -> None:
        if not np.isfinite(parts["values"]).all():
            raise UpdateRejected("contains NaN or infinity")
        for start in range(0, size, BLOCK):
            m = min(BLOCK, size - start)
            count, first = self._count(m), self._place(start)
            if "bitmap" in parts:
                bitmap = parts["bitmap"][start // 8 : -(-(start + m) // 8)]
                found = int(np.count_nonzero(np.unpackbits(bitmap)))
                if found != count:
                    raise UpdateRejected(
                        f"the bitmap of the block at {start} has {found} bits; it must have {count}"
                    )
                if m % 8 and bitmap[-1] >> (m % 8):
                    raise UpdateRejected(f"the bitmap has a bit beyond the {size} numbers")
                continue
            offsets = parts["offsets"][first : first + count]
            if not (offsets[1:] > offsets[:-1]).all():
                raise UpdateRejected(f"the offsets of the block at {start} do not increase")
            if offsets[-1] >= m:
                raise UpdateRejected(
                    f"an offset of the block at {start} is {offsets[-1]}; the block has {m} numbers"
                )

    def decode(self, block: Values, start: int, parts: Mapping[str, Array]) -> None:
        first, count = self._place(start), self._count(block.size)
        values = parts["values"][first : first + count]
        block[:] = 0
        if "bitmap" in parts:
            packed = parts["bitmap"][start // 8 : -(-(start + block.size) // 8)]
            bits = np.unpackbits(packed, count=block.size, bitorder="little")
            block[np.flatnonzero(bits.view(np.bool_))] = values
        else:
            block[parts["offsets"][first : first + count]] = values

    def _count(self, size: int) -> int:
        """Return how many numbers of a block of ``size`` travel."""
        return math.ceil(self._fraction * size)

    def _place(self, start: int) -> int:
        """Return how many numbers travel of the first ``start`` of an array."""
        return start // BLOCK * self._count(BLOCK) + self._count(start % BLOCK)


def read_bf16(values: Array, block: Values) -> None:
    """Set a block to numbers of :data:`fedlearn.update.arrays.BF16`; exact."""
    wide = block if block.dtype.itemsize == 4 else np.empty(block.size, "<f4")
    bits = wide.view("<u4")
    bits[:] = values.view("<u2")
    bits <<= 16
    if wide is not block:
        block[:] = wide


def write_bf16(block: Values, values: Array) -> bool:
    """Set numbers of BF16 to a finite block, to nearest, ties to even; return if all are finite."""
    with np.errstate(over="ignore"):
        bits = block.astype("<f4", copy=False).view("<u4")
    rounded = bits >> 16
    rounded &= 1
    rounded += 0x7FFF
    rounded += bits
    rounded >>= 16
    written = values.view("<u2")
    written[:] = rounded
    return _bf16_finite(written)


def _bf16_finite(bits: NDArray[np.uint16]) -> bool:
    return not bits.size or int((bits & 0x7FFF).max()) < _BF16_INFINITY


def _rows(size: int) -> list[tuple[int, int, int]]:
    """Return the pieces of a block as start, end and number of scales: whole rows first."""
    whole = size // _SCALED * _SCALED
    pieces = [(0, whole, whole // _SCALED), (whole, size, 1)]
    return [(first, last, rows) for first, last, rows in pieces if last > first]
