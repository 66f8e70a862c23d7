"""Progress: one line an event when redirected, JSON for programs, a history on a terminal."""

from __future__ import annotations

import io
import json

import pytest

from fedlearn.job import events
from fedlearn.terminal.progress import lines_show, show_for
from tests.fedlearn.results.story import STORY


def test_redirected_output_gets_plain_lines() -> None:
    stream = io.StringIO()
    with lines_show(as_json=False, stream=stream, metric="auc") as show:
        for event in STORY:
            show.show(event)
    lines = stream.getvalue().splitlines()
    assert "round 1/2: 1 sites  0.42 s  2.0 KiB  auc 0.6600  loss 0.5000" in lines
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
    assert rows[-2] == {"kind": "new.kind", "x": 1, "unix_ms": 5, "schema": events.EVENT_SCHEMA}


def test_a_terminal_gets_a_live_view(monkeypatch: pytest.MonkeyPatch) -> None:
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
