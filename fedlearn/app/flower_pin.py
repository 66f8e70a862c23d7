"""The supported releases of Flower, and what is prepared before Flower is imported.

The packages that import Flower call :func:`prepare` first. It does not import Flower, so that a
release outside the range fails with one clear error, and not in the first changed module.

The pages are docs/adr/0001-flower-1-41.md and docs/adr/0012-flower-range.md.
"""

from __future__ import annotations

import logging
import os
import sys
from importlib.metadata import PackageNotFoundError, version
from typing import Final

from fedlearn.errors import FedlearnError

__all__ = ["WANTED", "FlowerMismatch", "prepare", "settle_log"]

WANTED: Final = ">=1.41,<1.44"
"""The releases that this version of fedlearn supports, as in pyproject.toml."""

_LOWEST: Final = (1, 41)
_ABOVE: Final = (1, 44)


class FlowerMismatch(FedlearnError):
    """This version of fedlearn does not support the installed Flower."""

    code = "flower-mismatch"


def prepare() -> None:
    """Switch off Flower's telemetry and update check, and check its version.

    :raises FlowerMismatch: when it is another one, or none is installed.
    """
    os.environ["FLWR_TELEMETRY_ENABLED"] = "0"
    os.environ["FLWR_DISABLE_UPDATE_CHECK"] = "1"
    try:
        found = version("flwr")
    except PackageNotFoundError:
        raise FlowerMismatch("Flower is not installed", hint=f"install flwr{WANTED}") from None
    if not _LOWEST <= _release(found) < _ABOVE:
        raise FlowerMismatch(
            f"Flower {found} is installed; this release of fedlearn needs flwr{WANTED}",
            hint=f"install flwr{WANTED}",
        )


def settle_log() -> None:
    """Show Flower's warnings only, and in colour only on a terminal that wants colours.

    To be called when Flower is imported, because that adds its handler, which always colours.
    """
    logger = logging.getLogger("flwr")
    # Flower's own log lines would hide those of the application and of fedlearn.
    logger.setLevel(logging.WARNING)
    plain = os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb"
    for handler in logger.handlers:
        if hasattr(handler, "colored"):
            handler.colored = not plain and sys.stderr.isatty()


def _release(found: str) -> tuple[int, ...]:
    """Return major and minor number; without one the empty tuple, which is below any other."""
    numbers = found.split(".")[:2]
    return tuple(map(int, numbers)) if all(number.isdecimal() for number in numbers) else ()
