"""The sums behind the exact mean: every bit, whatever the values, their order and the threads."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from fractions import Fraction
from random import Random
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedlearn.errors import UpdateRejected
from fedlearn.update.arrays import BF16, Array, encode, to_bfloat16, to_float32
from server.flower.aggregation.block_sum import BLOCK
from server.flower.aggregation.digits import Digits
from server.flower.aggregation.mean import MAX_UPDATES, MAX_WEIGHT, ExactMean

Update = tuple[Array, int]
_SIZE = 12


def _added(updates: Sequence[Update]) -> ExactMean:
    mean = ExactMean({"w": updates[0][0]})
    for array, weight in updates:
        mean.add({"w": array}, weight)
    return mean


def _numbers(array: Array) -> list[Fraction]:
    wide = to_float32(array) if array.dtype == BF16 else array
    return [Fraction(value) for value in wide.tolist()]


def _nearest(updates: Sequence[Update]) -> list[float]:
    """The exact sums, each rounded once, by the sum of the weights."""
    total = sum(weight for _, weight in updates)
    columns = zip(*([v * w for v in _numbers(a)] for a, w in updates), strict=True)
    return [float(sum(column, Fraction())) / float(total) for column in columns]


def _single(width: int) -> st.SearchStrategy[float]:
    usual = st.floats(-1, 1, width=width)  # type: ignore[arg-type]
    every = st.floats(width=width, allow_nan=False, allow_infinity=False)  # type: ignore[arg-type]
    return usual | every | st.sampled_from([0.0, 1.0, -1.0])


def _double() -> st.SearchStrategy[float]:
    parts = st.tuples(st.integers(-(2**53) + 1, 2**53 - 1), st.integers(-210, 107))
    return parts.map(lambda part: float(part[0]) * 2.0 ** part[1])


def _array(dtype: str, values: list[float]) -> Array:
    if dtype == "bfloat16":
        return to_bfloat16(np.array(values, np.float32) * np.float32(0.5))
    return np.array(values, dtype)


@settings(deadline=None, max_examples=100)
@given(
    st.sampled_from(["float32", "bfloat16", "float16", "float64"]),
    st.data(),
    st.randoms(use_true_random=False),
)
def test_the_sum_is_the_exact_one_rounded_once_in_any_order(
    dtype: str, data: st.DataObject, random: Random
) -> None:
    value = {"float64": _double(), "float16": _single(16)}.get(dtype, _single(32))
    array = st.lists(value, min_size=_SIZE, max_size=_SIZE).map(lambda v: _array(dtype, v))
    weight = (
        st.integers(1, 2000)
        | st.integers(1, MAX_WEIGHT)
        | st.sampled_from([2**20, 2**24 - 1, 2**24 + 1])
    )
    updates = data.draw(st.lists(st.tuples(array, weight), min_size=1, max_size=7))
    mean = _added(updates)
    found = mean.result(wide=True)["w"]
    assert found.tolist() == _nearest(updates)
    random.shuffle(updates)
    shuffled = ExactMean({"w": updates[0][0]})
    for array_, weight_ in updates:
        shuffled.add({"w": array_}, weight_)
        shuffled.result()  # changes nothing
    assert shuffled.result(wide=True)["w"].tobytes() == found.tobytes()
    assert shuffled.result(release=True)["w"].tobytes() == mean.result()["w"].tobytes()


@pytest.mark.parametrize("weight", [1, 999, MAX_WEIGHT])
def test_most_updates_with_values_of_every_size_in_one_block(weight: int) -> None:
    """The step grows because of the sum, then of the values; half of the block has remainders."""
    draw = np.random.RandomState(7)
    small = np.ldexp(draw.uniform(-1, 1, 300), draw.randint(-149, 0, 300)).astype(np.float32)
    large = np.ldexp(draw.uniform(-1, 1, 300), draw.randint(-149, 127, 300)).astype(np.float32)
    mean = _added([(small, weight)])
    for _ in range(MAX_UPDATES - 2):
        mean.add({"w": small}, weight)
    mean.add({"w": large}, weight)
    exact = [
        (s * (MAX_UPDATES - 1) + b) * weight
        for s, b in zip(_numbers(small), _numbers(large), strict=True)
    ]
    total = float(MAX_UPDATES * weight)
    assert mean.result(wide=True)["w"].tolist() == [float(each) / total for each in exact]


def test_digits_are_carried_before_they_overflow() -> None:
    """Each of three parts of a float64 may leave half a step: 8191 of them exceed 64 bits."""
    value = 2.0**39 - 2.0**-11 - 2.0**-13
    rest = 2.0**-11 - 2.0**-61 - 2.0**-63
    digits = Digits(2)
    for _ in range(3 * MAX_UPDATES):
        digits.add(np.array([value, rest]), value)
    exact = [3 * MAX_UPDATES * Fraction(value), 3 * MAX_UPDATES * Fraction(rest)]
    assert digits.rounded().tolist() == [float(each) for each in exact]


def _values(seed: int, size: int) -> npt.NDArray[np.float64]:
    draw = np.random.RandomState(seed)
    whole: Any = sum(draw.randint(-(2**30), 2**30, size) for _ in range(4))
    return whole * 2.0**-34  # type: ignore[no-any-return]


def _model(seed: int, size: int) -> dict[str, Array]:
    base = _values(seed, size)
    return {
        "single": base.astype(np.float32),
        "small": (base * 2.0**-12).astype(np.float32),
        "brain": to_bfloat16(base.astype(np.float32)),
        "half": base.astype(np.float16),
        "count": (base * 2**40).astype(np.int64),
        "byte": (base * 100).astype(np.int8),
        "flag": base > 0,
    }


@pytest.mark.parametrize(
    ("weights", "size", "model", "wide"),
    [
        (
            [1000, 731],
            70_001,
            "1c443dfdd5663c8a98102070c3ded686326dcf60bffe86894d77015140580312",
            "35104bc8a560423da46c28c3e42f6d9c171bab0b9cce08a9f3ce158f41eb2e53",
        ),
        (
            [(7 * place) % 997 + 1 for place in range(300)],
            501,
            "93ae78ff56ee5d3ed5641ee36c8e00408b7340ffc88a7027a86cb870c4c72556",
            "3ac85f01a5e4193c911d260245ab679e5665b98e9c405c743558973cb6e39f64",
        ),
        (
            [60_000 + place for place in range(20)],
            33_000,
            "ff4b42d18d9917a4048b9670ec1eed57e938510fd9ec9809235d73fa621c0388",
            "20c36dd2469578d3b4a89b94e924d2afd77e4385040bd75f543db5e245ff64da",
        ),
    ],
)
def test_ordinary_models_get_the_bits_of_earlier_releases(
    weights: list[int], size: int, model: str, wide: str
) -> None:
    """The digests are those of the implementation with two grids for each parameter."""
    mean = ExactMean(_model(0, size))
    for seed, weight in enumerate(weights):
        mean.add(_model(seed, size), weight)
    assert hashlib.sha256(encode(mean.result())).hexdigest() == model
    assert hashlib.sha256(encode(mean.result(wide=True))).hexdigest() == wide


def _large(seed: int) -> dict[str, Array]:
    draw = np.random.RandomState(seed)
    values = draw.standard_normal(1_100_003).astype(np.float32) * np.float32(0.05)
    return {"w": values[3:].reshape(100, -1), "b": values[:3]}


def test_threads_change_no_bit_and_the_sum_takes_two_models(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    updates = [(_large(seed), weight) for seed, weight in enumerate([700, 60_001, 3])]
    results = []
    for cores in (1, 3):
        monkeypatch.setattr(os, "sched_getaffinity", lambda _, cores=cores: set(range(cores)))
        mean = ExactMean(updates[0][0])
        for arrays, weight in updates if cores == 1 else updates[::-1]:
            mean.add(arrays, weight)
        assert mean.nbytes < 2.05 * 4 * 1_100_003
        results.append(encode(mean.result()))
    assert results[0] == results[1]


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "float64"])
def test_a_bad_value_in_the_last_block_leaves_every_block_as_it_was(bad: float, dtype: str) -> None:
    good = _values(1, 2 * BLOCK + 5)
    wrong = good.astype(np.float32)
    wrong[-1] = bad

    def typed(values: Array) -> Array:
        single = values.astype(np.float32)
        return to_bfloat16(single) if dtype == "bfloat16" else single.astype(dtype)

    mean = _added([(typed(good), 5)])
    expected, size = mean.result(wide=True)["w"].tobytes(), mean.nbytes
    kept = np.array([0x7FC0 if np.isnan(bad) else 0x7F80], np.uint16).view(BF16)
    refused = typed(wrong)
    if dtype == "bfloat16":
        refused[-1] = kept[0]
    with pytest.raises(UpdateRejected, match="w: contains NaN or infinity"):
        mean.add({"w": refused}, 7)
    assert (mean.updates, mean.weight, mean.nbytes) == (1, 5, size)
    assert mean.result(wide=True)["w"].tobytes() == expected


@settings(deadline=None, max_examples=60)
@given(
    st.sampled_from(["float32", "float64"]),
    st.lists(st.tuples(st.integers(-149, 100), st.integers(1, MAX_WEIGHT)), min_size=1, max_size=4),
    st.tuples(st.integers(-149, 127), st.integers(1, MAX_WEIGHT), st.integers(0, 5)),
)
def test_a_refused_update_leaves_the_bits_of_a_sum_without_it(
    dtype: str, good: list[tuple[int, int]], wrong: tuple[int, int, int]
) -> None:
    """Whatever it did to the steps, wherever it came, and whichever array was wrong."""

    def model(seed: int, exponent: int) -> dict[str, Array]:
        values = np.ldexp(_values(seed, 40), exponent).astype(dtype)
        return {"a": values, "b": values[:3].copy()}

    exponent, heavy, place = wrong
    bad = model(99, exponent)
    bad["b"][-1] = np.inf
    without, beside = ExactMean(bad), ExactMean(bad)
    for seed, (size, weight) in enumerate(good):
        if seed == min(place, len(good) - 1):
            with pytest.raises(UpdateRejected, match="b: contains NaN or infinity"):
                beside.add(bad, heavy)
        beside.add(model(seed, size), weight)
        without.add(model(seed, size), weight)
    assert (beside.updates, beside.weight) == (without.updates, without.weight)
    assert encode(beside.result(wide=True)) == encode(without.result(wide=True))


def test_the_first_wrong_array_is_named_whichever_thread_finds_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(4)))
    good = {name: np.ones(BLOCK * 6, np.float32) for name in "abcdef"}
    bad = dict(good, **{name: np.full(BLOCK * 6, np.nan, np.float32) for name in "bcdef"})
    mean = ExactMean(good)
    mean.add(good, 1)
    with pytest.raises(UpdateRejected, match="b: contains NaN or infinity"):
        mean.add(bad, 2)
    assert encode(mean.result()) == encode(good)


def test_zeros_take_no_remainders() -> None:
    values = _values(3, BLOCK).astype(np.float32)
    values[::2] = 0
    values[1::64] = 0
    mean = _added([(values, 1001), (values, 37)])
    assert mean.nbytes == 8 * BLOCK
    assert mean.result()["w"].tobytes() == values.tobytes()


def test_a_released_sum_is_empty_and_adds_again() -> None:
    first = {"w": np.array([1.5, 1e-30, -2e9], np.float32), "d": np.array([0.1]), "e": np.ones(0)}
    mean = ExactMean(first)
    mean.add(first, 3)
    assert mean.result(release=True)["w"].tobytes() == first["w"].tobytes()
    assert (mean.updates, mean.weight) == (0, 0)
    with pytest.raises(UpdateRejected, match="no mean"):
        mean.result()
    second = {"w": np.array([1e-40, 7, 0], np.float32), "d": np.array([-3.0]), "e": np.ones(0)}
    mean.add(second, 2)
    assert encode(mean.result()) == encode(second)


def test_an_update_of_no_weight_changes_nothing_but_the_count() -> None:
    mean = _added([(np.array([1.0, 2.0]), 1), (np.array([1.7e308, -1.7e308]), 0)])
    assert (mean.updates, mean.weight) == (2, 1)
    assert mean.result()["w"].tolist() == [1.0, 2.0]


def test_arrays_of_another_byte_order_or_layout_are_added_as_they_are() -> None:
    values = _values(4, 12).astype(np.float32).reshape(3, 4)
    for array in (values.astype(">f4"), np.asfortranarray(values), values[::-1][::-1]):
        assert _added([(array, 3)]).result()["w"].tobytes() == values.tobytes()
