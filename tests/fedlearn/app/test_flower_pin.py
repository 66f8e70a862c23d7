"""Flower's log: warnings only, and without colours where stderr is no terminal."""

from __future__ import annotations

import os
import pty
import subprocess
import sys

import pytest

CODE = "import {}, logging; logging.getLogger('flwr').{}('what Flower logs')"


def logged(module: str, level: str = "warning", **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", CODE.format(module, level)],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, **environment},
    )
    return done.stderr


@pytest.mark.parametrize(
    "module",
    ["fedlearn.app.flower", "server.flower.application.bundle", "edge.client.flower.app_main"],
)
def test_what_is_no_terminal_gets_no_colours(module: str) -> None:
    text = logged(module)
    assert "WARNING" in text
    assert "what Flower logs" in text
    assert "\x1b" not in text


def test_what_is_less_than_a_warning_is_not_shown() -> None:
    assert "what Flower logs" not in logged("fedlearn.app.flower", "info")


@pytest.mark.parametrize(("wish", "coloured"), [("", True), ("1", False)])
def test_a_terminal_gets_colours_unless_it_wants_none(wish: str, coloured: bool) -> None:
    here, there = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "NO_COLOR": wish}
    code = CODE.format("fedlearn.app.flower", "warning")
    subprocess.run([sys.executable, "-c", code], stderr=there, check=True, env=environment)
    os.close(there)
    text = os.read(here, 65536).decode()
    os.close(here)
    assert "what Flower logs" in text
    assert ("\x1b" in text) is coloured
