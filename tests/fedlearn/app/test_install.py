"""Bundles, frames and seeds: what runs where, in which bytes, with which numbers."""

from __future__ import annotations

import hashlib
import io
import random
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedlearn.app import install as bundle
from fedlearn.app.checks import check_bundle
from fedlearn.errors import JobError
from fedlearn.job.seeds import derive, node_number, seed_generators

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


def test_a_bundle_is_unpacked_read_and_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))
    data = _zip(GOOD)
    found = bundle.unpack(data, tmp_path / "app")
    assert found.load("serverapp") == 5
    assert found.run_config({"rate": 1.0}) == {"rate": 1.0, "deep.er": "x"}
    assert (tmp_path / "app").stat().st_mode & 0o077 == 0
    with pytest.raises(JobError, match="has no 'missing'"):
        found.load("clientapp")
    with pytest.raises(JobError, match="'speed' is not in the run config"):
        found.run_config({"speed": 2})


def test_a_bundle_is_decompressed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reads: list[str] = []
    read = zipfile.ZipFile.read

    def counting(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> bytes:
        reads.append(entry.filename)
        return read(archive, entry)

    monkeypatch.setattr(zipfile.ZipFile, "read", counting)
    bundle.unpack(_zip(GOOD), tmp_path / "app")
    assert reads == list(GOOD)


@pytest.mark.parametrize(
    ("files", "reason"),
    [
        ({**GOOD, "server.py": b""}, "would replace a package"),
        ({**GOOD, "fedlearn/errors.py": b""}, "would replace a package"),
        ({**GOOD, "../outside.py": b""}, "leaves it"),
        ({**GOOD, "/etc/outside": b""}, "leaves it"),
        ({**GOOD, "bomb.txt": bytes(65 * 1024 * 1024)}, "unpacks to more"),
        ({"smallapp/one.py": b""}, "no pyproject"),
    ],
)
def test_a_bundle_that_may_not_run_here_is_refused(
    tmp_path: Path, files: dict[str, Any] | dict[str, bytes], reason: str
) -> None:
    with pytest.raises(JobError, match=reason):
        bundle.unpack(_zip(files), tmp_path / "app")
    assert not (tmp_path / "app").exists()


def test_what_is_no_bundle_is_refused(tmp_path: Path) -> None:
    with pytest.raises(JobError, match="not a Flower app bundle"):
        bundle.unpack(b"nonsense", tmp_path / "app")


def test_our_packages_come_from_one_place(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    bundle.check_packages()
    (tmp_path / "elsewhere").mkdir()
    fake = tmp_path / "elsewhere" / "__init__.py"
    fake.write_text("")
    monkeypatch.setattr(bundle, "OUR_PACKAGES", frozenset({"fedlearn", "elsewhere"}))
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    with pytest.raises(JobError, match="come from different places"):
        bundle.check_packages()


def test_seeds_do_not_collide_and_do_not_change() -> None:
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


def test_node_numbers_are_stable_and_in_range() -> None:
    digest = hashlib.sha256(b"job").digest()
    numbers = {node_number(digest, f"site-{i}") for i in range(100)}
    assert len(numbers) == 100
    assert all(2 <= number < 2**63 for number in numbers)
    assert node_number(digest, "site-0") == node_number(digest, "site-0")


def _entry(name: str, **fields: object) -> zipfile.ZipInfo:
    entry = zipfile.ZipInfo("x")
    entry.filename = name
    for key, value in fields.items():
        setattr(entry, key, value)
    return entry


def _with(*more: tuple[zipfile.ZipInfo, bytes]) -> bytes:
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as archive:
        for name, content in GOOD.items():
            archive.writestr(name, content)
        for entry, content in more:
            archive.writestr(entry, content)
    return data.getvalue()


def _method(data: bytes, name: bytes, method: int, flags: int = 0) -> bytes:
    """Declare another compression method (or flags) for one file, as no library writes it."""
    central = data.index(b"PK\x01\x02", data.index(b"PK\x01\x02"))
    while data[central + 46 : central + 46 + len(name)] != name:
        central = data.index(b"PK\x01\x02", central + 4)
    made = bytearray(data)
    made[central + 8 : central + 12] = flags.to_bytes(2, "little") + method.to_bytes(2, "little")
    return bytes(made)


def _damaged(at: bytes) -> bytes:
    """Deflated content that is cut through in the middle."""
    data = bytearray(_zip({**GOOD, "smallapp/data.bin": bytes(range(256)) * 40}))
    start = data.index(at) + len(at)
    data[start + 5 : start + 25] = bytes(20)
    return bytes(data)


HOSTILE = {
    "a project under another spelling": (
        _with((_entry("./pyproject.toml"), PROJECT.replace(b"one:app", b"two:app"))),
        "not in normal form",
    ),
    "a doubled slash": (_with((_entry("smallapp//one.py"), b"app = 6")), "not in normal form"),
    "a dot inside": (_with((_entry("smallapp/./one.py"), b"app = 6")), "not in normal form"),
    "our name behind a dot": (_with((_entry("./fedlearn/x.py"), b"")), "not in normal form"),
    "a file that is a folder": (_with((_entry("smallapp"), b"")), "a file and a folder"),
    "a file below a file": (_with((_entry("pyproject.toml/x"), b"")), "a file and a folder"),
    "a folder named as a file": (_with((_entry("pyproject.toml/"), b"")), "holds a path twice"),
    "a link": (
        _with((_entry("smallapp/link", external_attr=0o120777 << 16), b"/etc/passwd")),
        "neither a file nor a folder",
    ),
    "a device": (_with((_entry("null", external_attr=0o020666 << 16), b"")), "neither a file"),
    "a long name": (_with((_entry("a" * 256), b"")), "cannot be the name of a file"),
    "a deep path": (_with((_entry("/".join(["a" * 100] * 11)), b"")), "cannot be the name"),
    "a control character": (_with((_entry("a\nb"), b"")), "cannot be the name of a file"),
    "an escape sequence": (_with((_entry("a\x9bb"), b"")), "cannot be the name of a file"),
    "an unknown method": (_method(_zip(GOOD), b"smallapp/one.py", 99), "is encrypted, or"),
    "bzip2": (_method(_zip(GOOD), b"smallapp/one.py", 12), "is encrypted, or"),
    "encrypted": (_method(_zip(GOOD), b"smallapp/one.py", 8, 1), "is encrypted, or"),
    "a cut stream": (_damaged(b"smallapp/data.bin"), "cannot be unpacked"),
    "another content": (
        _with((_entry("a.bin"), b"one" * 9)).replace(b"one" * 9, b"two" * 9),
        "cannot be unpacked: Bad CRC-32",
    ),
    "other names in the headers": (
        _with((_entry("a.bin"), b"x")).replace(b"a.bin", b"b.bin", 1),
        "cannot be unpacked",
    ),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_what_could_not_be_unpacked_is_never_accepted(tmp_path: Path, name: str) -> None:
    data, reason = HOSTILE[name]
    with pytest.raises(JobError, match=reason):
        check_bundle(data)
    with pytest.raises(JobError, match=reason):
        bundle.unpack(data, tmp_path / "app")
    assert not (tmp_path / "app").exists()


def test_every_flipped_byte_is_refused_or_harmless(tmp_path: Path) -> None:
    """What is accepted can be unpacked; damage causes no error but ours."""
    good = _zip(GOOD)
    refused = 0
    for position in range(len(good)):
        data = bytearray(good)
        data[position] ^= 0xFF
        try:
            check_bundle(bytes(data))
        except JobError:
            refused += 1
            continue
        bundle.unpack(bytes(data), tmp_path / str(position))
    assert refused > len(good) // 2
