"""Norm clipping and FLTrust: by hand, without and with malicious sites."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.flower.aggregation.builtin import BuiltIn
from server.flower.aggregation.mean import ExactMean
from server.flower.aggregation.robust.distances import gram, squared_norms
from server.flower.aggregation.robust.rules import RULES, RoundInput
from server.flower.aggregation.robust.weighing import clipped_coefficients, trusted_coefficients
from tests.server.flower.aggregation.robust.sites import FEW, Model, message, random_updates

SHAPES = {"w": ((17, 5), "f4"), "b": ((5,), "f4")}


def made(name: str, model: Model, updates: list[Model], **options: Any) -> Model | None:
    strategy = BuiltIn(name, {**FEW, **options}).inner
    sites = ["root", *map(str, range(1, len(updates)))]
    given_ = RoundInput(model=model, updates=updates, weights=[1] * len(updates), sites=sites)
    return RULES[name](strategy, given_)[0]


def values(found: Model | None) -> Any:
    assert found is not None
    return found["w"]


# --- norm clipping --------------------------------------------------------------------


def test_clipping_by_hand() -> None:
    model = {"w": np.asarray([1.0, 1.0])}
    # Differences (3, 4), (0, 1) and (0, -10) have the norms 5, 1 and 10.
    updates = [{"w": np.asarray(each)} for each in ([4.0, 5.0], [1.0, 2.0], [1.0, -9.0])]
    fixed = values(made("normclip", model, updates, clip_norm=2.0))
    np.testing.assert_allclose(fixed, [1 + 1.2 / 3, 1 + (1.6 + 1 - 2) / 3])
    median = values(made("normclip", model, updates))
    np.testing.assert_allclose(median, [1 + 3 / 3, 1 + (4 + 1 - 5) / 3])


@given(seed=st.integers(0, 2**32), count=st.integers(1, 9))
@settings(max_examples=15, deadline=None)
def test_without_an_update_to_clip_it_is_the_exact_mean(seed: int, count: int) -> None:
    model, updates = random_updates(seed, count, SHAPES)
    mean = ExactMean(model)
    for update in updates:
        mean.add(update, 1)
    expected = mean.result()
    found = made("normclip", model, updates, clip_norm=1e6)
    assert found is not None
    for name, array in expected.items():
        assert found[name].tobytes() == array.tobytes()
    backwards = made("normclip", model, updates[::-1], clip_norm=1e6)
    assert backwards is not None
    assert backwards["w"].tobytes() == found["w"].tobytes()


@given(seed=st.integers(0, 2**32), count=st.integers(1, 9), clip=st.floats(1e-3, 10))
@settings(max_examples=15, deadline=None)
def test_the_model_moves_by_at_most_the_norm(seed: int, count: int, clip: float) -> None:
    model, updates = random_updates(seed, count, {"w": ((40,), "f8")})
    found = values(made("normclip", model, updates, clip_norm=clip))
    assert np.linalg.norm(found - model["w"]) <= clip * (1 + 1e-12)
    other = values(made("normclip", model, updates[::-1], clip_norm=clip))
    np.testing.assert_allclose(found, other, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("factor", [-1000.0, 1e30])
def test_the_mean_follows_a_large_update_and_clipping_resists(factor: float) -> None:
    draw = np.random.default_rng(4)
    model = {"w": np.zeros(100, "f4")}
    honest = [{"w": (1 + draw.standard_normal(100) / 10).astype("f4")} for _ in range(9)]
    mean = np.mean([each["w"] for each in honest], axis=0)
    updates = [*honest, {"w": (factor * mean).astype("f4")}]
    everyone = np.mean([each["w"].astype("f8") for each in updates], axis=0)
    assert np.linalg.norm(everyone - mean) > 9 * np.linalg.norm(mean)
    found = values(made("normclip", model, updates))
    # One of ten moves the result by two clipped norms at most.
    assert np.linalg.norm(found - mean) < 0.25 * np.linalg.norm(mean)


def test_a_norm_beyond_float64_is_left_out() -> None:
    model, updates = random_updates(2, 5, {"w": ((8,), "f8")})
    updates[0]["w"] = np.full(8, 1.5e308)
    norms = squared_norms(updates, model)
    for clip in (None, 1.0, 1e300):
        coefficients = clipped_coefficients(norms, clip)
        assert coefficients[0] == 0
        assert (coefficients[1:] > 0).all()
    assert clipped_coefficients(np.full(3, np.inf), None).tolist() == [0, 0, 0]
    assert clipped_coefficients(np.zeros(4), None).tolist() == [0.25] * 4


# --- FLTrust --------------------------------------------------------------------------


def test_trust_by_hand() -> None:
    model = {"w": np.zeros(2)}
    # Against the root (2, 0): cosine 1, cosine 0.6, cosine -1, cosine 0.
    points = ([2.0, 0.0], [10.0, 0.0], [3.0, 4.0], [-5.0, 0.0], [0.0, 7.0])
    updates = [{"w": np.asarray(each)} for each in points]
    found = values(made("fltrust", model, updates, root_site="root"))
    # (1 * (2, 0) + 0.6 * (1.2, 1.6)) / 1.6
    np.testing.assert_allclose(found, [(2 + 0.72) / 1.6, 0.96 / 1.6])
    half = values(made("fltrust", model, updates, root_site="root", server_learning_rate=0.5))
    np.testing.assert_allclose(half, found / 2)


@given(seed=st.integers(0, 2**32), count=st.integers(2, 9))
@settings(max_examples=15, deadline=None)
def test_no_number_of_malicious_sites_moves_the_model_further_than_the_root(
    seed: int, count: int
) -> None:
    draw = np.random.default_rng(seed)
    model = {"w": draw.standard_normal(30)}
    updates = [{"w": model["w"] + scale * draw.standard_normal(30)} for scale in [1, *[1e6] * 8]]
    updates = updates[:count]
    found = made("fltrust", model, updates, root_site="root")
    if found is None:
        return
    moved, root = found["w"] - model["w"], updates[0]["w"] - model["w"]
    assert np.linalg.norm(moved) <= np.linalg.norm(root) * (1 + 1e-9)
    assert moved @ root > 0
    order = [0, *draw.permutation(np.arange(1, count)).tolist()]
    other = made("fltrust", model, [updates[at] for at in order], root_site="root")
    np.testing.assert_allclose(values(other), found["w"], rtol=1e-9, atol=1e-9)


def test_the_mean_follows_a_majority_of_sign_flips_and_the_root_resists() -> None:
    draw = np.random.default_rng(6)
    model = {"w": np.zeros(100, "f4")}
    honest = [{"w": (1 + draw.standard_normal(100) / 10).astype("f4")} for _ in range(4)]
    bad = [{"w": -50 * each["w"]} for each in honest + honest]
    mean = np.mean([each["w"] for each in honest], axis=0)
    updates = [*honest, *bad]
    assert np.mean([each["w"] for each in updates], axis=0) @ mean < 0
    found = values(made("fltrust", model, updates, root_site="root"))
    assert np.linalg.norm(found - mean) < 0.2 * np.linalg.norm(mean)


def test_without_the_root_or_a_likeness_to_it_there_is_no_model() -> None:
    model = {"w": np.zeros(3)}
    updates = [{"w": np.asarray(each)} for each in ([1.0, 0, 0], [-1.0, 0, 0], [0, 1.0, 0])]
    assert made("fltrust", model, updates, root_site="absent") is None
    assert made("fltrust", model, updates, root_site="root") is None
    still = [{"w": np.zeros(3)}, *updates]
    assert made("fltrust", model, still, root_site="root") is None


def test_updates_beyond_float64_are_not_trusted() -> None:
    model, updates = random_updates(2, 5, {"w": ((8,), "f8")})
    updates[1]["w"] = np.full(8, 1.5e308)
    found = trusted_coefficients(gram(updates, model), 0, rate=1.0)
    assert np.isfinite(found).all()
    assert found[1] == 0
    assert not trusted_coefficients(gram(updates, model), 1, rate=1.0).any()


def test_the_strategy_knows_whose_the_updates_are(monkeypatch: pytest.MonkeyPatch) -> None:
    strategy = BuiltIn("fltrust", {**FEW, "root_site": "b"})
    model = {"w": np.zeros(2)}
    strategy._model = strategy._part = model
    monkeypatch.setattr(strategy, "_sites", lambda replies: list("abc")[: len(replies)])
    points = ([4.0, 0.0], [1.0, 0.0], [-3.0, 0.0])
    replies = [
        message(node, {"w": np.asarray(point)}, {"num-examples": 1})
        for node, point in enumerate(points, start=1)
    ]
    arrays, metrics = strategy.aggregate_train(1, replies)
    assert arrays is not None
    assert metrics is not None
    np.testing.assert_allclose(next(iter(arrays.values())).numpy(), [1.0, 0.0])
