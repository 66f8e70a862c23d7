"""The wheel: our four packages, whole, of one version, and nothing else."""

from __future__ import annotations

import email
import importlib.metadata
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import fedlearn
from fedlearn.checks import Level, machine

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("attestation", "edge", "fedlearn", "server")


@pytest.fixture
def names(wheel: Path) -> set[str]:
    """The paths in the wheel, without those about it."""
    with zipfile.ZipFile(wheel) as archive:
        return {name for name in archive.namelist() if ".dist-info/" not in name}


def test_it_holds_our_packages_and_nothing_else(names: set[str]) -> None:
    tracked = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", *PACKAGES],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    wanted = {name for name in tracked.split("\0") if name and (ROOT / name).is_file()}
    assert names == wanted


def test_every_package_is_typed(names: set[str]) -> None:
    assert {f"{package}/py.typed" for package in PACKAGES} <= names
    assert "fedlearn/__init__.pyi" in names


def test_its_version_is_that_of_the_code(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        (path,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        metadata = email.message_from_bytes(archive.read(path))
    assert metadata["Version"] == fedlearn.__version__
    extras = {
        "all",
        "audit",
        "data",
        "demo",
        "dev",
        "docs",
        "dp",
        "edge",
        "examples",
        "kubernetes",
        "measure",
        "mlflow",
        "nvidia",
        "optuna",
        "parquet",
        "plot",
        "ray",
        "server",
        "simulation",
        "tensorboard",
        "torch",
        "trackio",
        "wandb",
    }
    assert set(metadata.get_all("Provides-Extra") or ()) == extras


# --- the guard: four packages of one wheel ---------------------------------------------------


@pytest.fixture
def installed(wheel: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The wheel in a folder, where the doctor finds it."""
    folder = tmp_path / "site"
    subprocess.run(
        [
            sys.executable,
            "-m",
            "pip",
            "install",
            "--quiet",
            "--no-deps",
            "--no-index",
            "--no-compile",
            "--target",
            str(folder),
            str(wheel),
        ],
        check=True,
    )
    found = importlib.metadata.distribution
    here = next(iter(importlib.metadata.distributions(name="fedlearn", path=[str(folder)])))
    monkeypatch.setattr(
        importlib.metadata, "distribution", lambda name: here if name == "fedlearn" else found(name)
    )
    return folder


def test_an_installation_is_whole(installed: Path) -> None:
    found = machine.installation()
    assert found.level is Level.OK
    assert found.found.startswith(f"{fedlearn.__version__}, ")
    assert found.found.endswith(" files as they were installed")
    (installed / "server/__pycache__").mkdir()
    (installed / "server/__pycache__/main.cpython-311.pyc").write_bytes(b"")
    assert machine.installation().level is Level.OK


def test_a_package_that_another_distribution_wrote_into_is_named(installed: Path) -> None:
    (installed / "server/__init__.py").write_text("# a web server\n")
    found = machine.installation()
    assert found.level is Level.FAIL
    assert "were altered: server/__init__.py" in found.found
    assert f"fedlearn=={fedlearn.__version__}" in found.mend
    (installed / "server/handlers.py").write_text("")
    assert "do not belong to it: server/handlers.py" in machine.installation().found
    (installed / "edge/main.py").unlink()
    assert "are missing: edge/main.py" in machine.installation().found


def test_a_missing_file_is_named_where_the_backport_of_importlib_metadata_is_loaded(
    installed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backport = importlib.import_module("importlib_metadata")
    here = next(iter(backport.distributions(name="fedlearn", path=[str(installed)])))
    monkeypatch.setattr(importlib.metadata, "distribution", lambda _: here)
    (installed / "edge/main.py").unlink()
    assert "are missing: edge/main.py" in machine.installation().found


def test_packages_of_two_versions_are_named(
    installed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "__version__", "0.0.1")
    found = machine.installation()
    assert found.level is Level.FAIL
    assert found.found == (
        f"the code is 0.0.1, and the installed distribution {fedlearn.__version__}"
    )
