"""Fixtures of tests/server/admission."""

from __future__ import annotations

import pytest

from tests.harness.deployment import Client, Deployment


@pytest.fixture
def client(deployment: Deployment) -> Client:
    return deployment.client()
