"""Runs beside each other: what they share, and that their names cannot be markup."""

from __future__ import annotations

import pytest

from fedlearn.errors import ConfigError
from fedlearn.job import events
from fedlearn.results.compare import compare
from fedlearn.results.history import RunHistory

EVIL = "<script>alert(1)</script>"


def run(**metrics: float) -> RunHistory:
    reported: list[events.Event] = [
        events.JobStarted(job="j", rounds=2, sites=("a",)),
        events.RoundStarted(round=1, rounds=2, sites=("a",)),
        events.UpdateReceived(round=1, site="a", bytes=7),
        events.RoundFinished(round=1, rounds=2, seconds=2.0, sites=1, bytes=7, metrics=metrics),
        events.JobFinished(model="j"),
    ]
    return RunHistory.of((event, 1000 * n) for n, event in enumerate(reported, 1))


def test_rows_have_what_a_run_cost_and_reached() -> None:
    found = compare([("one", run(loss=0.5, auc=0.75)), ("two", run(loss=0.25))])
    assert found.metrics == ("loss",)
    first, second = found.rows()
    assert (first["run"], first["status"], first["rounds"]) == ("one", "finished", 1)
    assert (first["planned"], first["sites"], first["bytes"]) == (2, 1, 7)
    assert (first["seconds"], first["median_round_seconds"]) == (4.0, 2.0)
    assert (first["metrics"], second["metrics"]) == ({"loss": 0.5}, {"loss": 0.25})


def test_rows_have_the_compression_and_what_it_saved() -> None:
    compressed = RunHistory.of(
        [
            (events.JobStarted(job="j", rounds=1, compression="int8"), 1),
            (
                events.RoundFinished(
                    round=1, seconds=2.0, sites=1, bytes=9000, bytes_received=1024, bytes_saved=3072
                ),
                2,
            ),
        ]
    )
    found = compare([("one", run(loss=0.5)), ("two", compressed)])
    plain, small = found.rows()
    assert (plain["compression"], plain["bytes_received"], plain["bytes_saved"]) == ("", None, 0)
    assert (small["compression"], small["bytes_received"]) == ("int8", 1024)
    rows = [dict(zip(found.heads(), cells, strict=True)) for cells in found.cells()]
    assert (rows[0]["from sites"], rows[0]["compression"]) == ("n/a", "n/a")
    assert (rows[1]["from sites"], rows[1]["compression"]) == (
        "1.0 KiB",
        "int8: 1.0 KiB instead of 4.0 KiB",
    )


def test_the_chosen_metric_is_first_and_may_be_of_one_run() -> None:
    found = compare([("one", run(loss=0.5, auc=0.75)), ("two", run(loss=0.25))], metric="auc")
    assert found.metrics == ("auc", "loss")
    assert found.heads()[3:5] == ["auc", "loss"]
    assert found.cells()[1][3] == "n/a"


def test_a_run_without_rounds_is_a_row() -> None:
    found = compare([("one", RunHistory()), ("two", run(loss=0.5))], metric="loss")
    assert found.cells()[0][:3] == ["one", "waiting", "0/0"]
    assert "two" in found.page()


def test_the_page_overlays_the_metrics_and_escapes_names() -> None:
    page = compare([(EVIL, run(**{EVIL: 0.5})), ("two", run(**{EVIL: 0.25}))]).page()
    assert 'class="curve s0"' in page
    assert 'class="curve s1"' in page
    assert "<script" not in page
    assert "alert(1)" in page


@pytest.mark.parametrize("number", [0, 1, 9])
def test_too_few_and_too_many_runs_are_refused(number: int) -> None:
    with pytest.raises(ConfigError, match="2 to 8 can be compared"):
        compare([(str(n), run(loss=1.0)) for n in range(number)])


def test_a_run_that_is_named_twice_and_an_unknown_metric_are_refused() -> None:
    with pytest.raises(ConfigError, match="one is named twice"):
        compare([("one", run(loss=1.0)), ("one", run(loss=1.0))])
    with pytest.raises(ConfigError, match="no run reports the metric 'f1'; there are: loss"):
        compare([("one", run(loss=1.0)), ("two", run(loss=1.0))], metric="f1")
