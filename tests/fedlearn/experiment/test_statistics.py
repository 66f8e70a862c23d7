"""Summaries and paired tests agree with hand computations and with the definitions."""

from __future__ import annotations

import math

import pytest

from fedlearn.experiment.cells import Cell
from fedlearn.experiment.figures import worst_tenth
from fedlearn.experiment.statistics import Arm, Choice, arms, compare, holm, summarize
from fedlearn.experiment.store import CellResult, RoundResult


def result(arm: str, seed: int, *values: float) -> CellResult:
    rounds = tuple(
        RoundResult(round=i, seconds=1, bytes_down=1, bytes_up=1, metrics={"accuracy": value})
        for i, value in enumerate(values, 1)
    )
    return CellResult(
        key="0" * 32,
        cell=Cell(seed=seed, arm=arm),
        content={},
        environment={},
        finished_unix_ms=0,
        seconds=1,
        cpu_seconds=1,
        rounds=rounds,
    )


def arm(name: str, *values: float) -> Arm:
    return Arm(
        name=name,
        labels={},
        cells=tuple(result(name, seed, value) for seed, value in enumerate(values)),
    )


def test_mean_and_sample_deviation() -> None:
    found = summarize([1.0, 2.0, 4.0])
    assert found.mean == pytest.approx(7 / 3)
    assert found.deviation == pytest.approx(math.sqrt(7 / 3))
    assert summarize([0.5]).text() == "0.5000"
    assert summarize([]).text() == ""


@pytest.mark.parametrize(
    ("choice", "maximize", "expected"),
    [("best", True, 0.9), ("best", False, 0.1), ("last", True, 0.5)],
)
def test_which_round_counts(choice: Choice, maximize: bool, expected: float) -> None:
    one = Arm(name="a", labels={}, cells=(result("a", 0, 0.1, 0.9, 0.5, math.nan),))
    assert one.values("accuracy", choice, maximize=maximize) == {0: expected}


def test_the_paired_test_is_students() -> None:
    # Differences 1, 2, 3: mean 2, sd 1, t = 2 sqrt(3) with 2 degrees of freedom. The distribution
    # of t with 2 degrees of freedom has the closed form 1/2 + t / (2 sqrt(2 + t^2)).
    (found,) = compare(
        [(arm("a", 1.0, 3.0, 6.0), arm("b", 0.0, 1.0, 3.0))], "accuracy", "last", maximize=True
    )
    t = 2 * math.sqrt(3)
    assert found.difference == pytest.approx(2)
    assert found.p == pytest.approx(1 - t / math.sqrt(2 + t * t))
    assert found.corrected == found.p
    # The 97.5% quantile of that distribution is 4.3027.
    assert found.low == pytest.approx(2 - 4.30265 / math.sqrt(3), abs=1e-4)
    assert found.seeds == 3


def test_holm_multiplies_the_smallest_most_and_never_falls() -> None:
    assert holm([0.01, 0.02, 0.03]) == pytest.approx([0.03, 0.04, 0.04])
    assert holm([0.6, 0.7]) == pytest.approx([1.0, 1.0])
    assert holm([]) == []


@pytest.mark.parametrize(
    ("left", "right", "note"),
    [
        ((0.5,), (0.4,), "1 common seed: no test"),
        ((0.5, 0.6), (0.4, 0.5), "the same difference for every seed"),
        ((math.nan, math.nan), (0.4, 0.5), "0 common seeds: no test"),
    ],
)
def test_without_a_spread_there_is_no_test(
    left: tuple[float, ...], right: tuple[float, ...], note: str
) -> None:
    pair = (arm("a", *left), arm("b", *right))
    (found,) = compare([pair], "accuracy", "last", maximize=True)
    if note.startswith("the same"):
        found_differences = {round(a - b, 12) for a, b in zip(left, right, strict=True)}
        assert len(found_differences) == 1
    assert math.isnan(found.p) or found.p < 1e-6
    assert found.note.startswith(note) or found.p < 1e-6


def test_arms_keep_their_order_and_sort_their_seeds() -> None:
    found = arms([result("b", 2, 1.0), result("a", 1, 1.0), result("b", 1, 1.0)])
    assert [each.name for each in found] == ["b", "a"]
    assert [cell.cell.seed for cell in found[0].cells] == [1, 2]


def test_the_worst_tenth_is_of_the_worse_end() -> None:
    values = [i / 20 for i in range(20)]
    assert worst_tenth(values, maximize=True) == pytest.approx(0.025)
    assert worst_tenth(values, maximize=False) == pytest.approx(0.925)
