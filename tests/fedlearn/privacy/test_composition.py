"""Two accountants by two authors give the same epsilon, and calibration is its inverse."""

from __future__ import annotations

import itertools
import warnings

import pytest
from dp_accounting.rdp.rdp_privacy_accountant import DEFAULT_RDP_ORDERS

from fedlearn.errors import PrivacyError
from fedlearn.privacy.composition import Cost, calibrated, composed

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from opacus.accountants import PRVAccountant, RDPAccountant

DELTA = 1e-5
SETTINGS = [
    *itertools.product((0.7, 1.1, 2.0, 5.0), (0.002, 0.02), (50, 1000)),
    *itertools.product((2.0, 8.0), (1.0,), (5, 100)),
]
"""Noise multiplier, sampling rate and steps: 20 settings of DP-SGD and of whole data."""


def test_there_are_twenty_settings() -> None:
    assert len(set(SETTINGS)) == 20


@pytest.mark.parametrize(("noise", "rate", "steps"), SETTINGS)
def test_renyi_epsilon_is_that_of_opacus(noise: float, rate: float, steps: int) -> None:
    theirs = RDPAccountant()
    theirs.history = [(noise, rate, steps)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = theirs.get_epsilon(DELTA, alphas=list(DEFAULT_RDP_ORDERS))
    # dp-accounting leaves out orders whose series is not exact enough: a slightly larger bound.
    ours = composed({Cost(noise, rate): steps}, "rdp", DELTA)
    assert expected * (1 - 1e-4) <= ours <= expected * 1.004


def _tight(noise: float, rate: float, steps: int) -> None:
    theirs = PRVAccountant()
    theirs.history = [(noise, rate, steps)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        upper = theirs.get_epsilon(DELTA, eps_error=0.01)
    ours = composed({Cost(noise, rate): steps}, "pld", DELTA)
    # Opacus adds its error bound to the estimate, so that it is an upper bound.
    assert ours == pytest.approx(upper, abs=0.025)
    assert ours <= composed({Cost(noise, rate): steps}, "rdp", DELTA)


@pytest.mark.parametrize(("noise", "rate", "steps"), SETTINGS[5::7])
def test_privacy_loss_distributions_agree_with_opacus(
    noise: float, rate: float, steps: int
) -> None:
    _tight(noise, rate, steps)


@pytest.mark.long
@pytest.mark.parametrize(("noise", "rate", "steps"), SETTINGS)
def test_privacy_loss_distributions_agree_in_every_setting(
    noise: float, rate: float, steps: int
) -> None:
    _tight(noise, rate, steps)


def test_jobs_with_different_noise_compose() -> None:
    theirs = RDPAccountant()
    theirs.history = [(1.0, 0.01, 100), (3.0, 1.0, 7)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = theirs.get_epsilon(DELTA, alphas=list(DEFAULT_RDP_ORDERS))
    ours = composed({Cost(1.0, 0.01): 100, Cost(3.0): 7}, "rdp", DELTA)
    assert ours == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize(
    ("accountant", "rate", "steps"), [("rdp", 1.0, 50), ("rdp", 0.05, 300), ("pld", 1.0, 3)]
)
def test_the_calibrated_noise_is_the_least_that_fits(
    accountant: str, rate: float, steps: int
) -> None:
    def costs(noise: float) -> dict[Cost, int]:
        return {Cost(noise, rate): steps}

    noise = calibrated(costs, epsilon=3.0, delta=DELTA, accountant=accountant, least=0.05)
    assert composed(costs(noise), accountant, DELTA) <= 3.0
    assert composed(costs(noise * 0.98), accountant, DELTA) > 3.0


def test_nothing_costs_nothing() -> None:
    assert composed({}, "rdp", DELTA) == 0.0
    assert composed({Cost(1.0): 0}, "pld", DELTA) == 0.0


@pytest.mark.parametrize("noise", [0.0, -1.0, float("nan"), float("inf")])
def test_noise_that_bounds_nothing_has_no_cost(noise: float) -> None:
    with pytest.raises(PrivacyError, match="bounds nothing"):
        Cost(noise)


@pytest.mark.parametrize("rate", [0.0, -0.1, 1.1, float("nan")])
def test_a_rate_is_a_probability(rate: float) -> None:
    with pytest.raises(PrivacyError, match="sampling rate"):
        Cost(1.0, rate)


def test_an_epsilon_that_no_noise_gives_is_refused_with_what_would_do() -> None:
    with pytest.raises(PrivacyError, match=r"the largest noise multiplier .* gives 0\.0") as caught:
        calibrated(
            lambda noise: {Cost(noise): 10**6},
            epsilon=1e-9,
            delta=1e-14,
            accountant="rdp",
            least=0.05,
        )
    assert "at least 0.0" in caught.value.hint
