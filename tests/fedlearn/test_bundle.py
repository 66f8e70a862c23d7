"""Bundles, frames and seeds: what runs where, in which bytes, with which numbers."""

from __future__ import annotations

import hashlib
import io
import random
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

from fedlearn import bundle
from fedlearn.errors import JobError, TransportError
from fedlearn.frames import FrameReader, frames_length, write_frames
from fedlearn.seeds import derive, node_number, seed_generators

PROJECT = b"""
[project]
name = "small"
version = "1.0"
[tool.flwr.app]
publisher = "t"
[tool.flwr.app.components]
serverapp = "smallapp.one:app"
clientapp = "smallapp.one:missing"
[tool.flwr.app.config]
rate = 0.5
deep.er = "x"
"""


def _zip(files: dict[str, bytes]) -> bytes:
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return data.getvalue()


GOOD = {"pyproject.toml": PROJECT, "smallapp/one.py": b"app = 5\n"}


def test_a_bundle_is_unpacked_read_and_loaded(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(sys, "path", list(sys.path))
    data = _zip(GOOD)
    found = bundle.unpack(data, tmp_path / "app", digest=hashlib.sha256(data).digest())
    assert found.load("serverapp") == 5
    assert found.run_config({"rate": 1.0}) == {"rate": 1.0, "deep.er": "x"}
    assert (tmp_path / "app").stat().st_mode & 0o077 == 0
    with pytest.raises(JobError, match="has no 'missing'"):
        found.load("clientapp")
    with pytest.raises(JobError, match="'speed' is not in the run config"):
        found.run_config({"speed": 2})


@pytest.mark.parametrize(
    ("files", "reason"),
    [
        ({**GOOD, "server.py": b""}, "take the place"),
        ({**GOOD, "fedlearn/errors.py": b""}, "take the place"),
        ({**GOOD, "../outside.py": b""}, "leaves it"),
        ({**GOOD, "/etc/outside": b""}, "leaves it"),
        ({**GOOD, "bomb.txt": bytes(65 * 1024 * 1024)}, "unpacks to more"),
        ({"smallapp/one.py": b""}, "no pyproject"),
    ],
)
def test_a_bundle_that_may_not_run_here_is_refused(tmp_path: Path, files, reason):
    with pytest.raises(JobError, match=reason):
        bundle.unpack(_zip(files), tmp_path / "app")
    assert not (tmp_path / "app").exists()


def test_another_bundle_than_the_jobs_is_refused(tmp_path: Path):
    with pytest.raises(JobError, match="not the"):
        bundle.unpack(_zip(GOOD), tmp_path / "app", digest=bytes(32))
    with pytest.raises(JobError, match="not a Flower app bundle"):
        bundle.unpack(b"nonsense", tmp_path / "app")


def test_our_packages_come_from_one_place(monkeypatch, tmp_path: Path):
    bundle.check_packages()
    (tmp_path / "elsewhere").mkdir()
    fake = tmp_path / "elsewhere" / "__init__.py"
    fake.write_text("")
    monkeypatch.setattr(bundle, "OUR_PACKAGES", frozenset({"fedlearn", "elsewhere"}))
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    with pytest.raises(JobError, match="come from different places"):
        bundle.check_packages()


@pytest.mark.parametrize("step", [1, 3, 1000])
def test_frames_come_back_however_they_are_cut(step):
    parts = [b"", b"a", bytes(500), b""]
    body = b"".join(map(bytes, write_frames(parts)))
    assert len(body) == frames_length(parts)
    reader = FrameReader(len(body))
    found = [f for at in range(0, len(body), step) for f in reader.feed(body[at : at + step])]
    reader.finish()
    assert found == parts


@pytest.mark.parametrize(
    "body",
    [b"\0\0\0\0\0\0\0\x05abc", b"\xff" * 8, b"\0\0\0", b"\0" * 7 + b"\x02abc" + b"\0"],
)
def test_a_body_that_is_not_frames_is_refused(body):
    reader = FrameReader(len(body))
    with pytest.raises(TransportError):
        (list(reader.feed(body)), reader.finish())


def test_more_than_announced_is_refused():
    with pytest.raises(TransportError, match="longer than announced"):
        list(FrameReader(3).feed(b"\0" * 4))


def test_seeds_do_not_collide_and_do_not_change():
    seen = {
        derive(1, "a", 1),
        derive(2, "a", 1),
        derive(1, "a", "1"),
        derive(1, "a1"),
        derive(1, b"a", 1),
        derive(1, "a", 1, ""),
    }
    assert len(seen) == 6
    assert derive(7, "round", 3, "server").hex() == derive(7, "round", 3, "server").hex()
    seed_generators(derive(7, "x"))
    first = (random.random(), np.random.rand())
    seed_generators(derive(7, "x"))
    assert (random.random(), np.random.rand()) == first
    for wrong in (-1, 2**64):
        with pytest.raises(ValueError, match="whole number"):
            derive(wrong)
    with pytest.raises(ValueError, match="32 bytes"):
        seed_generators(b"short")


def test_node_numbers_are_stable_and_in_range():
    digest = hashlib.sha256(b"job").digest()
    numbers = {node_number(digest, f"site-{i}") for i in range(100)}
    assert len(numbers) == 100
    assert all(2 <= number < 2**63 for number in numbers)
    assert node_number(digest, "site-0") == node_number(digest, "site-0")
