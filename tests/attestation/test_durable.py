"""Files that appear whole or not at all, and stay after a loss of power."""

from __future__ import annotations

import ast
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from attestation.durable import rename_durably, write_durably, write_once
from edge.protocol.seed_release import kept_seed

ROOT = Path(__file__).parents[2]

NOT_OURS_TO_KEEP = {
    # Files that their command makes again, and nothing depends on.
    "fedlearn/cli/job/template.py",
    "fedlearn/demo/report.py",
    # The two that sync by themselves.
    "attestation/durable.py",
    "fedlearn/update/sealed.py",
}


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """What is synced, linked and renamed, in order; a descriptor by what it is open for."""
    made: list[tuple[str, str]] = []
    sync, link, rename = os.fsync, os.link, os.rename

    def fsync(fd: int) -> None:
        made.append(("fsync", Path(f"/proc/self/fd/{fd}").readlink().name))
        sync(fd)

    def linked(source: Path, target: Path) -> None:
        made.append(("link", Path(target).name))
        link(source, target)

    def renamed(source: Path, target: Path) -> None:
        made.append(("rename", Path(target).name))
        rename(source, target)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "link", linked)
    monkeypatch.setattr(os, "rename", renamed)
    return made


def test_a_seed_is_on_disk_with_its_name_before_it_is_used(
    tmp_path: Path, calls: list[tuple[str, str]]
) -> None:
    seed = kept_seed(tmp_path, "job")
    kinds = [(kind, "" if name.startswith(".job") else name) for kind, name in calls]
    assert kinds == [
        ("fsync", tmp_path.name),
        ("fsync", ""),
        ("link", "job.seed"),
        ("fsync", "commitments"),
    ]
    assert kept_seed(tmp_path, "job") == seed
    assert [path.name for path in (tmp_path / "commitments").iterdir()] == ["job.seed"]


def test_a_rename_is_on_disk_when_it_returns(tmp_path: Path, calls: list[tuple[str, str]]) -> None:
    write_durably(tmp_path / "a", b"1")
    calls.clear()
    rename_durably(tmp_path / "a", tmp_path / "b")
    assert calls[-1] == ("fsync", tmp_path.name)
    assert (tmp_path / "b").read_bytes() == b"1"


def test_of_many_that_write_once_all_read_the_same(tmp_path: Path) -> None:
    path = tmp_path / "once"
    with ThreadPoolExecutor(8) as pool:
        found = set(pool.map(lambda n: write_once(path, str(n).encode()), range(64)))
    assert found == {path.read_bytes()}
    assert list(tmp_path.iterdir()) == [path]
    assert path.stat().st_mode & 0o777 == 0o600


def test_what_fails_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> None:
        raise OSError(28, "no space")

    monkeypatch.setattr(os, "link", fails)
    with pytest.raises(OSError, match="no space"):
        write_once(tmp_path / "once", b"x")
    assert list(tmp_path.iterdir()) == []


def _renames(path: Path) -> Iterator[int]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
            continue
        name, plain = node.func.attr, not node.keywords
        of_os = isinstance(node.func.value, ast.Name) and node.func.value.id == "os"
        if name in {"rename", "renames", "hardlink_to", "link"} or (
            name == "replace" and (of_os or (len(node.args) == 1 and plain))
        ):
            yield node.lineno


def test_every_file_of_the_state_gets_its_name_durably() -> None:
    """A link or rename without a sync of its directory is lost with the power."""
    found = [
        f"{path.relative_to(ROOT)}:{number}"
        for package in ("attestation", "edge", "fedlearn", "server")
        for path in sorted((ROOT / package).rglob("*.py"))
        if path.relative_to(ROOT).as_posix() not in NOT_OURS_TO_KEEP
        for number in _renames(path)
    ]
    assert found == []
