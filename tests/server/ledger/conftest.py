"""Fixtures of tests/server/ledger."""

from __future__ import annotations

from pathlib import Path

import pytest

from server.ledger import (
    LEDGER_FILE,
    Ledger,
)
from tests.fakes.ledger_file import KEY


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / LEDGER_FILE


@pytest.fixture
def filled(path: Path) -> Path:
    with Ledger.open(path, KEY) as ledger:
        for number in range(1, 8):
            kind = "round" if number % 2 else "update"
            ledger.append(kind, {"job": "demo", "round": number, "loss": 0.5})
    return path
