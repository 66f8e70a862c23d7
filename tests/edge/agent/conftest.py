"""Fixtures of tests/edge/agent."""

from __future__ import annotations

from pathlib import Path

import pytest

from edge.config.site import SiteConfig
from tests.fakes.budget_file import SITE


@pytest.fixture
def config(tmp_path: Path) -> SiteConfig:
    for name in ("stays", "free"):
        (tmp_path / "data" / name / "2024").mkdir(parents=True)
    (tmp_path / "state").mkdir()
    (tmp_path / "site.toml").write_text(SITE)
    return SiteConfig.load(tmp_path / "site.toml")
