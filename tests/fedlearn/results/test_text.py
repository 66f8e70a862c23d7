"""Events, sizes, durations and metrics as text."""

from __future__ import annotations

import math

import pytest

from fedlearn.job import events
from fedlearn.results.text import (
    bytes_text,
    event_text,
    metrics_text,
    privacy_text,
    seconds_text,
    time_text,
)
from tests.fedlearn.results.story import STORY


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


def test_the_chosen_metric_is_first_and_the_loss_next() -> None:
    metrics = {"accuracy": 0.9, "f1": 0.5, "loss": 0.25, "recall": 0.75}
    assert metrics_text(metrics, "f1") == "f1 0.5000  loss 0.2500  accuracy 0.9000"
    assert metrics_text(metrics) == "loss 0.2500  accuracy 0.9000  f1 0.5000"


def test_a_name_of_a_metric_cannot_control_a_terminal() -> None:
    assert metrics_text({"\x1b[31mred": 1.0}) == "\N{REPLACEMENT CHARACTER}[31mred 1.0000"
    spent = events.PrivacySpent(
        round=1, epsilon=1.0, delta=1e-5, unit="\x1b[0m", sampling="s", accountant="a"
    )
    assert "\x1b" not in privacy_text(spent)


def test_what_a_round_waits_for_is_one_line() -> None:
    event = events.RoundWaiting(
        round=26,
        rounds=400,
        sites=("north",),
        detail="north (removed 12 s ago)",
        until_unix_ms=47_110_000,
    )
    expected = "round 26/400 waits for north (removed 12 s ago) until 13:05:10 UTC"
    assert event_text(event) == expected
    skipped = events.RoundSkipped(round=3, rounds=4, reason="no model of 2 updates")
    assert event_text(skipped) == "round 3/4: SKIPPED: no model of 2 updates"


@pytest.mark.parametrize("until", [0, 2**63 - 1])
def test_a_time_that_cannot_be_is_left_out(until: int) -> None:
    event = events.RoundWaiting(
        round=1, rounds=2, sites=("a",), detail="a (offline)", until_unix_ms=until
    )
    assert event_text(event) == "round 1/2 waits for a (offline)"
    assert time_text(until) is None
