"""The distinct values of a column, and the examples of each.

>>> values, index = distinct(["b", "a", "b"], "labels")
>>> values.tolist(), index.tolist(), [rows.tolist() for rows in members(index, 2)]
(['a', 'b'], [1, 0, 1], [[1], [0, 2]])
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from fedlearn.errors import ConfigError

__all__ = ["Parts", "distinct", "members"]

Parts = tuple[npt.NDArray[np.int64], ...]
"""For each part the indices of its examples, ascending."""


def distinct(values: npt.ArrayLike, what: str) -> tuple[npt.NDArray[Any], npt.NDArray[np.int64]]:
    """Return the distinct values, ascending, and for each value its place among them.

    :param what: the values in messages, in the plural.
    :raises ConfigError: for more than one dimension, or a value that is missing (None, empty text)
        or not finite.
    """
    array = np.asarray(values)
    if array.ndim != 1:
        raise ConfigError(f"{what} have {array.ndim} dimensions; one is expected")
    if array.dtype.kind == "O":
        array = np.array([_text(value) for value in array], dtype=np.str_)
    if array.dtype.kind == "f":
        missing = np.flatnonzero(~np.isfinite(array))
    elif array.dtype.kind == "U":
        missing = np.flatnonzero(array == "")
    else:
        missing = np.zeros(0, dtype=np.intp)
    if len(missing):
        raise ConfigError(
            f"{len(missing)} of {len(array)} {what} are missing or not finite, the first at "
            f"example {missing[0]} (counted from 0)",
            hint="remove these examples or fill in the column",
        )
    found, index = np.unique(array, return_inverse=True)
    return found, index.astype(np.int64)


def members(index: npt.NDArray[np.int64], groups: int) -> Parts:
    """Return where ``index`` is 0, 1, and so on below ``groups``."""
    order = np.argsort(index, kind="stable").astype(np.int64)
    return tuple(np.split(order, np.searchsorted(index[order], np.arange(1, groups))))


def _text(value: object) -> str:
    return "" if value is None or value != value else str(value)
