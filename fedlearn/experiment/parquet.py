"""The results of an experiment as Apache Parquet: cells, rounds and clients.

``cells.parquet`` has one row a cell, with the digests of code, job, app and data;
``rounds.parquet`` one row for each round of a cell; ``clients.parquet`` one for each client and
metric of a cell. They are made of the results of the cells and can be made again at any time. A
column ``axis.NAME`` has the label of an axis, ``metric.NAME`` a metric.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Final

from attestation.durable import write_durably
from fedlearn import extras
from fedlearn.experiment.store import CellResult
from fedlearn.results.export import parquet_bytes
from fedlearn.results.tables import Column, Table

__all__ = ["FILES", "damaged_files", "tables", "write_parquet"]

FILES: Final = ("cells.parquet", "rounds.parquet", "clients.parquet")

_VERSIONS: Final = ("python", "flwr", "numpy", "scipy", "scikit-learn", "torch")


def write_parquet(folder: Path, results: Sequence[CellResult]) -> None:
    """Write the three files, each atomically.

    :raises ConfigError: when pyarrow is not installed.
    """
    for name, table in tables(results).items():
        write_durably(folder / name, parquet_bytes(table), mode=0o644)


def damaged_files(folder: Path) -> list[str]:
    """Return a sentence for each file that is there and was cut short or changed.

    :raises ConfigError: when pyarrow is not installed.
    """
    arrow = extras.load("pyarrow", needed_for="reading results in Parquet")
    reader = extras.load("pyarrow.parquet", needed_for="reading results in Parquet")
    found = []
    for name in FILES:
        path = folder / name
        if path.exists():
            try:
                # From memory, by groups, without threads: a program that ends while Arrow starts a
                # thread is aborted (SIGABRT).
                with reader.ParquetFile(arrow.BufferReader(path.read_bytes())) as file:
                    for group in range(file.metadata.num_row_groups):
                        file.read_row_group(group, use_threads=False)
            except (arrow.ArrowException, OSError) as error:
                why = str(error).splitlines()[0] if str(error) else type(error).__name__
                found.append(
                    f"{path}: was cut short or changed ({why}); it is made again of the results "
                    "of the cells, of which none is lost"
                )
    return found


def tables(results: Sequence[CellResult]) -> dict[str, Table]:
    """Return the three tables by the names of their files."""
    axes = sorted({name for each in results for name in each.cell.labels})
    metrics = sorted({name for each in results for name in each.metrics})
    return {
        "cells.parquet": _cells(results, axes),
        "rounds.parquet": _rounds(results, axes, metrics),
        "clients.parquet": _clients(results),
    }


def _cells(results: Iterable[CellResult], axes: Sequence[str]) -> Table:
    columns = (
        _text("cell", "arm", *(f"axis.{name}" for name in axes))
        + _whole("seed")
        + _text("key", "job_sha256", "app_sha256", "data_sha256", "code_sha256")
        + _text(*(f"version.{name}" for name in _VERSIONS))
        + _text("machine", "system", "processor", "left_out")
        + _whole("rounds", "bytes_down", "bytes_up", "finished_unix_ms")
        + _real("virtual_seconds", "seconds", "cpu_seconds", "epsilon")
    )
    rows = []
    for each in results:
        versions = each.content.get("versions", {})
        last = each.rounds[-1] if each.rounds else None
        rows.append(
            {
                **_place(each, axes),
                "seed": each.cell.seed,
                "key": each.key,
                "job_sha256": each.content.get("job_digest"),
                "app_sha256": each.content.get("app_digest"),
                "data_sha256": each.content.get("data_digest"),
                "code_sha256": versions.get("fedlearn"),
                **{f"version.{name}": versions.get(name) for name in _VERSIONS},
                "machine": each.environment.get("machine"),
                "system": each.environment.get("system"),
                "processor": each.environment.get("processor"),
                "left_out": each.insecure,
                "rounds": each.last_round,
                "bytes_down": sum(r.bytes_down for r in each.rounds),
                "bytes_up": sum(r.bytes_up for r in each.rounds),
                "finished_unix_ms": each.finished_unix_ms,
                "virtual_seconds": last.virtual_seconds if last else None,
                "seconds": each.seconds,
                "cpu_seconds": each.cpu_seconds,
                "epsilon": last.epsilon if last else None,
            }
        )
    return Table(columns, rows)


def _rounds(results: Iterable[CellResult], axes: Sequence[str], metrics: Sequence[str]) -> Table:
    columns = (
        _text("cell", "arm", *(f"axis.{name}" for name in axes))
        + _whole("seed", "round", "bytes_down", "bytes_up")
        + _real("virtual_seconds", "seconds", "epsilon", *(f"metric.{name}" for name in metrics))
    )
    rows = [
        {
            **_place(each, axes),
            "seed": each.cell.seed,
            "round": one.round,
            "bytes_down": one.bytes_down,
            "bytes_up": one.bytes_up,
            "virtual_seconds": one.virtual_seconds,
            "seconds": one.seconds,
            "epsilon": one.epsilon,
            **{f"metric.{name}": one.metrics.get(name) for name in metrics},
        }
        for each in results
        for one in each.rounds
    ]
    return Table(columns, rows)


def _clients(results: Iterable[CellResult]) -> Table:
    columns = _text("cell", "arm", "client", "metric") + _whole("seed") + _real("value")
    rows = [
        {
            "cell": each.cell.name,
            "arm": each.cell.arm,
            "client": client,
            "metric": metric,
            "seed": each.cell.seed,
            "value": value,
        }
        for each in results
        for metric, values in each.clients.items()
        for client, value in values.items()
    ]
    return Table(columns, rows)


def _place(each: CellResult, axes: Sequence[str]) -> dict[str, Any]:
    labels = {f"axis.{name}": each.cell.labels.get(name) for name in axes}
    return {"cell": each.cell.name, "arm": each.cell.arm, **labels}


def _text(*names: str) -> tuple[Column, ...]:
    return tuple(Column(name=name, kind="text") for name in names)


def _whole(*names: str) -> tuple[Column, ...]:
    return tuple(Column(name=name, kind="integer") for name in names)


def _real(*names: str) -> tuple[Column, ...]:
    return tuple(Column(name=name, kind="number") for name in names)
