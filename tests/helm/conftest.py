"""Fixtures of the charts' tests."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.harness.charts import CHARTS, Helm, Render, Rendered
from tests.harness.cluster import assets


@pytest.fixture(scope="session")
def helm() -> Helm:
    """Real helm, as tools/get-kubernetes.sh fetches it."""
    return Helm(program=assets() / "helm")


@pytest.fixture
def render(helm: Helm, tmp_path: Path) -> Render:
    """Return ``render(chart, values, ...)``, which lays values over the least ones."""

    def render(
        chart: str,
        values: Mapping[str, Any] | None = None,
        *,
        version: str = "1.34.0",
        more: Sequence[str] = (),
    ) -> Rendered:
        file = helm.values(chart, values or {}, tmp_path)
        return helm.template(chart, file, version=version, more=more)

    return render


@pytest.fixture
def refusal(helm: Helm, tmp_path: Path) -> Callable[[str, Mapping[str, Any]], str]:
    """Return ``refusal(chart, values)``: what helm prints of values that it refuses."""

    def refusal(chart: str, values: Mapping[str, Any]) -> str:
        file = helm.values(chart, values, tmp_path)
        done = helm.run("template", "here", str(CHARTS / chart), "--values", str(file))
        assert done.returncode != 0, "helm took it"
        return done.stderr

    return refusal
