"""Progress: one line an event when redirected, JSON for programs, a board on a terminal."""

from __future__ import annotations

import io
import json
import math

import pytest
from rich.console import Console

from fedlearn.job import events
from fedlearn.terminal.progress import (
    Board,
    bytes_text,
    draw,
    event_text,
    lines_show,
    metrics_text,
    seconds_text,
    show_for,
)

STORY: list[events.Event] = [
    events.JobSubmitted(job="medpar", rounds=2, sites=("a", "b")),
    events.JobStarted(job="medpar", rounds=2, sites=("a", "b")),
    events.ClientStarting(site="a"),
    events.ClientAdmitted(site="a", tee="tpm"),
    events.ClientAdmitted(site="b", tee="sample"),
    events.ClientRefused(
        site="rogue",
        reason="wrong app",
        findings=({"claim": "app", "tier": "contraindicated", "expected": "aa", "actual": "bb"},),
    ),
    events.RoundStarted(round=1, rounds=2, sites=("a", "b")),
    events.UpdateReceived(round=1, site="a", bytes=2048, examples=10),
    events.UpdateRejected(round=1, site="b", reason="too late"),
    events.RoundFinished(
        round=1, rounds=2, seconds=0.42, sites=1, bytes=2048, metrics={"auc": 0.66, "loss": 0.5}
    ),
    events.CheckpointSealed(round=1, model="medpar", version=1),
    events.PrivacySpent(
        round=1,
        epsilon=1.234,
        delta=1e-5,
        unit="site",
        sampling="full participation",
        accountant="rdp",
        limit=8,
    ),
    events.ClientQuarantined(site="b", reason="did not attest again"),
    events.Log(site="a", line="\x1b[31mhello"),
    events.OtherEvent(name="new.kind", body={"x": 1}),
    events.JobFinished(model="medpar"),
]


def test_redirected_output_gets_plain_lines() -> None:
    stream = io.StringIO()
    with lines_show(as_json=False, stream=stream, metric="auc") as show:
        for event in STORY:
            show.show(event)
    lines = stream.getvalue().splitlines()
    assert "round 1/2: 1 sites  0.42 s  2.0 KiB  loss 0.5000  auc 0.6600" in lines
    assert "site rogue: REFUSED: wrong app [app: expected aa, found bb]" in lines
    assert "round 1: update of b dropped: too late" in lines
    assert (
        "round 1: epsilon 1.234 of 8 at delta 1e-05, unit site, full participation, accountant rdp"
        in lines
    )
    assert lines[-1] == "job finished, model medpar is sealed"
    assert "\x1b" not in stream.getvalue()


def test_programs_get_one_object_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    with show_for(as_json=True) as show:
        for event in STORY:
            show.show(event, unix_ms=5)
    rows = [json.loads(text) for text in capsys.readouterr().out.splitlines()]
    assert [row["kind"] for row in rows[:3]] == ["job.submitted", "job.started", "client.starting"]
    assert rows[-2] == {"kind": "new.kind", "x": 1, "unix_ms": 5}


def test_the_board_knows_what_was_reported() -> None:
    board = Board()
    for event in STORY:
        board.fold(event)
    assert (board.job, board.state, board.round, board.rounds) == ("medpar", "finished", 1, 2)
    assert board.sites["a"].state == "done"
    assert board.sites["a"].bytes == 2048
    assert board.sites["b"].state == "quarantined"
    assert board.sites["rogue"].state == "refused"
    assert len(board.finished) == 1


def test_the_board_is_drawn() -> None:
    board = Board()
    for event in STORY:
        board.fold(event)
    console = Console(file=io.StringIO(), width=100, record=True)
    console.print(draw(board, "auc"))
    text = console.export_text()
    for words in ("medpar", "finished", "round 1/2", "tpm", "refused", "0.42 s", "auc 0.6600"):
        assert words in text
    many = Board(job="many", rounds=3)
    many.fold(events.JobStarted(job="many", rounds=3, sites=tuple(f"s{i}" for i in range(40))))
    console.print(draw(many))
    assert "and 24 more" in console.export_text()


def test_a_terminal_gets_a_live_board(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    stream = Terminal()
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setattr("sys.stdout", stream)
    with show_for(as_json=False, metric="auc") as show:
        for event in STORY:
            show.show(event)
    text = stream.getvalue()
    assert "\x1b[" in text
    assert "medpar" in text
    assert "\x1b[31mhello" not in text
    assert text.endswith("\x1b[?25h")  # the cursor is back


def test_no_epsilon_stands_alone() -> None:
    spent = next(event for event in STORY if isinstance(event, events.PrivacySpent))
    text = event_text(spent)
    for words in ("epsilon", "delta", "unit", "participation", "accountant"):
        assert words in text


@pytest.mark.parametrize(
    ("count", "shown"), [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (5 * 2**40, "5120.0 GiB")]
)
def test_sizes(count: int, shown: str) -> None:
    assert bytes_text(count) == shown


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(0.1, "0.10 s"), (12.34, "12.3 s"), (185, "3 min 05 s"), (7260, "2 h 01 min")],
)
def test_durations(seconds: float, shown: str) -> None:
    assert seconds_text(seconds) == shown


def test_a_diverged_metric_is_shown() -> None:
    assert metrics_text({"loss": math.nan, "w": math.inf, "z": 1e9}) == "loss nan  w inf  z 1e+09"
