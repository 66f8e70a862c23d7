"""Nearest-neighbor mixing against its definition, and the rules that follow it."""

from __future__ import annotations

import tracemalloc
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedlearn.job.constraints.robust_rules import PRE_AGGREGATION
from server.flower.aggregation.builtin import BuiltIn
from server.flower.aggregation.robust.distances import gram
from server.flower.aggregation.robust.mixing import mixed_gram, nearest_neighbor_means
from server.flower.aggregation.robust.rules import RULES, RoundInput
from tests.server.flower.aggregation.robust.sites import FEW, Model, random_updates

SHAPES = {"w": ((17, 5), "f4"), "b": ((5,), "f8")}
NNM = {"pre_aggregation": "nnm", "num_malicious_nodes": 2}


def made(name: str, model: Model, updates: list[Model], **options: Any) -> Model:
    strategy = BuiltIn(name, {**FEW, **options})
    arrays, used = RULES[name](
        strategy.inner,
        RoundInput(
            model=model,
            updates=updates,
            weights=[1] * len(updates),
            outliers=strategy.outliers,
        ),
    )
    assert arrays is not None
    assert used
    return arrays


def flat(arrays: Model) -> Any:
    return np.concatenate([array.astype(np.float64).reshape(-1) for array in arrays.values()])


def test_mixing_by_hand() -> None:
    # 0, 1 and 3 are closest to each other in pairs; 100 is mixed with 1 and 3.
    points = [0.0, 1.0, 3.0, 100.0]
    updates = [{"w": np.asarray([value])} for value in points]
    mix = nearest_neighbor_means(gram(updates, {"w": np.zeros(1)}), 1)
    np.testing.assert_allclose(mix @ points, [4 / 3, 4 / 3, 4 / 3, 104 / 3])
    assert mix.sum(axis=1) == pytest.approx(1)
    model = {"w": np.zeros(1)}
    median = made("fedmedian", model, updates, pre_aggregation="nnm", num_malicious_nodes=1)
    assert median["w"] == pytest.approx(4 / 3)
    assert made("fedmedian", model, updates, num_malicious_nodes=1)["w"] == pytest.approx(2)


@pytest.mark.parametrize("name", sorted(PRE_AGGREGATION))
# Of an even number, Bulyan's median is as far from the two values in the middle: rounding chooses.
@given(seed=st.integers(0, 2**32), count=st.sampled_from([11, 13, 15]))
@settings(max_examples=3, deadline=None)
def test_a_rule_over_mixed_updates_is_the_rule_over_their_means(
    name: str, seed: int, count: int
) -> None:
    model, updates = random_updates(seed, count, SHAPES)
    points = np.stack([flat(each) for each in updates])
    distances = np.linalg.norm(points[:, None] - points[None, :], axis=2)
    nearest = np.argsort(distances, axis=1, kind="stable")[:, : count - 2]
    means: list[Model] = [
        {key: np.mean([updates[at][key].astype("f8") for at in row], axis=0) for key in SHAPES}
        for row in nearest
    ]
    wide: Model = {key: array.astype("f8") for key, array in model.items()}
    options = {"num_nodes_to_select": 4} if name == "multikrum" else {}
    expected = made(name, wide, means, num_malicious_nodes=2, **options)
    found = made(name, model, updates, **NNM, **options)
    for key, array in found.items():
        assert array.dtype == model[key].dtype
        np.testing.assert_allclose(array, expected[key], atol=1e-5)


@pytest.mark.parametrize("name", sorted(PRE_AGGREGATION))
def test_the_order_of_the_updates_does_not_matter(name: str) -> None:
    model, updates = random_updates(7, 11, SHAPES)
    found = made(name, model, updates, **NNM)
    other = made(name, model, updates[::-1], **NNM)
    np.testing.assert_allclose(flat(found), flat(other), atol=1e-6)


def test_mixing_resists_an_attack_that_the_rule_alone_follows() -> None:
    """Sites whose data differ: Krum alone selects one of them; Allouah et al. 2023, section 3."""
    draw = np.random.default_rng(5)
    center = np.ones(200)
    honest = [{"w": center + 2 * draw.standard_normal(200)} for _ in range(11)]
    # Both attackers send the same point, close to the mean: Krum's least score.
    bad = [{"w": center - 1.0}] * 2
    model = {"w": np.zeros(200)}
    mean = np.mean([each["w"] for each in honest], axis=0)
    alone = made("krum", model, [*bad, *honest], num_malicious_nodes=2)["w"]
    mixed = made("krum", model, [*bad, *honest], **NNM)["w"]
    assert np.linalg.norm(mixed - mean) < np.linalg.norm(alone - mean) / 2


def test_an_update_beyond_float64_spoils_only_what_it_is_mixed_into() -> None:
    model, updates = random_updates(2, 9, {"w": ((8,), "f8")})
    updates[0]["w"] = np.full(8, 1.5e308)
    products = gram(updates, model)
    mix = nearest_neighbor_means(products, 2)
    mixed = mixed_gram(products, mix)
    assert np.isfinite(np.diagonal(mixed)[1:]).all()
    assert np.isinf(mixed[0, 0])
    for name in sorted(set(PRE_AGGREGATION) - {"bulyan"}):
        found = made(name, model, updates, **NNM)["w"]
        assert np.abs(found).max() < 10, name


@pytest.mark.parametrize("name", ["fedmedian", "krum"])
def test_mixed_updates_are_never_in_memory(name: str) -> None:
    model, updates = random_updates(1, 12, {"w": ((1 << 20,), "f4"), "b": ((9,), "f4")})
    tracemalloc.start()
    try:
        made(name, model, updates, **NNM)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    # All updates are 48 MiB and the result is 4.
    assert peak < 30 << 20
