"""The one-run audit of epsilon in a simulated federation."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from fedlearn.audit import epsilon as module
from fedlearn.audit.epsilon import audit_epsilon, flat, moved
from fedlearn.errors import ConfigError
from fedlearn.privacy.chain import GridNoise
from fedlearn.privacy.client import ClientPrivacy
from tests.fedlearn.audit.conftest import MakeTarget

CANARIES = 50


def private(noise: float = 1.0) -> str:
    return (
        f'[privacy]\nmechanism = "central-gaussian"\nclip = 0.5\nnoise_multiplier = {noise}\n'
        "epsilon = 100.0\ndelta = 1e-5\n"
    )


def test_without_noise_the_bound_is_large_and_nothing_is_claimed(make_target: MakeTarget) -> None:
    result = audit_epsilon(make_target(sites=2, rows=8, rounds=1), canaries=CANARIES)
    assert result.bound.epsilon > 1.5
    assert result.bound.right >= 0.9 * result.bound.guesses
    assert not result.fails
    assert result.to_json()["claim"] is None
    assert "the job claims nothing" in result.verdict


def test_with_noise_the_bound_stays_below_the_claim(make_target: MakeTarget) -> None:
    target = make_target(sites=2, rows=8, rounds=2, more=private())
    first = audit_epsilon(target, canaries=CANARIES)
    assert first.bound.epsilon < first.claim < 20
    assert not first.fails
    assert first.noise is not None
    assert first.noise.low < first.noise.claimed < first.noise.high
    assert first.noise.numbers == 2 * (2410 - CANARIES)
    assert "it is not refuted" in first.verdict


def test_a_seed_gives_the_same_result(make_target: MakeTarget) -> None:
    target = make_target(sites=2, rows=8, rounds=1, more=private())
    first, second, other = (audit_epsilon(target, canaries=6, seed=seed) for seed in (1, 1, 2))
    assert first.to_json() == second.to_json()
    assert not np.array_equal(first.scores, other.scores)


def test_half_of_the_noise_is_found(
    make_target: MakeTarget, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = GridNoise.apply

    def halved(self: GridNoise, delta: Any) -> Any:
        return kept(dataclasses.replace(self, multiplier=self.multiplier / 2), delta)

    monkeypatch.setattr(GridNoise, "apply", halved)
    target = make_target(sites=2, rows=8, rounds=1, more=private())
    result = audit_epsilon(target, canaries=CANARIES)
    assert result.bound.epsilon < result.claim  # the canaries alone do not find it
    assert result.noise is not None
    assert result.noise.measured == pytest.approx(result.noise.claimed / 2, rel=0.05)
    assert result.fails
    assert "THE NOISE IS TOO SMALL" in result.verdict


def test_missing_noise_refutes_the_claim(
    make_target: MakeTarget, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(GridNoise, "apply", lambda self, delta: delta)
    target = make_target(sites=2, rows=8, rounds=1, more=private(noise=4.0))
    result = audit_epsilon(target, canaries=CANARIES)
    assert result.bound.epsilon > result.claim
    assert result.fails
    assert "THE CLAIM IS REFUTED" in result.verdict


def test_an_update_beyond_the_clip_is_found(
    make_target: MakeTarget, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unclipped(self: ClientPrivacy, update: Any, reference: Mapping[str, Any]) -> Any:
        return {name: array + 1.0 for name, array in update.items()}

    monkeypatch.setattr(ClientPrivacy, "outgoing", unclipped)
    target = make_target(sites=2, rows=8, rounds=1, more=private())
    result = audit_epsilon(target, canaries=4)
    assert result.fails
    assert "THE CLIP IS NOT KEPT: site canary-" in result.verdict


def test_canary_examples_are_found_without_noise(make_target: MakeTarget) -> None:
    target = make_target(
        sites=2,
        rows=60,
        rounds=2,
        config="learning-rate = 0.5\nlocal-epochs = 40\nbatch-size = 8",
    )
    result = audit_epsilon(target, kind="examples", canaries=80)
    assert result.canaries == "examples"
    assert result.bound.epsilon > 0.5


def test_a_canary_moves_one_number_by_no_more_than_the_clip() -> None:
    model: dict[str, np.ndarray] = {
        "a": np.full((2, 2), 1000.0, np.float32),
        "steps": np.zeros(3, np.int64),
        "b": np.full(3, -1e-3, np.float32),
    }
    for place in range(7):
        changed = moved(model, place, 1e-3)
        difference = flat(changed) - flat(model)
        assert 0 < difference[place] <= 1e-3
        assert np.count_nonzero(difference) == 1
    assert np.array_equal(flat(moved(model, 0, 0.0)), flat(model))


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"canaries": 1}, "must be at least 2"),
        ({"kind": "magic"}, "--kind"),
        ({"confidence": 1.0}, "--confidence"),
        ({"canaries": 2411}, "the model has 2410 numbers"),
        ({"kind": "examples", "canaries": 90}, "has 40 examples, and 45 canaries"),
    ],
)
def test_what_cannot_be_audited_is_refused(
    make_target: MakeTarget, options: dict[str, Any], text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = make_target(sites=2, rounds=1)
    if options.get("canaries", 0) > 2000:
        monkeypatch.setattr(module, "run_variant", lambda *a, hooks, **k: ask(hooks[0]))
    with pytest.raises(ConfigError, match=text):
        audit_epsilon(target, **options)


def ask(hook: Any) -> None:
    from fedlearn.simulation import Call

    hook.asked(Call(site="canary-00000", round=1, kind="train"), {"w": np.zeros(2410)})
