"""The one-run bound: valid for a mechanism that keeps its claim, above it for one that does not."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import norm

from fedlearn.audit.attacks.one_run import (
    epsilon_lower_bound,
    lower_bound,
    noise_interval,
    p_value,
)
from fedlearn.errors import ConfigError


def gaussian_epsilon(sigma: float, delta: float) -> float:
    """The exact epsilon of one Gaussian mechanism of sensitivity 1 (Balle and Wang 2018)."""
    low, high = 0.0, 100.0
    for _ in range(60):
        middle = (low + high) / 2
        found = norm.cdf(1 / (2 * sigma) - middle * sigma) - math.exp(middle) * norm.cdf(
            -1 / (2 * sigma) - middle * sigma
        )
        low, high = (middle, high) if found > delta else (low, middle)
    return high


def released(sigma: float, *, canaries: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    included = rng.random(canaries) < 0.5
    return included + sigma * rng.standard_normal(canaries), included


@pytest.mark.parametrize("sigma", [0.5, 1.0, 2.0])
def test_the_bound_of_an_honest_mechanism_stays_below_its_claim(sigma: float) -> None:
    claim = gaussian_epsilon(sigma, 1e-5)
    for seed in range(5):
        scores, included = released(sigma, canaries=2000, seed=seed)
        found = epsilon_lower_bound(scores, included, delta=1e-5)
        assert 0 < found.epsilon < claim
        assert found.epsilon < found.ceiling


def test_without_noise_the_bound_is_as_large_as_it_can_be() -> None:
    scores, included = released(1e-9, canaries=2000, seed=0)
    found = epsilon_lower_bound(scores, included, delta=1e-5)
    assert found.epsilon > 5
    assert found.right == found.guesses


def test_a_quarter_of_the_claimed_noise_is_found() -> None:
    claim = gaussian_epsilon(1.0, 1e-5)
    scores, included = released(0.25, canaries=4000, seed=0)
    assert epsilon_lower_bound(scores, included, delta=1e-5).epsilon > claim


def test_half_of_the_claimed_noise_is_not_found_by_1000_canaries_but_by_its_variance() -> None:
    claim = gaussian_epsilon(1.0, 1e-5)
    scores, included = released(0.5, canaries=1000, seed=0)
    assert epsilon_lower_bound(scores, included, delta=1e-5).epsilon < claim
    _, _, high = noise_interval(0.5 * np.random.default_rng(0).standard_normal(1000))
    assert high < 1.0


def test_guesses_of_a_coin_refute_nothing() -> None:
    rng = np.random.default_rng(0)
    found = epsilon_lower_bound(rng.normal(size=1000), rng.random(1000) < 0.5, delta=1e-5)
    assert found.epsilon < 0.2


def test_the_p_value_without_delta_is_that_of_a_biased_coin() -> None:
    from scipy.stats import binomtest

    rate = 1 / (1 + math.exp(-1.0))
    expected = binomtest(80, 100, rate, alternative="greater").pvalue
    found = p_value(canaries=100, guesses=100, right=80, epsilon=1.0, delta=0.0)
    assert found == pytest.approx(expected)


def test_the_p_value_with_delta_is_the_formula_of_the_theorem() -> None:
    from scipy.stats import binom

    canaries, guesses, right, epsilon, delta = 50, 20, 18, 1.0, 1e-3
    rate = 1 / (1 + math.exp(-epsilon))
    tail = [float(binom.sf(v - 1, guesses, rate)) for v in range(guesses + 1)]
    slope = max((tail[right - i] - tail[right]) / i for i in range(1, right + 1))
    expected = tail[right] + 2 * canaries * delta * slope
    found = p_value(canaries=canaries, guesses=guesses, right=right, epsilon=epsilon, delta=delta)
    assert found == pytest.approx(expected)


def test_more_delta_refutes_less() -> None:
    bounds = [
        lower_bound(canaries=500, guesses=200, right=195, delta=delta, confidence=0.95)
        for delta in (0.0, 1e-5, 1e-3)
    ]
    assert bounds[0] >= bounds[1] > bounds[2]


def test_noise_is_measured_within_its_interval() -> None:
    rng = np.random.default_rng(1)
    covered = 0
    for _ in range(400):
        _, low, high = noise_interval(2.0 * rng.standard_normal(50))
        covered += low <= 2.0 <= high
    assert 0.92 <= covered / 400 <= 0.98


def test_what_cannot_be_audited_is_refused() -> None:
    with pytest.raises(ConfigError, match="at least 2 canaries, not 1"):
        epsilon_lower_bound(np.zeros(1), np.zeros(1, bool), delta=1e-5)
    with pytest.raises(ConfigError, match="NaN"):
        epsilon_lower_bound(np.full(4, np.nan), np.zeros(4, bool), delta=1e-5)
    with pytest.raises(ConfigError, match="0 finite numbers"):
        noise_interval(np.zeros(0))
