"""Tables as bytes: JSON lines, CSV, or Apache Parquet.

JSON and Parquet have the values as they are. In CSV (RFC 4180), which spreadsheets open, a text
that a spreadsheet would take for a formula (it starts with ``=``, ``+``, ``-``, ``@``, a tab or a
carriage return) gets an apostrophe before it, because texts of other parties are among them.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping
from typing import Any, Final, Literal, TypeAlias

from fedlearn import extras
from fedlearn.results.tables import Table
from fedlearn.terminal.plaintext import printable

__all__ = ["FORMATS", "Format", "csv_text", "json_rows", "parquet_bytes"]

Format: TypeAlias = Literal["json", "csv", "parquet"]
FORMATS: Final[tuple[Format, ...]] = ("json", "csv", "parquet")

_FORMULA: Final = ("=", "+", "-", "@", "\t", "\r")


def json_rows(table: Table) -> list[dict[str, Any]]:
    """Return a JSON-ready object for each row, its metrics under ``metrics``.

    What is not known is null or left out; a metric that is not finite is its name, as in events.

    >>> from fedlearn.results.tables import Column
    >>> columns = (Column(name="round", kind="integer"),
    ...            Column(name="loss", kind="number", metric="loss"))
    >>> json_rows(Table(columns, [{"round": 1, "loss": float("nan")}]))
    [{'round': 1, 'metrics': {'loss': 'nan'}}]
    """
    if table.objects is not None:
        return [dict(body) for body in table.objects]
    objects = []
    with_metrics = any(column.metric for column in table.columns)
    for row in table.rows:
        body: dict[str, Any] = {c.name: row[c.name] for c in table.columns if not c.metric}
        if with_metrics:
            body["metrics"] = {
                column.metric: _finite(row[column.name])
                for column in table.columns
                if column.metric and row[column.name] is not None
            }
        objects.append(body)
    return objects


def csv_text(table: Table) -> str:
    """Return the table as CSV with a header; lines end with CR LF, as in RFC 4180."""
    stream = io.StringIO()
    writer = csv.writer(stream)
    writer.writerow([_cell(column.name) for column in table.columns])
    for row in table.rows:
        writer.writerow([_cell(row[column.name]) for column in table.columns])
    return stream.getvalue()


def parquet_bytes(table: Table) -> bytes:
    """Return the table as one Parquet file.

    :raises ConfigError: when pyarrow is not installed; the hint is the command that installs it.
    """
    pyarrow = extras.load("pyarrow", needed_for="--format parquet")
    writer = extras.load("pyarrow.parquet", needed_for="--format parquet")
    kinds: Mapping[str, Any] = {
        "text": pyarrow.string(),
        "integer": pyarrow.int64(),
        "number": pyarrow.float64(),
    }
    schema = pyarrow.schema([(column.name, kinds[column.kind]) for column in table.columns])
    buffer = io.BytesIO()
    writer.write_table(pyarrow.Table.from_pylist(list(table.rows), schema=schema), buffer)
    return buffer.getvalue()


def _finite(value: float) -> float | str:
    return value if math.isfinite(value) else str(value)


def _cell(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, str):
        text = printable(value)
        return f"'{text}" if value.startswith(_FORMULA) else text
    return str(value)
