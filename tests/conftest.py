"""Fixtures that tests of more than one package ask for."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.harness.cluster import Cluster
from tests.harness.cluster_site import ClusterSite
from tests.harness.deployment import Deployment
from tests.harness.listeners import DeploymentListeners


@pytest.fixture(autouse=True)
def _same_module_path() -> Iterator[None]:
    """Fail a test that leaves another module path to those after it.

    ``monkeypatch.syspath_prepend`` takes back what it did.
    """
    before = list(sys.path)
    yield
    assert sys.path == before


@pytest.fixture
def deployment(tmp_path: Path) -> Deployment:
    """A fresh coordinator with two sites and two jobs."""
    return Deployment(tmp_path)


@pytest.fixture
def listeners(deployment: Deployment) -> Iterator[DeploymentListeners]:
    """The gRPC listeners of ``deployment``, on real sockets."""
    running = DeploymentListeners(deployment)
    yield running
    running.stop()


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A real control plane, started once."""
    with Cluster(tmp_path_factory.mktemp("cluster")) as running:
        yield running


@pytest.fixture
def cluster_site(cluster: Cluster, tmp_path: Path) -> Iterator[ClusterSite]:
    """A namespace in it, with an agent's account and Role; nodes come by its ``node``."""
    site = ClusterSite(cluster, tmp_path)
    yield site
    site.close()
