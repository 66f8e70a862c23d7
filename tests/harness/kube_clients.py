"""Clients of a cluster, and waits for what they report."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

TDX = "tdx.intel.com/tdx-guest"


WAIT = ["/bin/sleep", "60"]


def until(reached: Callable[[], Any], what: str, seconds: float = 20.0) -> Any:
    deadline = time.monotonic() + seconds
    while not (found := reached()):
        assert time.monotonic() < deadline, what
        time.sleep(0.05)
    return found
