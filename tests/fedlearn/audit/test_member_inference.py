"""Attacks that infer membership: against scores computed by hand, and on models that overfit."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import norm

from fedlearn.audit.attacks.member_inference import confidences, lira, logit_scaled, rmia
from fedlearn.audit.statistics import area, clopper_pearson, roc, true_positive_rate
from fedlearn.errors import ConfigError

RNG = np.random.default_rng(0)
MODELS, EXAMPLES = 16, 400
HALVES = RNG.random((MODELS // 2, EXAMPLES)) < 0.5
MEMBERS = np.vstack([RNG.random((1, EXAMPLES)) < 0.5, HALVES, ~HALVES])


def scaled(effect: float) -> np.ndarray:
    """Logit-scaled confidences of models that gain ``effect`` on what they were trained on."""
    rng = np.random.default_rng(1)
    hardness = rng.normal(scale=3, size=EXAMPLES)
    noise = rng.normal(size=(MODELS + 1, EXAMPLES))
    return np.asarray(hardness + effect * MEMBERS + noise)


def probability(logit: np.ndarray) -> np.ndarray:
    return np.asarray(1 / (1 + np.exp(-logit)))


def scores(attack: str, effect: float) -> np.ndarray:
    found = scaled(effect)
    offline = attack.endswith("offline")
    if attack.startswith("lira"):
        return lira(found[0], found[1:], MEMBERS[1:], offline=offline)
    population = np.random.default_rng(2).normal(scale=3, size=300)
    models = probability(population + np.random.default_rng(3).normal(size=(MODELS + 1, 300)))
    p = probability(found)
    return rmia(p[0], p[1:], MEMBERS[1:], models[0], models[1:], offline=offline)


@pytest.mark.parametrize("attack", ["lira", "lira-offline", "rmia", "rmia-offline"])
def test_members_of_an_overfitted_model_are_found(attack: str) -> None:
    assert area(scores(attack, 3.0), MEMBERS[0]) > 0.8


@pytest.mark.parametrize("attack", ["lira", "lira-offline", "rmia", "rmia-offline"])
def test_without_an_effect_the_attack_is_chance(attack: str) -> None:
    assert abs(area(scores(attack, 0.0), MEMBERS[0]) - 0.5) < 0.08


def test_lira_is_the_log_of_the_likelihood_ratio() -> None:
    rng = np.random.default_rng(4)
    shadows = rng.normal(size=(40, 3))
    members = np.arange(40)[:, None] % 2 == np.zeros(3)
    observed = np.array([0.1, 1.0, -2.0])
    inside, outside = shadows[::2], shadows[1::2]
    expected = norm.logpdf(observed, inside.mean(0), inside.std(0, ddof=1)) - norm.logpdf(
        observed, outside.mean(0), outside.std(0, ddof=1)
    )
    np.testing.assert_allclose(lira(observed, shadows, members), expected, rtol=1e-6)


def test_rmia_is_the_share_of_the_population_that_is_exceeded() -> None:
    found = rmia(
        np.array([0.9, 0.2]),
        np.array([[0.6, 0.2], [0.3, 0.2]]),
        np.array([[True, True], [False, False]]),
        np.array([0.5, 0.1, 0.9]),
        np.array([[0.5, 0.5, 0.3], [0.5, 0.5, 0.3]]),
        gamma=1.0,
    )
    # ratios 0.9 / 0.45 = 2 and 1; the population's are 1, 0.2 and 3
    np.testing.assert_allclose(found, [2 / 3, 2 / 3])


def test_the_scaled_confidence_is_stable() -> None:
    logits = np.array([[800.0, 0.0, -3.0], [0.0, 0.0, 0.0]])
    labels = np.array([0, 1])
    np.testing.assert_allclose(
        logit_scaled(logits, labels), [800 - np.log1p(np.exp(-3.0)), -np.log(2)]
    )
    np.testing.assert_allclose(confidences(logits, labels), [1.0, 1 / 3])


def test_area_and_curve_of_a_perfect_and_a_useless_score() -> None:
    truth = np.array([True, True, False, False])
    assert area(np.array([4.0, 3.0, 2.0, 1.0]), truth) == 1.0
    assert area(np.zeros(4), truth) == 0.5
    false, true = roc(np.array([4.0, 1.0, 2.0, 2.0]), truth)
    assert false.tolist() == [0, 0, 1, 1]
    assert true.tolist() == [0, 0.5, 0.5, 1]


def test_the_interval_covers_as_often_as_it_states() -> None:
    rng = np.random.default_rng(5)
    counts = rng.binomial(40, 0.1, size=2000)
    inside = [low <= 0.1 <= high for low, high in (clopper_pearson(int(c), 40) for c in counts)]
    assert np.mean(inside) >= 0.95


def test_too_few_examples_do_not_resolve_a_small_rate() -> None:
    rng = np.random.default_rng(6)
    truth = np.arange(400) < 200
    values = rng.normal(size=400) + truth
    assert not true_positive_rate(values, truth, 0.001).resolved
    rate = true_positive_rate(values, truth, 0.01)
    assert rate.resolved
    assert rate.low <= rate.true_positive <= rate.high


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: area(np.zeros(3), np.ones(3, dtype=bool)), "an attack needs both"),
        (lambda: area(np.array([np.nan, 0.0]), np.array([True, False])), "NaN"),
        (lambda: lira(np.zeros(2), np.zeros((1, 2)), np.zeros((1, 2), bool)), "needs 2"),
        (lambda: logit_scaled(np.full((1, 2), np.nan), np.array([0])), "NaN"),
        (lambda: confidences(np.zeros((1, 2)), np.array([2])), "2 classes"),
        (
            lambda: rmia(
                np.zeros(1), np.zeros((1, 1)), np.zeros((1, 1), bool), np.zeros(0), np.zeros((1, 0))
            ),
            "population",
        ),
    ],
)
def test_what_cannot_be_scored_is_refused(call: object, text: str) -> None:
    assert callable(call)
    with pytest.raises(ConfigError, match=text):
        call()
