"""Attempts that are made again: the pauses between them, and what ends them."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest

from fedlearn.backoff import Backoff, retry
from fedlearn.errors import AdmissionDenied, Throttled
from fedlearn.wire.failure import UNANSWERED, Unreachable


def failing(error: Exception, times: int, made: list[int]) -> Callable[[], str]:
    def call() -> str:
        made.append(1)
        if len(made) <= times:
            raise error
        return "answered"

    return call


def test_a_pause_doubles_up_to_the_longest() -> None:
    backoff = Backoff(first=0.5, longest=3.0, draw=lambda low, high: high)
    assert [backoff.next() for _ in range(5)] == [0.5, 1.0, 2.0, 3.0, 3.0]
    assert backoff.next(longest=1.5) == 1.5
    backoff.reset()
    assert [backoff.next(longest=0.2), backoff.next()] == [0.2, 1.0]


def test_a_pause_is_drawn_between_half_of_its_bound_and_the_whole() -> None:
    for seconds in (Backoff(first=2.0).next() for _ in range(100)):
        assert 1.0 <= seconds <= 2.0
    assert len({Backoff().next() for _ in range(10)}) > 1


def test_only_who_does_not_answer_is_asked_again() -> None:
    made: list[int] = []
    slept: list[float] = []
    how: dict[str, Any] = {"failures": UNANSWERED, "wait": slept.append, "attempts": 6}
    how["backoff"] = Backoff(draw=lambda low, high: high)
    assert retry(failing(Unreachable("x"), 3, made), **how) == "answered"
    assert slept == [0.1, 0.2, 0.4]
    made.clear()
    assert retry(failing(Throttled("x"), 2, made), **how) == "answered"
    made.clear()
    with pytest.raises(AdmissionDenied):
        retry(failing(AdmissionDenied("x"), 99, made), **how)
    assert len(made) == 1
    made.clear()
    with pytest.raises(Unreachable):
        retry(failing(Unreachable("x"), 99, made), **{**how, "failures": (Throttled,)})
    assert len(made) == 1


def test_attempts_end_by_number_by_time_and_by_who_waits() -> None:
    made: list[int] = []
    how: dict[str, Any] = {"failures": (Unreachable,), "wait": lambda pause: None}
    with pytest.raises(Unreachable):
        retry(failing(Unreachable("x"), 99, made), attempts=3, **how)
    assert len(made) == 3
    made.clear()
    times = iter([0.0, 4.0, 10.0, 10.1])
    with pytest.raises(Unreachable):
        retry(failing(Unreachable("x"), 99, made), seconds=10, clock=lambda: next(times), **how)
    assert len(made) == 3
    made.clear()
    stop = threading.Event()
    stop.set()
    with pytest.raises(Unreachable):
        retry(failing(Unreachable("x"), 99, made), failures=(Unreachable,), wait=stop.wait)
    assert len(made) == 1


def test_a_failure_is_reported_when_another_attempt_follows() -> None:
    reported: list[Exception] = []
    with pytest.raises(Unreachable, match="away"):
        retry(
            failing(Unreachable("away"), 99, []),
            failures=(Unreachable,),
            attempts=3,
            wait=lambda pause: None,
            failed=reported.append,
        )
    assert len(reported) == 2
