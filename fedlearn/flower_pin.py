"""Which Flower we know, and what must be so before it is imported.

Both doors call :func:`prepare` first. It imports no Flower, so that a version that does not
fit fails with one sentence, and not with whatever its first changed module raises.
"""

from __future__ import annotations

import os
from importlib.metadata import PackageNotFoundError, version
from typing import Final

from fedlearn.errors import FedlearnError

__all__ = ["KNOWN", "FlowerMismatch", "prepare"]

KNOWN: Final = frozenset({"1.41.0"})
"""Releases of Flower whose insides we have read and tested."""


class FlowerMismatch(FedlearnError):
    """The installed Flower is not one that this version of fedlearn knows."""

    code = "flower-mismatch"


def prepare() -> None:
    """Switch off Flower's telemetry and update check, and check its version.

    :raises FlowerMismatch: when it is another one, or none is installed.
    """
    os.environ["FLWR_TELEMETRY_ENABLED"] = "0"
    os.environ["FLWR_DISABLE_UPDATE_CHECK"] = "1"
    wanted = " or ".join(sorted(KNOWN))
    try:
        found = version("flwr")
    except PackageNotFoundError:
        raise FlowerMismatch("Flower is not installed", hint=f"install flwr=={wanted}") from None
    if found not in KNOWN:
        raise FlowerMismatch(
            f"Flower {found} is installed; this release of fedlearn knows {wanted}",
            hint=f"install flwr=={wanted}",
        )
