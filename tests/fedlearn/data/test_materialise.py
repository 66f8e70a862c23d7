"""Divided data is written as a whole or not at all, once, and as the table states it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from fedlearn.data import Examples, materialise, parts_file, write_new
from fedlearn.data.materialise import SERVER_TEST
from fedlearn.errors import ConfigError

SITES = ("north", "south", "west")


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """300 examples of three classes, each of 60 patients at one of 6 hospitals; x is the row."""
    path = tmp_path / "source.npz"
    patient = np.repeat(np.arange(60), 5)
    np.savez(
        path,
        x=np.arange(300.0, dtype=np.float32).reshape(300, 1),
        y=patient % 3,
        patient=patient,
        hospital=patient // 10,
        visit=np.arange(300) % 5,
    )
    return path


def rows(path: Path) -> list[int]:
    with np.load(path) as file:
        return sorted(int(value) for value in file["x"][:, 0])


def all_rows(folders: dict[str, Path]) -> list[int]:
    return sorted(
        row
        for folder in folders.values()
        for name in ("data", "test")
        if (folder / f"{name}.npz").exists()
        for row in rows(folder / f"{name}.npz")
    )


@pytest.mark.parametrize(
    "keys",
    [
        {},
        {"partition": "dirichlet", "alpha": 5, "test": 0},
        {"partition": "labels", "classes": 2, "group": "patient"},
        {"partition": "quantity", "alpha": 5, "min_size": 1},
        {"partition": "natural", "id": "hospital", "group": "patient"},
        {"partition": "dirichlet", "alpha": 5, "group": "patient", "min_size": 3},
    ],
)
def test_each_example_is_at_exactly_one_site(
    source: Path, tmp_path: Path, keys: dict[str, object]
) -> None:
    table = {"source": str(source), **keys}
    folders = materialise(table, tmp_path / "cache", SITES, 1)
    assert list(folders) == list(SITES)
    assert all_rows(folders) == list(range(300))
    if "group" in keys:
        owners = [{row // 5 for row in rows(f / "data.npz")} for f in folders.values()]
        owners += [{row // 5 for row in rows(f / "test.npz")} for f in folders.values()]
        assert sum(map(len, owners)) == 60, "a patient is in one file"
    found = parts_file.read(folders["north"].parent)
    assert sum(part.train + part.test for part in found.parts.values()) == 300
    assert np.sum([part.labels for part in found.parts.values()], axis=0).tolist() == [100] * 3


def test_natural_ids_are_written_and_noise_is_not_in_the_first_site(
    source: Path, tmp_path: Path
) -> None:
    folders = materialise(
        {"source": str(source), "partition": "natural", "id": "hospital"}, tmp_path, SITES, 1
    )
    with np.load(folders["south"] / "data.npz") as file:
        assert set(file["ids"]) == {int(row) // 50 for row in file["x"][:, 0]}
    noisy = materialise(
        {"source": str(source), "partition": "noise", "noise": 1, "server_test": True},
        tmp_path,
        SITES,
        1,
    )
    with np.load(noisy["north"] / "data.npz") as file:
        assert (file["x"] % 1 == 0).all()
    with np.load(noisy["west"] / "data.npz") as file:
        assert not (file["x"] % 1 == 0).any()


def test_the_server_has_what_is_held_out_before_the_division(source: Path, tmp_path: Path) -> None:
    table = {"source": str(source), "server_test": True, "server_share": 0.2, "group": "patient"}
    folders = materialise(table, tmp_path, SITES, 1)
    held = rows(folders["north"].parent / SERVER_TEST)
    assert len(held) == 60
    assert sorted([*held, *all_rows(folders)]) == list(range(300))
    assert not {row // 5 for row in held} & {row // 5 for row in all_rows(folders)}


def test_the_test_set_of_a_source_is_the_servers(tmp_path: Path) -> None:
    x = np.zeros((30, 2), dtype=np.uint8)
    y = np.arange(30) % 2
    examples = Examples(name="a", x=x, y=y, test=(x[:7], y[:7]))
    found = write_new(
        {"source": "a.npz", "server_test": True}, tmp_path / "out", SITES, 1, examples=examples
    )
    assert found.server_test == 7
    assert sum(part.train + part.test for part in found.parts.values()) == 30


def test_what_was_written_is_used_again(source: Path, tmp_path: Path) -> None:
    table = {"source": str(source), "partition": "dirichlet", "alpha": 5}
    one = materialise(table, tmp_path, SITES, 1)
    stamp = (one["north"] / "data.npz").stat().st_mtime_ns
    assert materialise(table, tmp_path, SITES, 1) == one
    assert (one["north"] / "data.npz").stat().st_mtime_ns == stamp
    others = [
        materialise(table, tmp_path, SITES, 2),
        materialise(table, tmp_path, SITES[:2], 1),
        materialise({**table, "alpha": 6}, tmp_path, SITES, 1),
    ]
    assert materialise({**table, "seed": 2}, tmp_path, SITES, 1) == others[0]
    with np.load(source) as file:
        arrays = dict(file)
    np.savez(source, **{**arrays, "x": arrays["x"] + 1})
    others.append(materialise(table, tmp_path, SITES, 1))
    assert len({one["north"], *(other["north"] for other in others)}) == 5


def test_the_same_arguments_give_the_same_bytes(source: Path, tmp_path: Path) -> None:
    table = {"source": str(source), "partition": "noise"}
    one, other = (materialise(table, tmp_path / name, SITES, 1) for name in "ab")
    for site in SITES:
        for name in ("data.npz", "test.npz"):
            assert (one[site] / name).read_bytes() == (other[site] / name).read_bytes()


@pytest.mark.parametrize("damage", ["cut", "removed", "manifest"])
def test_a_damaged_folder_is_written_again(source: Path, tmp_path: Path, damage: str) -> None:
    folders = materialise({"source": str(source)}, tmp_path, SITES, 1)
    path = folders["south"] / "data.npz"
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:-1])
    elif damage == "removed":
        path.unlink()
    else:
        manifest = path.parent.parent / parts_file.NAME
        manifest.write_text(manifest.read_text()[:-40])
    materialise({"source": str(source)}, tmp_path, SITES, 1)
    assert all_rows(folders) == list(range(300))


def test_a_kill_leaves_no_folder_that_is_taken_for_whole(source: Path, tmp_path: Path) -> None:
    program = (
        "import sys, numpy as np; from fedlearn.data import materialise;"
        "save = np.savez;"
        "exec('def slow(path, **arrays):\\n save(path, **arrays); print(flush=True);"
        " import time; time.sleep(5)'); np.savez = slow;"
        f"materialise({{'source': {str(source)!r}}}, __import__('pathlib').Path({str(tmp_path)!r}),"
        f" {SITES!r}, 1)"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline()
        os.kill(process.pid, signal.SIGKILL)
    left = [path for path in tmp_path.iterdir() if path.is_dir()]
    assert left, "the process was killed while it wrote"
    assert all(path.name.startswith(".") for path in left)
    folders = materialise({"source": str(source)}, tmp_path, SITES, 1)
    assert all_rows(folders) == list(range(300))
    assert [path for path in tmp_path.iterdir() if path.is_dir()] == [folders["north"].parent]


@pytest.mark.long
def test_ten_thousand_sites_are_written_in_bounded_time(tmp_path: Path) -> None:
    examples = Examples(name="a", x=np.zeros((20_000, 4), dtype=np.uint8), y=np.arange(20_000) % 10)
    names = [f"client-{number:04d}" for number in range(10_000)]
    before = time.process_time()
    found = write_new({"source": "a.npz", "test": 0}, tmp_path / "out", names, 1, examples=examples)
    assert time.process_time() - before < 30
    assert len(found.parts) == 10_000


@pytest.mark.parametrize("form", ["csv", "parquet"])
def test_tables_keep_their_columns(tmp_path: Path, form: str) -> None:
    if form == "parquet":
        pytest.importorskip("pyarrow")
    path = tmp_path / "t.csv"
    path.write_text("name,age,died\n" + "".join(f"p{i % 3},{i},{i % 2}\n" for i in range(30)))
    table = {"source": str(path), "label": "died", "format": form, "test": 0}
    folders = materialise(table, tmp_path / "cache", SITES, 1)
    from fedlearn.data import load

    ages = []
    for folder in folders.values():
        found = load(str(folder / f"data.{form}"), label="died")
        assert list(found.columns) == ["name", "age", "died"]
        ages += found.columns["age"].tolist()
    assert sorted(ages) == list(range(30))


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({"partition": "dirichlt"}, r'partition: must be one of .*did you mean "dirichlet"'),
        ({"alpha": 1}, "alpha: is for the partition dirichlet or quantity, not iid"),
        ({"alpha": -1, "partition": "dirichlet"}, "alpha: must be a number"),
        ({"partition": "natural"}, "id: the partition natural needs the column"),
        ({"partition": "natural", "id": "ward"}, "id: .* has no column 'ward'"),
        ({"partition": "natural", "id": "visit", "group": "patient"}, "60 groups have examples in"),
        ({"group": "subject"}, "group: .* has no column 'subject'"),
        ({"partition": "labels", "classes": 4}, "4 classes for each part; the labels have 3"),
        (
            {"partition": "dirichlet", "group": "patient", "min_size": 30},
            "by groups of the column 'patient', each counted as one example: 60 examples",
        ),
        ({"format": "csv", "source": "sklearn:digits"}, "sklearn:digits is no table"),
        ({"format": "csv", "partition": "noise"}, "format: noise is added to arrays"),
        ({"limit": 2}, "2 examples cannot be divided among 3 parts"),
        ({"source": ""}, "source: must be a path"),
        ({"sed": 1}, "unknown key; did you mean 'seed'"),
    ],
)
def test_what_cannot_be_made_leaves_nothing_behind(
    source: Path, tmp_path: Path, keys: dict[str, object], expected: str
) -> None:
    root = tmp_path / "cache"
    with pytest.raises(ConfigError, match=expected):
        materialise({"source": str(source), **keys}, root, SITES, 1)
    assert not [path for path in root.glob("*") if path.is_dir()]


def test_sites_and_folders_that_are_wrong_are_refused(source: Path, tmp_path: Path) -> None:
    table = {"source": str(source)}
    for sites, expected in (
        ([], "0 sites"),
        (["north", "north"], "'north' is named twice"),
        (["../north"], "is no name of a site"),
    ):
        with pytest.raises(ConfigError, match=expected):
            materialise(table, tmp_path, sites, 1)
    write_new(table, tmp_path / "out", SITES, 1)
    with pytest.raises(ConfigError, match="exists"):
        write_new(table, tmp_path / "out", SITES, 1)


def test_relative_paths_start_from_the_base(source: Path, tmp_path: Path) -> None:
    folders = materialise({"source": source.name}, tmp_path / "c", SITES, 1, base=source.parent)
    assert all_rows(folders) == list(range(300))


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        ("fedlearn data parts/1", "fedlearn data parts/9", "is of the form"),
        ('"train": ', '"train": -', "is damaged or cut short"),
        ('"parts"', '"pats"', "KeyError"),
        ('"labels": [', '"labels": [1, ', "are not those of the classes"),
    ],
)
def test_a_damaged_parts_file_is_refused(
    source: Path, tmp_path: Path, before: str, after: str, expected: str
) -> None:
    write_new({"source": str(source)}, tmp_path / "out", SITES, 1)
    path = tmp_path / "out" / parts_file.NAME
    text = path.read_text()
    assert before in text
    path.write_text(text.replace(before, after, 1))
    with pytest.raises(ConfigError, match=expected):
        parts_file.read(tmp_path / "out")
