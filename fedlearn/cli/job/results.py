"""``fedlearn job events, metrics, report, compare``: the results of runs, over an operator's login.

A run is a job of the coordinator, ``NAME`` or ``NAME@2``, or a folder of ``fedlearn job try``: an
argument with a ``/`` in it, as ``runs/NAME-1``, is a folder.

The page is docs/how-to/plot-and-compare-runs.md.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, cast

import click

from fedlearn.cli.operator import operator_option
from fedlearn.errors import ConfigError
from fedlearn.job.run import checked_reference
from fedlearn.terminal.console import json_document, json_option, line, print_json, printable

if TYPE_CHECKING:
    from fedlearn.api.result import Result
    from fedlearn.results.export import Format
    from fedlearn.results.tables import Table

__all__ = ["compare", "events", "metrics", "report"]

_FORMATS: Final = ("json", "csv", "parquet")
_NOT_SHOWN: Final = frozenset({"job", "stage", "started_unix_ms", "finished_unix_ms", "unix_ms"})
_FILE: Final = click.Path(path_type=Path, dir_okay=False)


def _format_options(command: Callable[..., Any]) -> Callable[..., Any]:
    for option in (
        click.option(
            "--format", "form", type=click.Choice(_FORMATS), help="json: one object a line."
        ),
        click.option(
            "--out",
            type=_FILE,
            default=None,
            help="Write to this file, by default in the format that its name ends with.",
        ),
        operator_option,
        json_option,
    ):
        command = option(command)
    return command


@click.command("events")
@click.argument("run")
@_format_options
def events(
    run: str, form: Format | None, out: Path | None, operator: Path | None, as_json: bool
) -> None:
    """Write every event of RUN, with its time, as JSON lines, CSV or Parquet.

    RUN is a job of the coordinator, or a folder of `job try` or `simulate` (runs/NAME-1).
    """
    from fedlearn.results.tables import event_table

    with _result(run, operator) as found:
        table = event_table(found.events())
    _write(table, form, out, as_json=as_json)


@click.command("metrics")
@click.argument("run")
@click.option(
    "--by",
    type=click.Choice(["round", "site"]),
    default="round",
    show_default=True,
    help="One row a round, or one for each site that a round asked.",
)
@_format_options
def metrics(
    run: str, by: str, form: Format | None, out: Path | None, operator: Path | None, as_json: bool
) -> None:
    """Show the metrics of RUN round by round, or write them as JSON lines, CSV or Parquet.

    RUN is a job of the coordinator, or a folder of `job try` or `simulate` (runs/NAME-1).
    """
    from fedlearn.results.tables import round_table, site_table

    with _result(run, operator) as found:
        history, insecure = found.history, found.insecure
    table = round_table(history) if by == "round" else site_table(history)
    if form is None and not as_json and out is None:
        if insecure:
            line(f"insecure: {insecure}", style="yellow")
        _show(table)
    else:
        _write(table, form, out, as_json=as_json)


@click.command("report")
@click.argument("run")
@click.option(
    "--out",
    type=_FILE,
    default=Path("report.html"),
    show_default=True,
    help="The page; a file that exists is replaced.",
)
@click.option("--metric", default="", help="The metric to show first.")
@operator_option
@json_option
def report(run: str, out: Path, metric: str, operator: Path | None, as_json: bool) -> None:
    """Write the report of RUN: one HTML page that loads nothing from the network.

    It shows rounds, sites, refusals, privacy spent, evidence and resources. RUN is a job of the
    coordinator, or a folder of `job try` or `simulate` (runs/NAME-1).
    """
    with _result(run, operator) as found:
        found.report(out, replace=True, metric=metric)
        name = _label(run, found)
    if as_json:
        print_json({"run": name, "out": str(out), "bytes": out.stat().st_size})
    else:
        line(f"the report of {name} is in {out}", style="green")


@click.command("compare")
@click.argument("runs", nargs=-1, required=True)
@click.option("--metric", default="", help="The metric to show first; the loss by default.")
@click.option("--out", type=_FILE, default=None, help="Write a page with an overlaid plot as well.")
@operator_option
@json_option
def compare(
    runs: tuple[str, ...], metric: str, out: Path | None, operator: Path | None, as_json: bool
) -> None:
    """Compare 2 to 8 RUNS: a table, and with --out one page with their metrics overlaid.

    Each of RUNS is a job of the coordinator, or a folder of `job try` or `simulate` (runs/NAME-1).
    """
    from fedlearn.results.compare import compare as compared

    loaded = []
    for run in runs:
        with _result(run, operator) as result:
            loaded.append((_label(run, result), result.history))
    found = compared(loaded, metric=metric)
    if out is not None:
        _save(out, found.page().encode())
    if as_json:
        print_json(
            {"metrics": list(found.metrics), "runs": found.rows(), "out": str(out) if out else None}
        )
        return
    _grid(found.heads(), found.cells())
    if out is not None:
        line(f"the plot is in {out}", style="green")


@contextlib.contextmanager
def _result(run: str, operator: Path | None) -> Iterator[Result]:
    """Return the result of the run that the argument names; its events can be read meanwhile.

    :raises ConfigError: when it is neither a name nor a folder of a run.
    """
    from fedlearn.api.result import Result

    if os.sep in run or run in (os.curdir, os.pardir):
        yield Result.load(run)
        return
    try:
        checked_reference(run)
    except ConfigError:
        raise click.BadParameter(
            f"{run[:80]!r} is neither a job (1 to 63 of a-z, 0-9 and '-', or NAME@2) nor a folder "
            "(runs/NAME-1)"
        ) from None
    from fedlearn.api.connection import connect

    with connect(operator) as coordinator:
        yield coordinator.job(run).result()


def _label(run: str, result: Result) -> str:
    """Return what a run is called beside others: the name of its folder, or of the job.

    It states that a run was simulated.
    """
    name = Path(run).resolve().name if result.folder else result.name
    return f"{name} (simulated)" if result.insecure else name


def _write(table: Table, form: Format | None, out: Path | None, *, as_json: bool) -> None:
    """Write rows to a file or to stdout; without a format in that of the name of the file."""
    from fedlearn.results.export import csv_text, json_rows, parquet_bytes
    from fedlearn.results.markup import counted

    suffix = out.suffix.lower().removeprefix(".") if out is not None else ""
    form = form or (cast("Format", suffix) if suffix in _FORMATS else "json")
    if out is not None:
        if form == "parquet":
            data = parquet_bytes(table)
        elif form == "csv":
            data = csv_text(table).encode()
        else:
            rows = (json_document(row, schema=table.schema) for row in json_rows(table))
            data = "".join(f"{row}\n" for row in rows).encode()
        _save(out, data)
        if as_json:
            done = {"out": str(out), "format": form, "rows": len(table.rows), "bytes": len(data)}
            print_json(done)
        else:
            line(f"{counted(len(table.rows), 'row')} written to {out}", style="green")
    elif form == "parquet":
        raise ConfigError("a Parquet file is not text", hint="name the file with --out")
    elif form == "csv":
        if as_json:
            raise ConfigError("--json and --format csv exclude each other", where="--json")
        click.echo(csv_text(table), nl=False)
    else:
        for row in json_rows(table):
            print_json(row, schema=table.schema)


def _save(path: Path, data: bytes) -> None:
    """Replace a file as a whole."""
    from attestation.durable import write_durably

    write_durably(path, data, mode=0o644)


def _show(table: Table) -> None:
    """Print a table for people: without the job's name, times, and columns without a value."""
    from fedlearn.results.markup import NOT_KNOWN, number_text

    def shown(value: object) -> str:
        if value is None:
            return NOT_KNOWN
        return number_text(value) if isinstance(value, float) else str(value)

    columns = [column for column in table.columns if column.name not in _NOT_SHOWN]
    if not table.rows:
        line("no round has begun")
        return
    _grid(
        [column.name for column in columns],
        [[shown(row[column.name]) for column in columns] for row in table.rows],
    )


def _grid(heads: list[str], rows: list[list[str]]) -> None:
    """Print columns of text, each as wide as its widest cell, without those that have no value."""
    from fedlearn.results.markup import NOT_KNOWN

    kept = [i for i in range(len(heads)) if any(row[i] != NOT_KNOWN for row in rows)]
    cells = [[printable(row[i]) for i in kept] for row in (heads, *rows)]
    widths = [max(len(row[index]) for row in cells) for index in range(len(kept))]
    for number, row in enumerate(cells):
        texts = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        line("  ".join(texts).rstrip(), bold=number == 0)
