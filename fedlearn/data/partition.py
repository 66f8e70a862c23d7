"""Divides examples among parts. Every function is pure: the same arguments give the same parts.

A partition is a tuple of sorted index arrays, one for each part. It is exact: each example is in
one part and no part is empty. What cannot be made is a :class:`~fedlearn.errors.ConfigError` that
states what to change; nothing is repeated without a bound, and no example is left out.

The names are those of NIID-Bench: Q. Li, Y. Diao, Q. Chen, B. He, "Federated Learning on Non-IID
Data Silos: An Experimental Study", ICDE 2022, section IV. Where paper and published code differ,
the code counts, because it made the published numbers.

>>> import numpy as np
>>> [part.tolist() for part in iid(5, 2, seed=0)]
[[2, 3, 4], [0, 1]]
>>> labels = np.array([0, 0, 0, 1, 1, 1])
>>> [np.unique(labels[part]).tolist() for part in label_count(labels, 2, classes=1, seed=0)]
[[0], [1]]

The pages are docs/how-to/split-data.md and docs/adr/0045-data.md.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from fedlearn.data.distinct import Parts, distinct, members
from fedlearn.errors import ConfigError

__all__ = [
    "MAX_PARTS",
    "MIN_SIZE",
    "Parts",
    "dirichlet",
    "iid",
    "label_count",
    "natural",
    "noise_level",
    "noisy",
    "quantity",
]

MIN_SIZE: Final = 10
"""The least number of examples in a part of a Dirichlet draw, as in NIID-Bench."""

MAX_PARTS: Final = 100_000
_ATTEMPTS: Final = 1_000
_OWNERS: Final = 100


def iid(count: int, parts: int, *, seed: int) -> Parts:
    """Deal ``count`` examples at random; sizes differ by one at most (NIID-Bench ``homo``).

    :raises ConfigError: for more parts than examples.
    """
    _check_counts(count, parts)
    return _sorted(np.array_split(_rng(seed, "iid").permutation(count), parts))


def dirichlet(
    labels: npt.ArrayLike,
    parts: int,
    *,
    alpha: float,
    seed: int,
    min_size: int = MIN_SIZE,
    balance: bool = True,
) -> Parts:
    """Spread each class over the parts by a Dirichlet draw (NIID-Bench ``noniid-labeldir``).

    A small ``alpha`` means strong skew. With ``balance`` a part that already has its even share of
    all examples gets none of the classes that follow. The whole draw is repeated until each part
    has ``min_size`` examples, 1,000 times at most.

    :raises ConfigError: for labels that are not classes, more parts than examples, or when no
        draw gave every part ``min_size`` examples.
    """
    rows_of = _classes(labels)
    count = sum(map(len, rows_of))
    _check_counts(count, parts, min_size)
    rng = _rng(seed, "dirichlet")

    def draw() -> npt.NDArray[np.int64] | None:
        """Return where each class is cut (classes, parts + 1), if every part is large enough."""
        sizes = np.zeros(parts, dtype=np.int64)
        cuts = np.zeros((len(rows_of), parts + 1), dtype=np.int64)
        for row, rows in zip(cuts, rows_of, strict=True):
            shares = rng.dirichlet(np.full(parts, alpha))
            if balance:
                shares *= sizes < count / parts
            total = shares.sum()
            if not total > 0:
                return None
            row[1:] = np.cumsum(shares / total) * len(rows)
            # What rounding leaves goes to the last part that is not full.
            row[np.flatnonzero(shares)[-1] + 1 :] = len(rows)
            sizes += np.diff(row)
        return cuts if sizes.min() >= min_size else None

    cuts = _repeated(draw, f"a Dirichlet draw with alpha {alpha:g}", count, parts, min_size)
    pieces = [
        np.split(rng.permutation(rows), row[1:-1]) for rows, row in zip(rows_of, cuts, strict=True)
    ]
    return _sorted([np.concatenate([cls[part] for cls in pieces]) for part in range(parts)])


def label_count(labels: npt.ArrayLike, parts: int, *, classes: int, seed: int) -> Parts:
    """Give each part ``classes`` classes (NIID-Bench ``noniid-#label``, written #C=k).

    Part i has class i modulo the number of classes, and others that are drawn at random. The
    examples of a class are dealt evenly among the parts that have it.

    :raises ConfigError: for labels that are not classes, more classes than there are, so few parts
        that a class would be in none, or fewer examples of a class than parts that have it.
    """
    rows_of = _classes(labels)
    known = len(rows_of)
    _check_counts(sum(map(len, rows_of)), parts)
    if not 1 <= classes <= known:
        raise ConfigError(
            f"{classes} classes for each part; the labels have {known}",
            hint=f"choose 1 to {known} classes for each part",
        )
    if classes * parts < known:
        raise ConfigError(
            f"{parts} parts of {classes} classes cannot hold the {known} classes of the labels",
            hint=f"choose {-(-known // parts)} or more classes for each part, or more parts",
        )
    rng = _rng(seed, "label-count")
    for _ in range(_OWNERS):
        has = np.zeros((parts, known), dtype=bool)
        for part in range(parts):
            first = part % known
            others = np.delete(np.arange(known), first)
            has[part, first] = True
            has[part, rng.choice(others, size=classes - 1, replace=False)] = True
        if has.any(axis=0).all():
            break
    else:
        raise ConfigError(
            f"in {_OWNERS} draws of {classes} of {known} classes for each of {parts} parts a class "
            "was in no part",
            hint="choose more parts, more classes for each part, or another seed",
        )
    dealt: list[list[npt.NDArray[np.int64]]] = [[] for _ in range(parts)]
    for number, rows in enumerate(rows_of):
        owners = np.flatnonzero(has[:, number])
        if len(rows) < len(owners):
            raise ConfigError(
                f"{len(owners)} parts share the {len(rows)} examples of class {number}",
                hint="choose fewer parts or fewer classes for each part",
            )
        for owner, piece in zip(
            owners, np.array_split(rng.permutation(rows), len(owners)), strict=True
        ):
            dealt[owner].append(piece)
    return _sorted([np.concatenate(pieces) for pieces in dealt])


def quantity(count: int, parts: int, *, alpha: float, seed: int, min_size: int = MIN_SIZE) -> Parts:
    """Deal examples at random in numbers of a Dirichlet draw (NIID-Bench ``iid-diff-quantity``).

    The draw is repeated until each part has ``min_size`` examples, 1,000 times at most.

    :raises ConfigError: for more parts than examples, or when no draw gave each ``min_size``.
    """
    _check_counts(count, parts, min_size)
    rng = _rng(seed, "quantity")

    def draw() -> npt.NDArray[np.int64] | None:
        cuts = np.zeros(parts + 1, dtype=np.int64)
        cuts[1:] = np.cumsum(rng.dirichlet(np.full(parts, alpha))) * count
        cuts[-1] = count
        return cuts if np.diff(cuts).min() >= min_size else None

    cuts = _repeated(draw, f"a Dirichlet draw with alpha {alpha:g}", count, parts, min_size)
    return _sorted(np.split(rng.permutation(count), cuts[1:-1]))


def natural(ids: npt.ArrayLike, parts: int, *, seed: int) -> Parts:
    """Divide by a column, so that all examples of one id are in one part.

    With as many parts as ids, part i has the i-th id in ascending order. With fewer, the ids
    are dealt at random, in numbers that differ by one at most.

    :raises ConfigError: for an id that is missing, or more parts than ids.
    """
    found, index = distinct(ids, "ids")
    known = len(found)
    if not 1 <= parts <= min(known, MAX_PARTS):
        raise ConfigError(
            f"{parts} parts by a column with {known} distinct values",
            hint=f"choose 1 to {min(known, MAX_PARTS)} parts",
        )
    if parts == known:
        return members(index, known)
    owner = np.empty(known, dtype=np.int64)
    for part, group in enumerate(np.array_split(_rng(seed, "natural").permutation(known), parts)):
        owner[group] = part
    return members(owner[index], parts)


def noise_level(part: int, parts: int, *, sigma: float) -> float:
    """Return the standard deviation of the noise of one part (NIID-Bench, feature noise).

    It rises from 0 in part 0 to ``sigma`` in the last: ``sigma * part / (parts - 1)``, as in the
    published code. The paper writes ``sigma * i / N``.
    """
    return sigma * part / (parts - 1) if parts > 1 else 0.0


def noisy(
    x: npt.NDArray[Any], part: int, parts: int, *, sigma: float, seed: int, stream: int = 0
) -> npt.NDArray[np.float32]:
    """Return the examples of a part with its Gaussian noise added, as float32.

    ``sigma`` is for values from 0 to 1. Integer types hold pixels: their noise is multiplied by
    the largest value of the type (255), so that the unit of ``x`` stays.

    :param stream: another draw with the same seed for each number.

    :raises ConfigError: for values that are not numbers.
    """
    if x.dtype.kind not in "uif":
        raise ConfigError(f"noise cannot be added to values of type {x.dtype}")
    scale = float(np.iinfo(x.dtype).max) if x.dtype.kind in "ui" else 1.0
    level = noise_level(part, parts, sigma=sigma) * scale
    drawn = _rng(seed, "noise", part, stream).standard_normal(x.shape, dtype=np.float32)
    return x.astype(np.float32) + np.float32(level) * drawn


# --- checks and draws -----------------------------------------------------------------


def _rng(seed: int, purpose: str, *numbers: int) -> np.random.Generator:
    if not 0 <= seed < 2**64:
        raise ConfigError(f"the seed is {seed}", hint="choose a whole number from 0 below 2^64")
    return np.random.default_rng([seed, *purpose.encode(), *numbers])


def _check_counts(count: int, parts: int, min_size: int = 1) -> None:
    if not 1 <= parts <= MAX_PARTS:
        raise ConfigError(f"{parts} parts", hint=f"choose 1 to {MAX_PARTS:,}")
    if min_size < 1:
        raise ConfigError(f"a least size of {min_size} examples", hint="choose 1 or more")
    if count < parts * min_size:
        each = f" of {min_size} each" if min_size > 1 else ""
        hint = f"choose at most {count // min_size} parts"
        if min_size > 1:
            hint += ", or a smaller least size"
        raise ConfigError(
            f"{count} examples cannot be divided among {parts} parts{each}", hint=hint
        )


def _repeated(
    draw: Callable[[], npt.NDArray[np.int64] | None],
    what: str,
    count: int,
    parts: int,
    min_size: int,
) -> npt.NDArray[np.int64]:
    for _ in range(_ATTEMPTS):
        if (found := draw()) is not None:
            return found
    raise ConfigError(
        f"{what} gave each of {parts} parts {min_size} of {count} examples in none of "
        f"{_ATTEMPTS:,} attempts",
        hint="choose a larger alpha, fewer parts, or a smaller least size",
    )


def _classes(labels: npt.ArrayLike) -> Parts:
    """Return the rows of each class, in ascending order of labels."""
    found, index = distinct(labels, "labels")
    if len(found) > 1 and 2 * len(found) > len(index):
        raise ConfigError(
            f"{len(index)} labels have {len(found)} distinct values, so they are not classes",
            hint="name a column with classes, or partition by iid, quantity or natural",
        )
    return members(index, len(found))


def _sorted(parts: list[npt.NDArray[Any]]) -> Parts:
    return tuple(np.sort(part).astype(np.int64) for part in parts)
