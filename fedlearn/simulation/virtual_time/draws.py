"""Random numbers by name: each is a function of the job's seed and of what it is for."""

from __future__ import annotations

import math
from statistics import NormalDist
from typing import Final

from fedlearn.job.seeds import derive

__all__ = ["exponential", "lognormal", "uniform"]

_BITS: Final = 52
_STEPS: Final = float(2**_BITS)
_NORMAL: Final = NormalDist()


def uniform(seed: int, *labels: str | int) -> float:
    """Return a number between 0 and 1, without both, for one purpose.

    >>> uniform(7, "speed", "north") == uniform(7, "speed", "north")
    True
    """
    material = derive(seed, "virtual-time", *labels, length=8)
    return float((int.from_bytes(material, "big") >> (64 - _BITS)) + 0.5) / _STEPS


def lognormal(spread: float, seed: int, *labels: str | int) -> float:
    """Return a factor whose logarithm is normal with mean 0 and deviation ``spread``.

    Its median is 1.
    """
    return math.exp(spread * _NORMAL.inv_cdf(uniform(seed, *labels))) if spread else 1.0


def exponential(mean: float, seed: int, *labels: str | int) -> float:
    """Return a duration that is exponential with this mean."""
    return -mean * math.log(uniform(seed, *labels))
