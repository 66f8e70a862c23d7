"""A lower bound on epsilon from one run with many canaries, each included with probability 1/2.

Steinke, Nasr and Jagielski 2023 (arXiv:2305.08846). The auditor guesses for ``r`` of ``m``
canaries whether they were included, and is right ``v`` times. Under ``(epsilon, delta)``-DP the
number of right guesses is at most that of ``r`` throws of a coin of bias ``e^epsilon / (1 +
e^epsilon)``, up to a term of ``2 m delta`` (theorem 5.2 there). An epsilon under which the observed
number has a probability below ``1 - confidence`` is refuted.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binom, chi2

from fedlearn.errors import ConfigError

__all__ = ["Bound", "epsilon_lower_bound", "lower_bound", "noise_interval", "p_value"]

Vector = NDArray[np.float64]

_LARGEST: Final = 60.0
_PRECISION: Final = 1e-4


@dataclass(frozen=True, slots=True, kw_only=True)
class Bound:
    """What an audit found.

    ``epsilon``   the lower bound; 0 where nothing can be excluded
    ``guesses``   canaries that were guessed, half of them as included
    ``right``     of these guesses
    ``canaries``  in all
    ``ceiling``   the bound that all guesses being right would have given: what this audit can show
    """

    epsilon: float
    guesses: int
    right: int
    canaries: int
    ceiling: float


def p_value(*, canaries: int, guesses: int, right: int, epsilon: float, delta: float) -> float:
    """Return a bound on the probability of so many right guesses under ``(epsilon, delta)``-DP.

    With ``f(v) = P[Binomial(r, q) >= v]`` and ``q = 1 / (1 + e^-epsilon)`` it is ``f(v) + 2 m delta
    max_{1 <= i <= v} (f(v - i) - f(v)) / i``, and at most 1.

    >>> round(p_value(canaries=10, guesses=10, right=10, epsilon=0.0, delta=0.0), 6)
    0.000977
    """
    rate = 1 / (1 + math.exp(-epsilon))
    tail = float(binom.sf(right - 1, guesses, rate))
    if delta == 0 or right == 0:
        return min(1.0, tail)
    steps = np.arange(1, right + 1)
    between = np.cumsum(binom.pmf(right - steps, guesses, rate))
    return min(1.0, tail + 2 * canaries * delta * float((between / steps).max()))


def lower_bound(
    *, canaries: int, guesses: int, right: int, delta: float, confidence: float
) -> float:
    """Return the largest epsilon that is refuted with this confidence, from 0 to 60.

    >>> round(lower_bound(canaries=1000, guesses=100, right=100, delta=0.0, confidence=0.95), 2)
    3.49
    """

    def refuted(epsilon: float) -> bool:
        found = p_value(
            canaries=canaries, guesses=guesses, right=right, epsilon=epsilon, delta=delta
        )
        return found < 1 - confidence

    if not refuted(0.0):
        return 0.0
    low, high = 0.0, _LARGEST
    while high - low > _PRECISION:
        middle = (low + high) / 2
        low, high = (middle, high) if refuted(middle) else (low, middle)
    return low


def epsilon_lower_bound(
    scores: Vector,
    included: NDArray[np.bool_],
    *,
    delta: float,
    confidence: float = 0.95,
    shares: tuple[float, ...] = (1.0, 0.5, 0.25, 0.125),
) -> Bound:
    """Return the lower bound from the scores of the canaries.

    The auditor guesses the largest scores as included and as many of the smallest as not. Each of
    ``shares`` is a part of the canaries that is guessed; the best one counts, and the confidence is
    divided among them (Bonferroni), so that the choice is paid for.

    :param scores: larger for canaries that seem included, (m,).
    :param included: the truth, (m,).
    :raises ConfigError: with fewer than two canaries, or NaN in the scores.
    """
    canaries = len(scores)
    if canaries < 2:
        raise ConfigError(f"an audit of epsilon needs at least 2 canaries, not {canaries}")
    if not np.isfinite(scores).all():
        raise ConfigError(
            "the scores of the canaries contain NaN or infinity",
            hint="training diverged; lower the learning rate",
        )
    each = 1 - (1 - confidence) / len(shares)
    order = np.argsort(scores, kind="stable")
    best: Bound | None = None
    ceiling = 0.0
    for share in shares:
        half = max(1, int(canaries * share) // 2)
        right = int(included[order[-half:]].sum() + (~included[order[:half]]).sum())
        guesses = 2 * half

        def bound(right: int, guesses: int = guesses) -> float:
            return lower_bound(
                canaries=canaries, guesses=guesses, right=right, delta=delta, confidence=each
            )

        ceiling = max(ceiling, bound(guesses))
        found = bound(right)
        if best is None or found > best.epsilon:
            best = Bound(
                epsilon=found, guesses=guesses, right=right, canaries=canaries, ceiling=0.0
            )
    assert best is not None
    return Bound(
        epsilon=best.epsilon,
        guesses=best.guesses,
        right=best.right,
        canaries=canaries,
        ceiling=ceiling,
    )


def noise_interval(noise: Vector, *, confidence: float = 0.95) -> tuple[float, float, float]:
    """Return the standard deviation of normal noise of mean 0, and an interval for it.

    The interval is exact: ``sum x^2 / sigma^2`` has a chi-square distribution with as many degrees
    of freedom as there are numbers.

    :raises ConfigError: without numbers, or with NaN.
    """
    if not noise.size or not np.isfinite(noise).all():
        raise ConfigError(f"{noise.size} finite numbers cannot be measured as noise")
    total = float(np.square(noise).sum())
    tail = (1 - confidence) / 2
    low = math.sqrt(total / chi2.ppf(1 - tail, noise.size))
    high = math.sqrt(total / chi2.ppf(tail, noise.size))
    return math.sqrt(total / noise.size), low, high
