"""Any torch ``Dataset``, or what has its two methods; torch itself is not imported."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np

from fedlearn.data.examples import MAX_BYTES, MAX_EXAMPLES, Examples
from fedlearn.errors import ConfigError

__all__ = ["SizedDataset", "from_dataset"]


class SizedDataset(Protocol):
    """A map-style ``torch.utils.data.Dataset``: item i is a pair of features and label."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Any: ...


def from_dataset(dataset: SizedDataset, *, name: str = "dataset") -> Examples:
    """Return the examples of a dataset whose items are pairs (features, label).

    Each item is read once. Features are what ``numpy.asarray`` makes of them, of one shape and
    type; a PIL image becomes its pixels.

    :raises ConfigError: naming the item that is not such a pair, or whose shape or type differs
        from the first.
    """
    count = len(dataset)
    if not 1 <= count <= MAX_EXAMPLES:
        raise ConfigError(f"has {count:,} items; 1 to {MAX_EXAMPLES:,} are expected", where=name)
    first, _ = _pair(dataset, 0, name)
    if first.nbytes * count > MAX_BYTES:
        raise ConfigError(
            f"{count:,} items of {first.nbytes:,} bytes; at most {MAX_BYTES:,} bytes are read",
            where=name,
        )
    x = np.empty((count, *first.shape), dtype=first.dtype)
    labels = []
    for index in range(count):
        features, label = _pair(dataset, index, name)
        if features.shape != first.shape or features.dtype != first.dtype:
            raise ConfigError(
                f"item {index} has the shape {features.shape} and the type {features.dtype}; those "
                f"of item 0 are {first.shape} and {first.dtype}",
                where=name,
            )
        x[index] = features
        labels.append(label)
    return Examples(name=name, x=x, y=np.array(labels))


def _pair(dataset: SizedDataset, index: int, name: str) -> tuple[np.ndarray[Any, Any], Any]:
    item = dataset[index]
    if not isinstance(item, tuple | list) or len(item) != 2:
        raise ConfigError(
            f"item {index} is a {type(item).__name__}; a pair of features and label is expected",
            where=name,
        )
    label = np.asarray(item[1])
    if label.ndim != 0:
        raise ConfigError(
            f"the label of item {index} has the shape {label.shape}; one number is expected",
            where=name,
        )
    return np.asarray(item[0]), label[()]
