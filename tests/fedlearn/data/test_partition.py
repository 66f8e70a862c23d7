"""Partitions are exact and seeded, have the properties of NIID-Bench, and refuse what cannot be."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedlearn.data import partition
from fedlearn.data.distinct import Parts
from fedlearn.errors import ConfigError

FASHION = np.repeat(np.arange(10), 6000)
"""The labels of Fashion-MNIST's training set: 6,000 of each class."""

MAKERS: dict[str, Callable[[np.ndarray, int, int], Parts]] = {
    "iid": lambda y, n, seed: partition.iid(len(y), n, seed=seed),
    "dirichlet": lambda y, n, seed: partition.dirichlet(y, n, alpha=5.0, seed=seed, min_size=1),
    "labels": lambda y, n, seed: partition.label_count(y, n, classes=2, seed=seed),
    "quantity": lambda y, n, seed: partition.quantity(len(y), n, alpha=5.0, seed=seed, min_size=1),
    "natural": lambda y, n, seed: partition.natural(np.arange(len(y)) % 40, n, seed=seed),
}


def is_exact(parts: Parts, count: int) -> bool:
    everything = np.concatenate(parts)
    return all(len(part) for part in parts) and np.array_equal(
        np.sort(everything), np.arange(count)
    )


@pytest.mark.parametrize("name", MAKERS)
@settings(max_examples=25, deadline=None)
@given(
    count=st.integers(200, 600),
    classes=st.integers(2, 5),
    parts=st.integers(3, 12),
    seed=st.integers(0, 2**63 - 1),
)
def test_each_example_is_in_exactly_one_part(
    name: str, count: int, classes: int, parts: int, seed: int
) -> None:
    labels = np.arange(count) * 7 % classes
    parts = max(parts, classes)
    made = MAKERS[name](labels, parts, seed)
    assert len(made) == parts
    assert is_exact(made, count)
    again = MAKERS[name](labels, parts, seed)
    assert all(np.array_equal(one, other) for one, other in zip(made, again, strict=True))


@pytest.mark.parametrize("name", MAKERS)
def test_another_seed_gives_other_parts(name: str) -> None:
    labels = np.arange(600) % 4
    one, other = (MAKERS[name](labels, 8, seed) for seed in (1, 2))
    assert any(not np.array_equal(a, b) for a, b in zip(one, other, strict=True))


def test_iid_parts_differ_by_one_example_at_most() -> None:
    sizes = {len(part) for part in partition.iid(60_001, 7, seed=3)}
    assert max(sizes) - min(sizes) == 1


def test_a_dirichlet_part_that_is_full_gets_no_more_classes() -> None:
    """NIID-Bench: once a part has N/n examples, the classes that follow leave it out.

    So no part has more than its share before its last class, and that class at most.
    """
    for seed in range(5):
        made = partition.dirichlet(FASHION, 10, alpha=0.5, seed=seed)
        assert min(map(len, made)) >= partition.MIN_SIZE
        for part in made:
            last = FASHION[part].max()
            assert np.count_nonzero(FASHION[part] < last) < 6000


def test_a_smaller_alpha_means_more_skew() -> None:
    def largest_class(alpha: float) -> float:
        shares = [
            np.bincount(FASHION[part], minlength=10).max() / len(part)
            for seed in range(5)
            for part in partition.dirichlet(FASHION, 10, alpha=alpha, seed=seed)
        ]
        return float(np.mean(shares))

    assert largest_class(0.1) > largest_class(0.5) > largest_class(100.0)
    assert largest_class(1e4) == pytest.approx(0.1, abs=0.02)


def test_shares_of_a_class_have_the_dirichlet_mean_and_variance() -> None:
    """The first class is not balanced yet: its shares are a plain draw, var (n-1)/(n^2 (an+1))."""
    shares = np.array(
        [
            [np.count_nonzero(FASHION[part] == 0) / 6000 for part in made]
            for seed in range(150)
            for made in [partition.dirichlet(FASHION, 5, alpha=1.0, seed=seed, min_size=1)]
        ]
    )
    assert shares.mean(axis=0) == pytest.approx([0.2] * 5, abs=0.04)
    assert shares.var(axis=0).mean() == pytest.approx(4 / (25 * 6), rel=0.2)


@pytest.mark.parametrize("classes", [1, 2, 3, 10])
def test_each_part_has_k_classes_and_owners_share_a_class_evenly(classes: int) -> None:
    made = partition.label_count(FASHION, 10, classes=classes, seed=5)
    counts = np.array([np.bincount(FASHION[part], minlength=10) for part in made])
    assert ((counts > 0).sum(axis=1) == classes).all()
    assert (np.diagonal(counts) > 0).all(), "part i has class i"
    for column in counts.T:
        held = column[column > 0]
        assert held.max() - held.min() <= 1


def test_ten_thousand_parts() -> None:
    assert is_exact(partition.iid(60_000, 10_000, seed=1), 60_000)
    assert is_exact(partition.label_count(FASHION, 10_000, classes=2, seed=1), 60_000)
    made = partition.dirichlet(FASHION, 5_000, alpha=100, seed=1, min_size=1)
    assert is_exact(made, 60_000)


def test_as_many_parts_as_ids_are_in_the_order_of_the_ids() -> None:
    ids = np.array(["b", "a", "c", "a"])
    assert [part.tolist() for part in partition.natural(ids, 3, seed=9)] == [[1, 3], [0], [2]]
    for part in partition.natural(ids, 2, seed=9):
        outside = np.setdiff1d(np.arange(4), part)
        assert not set(ids[part]) & set(ids[outside])


def test_noise_rises_from_none_to_sigma_and_keeps_the_unit() -> None:
    levels = [partition.noise_level(part, 11, sigma=0.5) for part in range(11)]
    assert levels == pytest.approx(np.linspace(0, 0.5, 11).tolist())
    pixels = np.full((400, 28), 100, dtype=np.uint8)
    clean = partition.noisy(pixels, 0, 3, sigma=0.1, seed=1)
    assert clean.dtype == np.float32
    assert (clean == 100).all()
    last = partition.noisy(pixels, 2, 3, sigma=0.1, seed=1)
    assert float(last.std()) == pytest.approx(25.5, rel=0.05)
    assert not np.array_equal(last, partition.noisy(pixels, 2, 3, sigma=0.1, seed=1, stream=1))
    scaled = partition.noisy(np.zeros((400, 28), dtype=np.float32), 2, 3, sigma=0.1, seed=1)
    assert float(scaled.std()) == pytest.approx(0.1, rel=0.05)


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda: partition.iid(5, 6, seed=0), "5 examples cannot be divided among 6 parts"),
        (lambda: partition.iid(5, 0, seed=0), "0 parts"),
        (lambda: partition.iid(5, 2, seed=-1), "the seed is -1"),
        (
            lambda: partition.dirichlet(FASHION, 6001, alpha=1, seed=0),
            "60000 examples cannot be divided among 6001 parts of 10 each",
        ),
        (
            lambda: partition.dirichlet(FASHION, 50, alpha=0.001, seed=0),
            r"alpha 0\.001 gave each of 50 parts 10 of 60000 examples in none of 1,000 attempts",
        ),
        (
            lambda: partition.quantity(1000, 100, alpha=0.01, seed=0),
            "alpha 0.01 gave each of 100 parts 10 of 1000 examples in none",
        ),
        (lambda: partition.quantity(100, 11, alpha=1, seed=0), "11 parts of 10 each"),
        (lambda: partition.label_count(FASHION, 10, classes=11, seed=0), "the labels have 10"),
        (lambda: partition.label_count(FASHION, 10, classes=0, seed=0), "0 classes"),
        (
            lambda: partition.label_count(FASHION, 4, classes=2, seed=0),
            "4 parts of 2 classes cannot hold the 10 classes",
        ),
        (
            lambda: partition.label_count(np.arange(20) % 2, 30, classes=1, seed=0),
            "20 examples cannot be divided among 30 parts",
        ),
        (
            lambda: partition.label_count(np.array([0] * 99 + [1]), 10, classes=1, seed=0),
            "5 parts share the 1 examples of class 1",
        ),
        (
            lambda: partition.dirichlet(np.array([0, np.nan, 1.0]), 2, alpha=1, seed=0),
            r"1 of 3 labels are missing or not finite, the first at example 1",
        ),
        (
            lambda: partition.dirichlet(np.array(["a", None, "b"]), 2, alpha=1, seed=0),
            "1 of 3 labels are missing",
        ),
        (
            lambda: partition.dirichlet(np.linspace(0, 1, 50), 2, alpha=1, seed=0),
            "50 labels have 50 distinct values, so they are not classes",
        ),
        (lambda: partition.dirichlet(np.zeros((4, 2)), 2, alpha=1, seed=0), "2 dimensions"),
        (lambda: partition.natural(np.array([1, 1, 2]), 3, seed=0), "2 distinct values"),
        (lambda: partition.natural(np.array(["a", ""]), 1, seed=0), "1 of 2 ids are missing"),
        (
            lambda: partition.noisy(np.array(["a"]), 0, 1, sigma=1, seed=0),
            "noise cannot be added to values of type",
        ),
    ],
)
def test_what_cannot_be_made_is_refused(make: Callable[[], object], expected: str) -> None:
    with pytest.raises(ConfigError, match=expected):
        make()
