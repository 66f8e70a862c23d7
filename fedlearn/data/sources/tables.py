"""Tables: CSV (RFC 4180), Parquet, and frames of pandas; features and labels out of columns."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from fedlearn import extras
from fedlearn.data.examples import MAX_BYTES, MAX_EXAMPLES, Examples
from fedlearn.errors import ConfigError

__all__ = ["Choice", "Table", "examples_of", "from_frame", "numbered", "read_csv", "read_parquet"]

_MAX_COLUMNS: Final = 100_000
_MAX_FIELD: Final = 1 << 20
_MAX_VALUES: Final = 100
"""Distinct values of a column of text that becomes features."""


@dataclass(frozen=True, slots=True)
class Choice:
    """Which column is the label and which are features; see :func:`fedlearn.data.sources.load`."""

    label: str = ""
    features: tuple[str, ...] = ()
    without: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Table:
    """Columns by name, each of numbers or of text; ``lines`` are those of the rows in a file.

    A missing number is NaN and a missing text is empty.
    """

    name: str
    columns: dict[str, npt.NDArray[Any]]
    lines: Sequence[int] = field(default=())

    def place(self, row: int) -> str:
        """Return where a row is, for messages."""
        return f"{self.name}:{self.lines[row]}" if len(self.lines) else f"{self.name}: row {row}"


def read_csv(path: Path, choice: Choice) -> Examples:
    """Return the examples of a CSV file in UTF-8 whose first line has the names of the columns.

    A column whose values are all numbers, or empty, is one of numbers; every other one is text.

    :raises ConfigError: naming the line with too few or too many fields, a field that is not
        finite or empty, or a name that is there twice.
    """
    where = str(path)
    before = csv.field_size_limit(_MAX_FIELD)
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, strict=True)
            header = next(reader, [])
            _check_header(header, where)
            rows: list[list[str]] = []
            lines: list[int] = []
            start = reader.line_num + 1
            for row in reader:
                if row and len(row) != len(header):
                    raise ConfigError(
                        f"{len(row)} fields; the {len(header)} columns of the first line are "
                        "expected",
                        where=f"{where}:{start}",
                        hint="the file may be cut short here",
                    )
                if row:
                    rows.append(row)
                    lines.append(start)
                start = reader.line_num + 1
                if len(rows) > MAX_EXAMPLES:
                    raise ConfigError(f"has more than {MAX_EXAMPLES:,} rows", where=where)
    except csv.Error as error:
        raise ConfigError(
            f"is not CSV: {error}", where=f"{where}:{reader.line_num}", hint="quotes are RFC 4180's"
        ) from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"is not UTF-8: byte {error.start}", where=where) from None
    except OSError as error:
        raise ConfigError(f"cannot be read: {error.strerror}", where=where) from None
    finally:
        csv.field_size_limit(before)
    if not rows:
        raise ConfigError("has no rows below its first line", where=where)
    columns = {name: _typed([row[at].strip() for row in rows]) for at, name in enumerate(header)}
    return examples_of(Table(where, columns, lines), choice)


def read_parquet(path: Path, choice: Choice) -> Examples:
    """Return the examples of a Parquet file.

    :raises ConfigError: when pyarrow is not installed, the file is no whole Parquet file, or a
        column is neither numbers nor text.
    """
    parquet: Any = extras.load("pyarrow.parquet", needed_for="a Parquet file")
    arrow: Any = extras.load("pyarrow", needed_for="a Parquet file")
    where = str(path)
    try:
        if path.stat().st_size > MAX_BYTES:
            raise ConfigError(f"has more than {MAX_BYTES:,} bytes", where=where)
        # From memory and without threads: a program that ends while Arrow starts one is aborted.
        with parquet.ParquetFile(arrow.BufferReader(path.read_bytes())) as file:
            size = sum(
                file.metadata.row_group(group).total_byte_size
                for group in range(file.metadata.num_row_groups)
            )
            if size > MAX_BYTES:
                raise ConfigError(f"holds {size:,} bytes; at most {MAX_BYTES:,}", where=where)
            batches = file.iter_batches(use_threads=False)
            table = arrow.Table.from_batches(batches, schema=file.schema_arrow)
    except (arrow.ArrowException, OSError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f"is no whole Parquet file: {reason}", where=where) from None
    _check_header(table.column_names, where)
    columns: dict[str, npt.NDArray[Any]] = {}
    for name in table.column_names:
        column = table.column(name)
        if arrow.types.is_dictionary(column.type):
            column = column.cast(column.type.value_type)
        kind = column.type
        if arrow.types.is_string(kind) or arrow.types.is_large_string(kind):
            columns[name] = np.array(column.fill_null("").to_pylist(), dtype=np.str_)
        elif arrow.types.is_integer(kind) or arrow.types.is_boolean(kind):
            whole = arrow.float64() if column.null_count else arrow.int64()
            columns[name] = column.cast(whole).to_numpy()
        elif arrow.types.is_floating(kind) or arrow.types.is_decimal(kind):
            columns[name] = column.cast(arrow.float64()).to_numpy()
        else:
            raise ConfigError(f"column {name!r} is of type {kind}; numbers or text", where=where)
    return examples_of(Table(where, columns), choice)


def from_frame(frame: Any, name: str) -> Table:
    """Return a ``pandas.DataFrame`` as a table."""
    columns: dict[str, npt.NDArray[Any]] = {}
    for column in frame.columns:
        series = frame[column]
        if series.dtype.kind in "iub":
            columns[str(column)] = series.to_numpy(dtype=np.int64)
        elif series.dtype.kind == "f":
            columns[str(column)] = series.to_numpy(dtype=np.float64)
        else:
            texts = ["" if value is None or value != value else str(value) for value in series]
            columns[str(column)] = np.array(texts, dtype=np.str_)
    return Table(name, columns)


def examples_of(table: Table, choice: Choice) -> Examples:
    """Return features and labels of a table.

    Features are float32; integers beyond 2^24 are not exact there.

    :raises ConfigError: naming the column that lacks, or line and column of a missing value.
    """
    known = ", ".join(sorted(table.columns)[:20])
    if not choice.label:
        raise ConfigError(
            "the label of a table has to be named",
            where=table.name,
            key="label",
            hint=f"its columns: {known}",
        )
    for key, names in (("label", (choice.label,)), ("features", choice.features)):
        for name in names:
            if name not in table.columns:
                raise ConfigError(
                    f"there is no column {name!r}",
                    where=table.name,
                    key=key,
                    hint=f"its columns: {known}",
                )
    left_out = {choice.label, *choice.without}
    names = choice.features or tuple(name for name in table.columns if name not in left_out)
    if not names:
        raise ConfigError("no column is left for the features", where=table.name, key="features")
    features: list[str] = []
    values: list[npt.NDArray[np.float32]] = []
    for name in names:
        column = table.columns[name]
        _check_present(column, name, table)
        if column.dtype.kind != "U":
            features.append(name)
            values.append(column.astype(np.float32))
            continue
        texts, index = np.unique(column, return_inverse=True)
        if len(texts) > _MAX_VALUES:
            raise ConfigError(
                f"the text column {name!r} has {len(texts)} distinct values; at most {_MAX_VALUES} "
                "become features",
                where=table.name,
                hint="name the features without it",
            )
        features += [f"{name}={text}" for text in texts]
        values += [(index == number).astype(np.float32) for number in range(len(texts))]
    label = table.columns[choice.label]
    _check_present(label, choice.label, table)
    y, classes = numbered(label, what="labels", where=table.name)
    return Examples(
        name=table.name,
        x=np.stack(values, axis=1),
        y=y,
        columns=table.columns,
        features=tuple(features),
        classes=classes,
    )


def numbered(
    values: npt.NDArray[Any], *, what: str, where: str
) -> tuple[npt.NDArray[Any], tuple[str, ...]]:
    """Return values as numbers, and the texts that they stand for; none for numbers.

    :raises ConfigError: for values that are neither numbers nor text.
    """
    if values.dtype.kind == "b":
        return values.astype(np.int64), ()
    if values.dtype.kind in "uif":
        return values, ()
    if values.dtype.kind != "U":
        raise ConfigError(f"{what} have the type {values.dtype}; numbers or text", where=where)
    texts, index = np.unique(values, return_inverse=True)
    return index.astype(np.int64), tuple(str(text) for text in texts)


def _check_header(header: Sequence[str], where: str) -> None:
    if not header or len(header) > _MAX_COLUMNS:
        raise ConfigError(
            f"has {len(header)} columns; 1 to {_MAX_COLUMNS:,} are expected", where=f"{where}:1"
        )
    seen: set[str] = set()
    for number, name in enumerate(header, 1):
        if not name or name in seen:
            wrong = "is named twice" if name else "has no name"
            raise ConfigError(f"column {number} ({name!r}) {wrong}", where=f"{where}:1")
        seen.add(name)


def _typed(values: list[str]) -> npt.NDArray[Any]:
    # Python accepts underscores between digits; a code such as 1_2 is text.
    if any("_" in value for value in values):
        return np.array(values, dtype=np.str_)
    try:
        return np.array([int(value) for value in values], dtype=np.int64)
    except (ValueError, OverflowError):
        pass
    try:
        return np.array([float(value) if value else np.nan for value in values], dtype=np.float64)
    except ValueError:
        return np.array(values, dtype=np.str_)


def _check_present(column: npt.NDArray[Any], name: str, table: Table) -> None:
    if column.dtype.kind == "f":
        missing = np.flatnonzero(~np.isfinite(column))
    elif column.dtype.kind == "U":
        missing = np.flatnonzero(column == "")
    else:
        return
    if len(missing):
        more = f" (and {len(missing) - 1} rows more)" if len(missing) > 1 else ""
        raise ConfigError(
            f"column {name!r} has no finite value here{more}",
            where=table.place(int(missing[0])),
            hint="fill in the values, remove the rows, or name the features without this column",
        )
