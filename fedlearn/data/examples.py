"""Examples of one source: features, labels, and the columns that a division may go by."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from fedlearn.errors import ConfigError

__all__ = ["MAX_BYTES", "MAX_EXAMPLES", "Examples"]

MAX_EXAMPLES: Final = 100_000_000
MAX_BYTES: Final = 16 * 1024**3
"""Bounds of what is read from one source."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Examples:
    """The examples of a source, one to a row, in the source's order.

    ``x``         features, (n, ...): numbers; images are uint8
    ``y``         labels, (n,): numbers; text labels are numbered in ascending order
    ``columns``   every column of a table, (n,) each, as it is in the source; empty for images
    ``features``  names of the columns of ``x``, where it has some
    ``classes``   the texts that the numbers in ``y`` stand for, where they were text
    ``test``      the test set that comes with the source (x, y), if there is one
    """

    name: str
    x: npt.NDArray[Any]
    y: npt.NDArray[Any]
    columns: Mapping[str, npt.NDArray[Any]] = field(default_factory=dict)
    features: tuple[str, ...] = ()
    classes: tuple[str, ...] = ()
    test: tuple[npt.NDArray[Any], npt.NDArray[Any]] | None = None

    def __post_init__(self) -> None:
        """Check lengths and types.

        :raises ConfigError: naming the source and what is wrong.
        """
        for place, x, y in (("", self.x, self.y), ("the test set: ", *(self.test or (None, None)))):
            if x is None or y is None:
                continue
            if x.ndim < 1 or y.ndim != 1 or len(x) != len(y):
                raise ConfigError(
                    f"{place}x has the shape {x.shape} and y {y.shape}; "
                    "(n, ...) and (n,) are expected",
                    where=self.name,
                )
            for name, array in (("x", x), ("y", y)):
                if array.dtype.kind not in "uifb":
                    raise ConfigError(
                        f"{place}{name} has the type {array.dtype}; numbers are expected",
                        where=self.name,
                    )
                _check_finite(array, f"{place}{name}", self.name)
        if not 1 <= len(self.y) <= MAX_EXAMPLES:
            raise ConfigError(
                f"has {len(self.y):,} examples; 1 to {MAX_EXAMPLES:,} are expected",
                where=self.name,
            )

    def column(self, name: str, *, key: str) -> npt.NDArray[Any]:
        """Return a column.

        :param key: the key that names it, for the message.
        :raises ConfigError: when there is none, listing those that there are.
        """
        if name not in self.columns:
            known = ", ".join(sorted(self.columns)[:20]) or "none"
            raise ConfigError(
                f"{self.name} has no column {name!r}", key=key, hint=f"its columns: {known}"
            )
        return self.columns[name]


def _check_finite(array: npt.NDArray[Any], what: str, where: str) -> None:
    if array.dtype.kind != "f" or np.isfinite(array).all():
        return
    wrong = ~np.isfinite(array.reshape(len(array), -1)).all(axis=1)
    raise ConfigError(
        f"{what} has values that are not finite in {int(wrong.sum())} of {len(array)} examples, "
        f"the first at example {int(np.argmax(wrong))} (counted from 0)",
        where=where,
        hint="remove these examples or fill in the values",
    )
