"""Where the result of a run comes from."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from fedlearn.api.link import Link
from fedlearn.job.events import Event

__all__ = ["CoordinatorSource", "Source"]


class Source(Protocol):
    """Where the result of one run comes from."""

    @property
    def name(self) -> str:
        """What names the run."""
        ...

    def events(self) -> Iterator[tuple[Event, int]]:
        """Yield the events so far, each with its time in milliseconds since 1970."""
        ...


class CoordinatorSource:
    """A run at a coordinator, over an operator's login."""

    def __init__(self, link: Link, name: str) -> None:
        self._link = link
        self._name = name

    @property
    def name(self) -> str:
        """What names the run at the coordinator."""
        return self._name

    def events(self) -> Iterator[tuple[Event, int]]:
        """Yield the events so far."""
        for item in self._link.client.follow_job(self.name, past_only=True):
            yield Event.decode(item.kind, item.json), item.unix_ms
