"""The exact mean: same bits in any order, right to the last place, refused when out of range."""

from __future__ import annotations

from fractions import Fraction
from random import Random
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fedlearn.errors import UpdateRejected
from fedlearn.update.arrays import BF16, to_bfloat16, to_float32
from server.flower.aggregation.mean import MAX_UPDATES, MAX_WEIGHT, ExactMean, whole_weight

Update = tuple[npt.NDArray[Any], int]
_FLOATS = st.floats(-1000, 1000, width=32, allow_nan=False)
_UPDATES = st.lists(
    st.tuples(hnp.arrays(np.float32, 5, elements=_FLOATS), st.integers(1, 100_000)),
    min_size=1,
    max_size=6,
)


def _mean(updates: list[Update]) -> npt.NDArray[Any]:
    mean = ExactMean({"w": updates[0][0]})
    for array, weight in updates:
        mean.add({"w": array}, weight)
    return mean.result()["w"]


@settings(deadline=None, max_examples=60)
@given(_UPDATES, st.randoms(use_true_random=False))
def test_order_does_not_change_a_bit(updates: list[Update], random: Random) -> None:
    expected = _mean(updates).tobytes()
    random.shuffle(updates)
    assert _mean(updates).tobytes() == expected


@settings(deadline=None, max_examples=60)
@given(_UPDATES)
def test_error_is_below_one_unit_in_the_last_place(updates: list[Update]) -> None:
    total = sum(weight for _, weight in updates)
    found = _mean(updates)
    for index in range(5):
        exact = sum((Fraction(float(a[index])) * w for a, w in updates), Fraction()) / total
        ulp = Fraction(float(np.spacing(np.abs(found[index]))))
        grid = Fraction(len(updates), 2**61)
        assert abs(Fraction(float(found[index])) - exact) < ulp + grid


def test_one_update_is_its_own_mean() -> None:
    array = np.array([1.5, -3.25, 0.1, 1e-12, 0.0], np.float32)
    assert _mean([(array, 77)]).tobytes() == array.tobytes()


def test_every_element_type_has_a_rule() -> None:
    like = {
        "half": np.zeros(2, np.float16),
        "brain": to_bfloat16(np.zeros(2, np.float32)),
        "double": np.zeros((), np.float64),
        "count": np.zeros(2, np.int64),
        "byte": np.zeros(1, np.uint8),
        "flag": np.zeros(3, np.bool_),
        "empty": np.zeros((0, 4), np.float32),
    }
    mean = ExactMean(like)
    mean.add(
        {
            "half": np.array([1, 2], np.float16),
            "brain": to_bfloat16(np.array([1, -8], np.float32)),
            "double": np.array(0.25),
            "count": np.array([10, 1]),
            "byte": np.array([255], np.uint8),
            "flag": np.array([True, True, False]),
            "empty": np.zeros((0, 4), np.float32),
        },
        1,
    )
    mean.add({**like, "count": np.array([20, 2]), "byte": np.array([255], np.uint8)}, 1)
    result = mean.result()
    assert {name: array.dtype for name, array in result.items()} == {
        name: array.dtype for name, array in like.items()
    }
    assert result["half"].tolist() == [0.5, 1.0]
    assert result["brain"].dtype == BF16
    assert to_float32(result["brain"]).tolist() == [0.5, -4.0]
    assert result["double"].shape == ()
    assert result["count"].tolist() == [15, 2]  # 1.5 rounds to even
    assert result["byte"].tolist() == [255]
    assert result["flag"].tolist() == [False, False, False]  # a tie is no majority
    assert result["empty"].shape == (0, 4)


@pytest.mark.parametrize("size", [2.0**40, 2.0**189, 2.0**190])
def test_extremes_do_not_overflow(size: float) -> None:
    largest = np.full(3, size, np.float64)
    mean = ExactMean({"w": largest})
    for _ in range(MAX_UPDATES):
        mean.add({"w": largest}, 1)
    assert mean.result()["w"].tolist() == largest.tolist()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 2.0**191])
def test_a_bad_value_is_refused_and_leaves_the_sum_alone(bad: float) -> None:
    mean = ExactMean({"a": np.zeros(1), "b": np.zeros(2)})
    mean.add({"a": np.ones(1), "b": np.ones(2)}, 3)
    with pytest.raises(UpdateRejected, match="b: "):
        mean.add({"a": np.ones(1) * 9, "b": np.array([0, bad])}, 1)
    assert (mean.updates, mean.weight) == (1, 3)
    assert mean.result()["a"].tolist() == [1.0]


_ANY_FLOAT32 = st.floats(width=32, allow_nan=False, allow_infinity=False)


@settings(deadline=None, max_examples=150)
@given(
    st.lists(
        st.tuples(hnp.arrays(np.float32, 4, elements=_ANY_FLOAT32), st.integers(1, MAX_WEIGHT)),
        min_size=1,
        max_size=5,
    ),
    st.randoms(use_true_random=False),
)
def test_any_float32_with_any_weight_is_added_exactly_in_any_order(
    updates: list[Update], random: Random
) -> None:
    total = sum(weight for _, weight in updates)
    found = _mean(updates)
    for index in range(4):
        exact = sum((Fraction(float(a[index])) * w for a, w in updates), Fraction()) / total
        # The spacing below the largest float32 is finite, that above it is not.
        below = np.nextafter(np.abs(found[index]), np.float32(0))
        ulp = max(Fraction(float(np.spacing(below))), Fraction(1, 2**149))
        assert abs(Fraction(float(found[index])) - exact) < 2 * ulp
    random.shuffle(updates)
    assert _mean(updates).tobytes() == found.tobytes()


_ANY_FLOAT64 = st.floats(2.0**-100, 2.0**150).flatmap(lambda x: st.sampled_from([x, -x, 0.0]))


@settings(deadline=None, max_examples=100)
@given(
    st.lists(
        st.tuples(hnp.arrays(np.float64, 4, elements=_ANY_FLOAT64), st.integers(1, 100_000)),
        min_size=1,
        max_size=5,
    )
)
def test_float64_is_right_to_two_units_in_the_last_place(updates: list[Update]) -> None:
    total = sum(weight for _, weight in updates)
    found = _mean(updates)
    for index in range(4):
        exact = sum((Fraction(float(a[index])) * w for a, w in updates), Fraction()) / total
        ulp = Fraction(float(np.spacing(np.abs(found[index]))))
        assert abs(Fraction(float(found[index])) - exact) <= 2 * ulp + Fraction(5, 2**211)


@settings(deadline=None, max_examples=100)
@given(
    st.sampled_from([np.int8, np.int16, np.int32, np.int64, np.uint8, np.uint32, np.uint64]),
    st.data(),
)
def test_integers_of_any_size_get_the_exact_mean(
    dtype: type[np.integer[Any]], data: st.DataObject
) -> None:
    bounds = np.iinfo(dtype)
    values = hnp.arrays(dtype, 4, elements=st.integers(int(bounds.min), int(bounds.max)))
    updates = data.draw(
        st.lists(st.tuples(values, st.integers(1, MAX_WEIGHT)), min_size=1, max_size=4)
    )
    total = sum(weight for _, weight in updates)
    found = _mean(updates)
    assert found.dtype == dtype
    for index in range(4):
        exact = Fraction(sum(int(a[index]) * w for a, w in updates), total)
        assert int(found[index]) == round(exact)


@pytest.mark.parametrize(
    "array",
    [
        np.array([1e-12, -3e-19, 1e-30, 1e-45, -1.1754944e-38], np.float32),
        np.array([1e13, np.finfo(np.float32).min, np.finfo(np.float32).max], np.float32),
        np.array([6e-8, 65504, -6e-8], np.float16),
        to_bfloat16(np.array([1e-38, 3e38, -1e-20], np.float32)),
        np.array([2**63 - 1, -(2**63), 1_760_000_000_000_000_000], np.int64),
        np.array([2**64 - 1, 0], np.uint64),
        np.array([2**31 - 1, -(2**31)], np.int32),
    ],
    ids=lambda array: str(array.dtype),
)
@pytest.mark.parametrize("weight", [1, 437, 60_000, MAX_WEIGHT])
def test_one_update_of_extremes_is_its_own_mean(array: npt.NDArray[Any], weight: int) -> None:
    assert _mean([(array, weight)]).tobytes() == array.tobytes()


def test_what_is_not_kept_is_documented() -> None:
    """The sign of zero, and what is finer than the finest grid."""
    zeros = _mean([(np.array([-0.0, 0.0], np.float32), 3)])
    assert zeros.tobytes() == bytes(8)
    tiny = _mean([(np.array([1e-300, 2.0**-210, 2.0**-212]), 1)])
    assert tiny.tolist() == [0.0, 2.0**-210, 0.0]


def test_memory_grows_only_with_the_values_that_need_it() -> None:
    mean = ExactMean({"w": np.zeros(1000, np.float32)})
    mean.add({"w": np.linspace(-10, 10, 1000).astype(np.float32)}, 1000)
    assert mean.nbytes == 8 * 1000
    for value in (1e-45, 3e38, 1e-30, 1.0):
        mean.add({"w": np.full(1000, value, np.float32)}, MAX_WEIGHT)
    assert mean.nbytes <= 8 * 1000 * 8


@pytest.mark.parametrize(
    "other",
    [
        {"w": np.zeros(4, np.float32)},
        {"w": np.zeros(5, np.float64)},
        {"v": np.zeros(5, np.float32)},
        {},
        {"w": np.zeros(5, np.float32), "x": np.zeros(1)},
    ],
)
def test_another_model_is_refused(other: dict[str, Any]) -> None:
    mean = ExactMean({"w": np.zeros(5, np.float32)})
    with pytest.raises(UpdateRejected):
        mean.add(other, 1)


@pytest.mark.parametrize("weight", [-1, 0.5, float("nan"), float("inf"), 2**29, True, "3", None])
def test_a_weight_that_is_no_number_of_examples_is_refused(weight: object) -> None:
    with pytest.raises(UpdateRejected):
        whole_weight(weight)


def test_weights_at_the_border() -> None:
    assert whole_weight(np.int64(0)) == 0
    assert whole_weight(512.0) == 512
    assert whole_weight(MAX_WEIGHT) == MAX_WEIGHT


def test_no_weight_is_no_mean() -> None:
    mean = ExactMean({"w": np.zeros(1)})
    mean.add({"w": np.zeros(1)}, 0)
    with pytest.raises(UpdateRejected, match="no mean"):
        mean.result()


def test_too_many_updates_are_refused() -> None:
    mean = ExactMean({})
    mean._updates = MAX_UPDATES
    with pytest.raises(UpdateRejected, match="at most"):
        mean.add({}, 1)
