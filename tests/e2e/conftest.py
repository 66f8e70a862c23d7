"""Fixtures of the end to end tests: one federation for all that can share it."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest


def load_fake(name: str) -> Any:
    return importlib.import_module(f"fakes.{name}")


@pytest.fixture(scope="session")
def fakes() -> Any:
    """The module ``tests/fakes/spine.py``."""
    return load_fake("spine")


@pytest.fixture(scope="session")
def shared(fakes: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A running coordinator with three sites; every test brings a job of its own."""
    with fakes.Spine(tmp_path_factory.mktemp("spine")) as spine:
        yield spine


@pytest.fixture(scope="session")
def puppets() -> Any:
    """The module ``tests/fakes/puppet.py``."""
    return load_fake("puppet")


@pytest.fixture(scope="session")
def puppet(shared: Any, puppets: Any) -> Any:
    """A site of ``shared`` whose client is the test."""
    return puppets.Puppet(shared)


@pytest.fixture(scope="session")
def envoys() -> Any:
    """The module ``tests/fakes/envoy.py``."""
    return load_fake("envoy")


@pytest.fixture(scope="session")
def helm() -> Path:
    """Real helm."""
    return Path(load_fake("cluster").assets()) / "helm"


@pytest.fixture(scope="session")
def load() -> Any:
    """Load ``tests/fakes/NAME.py`` once: ``load(name)``."""
    return load_fake
