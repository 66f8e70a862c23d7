"""Fixtures of the end to end tests: one federation for all that can share it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fakes.misbehaving_client import MisbehavingClient
from tests.harness.cluster import assets
from tests.harness.federation import FederationHarness


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FederationHarness]:
    """A running coordinator with three sites; every test brings a job of its own."""
    with FederationHarness(tmp_path_factory.mktemp("shared")) as harness:
        yield harness


@pytest.fixture(scope="session")
def misbehaving(shared: FederationHarness) -> MisbehavingClient:
    """A site of ``shared`` whose client is the test."""
    return MisbehavingClient(shared)


@pytest.fixture(scope="session")
def helm() -> Path:
    """Real helm."""
    return assets() / "helm"
