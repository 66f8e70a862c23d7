"""Which files of an application are collected, and what its process may report of them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedlearn.errors import TransportError
from server.flower.application import app_files as appfiles
from server.flower.application.app_files import (
    as_arrays,
    as_files,
    checked,
    collect,
    kept_as,
    most_bytes,
)


def test_files_are_collected_by_name_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "app" / "inner").mkdir(parents=True)
    (tmp_path / "app" / "code.py").write_text("ours")
    (tmp_path / "runs" / "app").mkdir(parents=True)
    (tmp_path / "runs" / "app" / "b").write_bytes(b"2")
    (tmp_path / "runs" / "__pycache__").mkdir()
    (tmp_path / "runs" / "__pycache__" / "x.pyc").touch()
    (tmp_path / ".cache").mkdir()
    (tmp_path / ".cache" / "x").touch()
    (tmp_path / "a").write_bytes(b"1")
    (tmp_path / "link").symlink_to(tmp_path / "a")
    (tmp_path / "loop").symlink_to(tmp_path)
    os.mkfifo(tmp_path / "fifo")
    kept, left_out = collect(tmp_path, most=100, without=["app"])
    assert kept == {"a": b"1", "runs/app/b": b"2"}
    assert left_out == ["fifo: not a regular file"]


def test_what_is_beyond_the_bounds_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, size in (("a", 40), ("b", 70), ("c", 60), ("d", 0)):
        (tmp_path / name).write_bytes(bytes(size))
    kept, left_out = collect(tmp_path, most=100)
    assert list(kept) == ["a", "c", "d"]
    assert left_out == ["b: more than 100 bytes in all"]
    monkeypatch.setattr(appfiles, "MAX_FILES", 2)
    kept, left_out = collect(tmp_path, most=1000)
    assert list(kept) == ["a", "b"]
    assert left_out == ["c: more than 2 files", "d: more than 2 files"]


def test_a_name_that_cannot_be_shown_is_left_out(tmp_path: Path) -> None:
    (tmp_path / "a\nb").touch()
    (tmp_path / os.fsdecode(b"\xff")).touch()
    (tmp_path / "é").touch()
    kept, left_out = collect(tmp_path, most=10)
    assert list(kept) == ["é"]
    assert len(left_out) == 2
    assert all("is not a file's name" in reason for reason in left_out)


BAD: dict[str, Any] = {
    "upwards": ["../a"],
    "inside": ["a/../b"],
    "absolute": ["/a"],
    "double": ["a//b"],
    "folder": ["a/"],
    "empty": [""],
    "dot": ["."],
    "windows": ["a\\b"],
    "null": ["a\0"],
    "line": ["a\nb"],
    "surrogate": ["\udcff"],
    "bidi": ["\u202e"],
    "number": [1],
    "long": ["a/" * 300 + "a"],
    "long part": ["a" * 256],
    "text": "a",
    "nothing": None,
    "other count": ["a", "b"],
}


@pytest.mark.parametrize("names", BAD.values(), ids=BAD.keys())
def test_names_from_the_applications_process_are_bounded(names: object) -> None:
    with pytest.raises(TransportError):
        checked(names, [memoryview(b"x")], most=10)


def test_files_do_not_collide_and_have_a_bound() -> None:
    two = [memoryview(b"x"), memoryview(b"y")]
    assert list(checked(["a", "b/c"], two, most=2)) == ["a", "b/c"]
    for names in (["a", "a"], ["a", "a/b"], ["b/c/d", "b"]):
        with pytest.raises(TransportError, match=r"two files|file and a folder"):
            checked(names, two, most=2)
    with pytest.raises(TransportError, match="at most 1 bytes"):
        checked(["a", "b"], two, most=1)
    with pytest.raises(TransportError, match="at most 1000 names"):
        checked([str(i) for i in range(1001)], [memoryview(b"")] * 1001, most=1)


def test_files_are_arrays_and_back_and_a_model_is_no_files() -> None:
    files = {"fedlearn.state": b"abc", "x/y": b""}
    arrays = as_arrays(files)
    assert {name: bytes(data) for name, data in as_files(arrays).items()} == files
    for odd in ({"w": np.zeros(2, np.uint8)}, {"files/w": np.zeros(2, np.float32)}):
        with pytest.raises(TransportError, match="is an array of a model"):
            as_files(odd)
    with pytest.raises(TransportError, match="not a file's name"):
        as_files({"files/../w": np.zeros(2, np.uint8)})


def test_the_bound_follows_the_bound_of_an_update() -> None:
    assert [most_bytes(n) >> 20 for n in (1, 100 << 20, 1 << 40)] == [16, 100, 1024]
    assert kept_as("j" * 63) == "j" * 63 + ".files"
