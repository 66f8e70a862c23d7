"""Correlated noise costs what independent noise costs, and cancels in sums of rounds."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from fedlearn.errors import PrivacyError
from fedlearn.privacy import PrivacySpec, ServerPrivacy
from fedlearn.privacy.accountant import epsilon
from fedlearn.privacy.correlated import BandedNoise, coefficients, error_of_sums

SECRET = bytes(range(32))
SIZE = 4_000


def spec(**changes: Any) -> PrivacySpec:
    values: dict[str, Any] = {
        "clip": 1.0,
        "noise_multiplier": 1.5,
        "epsilon": 1e3,
        "delta": 1e-5,
        "sampling": "cyclic",
        "groups": 4,
        "noise": "banded",
    }
    return PrivacySpec(**{**values, **changes})


def toeplitz(bands: int, rounds: int) -> NDArray[np.float64]:
    c = coefficients(bands)
    found = np.zeros((rounds, rounds))
    for column in range(rounds):
        for k in range(min(bands, rounds - column)):
            found[column + k, column] = c[k]
    return found


def noises(rounds: int, bands: int = 4, size: int = SIZE) -> NDArray[np.float64]:
    noise = BandedNoise(bands, SECRET)
    return np.array([noise.next(t, bytes([t]) * 32, size) for t in range(1, rounds + 1)])


def in_chi_square(values: NDArray[np.float64], deviation: float) -> bool:
    statistic = float(np.sum(np.square(values / deviation)))
    return abs(statistic - values.size) < 4.9 * math.sqrt(2 * values.size)


def test_the_coefficients_are_those_of_the_square_root() -> None:
    # Binomial coefficients by hand: C(2k, k) / 4^k = 1, 1/2, 3/8, 5/16, 35/128.
    by_hand = np.array([1, 1 / 2, 3 / 8, 5 / 16, 35 / 128])
    np.testing.assert_allclose(coefficients(5), by_hand / np.linalg.norm(by_hand), rtol=1e-15)
    assert coefficients(1) == (1.0,)


@pytest.mark.parametrize("bands", [1, 2, 4, 7])
def test_a_site_every_b_th_round_moves_disjoint_columns_of_norm_one(bands: int) -> None:
    matrix = toeplitz(bands, 20)
    assert np.linalg.norm(matrix, axis=0).max() == pytest.approx(1.0)
    for first in range(bands):
        taken = matrix[:, first::bands]
        # The sensitivity of k rounds is that of k independent releases: the square root of k.
        assert np.linalg.norm(taken.sum(axis=1)) <= math.sqrt(taken.shape[1]) + 1e-12
        assert ((taken != 0).sum(axis=1) <= 1).all()


def test_the_releases_hide_independent_noise_behind_the_matrix() -> None:
    promise = spec()
    server = ServerPrivacy.from_spec(promise, SECRET)
    banded = server.banded([])
    assert banded is not None
    base = {"w": np.zeros(SIZE)}
    released = [
        server.after_mean(base, base, 3, number, asked=3, banded=banded)["w"] * 3
        for number in range(1, 13)
    ]
    # Chi-square on C times what left: standard normal deviates of the claimed deviation.
    independent = toeplitz(4, 12) @ np.array(released)
    deviation = 1.5 * (1 + 2.0**-10)
    assert in_chi_square(independent, deviation)
    assert not in_chi_square(independent, deviation * 1.05)
    correlation = np.corrcoef(independent)
    assert np.abs(correlation - np.eye(12)).max() < 6 / math.sqrt(SIZE)
    # What left is correlated: a round subtracts a part of the one before.
    assert np.corrcoef(np.array(released))[3, 2] < -0.2


@pytest.mark.parametrize("bands", [1, 4])
def test_sums_of_rounds_have_the_error_that_is_predicted(bands: int) -> None:
    sums = np.cumsum(noises(30, bands), axis=0)
    assert math.sqrt(np.mean(np.square(sums))) == pytest.approx(error_of_sums(bands, 30), rel=0.02)
    assert error_of_sums(4, 30) < 0.65 * error_of_sums(1, 30)
    # One band is independent noise: the mean variance of 1 to 30 terms.
    assert error_of_sums(1, 30) == pytest.approx(math.sqrt(31 / 2))


def test_it_costs_what_independent_noise_costs() -> None:
    assert epsilon(spec(), 12) == epsilon(spec(noise="independent"), 12)
    assert epsilon(spec(), 12) == epsilon(
        spec(noise="independent", sampling="full", groups=None), 3
    )


def test_noise_goes_on_to_the_bit_from_the_digests_alone() -> None:
    whole = BandedNoise(3, SECRET)
    digests = [bytes([t]) * 32 for t in range(1, 8)]
    made = [whole.next(t, digest, 50) for t, digest in enumerate(digests, start=1)]
    resumed = BandedNoise(3, SECRET, list(whole.digests[:5]))
    for t in (6, 7):
        assert resumed.next(t, digests[t - 1], 50).tobytes() == made[t - 1].tobytes()


def test_a_round_that_is_run_again_with_another_sum_has_other_noise() -> None:
    noise = BandedNoise(3, SECRET)
    for t in (1, 2, 3):
        first = noise.next(t, bytes([t]) * 32, 50)
    noise.digests = noise.digests[:2]  # as the state of the strategy is set back
    other = noise.next(3, b"x" * 32, 50)
    assert not np.array_equal(first, other)
    noise.digests = noise.digests[:2]
    assert np.array_equal(first, noise.next(3, bytes([3]) * 32, 50))


def test_a_round_out_of_order_another_stage_and_another_model_are_refused() -> None:
    noise = BandedNoise(3, SECRET)
    with pytest.raises(PrivacyError, match="round 2 does not follow round 0"):
        noise.next(2, bytes(32), 50)
    noise.next(1, bytes(32), 50)
    with pytest.raises(PrivacyError, match="round 1 does not follow round 1"):
        noise.next(1, bytes(32), 50)
    with pytest.raises(PrivacyError, match="another size"):
        noise.next(2, bytes(32), 51)
    server = ServerPrivacy.from_spec(spec(), SECRET)
    base = {"w": np.zeros(5)}
    for banded, stage in ((server.banded([]), 2), (None, 1)):
        with pytest.raises(PrivacyError, match="one strategy"):
            server.after_mean(base, base, 3, 1, asked=3, stage=stage, banded=banded)
