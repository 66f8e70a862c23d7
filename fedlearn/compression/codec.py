"""An update in the form that its job declares, and back; numpy only.

An encoded update is a mapping of arrays like any other, and travels as a safetensors document
(:mod:`fedlearn.update.arrays`). Its names are the place of an array in the model and a part:
``3.values``, ``3.scales``. Floating-point arrays have the parts that
:mod:`fedlearn.compression.kinds` describes; what is not a floating-point number, and everything
under ``update = "none"``, is one part ``raw``, as it is.

Both ends know the *reference*, the global model of the round. With ``delta`` the numbers are the
difference to it. Decoded is ``reference + difference``, rounded once to the type of the model:
exactly one result for the bytes, on every machine.

>>> import numpy as np
>>> model = {"weight": np.zeros(3, np.float32), "seen": np.array(1)}
>>> update = {"weight": np.array([0.5, -1.0, 0.25], np.float32), "seen": np.array(2)}
>>> spec = CompressionSpec(update="int8")
>>> encoded = encode(update, model, spec)
>>> {name: array.dtype.name for name, array in encoded.arrays.items()}
{'0.values': 'int8', '0.scales': 'float32', '1.raw': 'int64'}
>>> decode(encoded.arrays, model, spec)["weight"].round(2).tolist()
[0.5, -1.0, 0.25]

The page is docs/adr/0041-compression.md.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from fedlearn.compression.kinds import BLOCK, Kind, Layout, kind_of, read_bf16, write_bf16
from fedlearn.compression.spec import CompressionSpec
from fedlearn.errors import UpdateRejected
from fedlearn.update.arrays import BF16, Array, dtype_name

__all__ = ["Encoded", "Residual", "decode", "encode"]

Residual = Mapping[str, NDArray[Any]]
"""What compression has removed from the updates of a client so far, by the name of the array."""

_RAW: Final = "raw"


@dataclass(frozen=True, slots=True, kw_only=True)
class Encoded:
    """An encoded update, and the residual after it; empty without ``error_feedback``."""

    arrays: dict[str, Array]
    residual: Residual = field(default_factory=dict)


def encode(
    update: Mapping[str, Array],
    reference: Mapping[str, Array],
    spec: CompressionSpec,
    *,
    residual: Residual | None = None,
    scale: float = 1.0,
) -> Encoded:
    """Return an update in the form of ``spec``. The inputs are not changed.

    An array of integers whose model is floating-point is read as numbers of the model's type: a
    strategy may average integers into floats. Arrays that do not travel may be absent.

    :param reference: the model that the update started from.
    :param residual: from the update before; added to this one under ``error_feedback``.
    :param scale: what the difference is multiplied with (:mod:`fedlearn.compression.bounded`).
    :raises UpdateRejected: for an array of another name, type or shape than the model's, a number
        that is not finite, or one that the form cannot hold.
    """
    _check_names(update, reference, spec)
    made: dict[str, Array] = {}
    kept: dict[str, NDArray[Any]] = {}
    before = (residual or {}) if spec.error_feedback else {}
    for place, name in _travelling(reference, spec):
        array, base = update[name], reference[name]
        if not _is_compressed(base, spec):
            made[f"{place}.{_RAW}"] = array
            continue
        _check_fits(name, array, base)
        kind, working = kind_of(spec), _working(base)
        layout = kind.layout(base.size, working)
        parts: dict[str, Array] = {key: np.empty(n, dtype) for key, (dtype, n) in layout.items()}
        if spec.error_feedback:
            kept[name] = np.empty(base.size, working)
        try:
            _encode(array, base, spec, kind, parts, before.get(name), kept.get(name), scale)
        except UpdateRejected as error:
            raise UpdateRejected(f"{name}: {error}") from None
        made.update((f"{place}.{key}", part) for key, part in parts.items())
    return Encoded(arrays=made, residual=kept)


def decode(
    arrays: Mapping[str, Array], reference: Mapping[str, Array], spec: CompressionSpec
) -> dict[str, Array]:
    """Return the update that :func:`encode` wrote, in the order and the types of the model.

    Arrays that did not travel are those of ``reference``, not copied; ``raw`` ones are views of
    ``arrays``, and their types and shapes are for the caller to check. Parts are checked before
    anything is allocated, and what is allocated has the size of the model.

    :raises UpdateRejected: for parts of other names, types or lengths than the model's, places out
        of order or out of range, and numbers that are not finite, naming the array.
    """
    expected: dict[str, Layout | None] = {}
    for place, name in _travelling(reference, spec):
        base = reference[name]
        compressed = _is_compressed(base, spec)
        layout = kind_of(spec).layout(base.size, _working(base)) if compressed else None
        expected[name] = layout
        for key, (dtype, length) in (layout or {}).items():
            _check_part(name, key, arrays.get(f"{place}.{key}"), dtype, length)
        if layout is None and f"{place}.{_RAW}" not in arrays:
            raise UpdateRejected(f"{name}: is missing from the encoded update")
    _check_no_more(arrays, reference, expected)
    found: dict[str, Array] = {}
    for place, (name, base) in enumerate(reference.items()):
        if name not in expected:
            found[name] = base
            continue
        layout = expected[name]
        if layout is None:
            found[name] = arrays[f"{place}.{_RAW}"]
            continue
        parts = {key: arrays[f"{place}.{key}"] for key in layout}
        try:
            found[name] = _decoded(base, spec, kind_of(spec), parts)
        except UpdateRejected as error:
            raise UpdateRejected(f"{name}: {error}") from None
    return found


# --- one array ------------------------------------------------------------------------


def _encode(
    array: Array,
    base: Array,
    spec: CompressionSpec,
    kind: Kind,
    parts: Mapping[str, Array],
    before: NDArray[Any] | None,
    kept: NDArray[Any] | None,
    scale: float,
) -> None:
    """Write one array into ``parts``, and what they do not hold into ``kept``."""
    working = _working(base)
    values, model = array.reshape(-1), base.reshape(-1)
    buffer, other = np.empty((2, min(BLOCK, base.size)), working)
    for start, end in _blocks(base.size):
        block, scratch = buffer[: end - start], other[: end - start]
        _read(values[start:end], block)
        if spec.delta:
            _read(model[start:end], scratch)
            with np.errstate(over="ignore", invalid="ignore"):
                block -= scratch
        if before is not None:
            block += before[start:end]
        if scale != 1.0:
            block *= scale
        if not np.isfinite(block).all():
            raise UpdateRejected("contains NaN or infinity")
        kind.encode(block, start, parts)
        if kept is not None:
            kind.decode(scratch, start, parts)
            np.subtract(block, scratch, out=kept[start:end])


def _decoded(base: Array, spec: CompressionSpec, kind: Kind, parts: Mapping[str, Array]) -> Array:
    kind.check(base.size, parts)
    working = _working(base)
    found, model = np.empty(base.size, base.dtype), base.reshape(-1)
    buffer, other = np.empty((2, min(BLOCK, base.size)), working)
    for start, end in _blocks(base.size):
        block, scratch = buffer[: end - start], other[: end - start]
        kind.decode(block, start, parts)
        if spec.delta:
            _read(model[start:end], scratch)
            with np.errstate(over="ignore", invalid="ignore"):
                block += scratch
        if not _write(block, found[start:end]):
            raise UpdateRejected(f"a number is beyond the range of {dtype_name(base.dtype)}")
    return found.reshape(base.shape)


def _read(values: Array, block: NDArray[Any]) -> None:
    """Set ``block`` to ``values`` in the working type."""
    if values.dtype == BF16:
        read_bf16(values, block)
    else:
        block[:] = values


def _write(block: NDArray[Any], values: Array) -> bool:
    """Set ``values`` to ``block``, rounded to nearest; return whether all are finite."""
    if values.dtype == BF16:
        return bool(np.isfinite(block).all()) and write_bf16(block, values)
    with np.errstate(over="ignore", invalid="ignore"):
        values[:] = block
    return bool(np.isfinite(values).all())


def _blocks(size: int) -> Iterator[tuple[int, int]]:
    for start in range(0, size, BLOCK):
        yield start, min(start + BLOCK, size)


def _working(base: Array) -> np.dtype[Any]:
    return np.dtype("<f8" if base.dtype.kind == "f" and base.dtype.itemsize == 8 else "<f4")


# --- names, types and lengths ---------------------------------------------------------


def _travelling(reference: Mapping[str, Array], spec: CompressionSpec) -> list[tuple[int, str]]:
    """Return the arrays that travel with their places in the model."""
    found = [(place, name) for place, name in enumerate(reference) if spec.travels(name)]
    if not found and reference:
        raise UpdateRejected(
            f"no array of the model matches {', '.join(map(repr, spec.arrays))}",
            hint="correct `arrays` in [compression] of the job",
        )
    return found


def _is_compressed(base: Array, spec: CompressionSpec) -> bool:
    return spec.update != "none" and (base.dtype == BF16 or base.dtype.kind == "f")


def _check_names(
    update: Mapping[str, Array], reference: Mapping[str, Array], spec: CompressionSpec
) -> None:
    for name in reference:
        if name not in update and spec.travels(name):
            raise UpdateRejected(f"the array {name!r} of the model is not in the update")
    for name in update:
        if name not in reference:
            raise UpdateRejected(f"the array {name!r} of the update is not in the model")


def _check_fits(name: str, array: Array, base: Array) -> None:
    if array.dtype != base.dtype and array.dtype.kind not in "iub":
        raise UpdateRejected(
            f"{name}: is {dtype_name(array.dtype)}, the model has {dtype_name(base.dtype)}"
        )
    if array.shape != base.shape:
        raise UpdateRejected(f"{name}: has shape {array.shape}, the model has {base.shape}")


def _check_part(name: str, key: str, part: Array | None, dtype: np.dtype[Any], length: int) -> None:
    if part is None:
        raise UpdateRejected(f"{name}: its {key} are missing from the encoded update")
    if part.dtype != dtype or part.shape != (length,):
        raise UpdateRejected(
            f"{name}: its {key} are {dtype_name(part.dtype)} of the shape {part.shape}; "
            f"{dtype_name(dtype)} of the shape ({length},) is expected"
        )


def _check_no_more(
    arrays: Mapping[str, Array],
    reference: Mapping[str, Array],
    expected: Mapping[str, Layout | None],
) -> None:
    known = {
        f"{place}.{key}"
        for place, name in enumerate(reference)
        if name in expected
        for key in (expected[name] or (_RAW,))
    }
    for name in arrays:
        if name not in known:
            raise UpdateRejected(
                f"the encoded update has a part {name!r}, which is none of its model"
            )
