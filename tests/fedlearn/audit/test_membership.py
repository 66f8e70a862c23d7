"""An attack on membership, made on the model of a simulated federation."""

from __future__ import annotations

import pytest

from fedlearn.audit.membership import audit_membership
from fedlearn.errors import ConfigError
from tests.fedlearn.audit.conftest import AUDIT, MakeTarget

OVERFIT = "learning-rate = 0.5\nlocal-epochs = 30\nbatch-size = 8"


def test_a_model_that_overfits_shows_its_members(make_target: MakeTarget) -> None:
    target = make_target(sites=2, rows=60, rounds=1, config=OVERFIT, wrong=0.2)
    result = audit_membership(target, shadows=6)
    scores = {score.name: score for score in result.scores}
    assert result.examples == 120
    assert result.members == 60
    assert result.accuracy[0] > result.accuracy[1]
    assert scores["LiRA"].works
    assert scores["LiRA"].area > 0.6
    assert set(scores) == {"confidence", "LiRA", "RMIA", "LiRA offline", "RMIA offline"}
    assert "do not resolve a false positive rate of 0.1% and 1.0%" in result.note
    rate = result.to_json()["attacks"][0]["rates"][0]
    assert rate["resolved"] is False
    assert rate["interval"][0] <= rate["true_positive_rate"] <= rate["interval"][1]


def test_noise_hides_the_members_and_the_result_repeats(make_target: MakeTarget) -> None:
    private = (
        '[privacy]\nmechanism = "central-gaussian"\nclip = 0.5\nnoise_multiplier = 4.0\n'
        "epsilon = 50.0\ndelta = 1e-5\ninsecure_deterministic_noise = true"
    )
    target = make_target(sites=2, rows=60, rounds=1, config=OVERFIT, wrong=0.2, more=private)
    first, second = (audit_membership(target, shadows=4) for _ in range(2))
    assert first.to_json() == second.to_json()
    assert not any(score.works for score in first.scores)
    assert "not better than chance: it failed" in first.verdict
    assert first.private == "central-gaussian"


@pytest.mark.parametrize("shadows", [0, 2, 5])
def test_an_odd_or_small_number_of_shadow_models_is_refused(
    make_target: MakeTarget, shadows: int
) -> None:
    with pytest.raises(ConfigError, match="--shadows"):
        audit_membership(make_target(sites=2), shadows=shadows)


def test_a_site_with_too_few_examples_is_refused(make_target: MakeTarget) -> None:
    with pytest.raises(ConfigError, match="has 3 examples to train on"):
        audit_membership(make_target(sites=2, rows=3))


def test_an_app_without_a_model_is_refused(make_target: MakeTarget) -> None:
    target = make_target(sites=2, audit=AUDIT.replace("model", "#"))
    with pytest.raises(ConfigError, match="or `predict` is needed"):
        audit_membership(target)
