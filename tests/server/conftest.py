"""Fixtures of the coordinator's tests: parts shared with other areas, loaded by path."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest


def load_fake(name: str) -> Any:
    return importlib.import_module(f"fakes.{name}")


@pytest.fixture(scope="session")
def fakes() -> Callable[[str], Any]:
    """Import a module of ``tests/fakes`` by its name."""
    return load_fake


@pytest.fixture
def deployment(tmp_path: Path) -> Any:
    """A fresh coordinator with two sites and two jobs."""
    return load_fake("deployment").Deployment(tmp_path)


@pytest.fixture
def front(deployment: Any) -> Any:
    """The gRPC listeners of ``deployment``, on real sockets."""
    running = load_fake("front").Front(deployment, load_fake("deployment"))
    yield running
    running.stop()
