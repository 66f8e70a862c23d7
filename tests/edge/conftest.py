"""Fixtures of the edge's tests: parts shared with other areas, loaded by path."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

FAKES = Path(__file__).resolve().parents[1] / "fakes"


def load_fake(name: str) -> Any:
    qualified = f"fedlearn_test_fakes_{name}"
    if qualified not in sys.modules:
        spec = importlib.util.spec_from_file_location(qualified, FAKES / f"{name}.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[qualified] = module
        spec.loader.exec_module(module)
    return sys.modules[qualified]


@pytest.fixture(scope="session")
def fakes() -> Callable[[str], Any]:
    """Load a module of ``tests/fakes`` by its name."""
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
