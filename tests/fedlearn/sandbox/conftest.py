"""Fixtures of tests/fedlearn/sandbox."""

from __future__ import annotations

import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

from fedlearn.sandbox import (
    Protection,
    Sandbox,
    report,
)
from tests.harness.sandbox import (
    Ran,
    Run,
    run_here,
    run_without_namespaces,
)


@pytest.fixture(params=["namespaces", "none"])
def run(request: pytest.FixtureRequest, tmp_path: Path) -> Run:
    """Run a Python program in a sandbox whose folder is ``tmp_path / "own"``."""
    folder = tmp_path / "own"
    folder.mkdir()
    runner = run_here if request.param == "namespaces" else run_without_namespaces
    if request.param == "namespaces" and Protection.PROCESSES not in report().applied:
        pytest.skip(f"no namespaces here: {report()}")

    def act(code: str, *arguments: object, seconds: float = 60.0, **fields: Any) -> Ran:
        program = folder / "program.py"
        program.write_text(textwrap.dedent(code))
        env = fields.pop("env", {})
        argv = [sys.executable, "-P", str(program), *map(str, arguments)]
        return runner(argv, Sandbox(writable=(folder,), **fields), env, seconds)

    return act
