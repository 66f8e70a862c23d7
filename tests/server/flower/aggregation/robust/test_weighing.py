"""The geometric median against its definition, and q-FedAvg against Flower's class."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedlearn.errors import JobError
from fedlearn.update.arrays import BF16, to_bfloat16, to_float32
from server.flower.aggregation.robust.distances import gram, squared_norms
from server.flower.aggregation.robust.weighing import (
    fair_coefficients,
    geometric_median_coefficients,
    weighed,
)
from tests.server.flower.aggregation.robust.sites import flowers, random_updates

SHAPES = {"w": ((13, 5), "f4"), "b": ((5,), "f8")}
USUAL: dict[str, Any] = {"iterations": 1000, "smoothing": 1e-9, "tolerance": 0.0}


@given(seed=st.integers(0, 2**32), count=st.integers(3, 20))
@settings(max_examples=20, deadline=None)
def test_no_point_near_the_geometric_median_has_a_lower_sum_of_distances(
    seed: int, count: int
) -> None:
    draw = np.random.default_rng(seed)
    points = draw.standard_normal((count, 4))
    updates, model = [{"w": point} for point in points], {"w": draw.standard_normal(4)}
    shares = geometric_median_coefficients(gram(updates, model), **USUAL)
    assert shares.sum() == pytest.approx(1)
    found = weighed(updates, shares, model)["w"]

    def objective(point: Any) -> float:
        return float(np.linalg.norm(points - point, axis=1).sum())

    # The smoothed minimum is above the minimum by at most n * smoothing, beside rounding.
    least = objective(found) - 1e-6
    assert all(objective(found + 1e-3 * draw.standard_normal(4)) >= least for _ in range(20))
    assert all(objective(point) >= least for point in points)


def test_the_geometric_median_follows_the_algorithm_of_the_paper() -> None:
    draw = np.random.default_rng(4)
    points = draw.standard_normal((9, 50))
    updates, model = [{"w": point} for point in points], {"w": np.zeros(50)}
    point = points.mean(axis=0)
    for _ in range(200):
        shares = 1 / np.maximum(np.linalg.norm(points - point, axis=1), 1e-6)
        point = (shares[:, None] * points).sum(axis=0) / shares.sum()
    found = geometric_median_coefficients(
        gram(updates, model), iterations=100, smoothing=1e-6, tolerance=1e-12
    )
    np.testing.assert_allclose(weighed(updates, found, model)["w"], point, atol=1e-9)


def test_the_geometric_median_of_the_same_updates_is_that_update() -> None:
    model, (update, *_) = random_updates(1, 1, SHAPES)
    shares = geometric_median_coefficients(gram([update] * 5, model), **USUAL)
    found = weighed([update] * 5, shares, model)
    np.testing.assert_allclose(found["w"], update["w"], rtol=1e-6)
    alone = geometric_median_coefficients(gram([update], model), **USUAL)
    assert alone.tolist() == [1.0]


def test_updates_beyond_float64_do_not_count_and_all_of_them_are_an_error() -> None:
    model, updates = random_updates(2, 5, {"w": ((8,), "f8")})
    updates[0]["w"] = np.full(8, 1.5e308)
    shares = geometric_median_coefficients(gram(updates, model), **USUAL)
    assert shares[0] == 0
    assert np.isfinite(weighed(updates, shares, model)["w"]).all()
    with pytest.raises(JobError, match="no update can be used"):
        geometric_median_coefficients(gram(updates[:1] * 3, model), **USUAL)


@given(
    seed=st.integers(0, 2**32),
    count=st.integers(1, 12),
    rate=st.floats(1e-3, 10),
    q=st.floats(0, 5),
)
@settings(max_examples=25, deadline=None)
def test_q_fedavg_is_flowers(seed: int, count: int, rate: float, q: float) -> None:
    model, updates = random_updates(seed, count, SHAPES)
    losses = np.random.default_rng(seed).uniform(0.01, 5, count).tolist()
    options = {"client_learning_rate": rate, "q": q}
    expected = flowers("qfedavg", model, updates, [1] * count, losses, **options)
    shares = fair_coefficients(squared_norms(updates, model), losses, rate=rate, q=q)
    found = weighed(updates, shares, model)
    for name, array in found.items():
        assert array.dtype == model[name].dtype
        most = max(float(np.abs(each[name]).max()) for each in [model, *updates])
        np.testing.assert_allclose(array, expected[name], atol=2e-6 * count * most)


@pytest.mark.parametrize("rate", [5e-324, 1e-9, 1e9])
@pytest.mark.parametrize("q", [0.0, 0.1, 1e9])
@pytest.mark.parametrize("losses", [[0.0, 0.0, 0.0], [1e308, 0.0, 1.0], [1e-300, 1e-9, 1e6]])
def test_no_option_and_no_loss_makes_a_model_that_is_not_finite(
    rate: float, q: float, losses: list[float]
) -> None:
    norms = np.asarray([0.0, 1.0, np.inf])
    found = fair_coefficients(norms, losses, rate=rate, q=q)
    assert np.isfinite(found).all()
    assert (found >= 0).all()
    assert found.sum() <= 1 + 1e-12


def test_integers_and_bfloat16_are_rounded_and_large_ones_do_not_wrap() -> None:
    model = {
        "n": np.asarray(10),
        "most": np.asarray([2**63 - 1, -(2**63)]),
        "bytes": np.asarray([250], np.uint8),
        "half": to_bfloat16(np.asarray([1.0], np.float32)),
        "mask": np.asarray([True, False]),
    }
    other = {**model, "n": np.asarray(13), "half": to_bfloat16(np.asarray([2.0], np.float32))}
    found = weighed([model, other], np.asarray([0.5, 0.5]), model)
    assert found["n"] == 12
    assert found["most"][0] > 2**62
    assert found["most"][1] == -(2**63)
    assert found["bytes"] == [250]
    assert found["mask"].tolist() == [True, False]
    assert found["half"].dtype == BF16
    assert to_float32(found["half"]) == [1.5]
