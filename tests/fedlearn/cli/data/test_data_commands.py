"""``fedlearn data split`` and ``show``: what they write and print, and what they refuse."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result

from fedlearn.cli import main


@pytest.fixture
def source(tmp_path: Path) -> str:
    path = tmp_path / "a.npz"
    y = np.arange(300) % 3
    np.savez(path, x=np.zeros((300, 2)), y=y, ward=np.arange(300) // 60)
    return str(path)


def run(*words: str) -> Result:
    return CliRunner().invoke(main, ["data", *words])


def test_split_and_show(source: str, tmp_path: Path) -> None:
    out = tmp_path / "data"
    made = run(
        "split",
        source,
        "--partition",
        "dirichlet",
        "--alpha",
        "5",
        "--clients",
        "4",
        "--seed",
        "3",
        "--out",
        str(out),
    )
    assert made.exit_code == 0, made.output
    assert "300 examples for 4 sites" in made.output
    assert (out / "client-0003" / "data.npz").is_file()
    shown = run("show", str(out))
    assert shown.output.splitlines()[0].split() == ["SITE", "TRAIN", "TEST", "0", "1", "2"]
    assert len(shown.output.splitlines()) == 5
    body = json.loads(run("show", str(out), "--json").output)
    assert body["schema"] == "fedlearn data show/1"
    assert sum(sum(site["labels"]) for site in body["sites"].values()) == 300
    assert body["setup"]["alpha"] == 5.0


@pytest.mark.parametrize("kind", ["bars", "bubbles"])
@pytest.mark.parametrize(
    ("form", "begins"), [("png", b"\x89PNG"), ("svg", b"<?xml"), ("pdf", b"%PDF")]
)
def test_a_picture_is_the_same_each_time(
    source: str, tmp_path: Path, kind: str, form: str, begins: bytes
) -> None:
    pytest.importorskip("matplotlib")
    out = tmp_path / "data"
    assert run("split", source, "--sites", "north,south", "--out", str(out)).exit_code == 0
    pictures = [tmp_path / f"{name}.{form}" for name in "ab"]
    for picture in pictures:
        shown = run("show", str(out), "--plot", str(picture), "--kind", kind)
        assert shown.exit_code == 0, shown.output
    assert pictures[0].read_bytes().startswith(begins)
    assert pictures[0].read_bytes() == pictures[1].read_bytes()
    if form == "svg":
        assert "north" in pictures[0].read_text()


def test_natural_parts_need_no_number(source: str, tmp_path: Path) -> None:
    out = tmp_path / "data"
    made = run(
        "split", source, "--partition", "natural", "--id", "ward", "--out", str(out), "--json"
    )
    assert made.exit_code == 0, made.output
    assert list(json.loads(made.output)["sites"]) == [f"client-{at:04d}" for at in range(5)]


def test_many_sites_are_cut_on_the_terminal_and_not_in_json(source: str, tmp_path: Path) -> None:
    out = tmp_path / "data"
    assert run("split", source, "--clients", "150", "--out", str(out)).exit_code == 0
    assert "and 50 sites more" in run("show", str(out)).output
    assert len(json.loads(run("show", str(out), "--json").output)["sites"]) == 150


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--clients", "301"], "300 examples cannot be divided among 301 parts"),
        (["--partition", "labels", "--classes", "4", "--clients", "4"], "the labels have 3"),
        (["--alpha", "1", "--clients", "4"], "alpha: is for the partition dirichlet"),
        (["--clients", "4", "--sites", "a,b"], "exclude each other"),
        ([], "needs --clients or --sites"),
        (["--partition", "natural", "--id", "bed"], "has no column 'bed'"),
        (["--clients", "2", "--label", "z"], "has no array 'z'"),
    ],
)
def test_what_cannot_be_split_leaves_nothing(
    source: str, tmp_path: Path, words: list[str], expected: str
) -> None:
    out = tmp_path / "data"
    made = run("split", source, *words, "--out", str(out))
    assert made.exit_code != 0
    assert expected in " ".join(made.output.split())
    assert not out.exists()


def test_nothing_is_overwritten(source: str, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    out = tmp_path / "data"
    assert run("split", source, "--clients", "2", "--out", str(out)).exit_code == 0
    again = run("split", source, "--clients", "3", "--out", str(out))
    assert again.exit_code == 1
    assert "exists" in again.output
    picture = tmp_path / "a.png"
    picture.write_text("mine")
    assert "exists" in run("show", str(out), "--plot", str(picture)).output
    assert picture.read_text() == "mine"


def test_a_folder_that_is_not_divided_data_is_refused(tmp_path: Path, source: str) -> None:
    shown = run("show", str(tmp_path))
    assert shown.exit_code == 1
    assert "`fedlearn data split` writes one" in shown.output
    out = tmp_path / "data"
    assert run("split", source, "--clients", "2", "--out", str(out)).exit_code == 0
    refused = run("show", str(out), "--plot", str(tmp_path / "a.bmp"))
    assert "choose png, svg, pdf" in refused.output
