"""The state of a strategy as JSON and arrays, and back, without knowing the strategy.

Numbers, text, numpy arrays, Flower's records, numpy generators, lists, tuples, dictionaries
and nested strategies are captured; functions and classes are configuration and stay as the
application made them. Anything else cannot be captured, and :class:`NotCaptured` names where
it is. No pickle: what is read back can only be data.

Floats are written as hexadecimal, so that every bit returns.
"""

from __future__ import annotations

import types
from collections.abc import Mapping
from typing import Any, Final

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from flwr.serverapp.grid import Grid
from flwr.serverapp.strategy import Strategy
from numpy.typing import NDArray

from fedlearn.app.array_records import arrays_of, record_of
from fedlearn.errors import FedlearnError, StoreError, UpdateRejected
from fedlearn.update import arrays as update

__all__ = ["Captured", "NotCaptured", "capture", "restore"]

_SCALARS: Final = (bool, int, str, type(None))
_KEPT: Final = (
    types.FunctionType,
    types.BuiltinFunctionType,
    types.MethodType,
    types.ModuleType,
    type,
    Grid,
)
_MAX_DEPTH: Final = 32

Captured = tuple[dict[str, Any], dict[str, NDArray[Any]]]
"""JSON by attribute, and the arrays that it refers to by name."""


class NotCaptured(FedlearnError):
    """A strategy holds something that cannot be written down. The message names it."""

    code = "not-captured"


def capture(values: Mapping[str, Any]) -> Captured:
    """Return ``values`` (for example a strategy under a name) as JSON and arrays.

    A strategy may name attributes that are no state in ``transient``.

    :raises NotCaptured: naming the attribute and its type.
    """
    tensors: dict[str, NDArray[Any]] = {}
    state = {
        name: written
        for name, value in values.items()
        if (written := _write(value, name, tensors, 0)) is not None
    }
    return state, tensors


def restore(target: dict[str, Any], captured: Captured) -> None:
    """Put what :func:`capture` returned back into ``target``. Other entries stay.

    :raises StoreError: when it is not what :func:`capture` returns.
    """
    state, tensors = captured
    try:
        for name, written in state.items():
            target[name] = _read(written, tensors, target.get(name))
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
        raise StoreError("a checkpoint's strategy state cannot be read") from error


def _write(value: Any, path: str, tensors: dict[str, NDArray[Any]], depth: int) -> Any:
    """Return a tagged list; None for what is configuration."""
    if depth > _MAX_DEPTH:
        raise NotCaptured(f"{path}: is nested more than {_MAX_DEPTH} deep")
    if type(value) is float:
        return ["float", value.hex()]
    if type(value) in _SCALARS:
        return ["json", value]
    if isinstance(value, np.ndarray | np.generic):
        kind = "array" if isinstance(value, np.ndarray) else "scalar"
        return [kind, _keep(np.asarray(value), path, tensors)]
    if isinstance(value, bytes):
        return ["bytes", _keep(np.frombuffer(value, np.uint8), path, tensors)]
    if isinstance(value, Array):
        arrays = arrays_of(ArrayRecord({"": value}))
        return ["flower-array", _keep(arrays[""], path, tensors)]
    if isinstance(value, ArrayRecord):
        try:
            arrays = arrays_of(value)
        except UpdateRejected as error:
            raise NotCaptured(f"{path}: {error}") from error
        return ["arrays", [[k, _keep(a, f"{path}/{k}", tensors)] for k, a in arrays.items()]]
    for tag, kind in (("metrics", MetricRecord), ("config", ConfigRecord), ("records", RecordDict)):
        if isinstance(value, kind):
            return [tag, _pairs(value, path, tensors, depth)]
    if isinstance(value, dict):
        return ["dict", _pairs(value, path, tensors, depth)]
    if isinstance(value, list | tuple):
        items = [_must(v, f"{path}[{i}]", tensors, depth) for i, v in enumerate(value)]
        return ["list" if isinstance(value, list) else "tuple", items]
    if isinstance(value, set | frozenset):
        items = [_must(v, path, tensors, depth) for v in sorted(value, key=repr)]
        return ["set" if isinstance(value, set) else "frozenset", items]
    if isinstance(value, np.random.Generator):
        return ["generator", _must(value.bit_generator.state, path, tensors, depth)]
    if isinstance(value, Strategy):
        passing: frozenset[str] = getattr(value, "transient", frozenset())
        kept = {name: item for name, item in value.__dict__.items() if name not in passing}
        return ["strategy", _pairs(kept, path, tensors, depth, optional=True)]
    if isinstance(value, _KEPT):
        return None
    raise NotCaptured(f"{path}: {type(value).__module__}.{type(value).__qualname__}")


def _must(value: Any, path: str, tensors: dict[str, NDArray[Any]], depth: int) -> Any:
    written = _write(value, path, tensors, depth + 1)
    if written is None:
        raise NotCaptured(f"{path}: {type(value).__qualname__}")
    return written


def _pairs(
    value: Any,
    path: str,
    tensors: dict[str, NDArray[Any]],
    depth: int,
    *,
    optional: bool = False,
) -> list[list[Any]]:
    found: list[list[Any]] = []
    for key, item in value.items():
        where = f"{path}/{key}"
        written = _write(item, where, tensors, depth + 1)
        if written is None and not optional:
            raise NotCaptured(f"{where}: {type(item).__qualname__}")
        if written is not None:
            found.append([_must(key, where, tensors, depth), written])
    return found


def _keep(array: NDArray[Any], path: str, tensors: dict[str, NDArray[Any]]) -> str:
    try:
        update.dtype_name(array.dtype)
    except UpdateRejected as error:
        raise NotCaptured(f"{path}: {error}") from error
    name = f"{len(tensors)}:{path}"[: update.MAX_NAME_BYTES // 4]
    # The strategy may write to its array while the checkpoint is being sent.
    tensors[name] = np.array(array, order="C")
    return name


def _read(written: Any, tensors: Mapping[str, NDArray[Any]], now: Any) -> Any:
    tag, body = written
    match tag:
        case "json":
            return body
        case "float":
            return float.fromhex(body)
        case "array":
            return tensors[body].copy()
        case "scalar":
            return tensors[body][()]
        case "bytes":
            return tensors[body].tobytes()
        case "flower-array":
            return Array(tensors[body].copy())
        case "arrays":
            return record_of({key: tensors[name] for key, name in body})
        case "metrics":
            return MetricRecord(_dict(body, tensors))
        case "config":
            return ConfigRecord(_dict(body, tensors))
        case "records":
            return RecordDict(_dict(body, tensors))
        case "dict":
            return _dict(body, tensors)
        case "list":
            return [_read(item, tensors, None) for item in body]
        case "tuple":
            return tuple(_read(item, tensors, None) for item in body)
        case "set":
            return {_read(item, tensors, None) for item in body}
        case "frozenset":
            return frozenset(_read(item, tensors, None) for item in body)
        case "generator":
            now.bit_generator.state = _read(body, tensors, None)
            return now
        case "strategy":
            for key, item in body:
                name = _read(key, tensors, None)
                now.__dict__[name] = _read(item, tensors, now.__dict__.get(name))
            return now
        case _:
            raise ValueError(f"{tag!r} is not a kind of state")


def _dict(pairs: list[list[Any]], tensors: Mapping[str, NDArray[Any]]) -> dict[Any, Any]:
    return {_read(key, tensors, None): _read(item, tensors, None) for key, item in pairs}
