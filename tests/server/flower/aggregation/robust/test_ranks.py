"""Median, trimmed mean and Bulyan's mean around the median, against Flower's classes."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from fedlearn.update.arrays import BF16, to_bfloat16, to_float32
from server.flower.aggregation.robust import ranks
from tests.server.flower.aggregation.robust.sites import Model, flowers, random_updates

SHAPES = {
    "w": ((37, 5), "f4"),
    "b": ((5,), "f4"),
    "wide": ((4, 3), "f8"),
    "half": ((33,), "f2"),
    "steps": ((), "i8"),
    "bytes": ((7,), "u1"),
    "mask": ((6,), "?"),
}
EPSILON = {"e": 1e-3, "f": 3e-7, "d": 1e-15}


def close(found: Model, expected: Model, updates: list[Model]) -> None:
    """Check that two models agree within rounding; integers and booleans are rounded."""
    for name, array in found.items():
        like = updates[0][name]
        assert (array.dtype, array.shape) == (like.dtype, like.shape)
        if like.dtype.kind == "b":
            continue  # Flower's mean is a number: see the test of majorities
        if like.dtype.kind in "iu":
            np.testing.assert_array_equal(array, np.rint(expected[name]).astype(like.dtype))
            continue
        most = max(float(np.abs(each[name]).max()) for each in updates)
        np.testing.assert_allclose(array, expected[name], atol=EPSILON[like.dtype.char] * most)


@given(seed=st.integers(0, 2**32), count=st.integers(1, 24))
@settings(max_examples=25, deadline=None)
def test_the_median_is_flowers(seed: int, count: int) -> None:
    model, updates = random_updates(seed, count, SHAPES)
    expected = flowers("fedmedian", model, updates, [1] * count)
    close(ranks.median(updates), expected, updates)


@given(seed=st.integers(0, 2**32), count=st.integers(1, 24), beta=st.floats(0, 0.499))
@settings(max_examples=25, deadline=None)
def test_the_trimmed_mean_is_flowers(seed: int, count: int, beta: float) -> None:
    model, updates = random_updates(seed, count, SHAPES)
    expected = flowers("fedtrimmedavg", model, updates, [1] * count, beta=beta)
    close(ranks.trimmed_mean(updates, beta), expected, updates)


@given(seed=st.integers(0, 2**32), malicious=st.integers(0, 4), more=st.integers(3, 12))
@settings(max_examples=25, deadline=None)
def test_the_mean_around_the_median_is_flowers(seed: int, malicious: int, more: int) -> None:
    from flwr.serverapp.strategy.bulyan import aggregate_n_closest_weights

    # Flower leaves open which of two equally distant values it takes: there are none here.
    shapes = {name: SHAPES[name] for name in ("w", "b", "wide")}
    _, updates = random_updates(seed, 2 * malicious + more, shapes)
    lists = [list(each.values()) for each in updates]
    medians = [np.median(each, axis=0) for each in zip(*lists, strict=True)]
    expected = aggregate_n_closest_weights(medians, lists, more)
    found = ranks.mean_around_median(updates, more)
    close(found, dict(zip(shapes, expected, strict=True)), updates)


def test_of_two_equally_distant_values_the_smaller_one_is_kept() -> None:
    updates = [{"w": np.asarray([value])} for value in (5.0, 1.0, 3.0, 2.0, 4.0)]
    assert ranks.mean_around_median(updates, 1)["w"] == [3.0]
    assert ranks.mean_around_median(updates, 2)["w"] == [2.5]
    assert ranks.mean_around_median(updates, 4)["w"] == [2.5]


RULES: dict[str, Callable[[list[Model]], dict[str, NDArray[Any]]]] = {
    "median": ranks.median,
    "trimmed mean": lambda updates: ranks.trimmed_mean(updates, 0.3),
    "mean around the median": lambda updates: ranks.mean_around_median(updates, 3),
}


@pytest.mark.parametrize("rule", sorted(RULES))
@pytest.mark.parametrize("count", [5, 8, 70])
def test_the_order_of_the_updates_and_the_number_of_threads_change_no_bit(
    rule: str, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    shapes = {**SHAPES, "large": ((300_000 // count, 2), "f4"), "zeros": ((8,), "f4")}
    _, updates = random_updates(7, count, shapes)
    for index, update in enumerate(updates):
        update["zeros"] = np.where(np.arange(8) < index % 3, -0.0, 0.0).astype("f4")
        for array in update.values():
            array.setflags(write=False)
    expected = RULES[rule](updates)
    order = np.random.default_rng(1).permutation(count)
    for processors in ({0}, set(range(5))):
        monkeypatch.setattr("os.sched_getaffinity", lambda _, these=processors: these)
        found = RULES[rule]([updates[index] for index in order])
        assert {name: array.tobytes() for name, array in found.items()} == {
            name: array.tobytes() for name, array in expected.items()
        }
    assert not np.signbit(expected["zeros"]).any()


@pytest.mark.parametrize("rule", sorted(RULES))
@pytest.mark.parametrize("dtype", ["i8", "u8", "i4", "u2", "i1"])
def test_integers_have_the_exact_mean(rule: str, dtype: str) -> None:
    bounds = np.iinfo(dtype)
    draw = np.random.default_rng(3)
    columns = draw.integers(bounds.min, bounds.max, (6, 50), dtype=dtype, endpoint=True)
    columns[:, 0], columns[:, 1] = bounds.max, bounds.min
    found = RULES[rule]([{"n": row} for row in columns])["n"]
    assert found.dtype == columns.dtype
    assert found[0] == bounds.max
    assert found[1] == bounds.min
    ordered = np.sort(columns, axis=0).astype(object)
    for position in range(50):
        values = [int(value) for value in ordered[:, position]]
        kept = {"median": values[2:4], "trimmed mean": values[1:5]}.get(rule)
        if kept is not None:
            assert found[position] == round(Fraction(sum(kept), len(kept)))
        else:
            assert values[0] <= found[position] <= values[-1]


@pytest.mark.parametrize("rule", sorted(RULES))
def test_bfloat16_is_the_rounded_result_of_float32(rule: str) -> None:
    _, updates = random_updates(5, 7, {"w": ((200,), "f4")})
    short = [{"w": to_bfloat16(each["w"])} for each in updates]
    found = RULES[rule](short)["w"]
    assert found.dtype == BF16
    expected = RULES[rule]([{"w": to_float32(each["w"])} for each in short])["w"]
    assert found.tobytes() == to_bfloat16(expected).tobytes()


def test_booleans_have_the_majority_and_a_byte_counts_once() -> None:
    columns = np.asarray([[1, 1, 0], [1, 0, 255], [1, 0, 0], [0, 1, 0]], np.uint8)
    updates = [{"mask": row.view(bool)} for row in columns]
    assert ranks.trimmed_mean(updates, 0)["mask"].tolist() == [True, False, False]
    assert ranks.median(updates)["mask"].tolist() == [True, False, False]


def test_an_array_without_elements_stays_one() -> None:
    updates = [{"w": np.zeros((0, 3), "f4"), "b": np.ones(2, "f4")}] * 3
    found = ranks.median(updates)
    assert found["w"].shape == (0, 3)
    np.testing.assert_array_equal(found["b"], [1, 1])
