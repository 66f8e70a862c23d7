"""How many examples simulated sites have, for what they take by example."""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

import numpy as np

from fedlearn.errors import ConfigError

__all__ = ["examples_in"]

_FILE: Final = "data.npz"
_LABELS: Final = "y"


def examples_in(folders: Mapping[str, Path]) -> Callable[[str], int]:
    """Return a function that counts the labels in ``data.npz`` of a site.

    It raises ConfigError, naming the file, where there are none.
    """
    return lambda site: _labels(site, folders.get(site))


def _labels(site: str, folder: Path | None) -> int:
    hint = "remove seconds_per_example from [time], or give each site such a file"
    if folder is None:
        raise ConfigError(f"{site} has no data, whose examples could be counted", hint=hint)
    path = folder / _FILE
    try:
        with np.load(path) as arrays:
            return len(arrays[_LABELS])
    except (OSError, ValueError, KeyError, TypeError, zipfile.BadZipFile) as error:
        raise ConfigError(
            f"its array {_LABELS!r}, the labels, cannot be read ({type(error).__name__})",
            where=str(path),
            hint=hint,
        ) from None
