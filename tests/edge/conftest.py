"""Fixtures of the edge's tests: parts shared with other areas, loaded by path."""

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


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A real control plane, started once."""
    with load_fake("cluster").Cluster(tmp_path_factory.mktemp("cluster")) as running:
        yield running


@pytest.fixture
def cluster_site(cluster: Any, tmp_path: Path) -> Any:
    """A namespace in it, with an agent's account and Role; nodes come by its ``node``."""
    site = load_fake("cluster_site").ClusterSite(cluster, load_fake("node").Node, tmp_path)
    yield site
    site.close()
