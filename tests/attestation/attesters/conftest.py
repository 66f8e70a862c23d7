"""Fixtures of tests/attestation/attesters."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.vectors.domain import boot_log


@pytest.fixture
def ccel(tmp_path: Path) -> Path:
    path = tmp_path / "CCEL"
    path.write_bytes(boot_log().to_bytes() + b"\xff" * 512)
    return path
