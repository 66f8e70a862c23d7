"""Distances and the selection of Krum, against Flower's function and where scores are close."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from flwr.app import RecordDict
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from server.flower.aggregation.robust.distances import (
    ROUNDING,
    gram,
    squared_distances,
    squared_norms,
)
from server.flower.aggregation.robust.selection import multi_krum
from tests.server.flower.aggregation.robust.sites import Model, message, random_updates

SHAPES = {"w": ((19, 5), "f8"), "b": ((5,), "f4"), "n": ((), "i8"), "h": ((3,), "f2")}


def flowers_selection(updates: list[Model], malicious: int, count: int) -> list[int]:
    from flwr.serverapp.strategy.multikrum import select_multikrum

    contents: list[RecordDict] = [
        message(node, update, {"num-examples": 1}).content for node, update in enumerate(updates)
    ]
    chosen = select_multikrum(contents, malicious, count)
    return [next(i for i, each in enumerate(contents) if each is other) for other in chosen]


def exact(updates: list[Model]) -> NDArray[Any]:
    flat = [np.concatenate([np.ravel(a).astype("f16") for a in u.values()]) for u in updates]
    return np.asarray([[((x - y) ** 2).sum() for y in flat] for x in flat], np.float64)


@given(seed=st.integers(0, 2**32), count=st.integers(2, 20), malicious=st.integers(0, 6))
@settings(max_examples=40, deadline=None)
def test_the_selection_is_flowers(seed: int, count: int, malicious: int) -> None:
    model, updates = random_updates(seed, count, SHAPES)
    distances = exact(updates)
    closest = max(1, count - malicious - 2)
    scores = np.sort(distances, axis=1)[:, 1 : closest + 1].sum(axis=1)
    gaps = np.diff(np.sort(scores))
    # With two updates both scores are the same, and so is that of a pair of closest ones.
    assume(gaps.min(initial=1.0) > 1e-6)
    found = multi_krum(gram(updates, model), malicious, count)
    assert found == flowers_selection(updates, malicious, count)
    assert found == np.argsort(scores).tolist()


@given(seed=st.integers(0, 2**32), near=st.sampled_from([1.0, 1e-3, 1e-6]))
@settings(max_examples=20, deadline=None)
def test_the_error_of_a_distance_is_that_of_its_own_updates(seed: int, near: float) -> None:
    model, updates = random_updates(seed, 6, {"w": ((9_000,), "f8")})
    common = updates[0]["w"]
    close = [{"w": common + near * each["w"]} for each in updates[1:]]
    close[2] = {"w": np.full(9_000, 1e30)}  # takes no digit from the others
    products = gram(close, model)
    found, expected, norms = squared_distances(products), exact(close), np.diagonal(products)
    assert (np.abs(found - expected) <= ROUNDING * (norms[:, None] + norms[None, :])).all()
    np.testing.assert_allclose(squared_norms(close, model), norms, rtol=1e-12)


def test_updates_with_the_same_score_come_in_the_order_of_the_job() -> None:
    model, (one, other, *_) = random_updates(1, 3, SHAPES)
    updates = [other, one, one, other, one, other]
    assert multi_krum(gram(updates, model), 1, 6) == [0, 1, 2, 3, 4, 5]
    # A last bit makes no order.
    nearly = {"w": np.nextafter(one["w"], 9), **{name: one[name] for name in ("b", "n", "h")}}
    assert multi_krum(gram([nearly, one, one, nearly], model), 0, 2) == [0, 1]
    assert multi_krum(gram([one], model), 0, 1) == [0]


@pytest.mark.parametrize("huge", [1e200, 1.7e308])
def test_values_whose_squares_overflow_are_never_selected(huge: float) -> None:
    model, updates = random_updates(2, 7, SHAPES)
    for index, sign in ((0, 1), (4, -1)):
        updates[index]["w"] = np.full_like(updates[index]["w"], sign * huge)
    assert set(multi_krum(gram(updates, model), 2, 5)) == {1, 2, 3, 5, 6}


def test_the_number_of_threads_changes_no_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    model, updates = random_updates(3, 8, {"w": ((400, 201), "f4"), "b": ((17,), "f4")})
    found = []
    for processors in (1, 2, 7):
        monkeypatch.setattr("os.sched_getaffinity", lambda _, n=processors: set(range(n)))
        found.append((gram(updates, model).tobytes(), squared_norms(updates, model).tobytes()))
    assert found[0] == found[1] == found[2]
