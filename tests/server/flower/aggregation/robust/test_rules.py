"""The rules as the strategies use them: Flower's results, attacks, memory and options."""

from __future__ import annotations

import inspect
import tracemalloc
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from flwr.serverapp.strategy import FedAvg
from hypothesis import given, settings
from hypothesis import strategies as st

from fedlearn.job.asynchronous.options import ASYNCHRONOUS
from fedlearn.job.constraints.robust_rules import PRE_AGGREGATION, too_few_updates
from fedlearn.job.strategies import APP, STRATEGIES, STREAMING, option_fault
from server.flower.aggregation.builtin import BuiltIn
from server.flower.aggregation.robust.classes import GeometricMedian
from server.flower.aggregation.robust.rules import RULES, RoundInput
from tests.server.flower.aggregation.robust.sites import FEW, Model, flowers, random_updates

SHAPES = {"w": ((17, 5), "f4"), "b": ((5,), "f4"), "wide": ((4, 3), "f8")}
OPTIONS: dict[str, dict[str, Any]] = {
    "bulyan": {"num_malicious_nodes": 2},
    "fedmedian": {},
    "fedtrimmedavg": {"beta": 0.25},
    "geomedian": {},
    "fltrust": {"root_site": "root"},
    "krum": {"num_malicious_nodes": 2},
    "multikrum": {"num_malicious_nodes": 2, "num_nodes_to_select": 5},
    "normclip": {},
    "qfedavg": {"client_learning_rate": 0.1, "q": 0.5},
}


def ours(
    name: str, model: Model, updates: list[Model], weights: list[int], **options: Any
) -> dict[str, Any]:
    strategy = BuiltIn(name, {**FEW, **options})
    arrays, used = RULES[name](
        strategy.inner,
        RoundInput(
            model=model,
            updates=updates,
            weights=weights,
            losses=[1.0] * len(updates),
            sites=[*map(str, range(len(updates) - 1)), "root"],
            outliers=strategy.outliers,
        ),
    )
    assert arrays is not None
    assert used
    return arrays


def test_every_strategy_that_sees_single_updates_has_a_rule() -> None:
    assert set(RULES) == set(STRATEGIES) - STREAMING - ASYNCHRONOUS - {APP} == set(OPTIONS)


@pytest.mark.parametrize("name", sorted(set(OPTIONS) - {"fltrust", "geomedian", "normclip"}))
@given(seed=st.integers(0, 2**32), count=st.integers(11, 16))
@settings(max_examples=8, deadline=None)
def test_the_result_is_flowers(name: str, seed: int, count: int) -> None:
    model, updates = random_updates(seed, count, SHAPES)
    weights = np.random.default_rng(seed).integers(1, 500, count).tolist()
    expected = flowers(name, model, updates, weights, **OPTIONS[name])
    found = ours(name, model, updates, weights, **OPTIONS[name])
    for key, array in found.items():
        assert array.dtype == model[key].dtype
        np.testing.assert_allclose(array, expected[key], atol=2e-5)


HONEST, MALICIOUS = 9, 2


def attacked(seed: int, attack: str) -> tuple[Model, list[Model], list[Model]]:
    """Return a model, the updates of honest sites, and the attackers' among them."""
    model, noise = random_updates(seed, HONEST + MALICIOUS, {"w": ((400,), "f4")})
    honest = [{"w": (model["w"] + 1 + each["w"] / 10).astype("f4")} for each in noise[MALICIOUS:]]
    mean = np.mean([each["w"] for each in honest], axis=0)
    values = {
        "huge": np.full(400, 3e38),
        "sign flipped": model["w"] - 1000 * (mean - model["w"]),
        "noise": 100 * noise[0]["w"],
        "all the same": model["w"] + 50,
        "one element": np.where(np.arange(400) == 7, 1e6, mean),
        "largest and smallest": np.where(np.arange(400) % 2, 3e38, -3e38),
    }[attack]
    bad = [{"w": values.astype("f4")} for _ in range(MALICIOUS)]
    places = np.random.default_rng(seed).permutation(HONEST + MALICIOUS)
    return model, honest, [[*bad, *honest][place] for place in places]


ATTACKS = (
    "all the same",
    "huge",
    "largest and smallest",
    "noise",
    "one element",
    "sign flipped",
)


@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.parametrize("name", sorted(set(OPTIONS) - {"fltrust", "normclip", "qfedavg"}))
def test_malicious_updates_do_not_move_the_result_beyond_the_honest_ones(
    name: str, attack: str
) -> None:
    model, honest, updates = attacked(3, attack)
    found = ours(name, model, updates, [1] * len(updates), **OPTIONS[name])["w"]
    points = np.asarray([each["w"] for each in honest], np.float64)
    mean = points.mean(axis=0)
    spread = float(np.linalg.norm(points - mean, axis=1).max())
    away = float(np.linalg.norm(found - mean))
    if name == "geomedian":
        # Pillutla et al. 2022, after lemma 1 of Minsker 2015: with a share a of the updates
        # malicious, the distance is at most 2 (1 - a) / (1 - 2 a) times the honest spread.
        share = MALICIOUS / len(updates)
        assert away <= 2 * (1 - share) / (1 - 2 * share) * spread
    else:
        slack = 1e-5
        assert (points.min(axis=0) - slack <= found).all()
        assert (found <= points.max(axis=0) + slack).all()
    # The mean is moved beyond them.
    everyone = np.mean([each["w"].astype(np.float64) for each in updates], axis=0)
    assert np.linalg.norm(everyone - mean) > 3 * spread


@pytest.mark.parametrize("attack", ATTACKS)
def test_krum_selects_the_update_of_an_honest_site_bit_for_bit(attack: str) -> None:
    model, honest, updates = attacked(5, attack)
    found = ours("krum", model, updates, [3] * len(updates), num_malicious_nodes=MALICIOUS)
    assert any(found["w"].tobytes() == each["w"].tobytes() for each in honest)


def test_a_huge_number_of_examples_does_not_weigh_in_the_geometric_median() -> None:
    model, _, updates = attacked(5, "huge")
    one, many = ([1] * len(updates), [1, 2**29 - 1] * 6)
    results = [ours("geomedian", model, updates, w[: len(updates)])["w"] for w in (one, many)]
    assert results[0].tobytes() == results[1].tobytes()


@pytest.mark.parametrize("name", sorted(OPTIONS))
def test_the_updates_are_neither_copied_nor_changed(name: str) -> None:
    model, updates = random_updates(1, 12, {"w": ((1 << 20,), "f4"), "b": ((9,), "f4")})
    for arrays in (model, *updates):
        for array in arrays.values():
            array.setflags(write=False)
    tracemalloc.start()
    try:
        ours(name, model, updates, [1] * 12, **OPTIONS[name])
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    # All updates are 48 MiB and the result is 4; an exact mean takes 16 bytes for each element.
    exact = (16 << 20) if name == "multikrum" else 0
    assert peak < exact + (18 << 20)


def test_the_options_of_the_geometric_median_are_bounded_and_its_defaults_are_allowed() -> None:
    own = inspect.signature(GeometricMedian).parameters
    usual = inspect.signature(FedAvg).parameters
    for option in set(STRATEGIES["geomedian"]) - PRE_AGGREGATION["geomedian"]:
        default = (own.get(option) or usual[option]).default
        assert not option_fault("geomedian", option, default), option
    for option, value in (
        ("iterations", 0),
        ("iterations", 10**9),
        ("smoothing", 0),
        ("smoothing", 1e10),
        ("tolerance", 1),
        ("tolerance", -1),
    ):
        assert option_fault("geomedian", option, value).startswith("must be")


def test_the_geometric_median_of_two_is_refused() -> None:
    assert too_few_updates("geomedian", {}, 3) == ""
    assert '"geomedian" needs 3 updates' in too_few_updates("geomedian", {}, 2)


def test_the_iterations_are_those_that_the_job_states() -> None:
    model, _, updates = attacked(2, "sign flipped")
    given = RoundInput(model=model, updates=updates, weights=[1] * len(updates))
    usual = {"smoothing": 1e-6, "tolerance": 0.0}
    results = [
        RULES["geomedian"](SimpleNamespace(iterations=most, **usual), given)[0]
        for most in (1, 2, 100, 101)
    ]
    first, second, late, later = (made["w"].astype(float) for made in results if made is not None)
    assert np.abs(first - second).max() > 1e-4
    assert np.abs(late - later).max() < 1e-6
