"""Updates of sites, as messages and as arrays, and what Flower's classes make of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any
from unittest import mock

import flwr.serverapp.strategy as strategies
import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.supercore.task_identity import TaskIdentity
from numpy.typing import NDArray

from server.flower.aggregation.strategies.classes import CLASSES

FEW = {"min_train_nodes": 1, "min_evaluate_nodes": 1, "min_available_nodes": 1}
Model = dict[str, NDArray[Any]]


def random_updates(seed: int, count: int, shapes: Mapping[str, tuple[tuple[int, ...], str]]) -> Any:
    """Return a model and ``count`` updates near it: normal floats, and integers up to 1000."""
    draw = np.random.default_rng(seed)

    def values(shape: tuple[int, ...], dtype: str) -> NDArray[Any]:
        kind = np.dtype(dtype).kind
        if kind == "b":
            return draw.random(shape) < 0.5
        if kind in "iu":
            return draw.integers(0, 100, shape).astype(dtype)
        return draw.standard_normal(shape).astype(dtype)

    def made() -> Model:
        return {name: np.asarray(values(*each)) for name, each in shapes.items()}

    return made(), [made() for _ in range(count)]


def message(node: int, arrays: Model, metrics: Mapping[str, Any]) -> Message:
    """Return the reply of a node."""
    TaskIdentity.run_id = TaskIdentity.node_id = TaskIdentity.task_id = 1
    record = ArrayRecord({name: Array(array) for name, array in arrays.items()})
    content = RecordDict({"arrays": record, "metrics": MetricRecord(dict(metrics))})
    return Message(content, reply_to=Message(RecordDict(), node, "train"))


class _Nodes:
    def __init__(self, count: int) -> None:
        self._count = count

    def get_node_ids(self) -> list[int]:
        return list(range(1, self._count + 1))


def flowers(
    name: str,
    model: Model,
    updates: Sequence[Model],
    weights: Sequence[int],
    losses: Sequence[float] = (),
    **options: Any,
) -> Model:
    """Return what Flower's own class makes of the updates."""
    TaskIdentity.run_id = TaskIdentity.node_id = TaskIdentity.task_id = 1
    strategy = getattr(strategies, CLASSES[name])(**FEW, **options)
    start = ArrayRecord({key: Array(array) for key, array in model.items()})
    strategy.configure_train(1, start, ConfigRecord(), _Nodes(len(updates)))
    replies = [
        message(
            node, update, {"num-examples": weight, "train_loss": losses[node] if losses else 1.0}
        )
        for node, (update, weight) in enumerate(zip(updates, weights, strict=True))
    ]
    with mock.patch("gc.collect"):  # which Flower calls for each reply; here it takes seconds
        arrays, _ = strategy.aggregate_train(1, replies)
    assert arrays is not None
    return {key: array.numpy() for key, array in arrays.items()}
