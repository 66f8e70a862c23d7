"""A plan states the least noise, the error that it makes, and what would be needed instead."""

from __future__ import annotations

import math
from typing import Any

import pytest

from fedlearn.errors import PrivacyError
from fedlearn.privacy import PrivacySpec, noise_multiplier_for
from fedlearn.privacy.composition import Cost, composed
from fedlearn.privacy.plan import Question, plan

SITE: dict[str, Any] = {"epsilon": 3.0, "delta": 1e-5, "rounds": 50}
EXAMPLE: dict[str, Any] = {**SITE, "rounds": 10, "unit": "example", "examples": 2000, "batch": 1000}
USER: dict[str, Any] = {**SITE, "unit": "user", "users": 40, "sites": 5}


def test_the_noise_is_that_of_a_job_with_the_same_promise() -> None:
    spec = PrivacySpec(clip=1.0, noise_multiplier=1.0, epsilon=3.0, delta=1e-5)
    found = plan(Question(**SITE))
    assert found.noise_multiplier == noise_multiplier_for(spec, 50)
    assert found.epsilon <= 3.0


def test_the_error_falls_with_the_sites_and_the_users() -> None:
    found = plan(Question(**SITE, sites=20, parameters=10_000))
    assert [point.of for point in found.points] == [20, 50, 100, 1_000, 10_000]
    for point in found.points:
        assert point.error == pytest.approx(found.noise_multiplier / point.of)
        assert point.signal_to_noise == pytest.approx(1 / (point.error * math.sqrt(10_000)))
    users = plan(Question(**USER))
    assert users.noise_multiplier == found.noise_multiplier
    assert users.points[0].error == pytest.approx(found.noise_multiplier / (5 * 40))


def test_examples_are_amplified_and_each_batch_has_its_own_noise() -> None:
    found = plan(Question(**EXAMPLE))
    assert [point.of for point in found.points] == [1000, 2000]
    assert found.points[0].noise_multiplier == found.noise_multiplier
    for point in found.points:
        steps = 10 * math.ceil(2000 / point.of)
        costs = {Cost(point.noise_multiplier, point.of / 2000): steps}
        assert 2.9 < composed(costs, "rdp", 1e-5) <= 3.0
        assert point.error == pytest.approx(point.noise_multiplier / point.of)
    whole = plan(Question(**{**EXAMPLE, "batch": 2000, "steps": 4}))
    assert whole.noise_multiplier > found.noise_multiplier


def test_an_error_that_the_epsilon_does_not_allow_is_refused_with_what_would_do() -> None:
    with pytest.raises(PrivacyError, match=r"needs noise of 0\.53 of the clip") as caught:
        plan(Question(**SITE, sites=20, max_error=0.1))
    assert "106 sites" in caught.value.hint
    assert plan(Question(**SITE, sites=106, max_error=0.1)).points[0].error <= 0.1
    with pytest.raises(PrivacyError) as caught:
        plan(Question(**EXAMPLE, max_error=1e-3))
    assert "batches of about" in caught.value.hint


def test_sites_that_take_turns_need_less_noise_and_may_correlate_it() -> None:
    turns = plan(Question(**SITE, sites=20, groups=10))
    assert turns.noise_multiplier == plan(Question(**{**SITE, "rounds": 5})).noise_multiplier
    assert turns.banded == pytest.approx(0.47, abs=0.01)
    assert plan(Question(**SITE)).banded is None


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"unit": "household"}, "no unit 'household'"),
        ({"epsilon": 0.0}, "epsilon is"),
        ({"epsilon": float("nan")}, "epsilon is"),
        ({"delta": 0.0}, "delta is"),
        ({"delta": float("nan")}, "delta is"),
        ({"rounds": 0}, "rounds are"),
        ({"sites": 0}, "sites are"),
        ({"max_error": 0.0}, "error is"),
        ({"unit": "user"}, "needs the number of users"),
        ({"unit": "example", "examples": 10}, "needs the number of batch"),
        ({"unit": "example", "examples": 10, "batch": 11}, "cannot be drawn"),
        ({"users": 3}, "users: not for the unit site"),
        ({"steps": 3}, "steps: not for the unit site"),
        ({"groups": 0}, "groups are"),
        ({"unit": "example", "examples": 9, "batch": 3, "groups": 2}, "groups: not for"),
    ],
)
def test_a_question_without_an_answer_is_refused(changes: dict[str, Any], word: str) -> None:
    with pytest.raises(PrivacyError, match=word):
        plan(Question(**{**SITE, **changes}))
