"""The records of a site's data mount, in an order that depends on the data only.

A client commits to these records before its first round (:mod:`fedlearn.update.commitment`), so
the same data must always give the same records:

=====================  ==================================================================
``*.csv``, ``*.jsonl``  each line, without its line end
``*.npz``, ``*.npy``    each row (first axis) of each array, arrays by name
anything else           each block of 64 KiB
=====================  ==================================================================

Files are ordered by their path below the mount, in byte order. Every record starts with that
path and its position, so that the commitment covers the place of a record and not only its content.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from fedlearn.errors import ConfigError

__all__ = ["MAX_RECORDS", "Tally", "records"]

MAX_RECORDS: Final = 1 << 31
_BLOCK: Final = 64 * 1024
_LINES: Final = frozenset({".csv", ".jsonl", ".ndjson", ".tsv"})
_ARRAYS: Final = frozenset({".npy", ".npz"})
_COUNTED: Final = _LINES | _ARRAYS
_TABLES: Final[Mapping[str, bytes]] = {".csv": b",", ".tsv": b"\t"}


@dataclass(slots=True)
class Tally:
    """How many examples the records that were yielded can hold at most.

    A line or a row is one example. The content of other blocks is not known, so each of their
    bytes counts as one.

    ``headers`` is how many of the lines look like the head of a table: the first line of a CSV or
    TSV file, without a number, above a line with one. They are records, and count as examples,
    because a table without a head may look the same.
    """

    examples: int = 0
    headers: int = 0


def records(mount: Path, tally: Tally | None = None) -> Iterator[bytes]:
    """Yield every record below ``mount``, and count in ``tally`` what they can hold.

    :raises ConfigError: when the mount is missing, or holds a link that leads out of it, or
        an array file that would need pickle.
    """
    if not mount.exists():
        raise ConfigError(
            "the data mount does not exist",
            where=str(mount),
            hint="name an existing folder or file for this data set in site.toml",
        )
    root = mount.resolve()
    files = [root] if root.is_file() else sorted(p for p in root.rglob("*") if p.is_file())
    for path in files:
        if not path.resolve().is_relative_to(root):
            raise ConfigError("a link leads out of the data mount", where=str(path))
        name = path.name if path == root else path.relative_to(root).as_posix()
        counted = path.suffix.lower() in _COUNTED
        table = _TABLES.get(path.suffix.lower())
        first = b""
        for position, body in enumerate(_bodies(path)):
            if tally is not None:
                tally.examples += 1 if counted else len(body)
                if table and position == 1:
                    tally.headers += _is_head(first, above=body, separator=table)
                first = body if position == 0 else b""
            label = name.encode()
            yield struct.pack(">IQ", len(label), position) + label + body


def _bodies(path: Path) -> Iterator[bytes]:
    suffix = path.suffix.lower()
    if suffix in _LINES:
        with path.open("rb") as lines:
            for line in lines:
                yield line.rstrip(b"\r\n")
    elif suffix in _ARRAYS:
        yield from _rows(path)
    else:
        with path.open("rb") as file:
            while block := file.read(_BLOCK):
                yield block


def _is_head(line: bytes, *, above: bytes, separator: bytes) -> bool:
    """Return whether a line looks like the head of the table that goes on with ``above``."""
    names, values = line.split(separator), above.split(separator)
    if len(names) != len(values) or any(map(_is_number, names)):
        return False
    return any(map(_is_number, values))


def _is_number(text: bytes) -> bool:
    try:
        float(text.strip(b' "'))
    except ValueError:
        return False
    return True


def _rows(path: Path) -> Iterator[bytes]:
    try:
        loaded = np.load(path, allow_pickle=False)
        arrays = {"": loaded} if isinstance(loaded, np.ndarray) else dict(loaded)
    except (ValueError, OSError) as error:
        raise ConfigError(
            f"not an array file that is safe to read: {error}", where=str(path)
        ) from None
    for name in sorted(arrays):
        array = arrays[name]
        head = f"{name}|{array.dtype.str}|{array.shape[1:]}|".encode()
        rows = array if array.ndim else array.reshape(1)
        for row in rows:
            yield head + np.ascontiguousarray(row).tobytes()
