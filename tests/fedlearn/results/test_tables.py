"""Tables of a run, and their three forms."""

from __future__ import annotations

import csv
import io
import json
import math
import sys
from typing import Any

import pytest

from fedlearn.errors import ConfigError
from fedlearn.job import events
from fedlearn.results.export import csv_text, json_rows, parquet_bytes
from fedlearn.results.history import RunHistory
from fedlearn.results.tables import Table, event_table, round_table, site_table
from tests.fedlearn.results.story import TIMED


def rows(table: Table) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(csv_text(table))))


def metrics(values: dict[str, float]) -> RunHistory:
    reported: list[events.Event] = [
        events.JobStarted(job="j", rounds=2, sites=("a", "b", "c")),
        events.RoundStarted(round=1, rounds=2, sites=("a", "b", "c")),
        events.UpdateReceived(round=1, site="a", bytes=5, examples=9, metrics=values),
        events.UpdateRejected(round=1, site="b", reason="=cmd|' /C calc'!A0"),
        events.RoundFinished(round=1, rounds=2, seconds=0.5, sites=1, bytes=5, metrics=values),
        events.RoundStarted(round=2, rounds=2, sites=("a", "b", "c")),
        events.RoundSkipped(round=2, rounds=2, reason="no model"),
        events.RoundFinished(round=2, rounds=2, seconds=0.5, sites=0, bytes=0),
    ]
    return RunHistory.of((event, 1000 * n) for n, event in enumerate(reported, 1))


def test_rounds_have_their_metrics_and_what_they_cost() -> None:
    first, second = rows(round_table(metrics({"loss": 0.25, "auc": 0.75})))
    assert (first["job"], first["round"], first["state"]) == ("j", "1", "finished")
    assert (first["asked"], first["sites"], first["bytes"]) == ("3", "1", "5")
    assert (first["seconds"], first["auc"], first["loss"]) == ("0.5", "0.75", "0.25")
    assert (second["state"], second["auc"], second["reason"]) == ("skipped", "", "no model")
    (private,) = rows(round_table(RunHistory.of(TIMED)))
    assert private["epsilon"] == "1.234"


def test_sites_have_what_became_of_their_updates() -> None:
    table = site_table(metrics({"loss": 0.25}))
    first, second, third = rows(table)[:3]
    assert (first["site"], first["state"], first["examples"]) == ("a", "received", "9")
    assert first["loss"] == "0.25"
    assert (second["state"], third["state"]) == ("rejected", "waiting")
    assert json_rows(table)[1]["reason"] == "=cmd|' /C calc'!A0"


def test_a_text_cannot_be_a_formula_in_a_spreadsheet() -> None:
    second = rows(site_table(metrics({})))[1]
    assert second["reason"] == "'=cmd|' /C calc'!A0"
    assert rows(round_table(metrics({"loss": -0.5})))[0]["loss"] == "-0.5"
    reported = [(events.Log(line="=1+1", site="@a"), 1)]
    (row,) = rows(event_table(reported))
    assert row["site"] == "'@a"


def test_a_metric_with_the_name_of_a_column_keeps_its_value() -> None:
    history = metrics({"round": 0.5, "metric.round": 0.75, "seconds": 0.125})
    (first, _) = rows(round_table(history))
    assert (first["round"], first["seconds"]) == ("1", "0.5")
    assert first["metric.round"] == "0.75"
    assert first["metric.metric.round"] == "0.5"
    assert first["metric.seconds"] == "0.125"
    assert json_rows(round_table(history))[0]["metrics"]["round"] == 0.5


def test_metrics_that_diverged_are_kept() -> None:
    history = metrics({"loss": math.nan, "w": -math.inf})
    table = round_table(history)
    assert rows(table)[0]["loss"] == "nan"
    assert rows(table)[0]["w"] == "-inf"
    assert json_rows(table)[0]["metrics"] == {"loss": "nan", "w": "-inf"}
    json.dumps(json_rows(table), allow_nan=False)


def test_events_keep_all_of_their_fields() -> None:
    table = event_table(TIMED)
    found = rows(table)
    assert len(found) == len(TIMED)
    received = next(row for row in found if row["kind"] == "update.received")
    assert json.loads(received["fields"])["examples"] == 10
    assert received["time"] == "2023-11-14T22:13:27.000Z"
    unknown = next(row for row in found if row["kind"] == "new.kind")
    assert json.loads(unknown["fields"]) == {"x": 1}
    assert "\x1b" not in csv_text(table)


def test_a_time_that_is_none_stays_empty() -> None:
    assert rows(event_table([(events.Log(line="x"), 0)]))[0]["time"] == ""


def test_parquet_has_the_values_with_their_types() -> None:
    parquet: Any = pytest.importorskip("pyarrow.parquet", reason="extra parquet")
    history = metrics({"loss": math.nan, "auc": 0.75})
    table = parquet.read_table(io.BytesIO(parquet_bytes(round_table(history))))
    assert str(table.schema.field("round").type) == "int64"
    assert str(table.schema.field("seconds").type) == "double"
    first, second = table.to_pylist()
    assert math.isnan(first["loss"])
    assert (first["auc"], second["auc"], first["job"]) == (0.75, None, "j")
    events_table = parquet.read_table(io.BytesIO(parquet_bytes(event_table(TIMED))))
    assert events_table.num_rows == len(TIMED)
    empty = parquet.read_table(io.BytesIO(parquet_bytes(round_table(RunHistory()))))
    assert empty.num_rows == 0
    assert "seconds" in empty.schema.names


def test_without_pyarrow_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ConfigError, match="pyarrow") as refused:
        parquet_bytes(round_table(RunHistory()))
    assert refused.value.hint == "pip install 'fedlearn[parquet]'"
