"""Who follows a job gets every event, the last one included, however the job's end falls."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

import pytest

from fedlearn.job.state import JobStatus
from server import coordinator
from server.coordinator import Coordinator


@dataclass
class Stored:
    sequence: int
    kind: str
    body: str = "{}"
    at: datetime = datetime(2026, 1, 1, tzinfo=UTC)


class Book:
    """Events and the status of one job; ``between`` runs after each reading of events."""

    def __init__(self) -> None:
        self.reported: list[Stored] = []
        self.status = JobStatus.RUNNING
        self.between: list[Callable[[], None]] = []
        self.waited = 0

    def add(self, *kinds: str) -> None:
        self.reported += [Stored(len(self.reported) + 1 + n, kind) for n, kind in enumerate(kinds)]

    def state(self, name: str) -> Any:
        return SimpleNamespace(status=self.status)

    def page(self, name: str, *, after: int, most: int) -> list[Stored]:
        page = [event for event in self.reported if event.sequence > after][:most]
        if self.between:
            self.between.pop(0)()
        return page

    def wait(self, name: str, *, after: int, seconds: float) -> None:
        self.waited += 1


def follow(book: Book, **more: Any) -> list[str]:
    around: Any = SimpleNamespace(_job_store=SimpleNamespace(state=book.state, events=book))
    asked = {"after": 0, "past_only": False, "stop": threading.Event(), **more}
    return [event.kind for event in Coordinator.follow_job(around, "job", **asked)]


def test_what_is_reported_between_a_page_and_the_end_is_not_lost() -> None:
    book = Book()
    book.add("job.started", "log")

    def end() -> None:
        book.add("log", "log")
        book.status = JobStatus.FINISHED
        book.add("job.finished")

    book.between = [end]
    assert follow(book) == ["job.started", "log", "log", "log", "job.finished"]


def test_the_last_event_is_waited_for_when_the_status_is_first() -> None:
    book = Book()
    book.add("job.started")

    def close() -> None:
        book.status = JobStatus.FAILED

    book.between = [close, lambda: book.add("log"), lambda: book.add("job.failed")]
    assert follow(book) == ["job.started", "log", "job.failed"]


def test_a_last_event_that_never_comes_is_not_waited_for_forever(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(coordinator, "_LAST_EVENT_SECONDS", 0.05)
    book = Book()
    book.add("job.started", "log")
    book.status = JobStatus.CANCELLED
    assert follow(book) == ["job.started", "log"]
    assert book.waited


def test_a_job_that_was_resumed_is_followed_past_its_former_end() -> None:
    book = Book()
    book.add("job.started", "job.interrupted", "job.started")

    def end() -> None:
        book.status = JobStatus.FINISHED
        book.add("job.finished")

    book.between = [end]
    assert follow(book) == ["job.started", "job.interrupted", "job.started", "job.finished"]


def test_the_past_alone_is_not_waited_for() -> None:
    book = Book()
    book.add("job.started")
    assert follow(book, past_only=True) == ["job.started"]
    assert book.waited == 0
