"""What the rounds of a simulation took: their events, on this machine and in virtual time."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterable

from fedlearn.job.events import Event, RoundFinished, RoundStarted, UpdateReceived
from fedlearn.simulation.schedule import Schedule

__all__ = ["Rounds"]


class Rounds:
    """The rounds of one simulation, from its events.

    ``finished``  the event of each round that has finished, by number
    ``real``      the seconds that it took on this machine
    """

    def __init__(self, schedule: Schedule) -> None:
        self._schedule = schedule
        self._began = 0.0
        self._cut: RoundFinished | None = None
        self.finished: dict[int, RoundFinished] = {}
        self.real: dict[int, float] = {}

    def remember(self, events: Iterable[tuple[Event, int]]) -> None:
        """Take the events of a run that was interrupted, with their times in milliseconds."""
        began = 0
        for event, unix_ms in events:
            if isinstance(event, RoundStarted):
                began = unix_ms
                self._cut = RoundFinished(round=event.round, seconds=0, sites=0, bytes=0)
            elif isinstance(event, UpdateReceived) and self._cut is not None:
                self._cut = dataclasses.replace(self._cut, sites=self._cut.sites + 1)
            elif isinstance(event, RoundFinished):
                self.finished[event.round] = event
                self.real[event.round] = (unix_ms - began) / 1000

    def note(self, event: Event) -> None:
        """Take an event of this run."""
        if isinstance(event, RoundStarted):
            self.complete(event.round - 1)
            self._began = time.monotonic()
        elif isinstance(event, RoundFinished):
            self.finished[event.round] = event
            self.real[event.round] = time.monotonic() - self._began

    def complete(self, last: int) -> None:
        """Give the round whose evaluation was interrupted the time that the others leave.

        :param last: the last round that has a model. A later one is made anew.
        """
        cut, self._cut = self._cut, None
        if cut is not None and cut.round <= last and cut.round not in self.finished:
            others = sum(event.seconds for event in self.finished.values())
            timed = self._schedule.timed
            seconds = self._schedule.clock.monotonic() - others if timed else 0.0
            self.finished[cut.round] = dataclasses.replace(cut, seconds=seconds)
