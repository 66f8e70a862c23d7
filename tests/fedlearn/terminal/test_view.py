"""The live view fits its terminal: no head is cut, and each part has lines of its own."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from fedlearn.job import events
from fedlearn.results.history import RunHistory
from fedlearn.terminal.view import draw, shortened_name
from tests.fedlearn.results.story import STORY, TIMED

LONG = "hospital-of-the-university-of-the-far-north-7"
SITES = (*(f"hospitals-{number}" for number in range(1, 7)), LONG)
START = 1_700_000_000_000
WIDTHS = range(60, 201, 7)


def busy() -> RunHistory:
    """A run of 400 rounds in the middle of round 26, for which four sites have not answered."""
    history = RunHistory()
    history.add(events.JobStarted(job="medpar", rounds=400, sites=SITES), unix_ms=START)
    for site in SITES[:6]:
        history.add(events.ClientAdmitted(site=site, tee="azure-vtpm"), unix_ms=START + 500)
    for number in range(1, 27):
        at = START + 2000 * number
        history.add(events.RoundStarted(round=number, rounds=400, sites=SITES), unix_ms=at)
        for site in SITES[: 7 if number < 26 else 3]:
            history.add(events.UpdateReceived(round=number, site=site, bytes=123_456), unix_ms=at)
        if number < 26:
            done = events.RoundFinished(
                round=number,
                rounds=400,
                seconds=1.9,
                sites=7,
                bytes=777_777,
                metrics={"auc": 0.66, "loss": 0.5, "a-metric-with-a-long-name": 0.25},
            )
            history.add(done, unix_ms=at + 1900)
    reason = "failed: the machine was removed by its owner for maintenance until Monday"
    history.add(events.ClientLost(site=SITES[4], reason=reason), unix_ms=START + 60_000)
    return history


def drawn(history: RunHistory, width: int, metric: str = "", now: int = 0) -> list[str]:
    console = Console(file=io.StringIO(), width=width, record=True)
    console.print(draw(history, metric, now_unix_ms=now))
    return console.export_text().splitlines()


@pytest.mark.parametrize("width", WIDTHS)
def test_it_fits_and_no_head_is_cut(width: int) -> None:
    lines = drawn(busy(), width, "auc")
    assert max(map(len, lines)) <= width
    assert lines[0].startswith("medpar  running  round 26/400")
    assert set(lines[1].strip()) <= set("━╸╺")
    assert lines[2].startswith("waits for hospitals-4")
    assert lines[2].endswith("(4 of 7)")
    assert lines[3].split() == ["site", "TEE", "state", "updates", "sent"]
    assert lines[11].split() == ["round", "sites", "time", "bytes", "metrics"]
    # Each line of a table has all of its cells.
    assert all(len(line.split()) >= 6 for line in lines[4:11])
    assert all("auc 0.6600" in line for line in lines[12:20])


@pytest.mark.parametrize("width", [*range(40, 60, 3)])
def test_a_narrower_terminal_gets_fewer_columns(width: int) -> None:
    lines = drawn(busy(), width)
    heads = next(line for line in lines if line.startswith("site")).split()
    assert heads == ["site", "TEE", "state", "updates", "sent"][: len(heads)]
    assert len(heads) >= 3


def test_names_are_shortened_from_the_middle_and_stay_apart() -> None:
    text = "\n".join(drawn(busy(), 60))
    assert all(f"hospitals-{number}" in text for number in range(1, 7))
    assert "hospital-" in text
    assert "north-7" in text
    assert LONG not in text
    assert "hospital-of-the-uni…y-of-the-far-north-7" in "\n".join(drawn(busy(), 200))
    assert len({shortened_name(f"hospitals-of-the-south-{n}", 10) for n in range(10)}) == 10
    assert shortened_name("short", 10) == "short"


def test_time_passes_between_events() -> None:
    at = START + 60_000
    assert "1 min 00 s  about 11 min 51 s left" in drawn(busy(), 120)[0]
    assert "1 min 30 s  about 11 min 51 s left" in drawn(busy(), 120, now=at + 30_000)[0]
    assert drawn(busy(), 120)[0].endswith("18.5 MiB")


def test_what_a_run_waits_for() -> None:
    history = RunHistory()
    history.add(events.JobStarted(job="j", rounds=2, sites=("a", "b")), unix_ms=1)
    assert "waits for the admission of a, b (2 of 2)" in drawn(history, 80)
    many = tuple(f"site-number-{number}" for number in range(90))
    history.add(events.RoundStarted(round=1, rounds=2, sites=many))
    line = next(line for line in drawn(history, 60) if line.startswith("waits for"))
    assert line.endswith("more (90 of 90)")
    for site in many:
        history.add(events.UpdateReceived(round=1, site=site, bytes=1))
    assert "aggregating and evaluating" in drawn(history, 60)
    history.add(events.JobFinished())
    assert not [line for line in drawn(history, 60) if "waits for" in line or "aggregating" in line]


@pytest.mark.parametrize("width", [60, 120])
def test_an_absent_site_is_named_with_the_reason(width: int) -> None:
    history = RunHistory.of([(events.JobStarted(job="j", rounds=400, sites=("a", "b")), START)])
    detail = "a-site-with-a-long-name (removed 12 s ago)"
    waiting = events.RoundWaiting(
        round=26, rounds=400, sites=("b",), detail=detail, until_unix_ms=START
    )
    history.add(waiting, unix_ms=START + 1)
    lines = drawn(history, width)
    assert max(map(len, lines)) <= width
    text = " ".join(" ".join(lines).split())
    assert f"round 26/400 waits for {detail} until 22:13:20 UTC" in text


def test_the_end_of_a_run() -> None:
    text = "\n".join(drawn(RunHistory.of(TIMED), 100, "auc"))
    for words in ("medpar", "finished", "round 1/2", "tpm", "refused", "0.42 s", "auc 0.6600"):
        assert words in text
    assert "model medpar is sealed" in text
    assert "epsilon 1.234 of 8" in text


def test_nothing_is_drawn_of_nothing() -> None:
    assert drawn(RunHistory(), 80)[0] == "job  waiting  round 0/?  0.00 s"


def test_many_sites_are_counted() -> None:
    history = RunHistory()
    history.add(events.JobStarted(job="many", rounds=3, sites=tuple(f"s{i}" for i in range(40))))
    assert "and 24 more" in drawn(history, 80)


@pytest.mark.parametrize("height", [15, 24, 40])
def test_it_fits_the_height_of_a_terminal(height: int) -> None:
    history = busy()
    names = tuple(f"site-{number}" for number in range(40))
    history.add(events.RoundStarted(round=27, rounds=400, sites=names))
    console = Console(
        file=io.StringIO(), width=100, height=height, force_terminal=True, no_color=True
    )
    console.print(draw(history))
    lines = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    assert len(lines) <= height
    assert any(line.startswith("   25") for line in lines)
    assert any("more" in line for line in lines)


def test_text_of_others_cannot_control_the_terminal() -> None:
    evil = "\x1b[31m[bold]x\x1b[0m"
    reported = [
        events.JobStarted(job=evil, rounds=1, sites=(evil,)),
        events.ClientAdmitted(site=evil, tee=evil),
        events.ClientLost(site=evil, reason=evil),
        events.RoundFinished(round=1, seconds=1.0, sites=1, bytes=1, metrics={evil: 1.0}),
        events.JobFailed(detail=evil),
    ]
    history = RunHistory.of((event, 1) for event in (*STORY, *reported))
    assert "\x1b" not in "\n".join(drawn(history, 120))
