"""The results of a run as rows: one an event, one a round, or one a site and round.

Rows are flat mappings of the columns that a table names, in that order; what is not known is None.
A metric has a column of its own, with its name; where a table has a column of that name already,
``metric.`` is put before it. Times are milliseconds since 1970, seconds wall clock.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, TypeAlias

from fedlearn.job import events
from fedlearn.results.history import Round, RunHistory
from fedlearn.results.text import event_text, time_text

__all__ = ["Column", "Table", "event_table", "round_table", "site_table"]

Kind: TypeAlias = Literal["text", "integer", "number"]

_ROUND: Final[tuple[tuple[str, Kind], ...]] = (
    ("job", "text"),
    ("stage", "integer"),
    ("round", "integer"),
    ("state", "text"),
    ("started_unix_ms", "integer"),
    ("finished_unix_ms", "integer"),
    ("seconds", "number"),
    ("asked", "integer"),
    ("sites", "integer"),
    ("bytes", "integer"),
    ("bytes_received", "integer"),
    ("bytes_saved", "integer"),
    ("epsilon", "number"),
    ("reason", "text"),
)
_SITE: Final[tuple[tuple[str, Kind], ...]] = (
    ("job", "text"),
    ("stage", "integer"),
    ("round", "integer"),
    ("site", "text"),
    ("state", "text"),
    ("unix_ms", "integer"),
    ("bytes", "integer"),
    ("examples", "integer"),
    ("reason", "text"),
)
_EVENT: Final[tuple[tuple[str, Kind], ...]] = (
    ("unix_ms", "integer"),
    ("time", "text"),
    ("kind", "text"),
    ("round", "integer"),
    ("site", "text"),
    ("text", "text"),
    ("fields", "text"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """One column; ``metric`` is the metric that it has, empty for another."""

    name: str
    kind: Kind
    metric: str = ""


@dataclass(frozen=True, slots=True)
class Table:
    """Columns, and rows with a value for each of them.

    ``objects``  what JSON has instead of the rows, where they are objects already
    ``schema``   the schema of those objects
    """

    columns: tuple[Column, ...]
    rows: Sequence[Mapping[str, Any]]
    objects: Sequence[Mapping[str, Any]] | None = None
    schema: str = ""


def event_table(timed: Iterable[tuple[events.Event, int]]) -> Table:
    """Return one row an event; ``fields`` has all of its fields as JSON, ``text`` a sentence.

    As JSON they are the events themselves, as in the file ``events.jsonl`` of a run's folder.
    """
    rows, objects = [], []
    for event, unix_ms in timed:
        body = event.to_json()
        objects.append({**body, "unix_ms": unix_ms} if unix_ms else dict(body))
        kind = body.pop("kind")
        rows.append(
            {
                "unix_ms": unix_ms or None,
                "time": time_text(unix_ms),
                "kind": kind,
                "round": getattr(event, "round", None),
                "site": getattr(event, "site", None),
                "text": event_text(event),
                "fields": json.dumps(body, sort_keys=True, default=str),
            }
        )
    return Table(_columns(_EVENT), rows, objects, events.EVENT_SCHEMA)


def round_table(history: RunHistory) -> Table:
    """Return one row a round, with the metrics of its model.

    ``state`` is ``finished``, ``skipped`` (it made no model, for ``reason``) or ``running``;
    ``sites`` is the number of updates in the model, of ``asked`` that were asked.
    """
    columns = _columns(_ROUND, (each.metrics for each in history.rounds))
    rows = [
        _with_metrics(columns, each.metrics, {**_place(history, each), **_round(each)})
        for each in history.rounds
    ]
    return Table(columns, rows)


def site_table(history: RunHistory) -> Table:
    """Return one row for each site that a round asked, with the metrics that the site reports.

    ``state`` is ``received``, ``rejected`` (for ``reason``) or ``waiting``.
    """
    every = (update.metrics for each in history.rounds for update in each.updates.values())
    columns = _columns(_SITE, every)
    rows = []
    for each in history.rounds:
        names = dict.fromkeys((*each.asked, *each.updates, *each.rejected))
        for name in names:
            update = each.updates.get(name)
            state = "received" if update else "rejected" if name in each.rejected else "waiting"
            row = {
                **_place(history, each),
                "site": name,
                "state": state,
                "unix_ms": update.unix_ms or None if update else None,
                "bytes": update.bytes if update else None,
                "examples": update.examples if update else None,
                "reason": each.rejected.get(name),
            }
            rows.append(_with_metrics(columns, update.metrics if update else {}, row))
    return Table(columns, rows)


def _place(history: RunHistory, each: Round) -> dict[str, Any]:
    return {"job": history.job, "stage": each.stage, "round": each.number}


def _round(each: Round) -> dict[str, Any]:
    state = "skipped" if each.skipped else "finished" if each.finished else "running"
    return {
        "state": state,
        "started_unix_ms": each.started_unix_ms or None,
        "finished_unix_ms": each.finished_unix_ms or None,
        "seconds": each.seconds if each.finished else None,
        "asked": len(each.asked) or None,
        "sites": each.sites if each.finished else None,
        "bytes": each.bytes if each.finished else None,
        "bytes_received": each.bytes_received if each.finished else None,
        "bytes_saved": each.bytes_saved if each.finished else None,
        "epsilon": each.privacy.epsilon if each.privacy else None,
        "reason": each.skip or None,
    }


def _columns(
    fixed: Iterable[tuple[str, Kind]], metrics: Iterable[Mapping[str, float]] = ()
) -> tuple[Column, ...]:
    columns = [Column(name=name, kind=kind) for name, kind in fixed]
    taken = {column.name for column in columns}
    for metric in sorted({name for each in metrics for name in each}):
        name = metric
        while name in taken:
            name = f"metric.{name}"
        taken.add(name)
        columns.append(Column(name=name, kind="number", metric=metric))
    return tuple(columns)


def _with_metrics(
    columns: Iterable[Column], metrics: Mapping[str, float], row: dict[str, Any]
) -> dict[str, Any]:
    for column in columns:
        if column.metric:
            row[column.name] = metrics.get(column.metric)
    return row
