"""What an update is multiplied by that was trained on an old version of the model."""

from __future__ import annotations

from typing import Final

__all__ = ["CONSTANT", "DEFAULT_B", "HINGE", "POLYNOMIAL", "staleness_weight"]

CONSTANT: Final = "constant"
POLYNOMIAL: Final = "polynomial"
HINGE: Final = "hinge"
DEFAULT_B: Final = 4.0
"""The ``b`` of ``hinge`` by default, as in the experiments of the paper."""


def staleness_weight(kind: str, staleness: int, *, a: float, b: float = DEFAULT_B) -> float:
    """Return what an update of some staleness ``t`` is multiplied by (Xie et al. 2019, 5.2).

    ``constant`` 1, ``polynomial`` ``(t + 1) ** -a``, ``hinge`` 1 up to ``t = b`` and
    ``1 / (a * (t - b) + 1)`` beyond.

    :raises ValueError: for another kind, or a staleness below 0.

    >>> [staleness_weight("polynomial", t, a=0.5) for t in (0, 3)]
    [1.0, 0.5]
    >>> [staleness_weight("hinge", t, a=10, b=4) for t in (4, 5)]
    [1.0, 0.09090909090909091]
    """
    if staleness < 0:
        raise ValueError(f"a staleness is a number of versions from 0, not {staleness}")
    match kind:
        case "constant":
            return 1.0
        case "polynomial":
            return float((staleness + 1) ** -a)
        case "hinge":
            return 1.0 if staleness <= b else 1.0 / (a * (staleness - b) + 1.0)
    raise ValueError(f"{kind!r} is not a weight of staleness")
