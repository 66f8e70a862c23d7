"""Fixtures of tests/edge/kube."""

from __future__ import annotations

import pytest

from tests.harness.cluster import Cluster


@pytest.fixture(scope="session")
def kata(cluster: Cluster) -> str:
    """A RuntimeClass as Confidential Containers has it."""
    cluster.request(
        "/apis/node.k8s.io/v1/runtimeclasses",
        "POST",
        {
            "metadata": {"name": "kata-qemu-tdx"},
            "handler": "kata-qemu-tdx",
            "overhead": {"podFixed": {"cpu": "250m", "memory": "160Mi"}},
        },
    )
    return "kata-qemu-tdx"
