"""The folder of what exists only while a coordinator runs."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from fedlearn.checks import Check, Level
from fedlearn.cli.doctor import server_probes
from server.jobs.runtime_folder import in_memory, make_runtime_folder, runtime_folder


@pytest.fixture
def memory() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        yield Path(folder)


@pytest.fixture(autouse=True)
def unset(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RUNTIME_DIRECTORY", raising=False)


def diagnosis(folder: Path) -> Check:
    """What the doctor finds about a coordinator whose state is in ``folder``."""
    settings = folder / "server.toml"
    settings.write_text(
        'state = "state"\ntrust_domain = "test.example"\n'
        '[keys]\nprotect = ["passphrase"]\npassphrase_file = "passphrase"\n'
    )
    found = dict(server_probes(settings))["runtime folder"]()
    assert isinstance(found, Check)
    return found


def test_a_folder_in_memory_is_used_where_one_is_named(
    memory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RUNTIME_DIRECTORY", str(memory))
    folder = make_runtime_folder(tmp_path)
    assert folder == memory / "run"
    assert folder.stat().st_mode & 0o777 == 0o700
    assert in_memory(folder)
    assert list(tmp_path.iterdir()) == []
    assert diagnosis(tmp_path).level is Level.OK


def test_a_folder_on_a_disk_is_named() -> None:
    assert not in_memory(Path(__file__).parent)
    with tempfile.TemporaryDirectory(dir=Path(__file__).parent) as folder:
        found = diagnosis(Path(folder))
    assert found.level is Level.WARN
    assert f"{folder}/state/run" in found.found
    assert "RUNTIME_DIRECTORY" in found.mend


def test_what_a_killed_coordinator_left_is_removed(tmp_path: Path) -> None:
    left = runtime_folder(tmp_path) / "job" / "final"
    left.mkdir(parents=True)
    (left / "marker").write_bytes(b"weights")
    assert list(make_runtime_folder(tmp_path).iterdir()) == []
