"""Splits that keep all examples of a subject together.

Records of one patient are alike: when some are trained on and others are tested on, the test
measures memory. A *group* is all examples with one value in a column.

>>> import numpy as np
>>> patients = np.array(["a", "a", "b", "b", "c", "c"])
>>> kept, held = hold_out(6, 0.34, seed=1, groups=patients)
>>> set(patients[kept]) & set(patients[held])
set()

The page is docs/how-to/split-data.md.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from fedlearn.data.distinct import Parts, distinct, members
from fedlearn.errors import ConfigError

__all__ = ["check_no_leak", "hold_out", "parts_of_groups"]


def hold_out(
    count: int, share: float, *, seed: int, stream: int = 0, groups: npt.ArrayLike | None = None
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Return the examples that are kept and those that are held out, both ascending.

    :param share: of the examples, or of the groups where there are some. Rounded, but at least one
        is held out unless the share is 0, and at least one is kept.
    :param stream: another draw with the same seed for each number.
    :raises ConfigError: for a share outside of 0 to 1 (1 excluded), or a group that is missing.
    """
    if not 0 <= share < 1:
        raise ConfigError(f"a share of {share:g} is held out", hint="choose 0 or more, below 1")
    rng = np.random.default_rng([seed, *b"hold-out", stream])
    if groups is None:
        units: Parts | None = None
        known = count
    else:
        units = _units(groups)
        known = len(units)
    order = rng.permutation(known).astype(np.int64)
    cut = min(max(round(known * share), int(share > 0)), max(known - 1, 0))
    held, kept = np.sort(order[:cut]), np.sort(order[cut:])
    if units is None:
        return kept, held
    return _expanded(units, kept), _expanded(units, held)


def parts_of_groups(
    groups: npt.ArrayLike,
    labels: npt.ArrayLike | None,
    partition: Callable[[int, npt.NDArray[Any] | None], Parts],
) -> Parts:
    """Divide groups in place of examples, and return the examples of each part.

    :param partition: gets the number of groups, and the label of each: the most frequent one of
        its examples, the smallest of several.
    :raises ConfigError: for a group that is missing, and what ``partition`` raises; its counts
        are of groups.
    """
    units = _units(groups)
    most: npt.NDArray[Any] | None = None
    if labels is not None:
        array = np.asarray(labels)
        most = np.array([_most_frequent(array[unit]) for unit in units], dtype=array.dtype)
    return tuple(_expanded(units, part) for part in partition(len(units), most))


def check_no_leak(parts: Parts, groups: npt.ArrayLike) -> None:
    """Check that no group has examples in two parts.

    :raises ConfigError: naming how many have, and one of them.
    """
    array = np.asarray(groups)
    owner = np.empty(len(array), dtype=np.int64)
    for number, part in enumerate(parts):
        owner[part] = number
    shared = [unit for unit in _units(array) if len(np.unique(owner[unit])) > 1]
    if shared:
        raise ConfigError(
            f"{len(shared)} groups have examples in more than one part, {array[shared[0][0]]!s} "
            "for example",
            hint="partition by a column that is constant for a group, or remove these groups",
        )


def _units(groups: npt.ArrayLike) -> Parts:
    found, index = distinct(groups, "groups")
    return members(index, len(found))


def _expanded(units: Parts, chosen: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    if not len(chosen):
        return np.zeros(0, dtype=np.int64)
    return np.sort(np.concatenate([units[number] for number in chosen]))


def _most_frequent(labels: npt.NDArray[Any]) -> Any:
    values, counts = np.unique(labels, return_counts=True)
    return values[np.argmax(counts)]
