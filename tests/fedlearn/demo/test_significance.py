"""Intervals of differences between models, against the definition and against many draws."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from fedlearn.demo.significance import UNKNOWN, Gain, gain_in_area, gain_in_share


def area(scores: np.ndarray, positive: np.ndarray) -> float:
    pairs = itertools.product(scores[positive], scores[~positive])
    wins = [1.0 if p > n else 0.5 if p == n else 0.0 for p, n in pairs]
    return sum(wins) / len(wins)


def draws(rng: np.random.Generator, rows: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    positive = rng.random(rows) < 0.4
    signal = positive + rng.normal(0, 1.0, rows)
    better = signal + rng.normal(0, 0.3, rows)
    worse = signal + rng.normal(0, 1.2, rows)
    return np.round(better, 1), np.round(worse, 1), positive


def test_the_difference_is_that_of_the_areas() -> None:
    better, worse, positive = draws(np.random.default_rng(1), 80)
    third = np.zeros(80)
    gain = gain_in_area(better, [worse, third], positive)
    expected = area(better, positive) - (area(worse, positive) + 0.5) / 2
    assert gain.value == pytest.approx(expected, abs=1e-12)
    assert gain.low < gain.value < gain.high


def test_intervals_cover_the_difference_as_often_as_they_promise() -> None:
    """Over 400 draws of rows, 95% intervals miss the true difference in about 5% of them."""
    rng = np.random.default_rng(7)
    truth = gain_in_area(*_arguments(draws(rng, 6_000))).value
    gains = [gain_in_area(*_arguments(draws(rng, 150))) for _ in range(400)]
    missed = sum(not gain.low <= truth <= gain.high for gain in gains)
    assert 6 <= missed <= 36  # 20 are expected; four standard deviations are 17
    shares = [(rng.random(150) < 0.8, rng.random(150) < 0.7) for _ in range(400)]
    of_shares = [gain_in_share(mine, [other]) for mine, other in shares]
    missed = sum(not gain.low <= 0.1 <= gain.high for gain in of_shares)
    assert 6 <= missed <= 36


def _arguments(
    drawn: tuple[np.ndarray, np.ndarray, np.ndarray],
) -> tuple[np.ndarray, list[np.ndarray], np.ndarray]:
    better, worse, positive = drawn
    return better, [worse], positive


def test_the_variance_is_that_of_the_paper() -> None:
    """A case small enough for paper: one negative outranks one of three positives."""
    gain = gain_in_area([3, 2, 1, 0, 1.5], [[0, 0, 0, 0, 0]], [True, True, True, False, False])
    # Areas 5/6 and 1/2; structural components 1, 1, 1/2 and 1, 2/3, each less 1/2.
    assert gain.value == pytest.approx(1 / 3)
    variance = (1 / 12) / 3 + (1 / 18) / 2
    assert gain.high - gain.value == pytest.approx(1.959964 * math.sqrt(variance))


def test_equal_models_do_not_differ() -> None:
    scores, _, positive = draws(np.random.default_rng(3), 60)
    gain = gain_in_area(scores, [scores, scores], positive)
    assert (gain.value, gain.low, gain.high) == (0.0, 0.0, 0.0)
    assert not gain.significant
    right = scores > 0
    assert not gain_in_share(right, [right]).significant


@pytest.mark.parametrize("positive", [[True] * 4, [False] * 4])
def test_without_both_outcomes_there_is_no_area(positive: list[bool]) -> None:
    gain = gain_in_area([1, 2, 3, 4], [[4, 3, 2, 1]], positive)
    assert math.isnan(gain.value)
    assert not gain.known
    assert not gain.significant


def test_too_few_rows_have_no_interval() -> None:
    gain = gain_in_area([2, 1], [[1, 2]], [True, False])
    assert (gain.value, gain.known) == (1.0, False)
    share = gain_in_share([True], [[False]])
    assert (share.value, share.known) == (1.0, False)
    assert not gain_in_share([], [[]]).known
    assert not gain_in_share([True, False], []).known
    assert Gain() == UNKNOWN or math.isnan(UNKNOWN.value)


def test_shares_are_compared_row_by_row() -> None:
    mine, other = np.array([1, 1, 1, 0]), np.array([1, 0, 0, 0])
    gain = gain_in_share(mine, [other])
    assert gain.value == 0.5
    error = np.std([0, 1, 1, 0], ddof=1) / 2
    assert gain.high == pytest.approx(0.5 + 1.959964 * error)
