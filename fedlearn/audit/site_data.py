"""The records of a site's folder, as the audits change them: examples and their labels.

Two formats: ``.npz`` with the arrays ``x`` and ``y``, as ``fedlearn data split`` writes it, and
``.csv`` with one example in each row and the label in the last column, with or without a header.
"""

from __future__ import annotations

import io
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from fedlearn.config import file_bytes
from fedlearn.errors import ConfigError

__all__ = [
    "Records",
    "compose",
    "divide",
    "read_records",
    "read_sites",
    "write_site",
    "write_sites",
]

MAX_BYTES: Final = 4 * 1024**3


@dataclass(frozen=True, slots=True, kw_only=True)
class Records:
    """Examples (n, ...) and labels (n,). ``header`` is the first line of a table, or empty."""

    x: NDArray[np.generic]
    y: NDArray[np.int64]
    header: str = field(default="", compare=False)

    def __len__(self) -> int:
        return len(self.y)

    def rows(self, which: NDArray[np.integer] | NDArray[np.bool_] | slice) -> Records:
        """Return some of the rows."""
        return Records(x=self.x[which], y=self.y[which], header=self.header)

    def joined(self, other: Records) -> Records:
        """Return these rows and then those of another."""
        return Records(
            x=np.concatenate([self.x, other.x]),
            y=np.concatenate([self.y, other.y]),
            header=self.header,
        )

    @property
    def classes(self) -> int:
        """One more than the largest label."""
        return int(self.y.max()) + 1 if len(self) else 0


def read_records(path: Path) -> Records:
    """Return the records of a file.

    :raises ConfigError: when it is not a file of one of the two formats, has NaN, or labels that
        are not whole numbers from 0.
    """
    data = file_bytes(path, limit=MAX_BYTES, what="the data of the site")
    found = _npz(data, path) if path.suffix == ".npz" else _csv(data, path)
    where = str(path)
    if len(found.x) != len(found.y):
        raise ConfigError(f"has {len(found.x)} examples and {len(found.y)} labels", where=where)
    if not np.isfinite(np.asarray(found.x, dtype=np.float64)).all():
        raise ConfigError("the examples contain NaN or infinity", where=where)
    if len(found) and found.y.min() < 0:
        raise ConfigError(f"has the label {found.y.min()}; labels count from 0", where=where)
    return found


def _labels(values: NDArray[np.generic], path: Path) -> NDArray[np.int64]:
    numbers = np.asarray(values, dtype=np.float64)
    if numbers.ndim != 1 or not (np.isfinite(numbers) & (numbers == np.rint(numbers))).all():
        raise ConfigError(
            "the labels are not one whole number for each example",
            where=str(path),
            hint="the audits need a classification; the label is `y`, or the last column",
        )
    return numbers.astype(np.int64)


def _npz(data: bytes, path: Path) -> Records:
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as archive:
            missing = {"x", "y"} - set(archive.files)
            if missing:
                raise ConfigError(
                    f"has no array {' and no array '.join(sorted(missing))}, but "
                    f"{', '.join(sorted(archive.files)) or 'none'}",
                    where=str(path),
                    hint="`fedlearn data split` writes x and y",
                )
            x, y = archive["x"], archive["y"]
    except (ValueError, OSError, EOFError) as error:
        raise ConfigError(f"is not an .npz file of arrays: {error}", where=str(path)) from None
    return Records(x=x, y=_labels(y, path))


def _csv(data: bytes, path: Path) -> Records:
    try:
        text = data.decode()
    except UnicodeDecodeError:
        raise ConfigError("is not text", where=str(path)) from None
    first, _, rest = text.partition("\n")
    header = "" if _numbers(first) else first
    body = rest if header else text
    if not body.strip():
        raise ConfigError("has no row of numbers", where=str(path))
    try:
        table = np.loadtxt(io.StringIO(body), delimiter=",", ndmin=2)
    except ValueError as error:
        raise ConfigError(f"is not a table of numbers: {error}", where=str(path)) from None
    if table.shape[1] < 2:
        raise ConfigError(
            f"has {table.shape[1]} columns; an example and its label need 2", where=str(path)
        )
    return Records(x=table[:, :-1], y=_labels(table[:, -1], path), header=header)


def _numbers(line: str) -> bool:
    try:
        [float(cell) for cell in line.split(",")]
    except ValueError:
        return False
    return True


def read_sites(data: Path, sites: tuple[str, ...], name: str) -> dict[str, Records]:
    """Return the records of each site from the file ``name`` in its folder below ``data``.

    :raises ConfigError: when a site has no such file, or its examples have another shape.
    """
    found: dict[str, Records] = {}
    for site in sites:
        path = data / site / name
        if not path.is_file():
            beside = sorted(p.name for p in (data / site).glob("*") if p.suffix in {".csv", ".npz"})
            raise ConfigError(
                "does not exist; an audit changes the data of each site",
                where=str(path),
                hint=f"name the file in audit.toml, file = {beside[0]!r}"
                if beside
                else "`fedlearn data split` writes data.npz; else name the file in audit.toml",
            )
        found[site] = read_records(path)
        first = found[sites[0]].x.shape[1:]
        if found[site].x.shape[1:] != first:
            raise ConfigError(
                f"has examples of shape {found[site].x.shape[1:]}, and those of {sites[0]} "
                f"have {first}",
                where=str(path),
            )
    return found


def write_site(source: Path, target: Path, name: str, records: Records) -> None:
    """Write a copy of a site's folder with other records.

    ``target`` must not exist. Numbers are written so that reading gives the same bits.
    """
    shutil.copytree(source, target, ignore=shutil.ignore_patterns(name))
    path = target / name
    if path.suffix == ".npz":
        np.savez(path, x=records.x, y=records.y)
        return
    cells = np.column_stack([records.x.reshape(len(records), -1), records.y])
    lines = [",".join(f"{value:.17g}" for value in row) for row in cells.tolist()]
    head = [records.header] if records.header else []
    path.write_text("\n".join([*head, *lines]) + "\n")


def divide(records: Records, trained: float) -> tuple[Records, Records]:
    """Return the rows that the app trains on, the first of the file, and the others.

    The app is assumed to take the first ``int(n * trained)`` rows, as
    ``fedlearn job init`` writes it.
    """
    cut = int(len(records) * Fraction(str(trained)))
    return records.rows(slice(cut)), records.rows(slice(cut, None))


def compose(train: Records, others: Records, trained: float) -> Records:
    """Return a file of which the app trains on exactly ``train``; the rest is from ``others``.

    :raises ConfigError: when no number of other rows does it.
    """
    share = Fraction(str(trained))
    if share == 1:
        return train
    count = len(train)
    fitting = [
        extra
        for extra in range(int(count / share) - count + 2)
        if int((count + extra) * share) == count
    ]
    if not fitting or not len(others):
        raise ConfigError(
            f"the app trains on {trained:g} of a file, and no file of {count} rows to train on and "
            f"of {len(others)} others can be made",
            hint="correct `trained` in audit.toml, or use more rows",
        )
    chosen = np.arange(fitting[-1]) % len(others)
    return train.joined(others.rows(chosen))


def write_sites(source: Path, target: Path, name: str, records: Mapping[str, Records]) -> None:
    """Write the folder of each site; see :func:`write_site`."""
    for site, rows in records.items():
        write_site(source / site, target / site, name, rows)
