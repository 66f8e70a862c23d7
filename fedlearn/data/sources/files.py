"""Arrays in an ``.npz`` file."""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fedlearn.data.examples import MAX_BYTES, Examples
from fedlearn.data.sources.tables import Choice, numbered
from fedlearn.errors import ConfigError

__all__ = ["read_arrays", "read_npz"]


def read_npz(path: Path, choice: Choice) -> Examples:
    """Return the examples of a file with the arrays ``x`` and ``y``; others are columns.

    ``x_test`` and ``y_test``, where both are there, are the test set.

    :raises ConfigError: naming the array that lacks or is wrong, or when the file is cut short or
        has pickled objects.
    """
    if choice.features:
        raise ConfigError("features cannot be named for arrays", where=str(path), key="features")
    arrays = read_arrays(path)
    label = choice.label or "y"
    for name in ("x", label):
        if name not in arrays:
            raise ConfigError(
                f"has no array {name!r}; it has {', '.join(sorted(arrays)) or 'none'}",
                where=str(path),
            )
    x, (y, classes) = arrays["x"], numbered(arrays[label], what="labels", where=str(path))
    test = None
    if "x_test" in arrays and "y_test" in arrays:
        if classes:
            raise ConfigError("a test set needs labels that are numbers", where=str(path))
        test = (arrays["x_test"], arrays["y_test"])
    columns = {
        name: array
        for name, array in arrays.items()
        if array.ndim == 1 and len(array) == len(y) and name not in ("x", "x_test", "y_test")
    }
    return Examples(name=str(path), x=x, y=y, columns=columns, classes=classes, test=test)


def read_arrays(path: Path) -> dict[str, npt.NDArray[Any]]:
    """Return the arrays of an ``.npz`` file. Pickled objects are refused.

    :raises ConfigError: when it is not such a file, is cut short, or holds more than 16 GiB.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            size = sum(entry.file_size for entry in archive.infolist())
        if size > MAX_BYTES:
            raise ConfigError(
                f"holds {size:,} bytes; at most {MAX_BYTES:,} are read", where=str(path)
            )
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except (OSError, EOFError, KeyError, ValueError, zipfile.BadZipFile, zlib.error) as error:
        raise ConfigError(
            f"is no whole .npz file without pickled objects: {error}", where=str(path)
        ) from None
