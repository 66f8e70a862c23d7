"""The progress of a simulation with many clients: one line in some seconds, not one a client."""

from __future__ import annotations

import dataclasses
import time
from types import TracebackType
from typing import Final, Self

from fedlearn.job import events
from fedlearn.results.text import seconds_text
from fedlearn.terminal.progress import Show

__all__ = ["Thinned"]

_MOST_SITES: Final = 20
_SECONDS: Final = 10.0


class Thinned:
    """Hands the events of a job on; of one with more than 20 sites those of rounds only, and now
    and then how far the round is and how long the run still takes."""

    def __init__(self, show: Show) -> None:
        self._show = show
        self._sites = self._rounds = self._round = 0
        self._asked = self._answered = self._all = 0
        self._began = self._last = time.monotonic()

    def __enter__(self) -> Self:
        """Start the output."""
        self._show.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Restore the terminal."""
        self._show.__exit__(kind, error, trace)

    def show(self, event: events.Event, *, unix_ms: int = 0) -> None:
        """Show one event, or what it adds to the progress."""
        match event:
            case events.JobStarted():
                self._sites, self._rounds = len(event.sites), event.rounds
                self._round, self._all = event.resumed_from, 0
                self._began = self._last = time.monotonic()
                if self._sites > _MOST_SITES:
                    event = dataclasses.replace(event, sites=())
            case _ if self._sites <= _MOST_SITES:
                pass
            case events.RoundStarted():
                self._round, self._asked, self._answered = event.round, len(event.sites), 0
                event = dataclasses.replace(event, sites=())
            case events.UpdateReceived():
                self._count(unix_ms)
                return
            case events.UpdateRejected():
                self._count(unix_ms)
            case _:
                pass
        self._show.show(event, unix_ms=unix_ms)

    def _count(self, unix_ms: int) -> None:
        self._answered += 1
        self._all += 1
        now = time.monotonic()
        if now - self._last < _SECONDS:
            return
        self._last = now
        left = self._asked - self._answered + (self._rounds - self._round) * self._asked
        seconds = (now - self._began) / self._all * max(0, left)
        line = (
            f"round {self._round} of {self._rounds}: {self._answered} of {self._asked} clients "
            f"have trained; about {seconds_text(seconds)} left"
        )
        self._show.show(events.Log(line=line), unix_ms=unix_ms)
