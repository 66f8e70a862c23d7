"""The environment of a process that runs a Flower app: what it needs, and no secret."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

__all__ = ["app_environment"]

_KEPT: Final = ("LANG", "LC_ALL", "LD_LIBRARY_PATH", "PATH", "PYTHONPATH", "TZ", "VIRTUAL_ENV")


def app_environment(home: Path, *more: str) -> dict[str, str]:
    """Return an environment whose home is ``home``.

    :param more: names that are taken from this process too, where it has them.
    """
    kept = {name: os.environ[name] for name in (*_KEPT, *more) if name in os.environ}
    return kept | {
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_HOME": str(home),
        "FLWR_TELEMETRY_ENABLED": "0",
        "HOME": str(home),
        "PYTHONHASHSEED": "0",
    }
