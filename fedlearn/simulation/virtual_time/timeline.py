"""A virtual clock, and the queue of the answers that are under way by it.

No second of it is waited for: it moves when the aggregator waits, to the next answer, to the
deadline, or to the moment at which a site comes.

A site works on one call at a time. A call begins when it is asked, or when the site has ended the
one before, also one that was withdrawn; it is not interrupted when its site goes offline. An answer
arrives when the call has ended, unless the site drops out. A call that drops out is not made at
all: nobody would see what it computes.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

from fedlearn.clock import Clock
from fedlearn.errors import ConfigError, StoreError
from fedlearn.simulation.hooks import Call
from fedlearn.simulation.virtual_time.availability import Availability, availability_of
from fedlearn.simulation.virtual_time.durations import Durations
from fedlearn.simulation.virtual_time.setup import TimeSetup

__all__ = ["VirtualClock", "VirtualTime"]

_LISTED: Final = 5
_LONG_SECONDS: Final = 8 * 86_400.0
"""More than any deadline of a job."""


class VirtualClock:
    """Seconds from the beginning of the job, which pass at once. Not thread-safe."""

    def __init__(self) -> None:
        self._now = 0.0

    def monotonic(self) -> float:
        """Return the seconds now."""
        return self._now

    def sleep(self, seconds: float) -> None:
        """Let so many seconds pass."""
        self._now += max(0.0, seconds)

    def move(self, moment: float) -> None:
        """Let time pass until a moment, unless it has passed already."""
        self._now = max(self._now, moment)

    @contextmanager
    def at(self, moment: float) -> Iterator[float]:
        """Do something as at an earlier moment."""
        now, self._now = self._now, moment
        try:
            yield moment
        finally:
            self._now = now


@dataclass(frozen=True, slots=True)
class _Open:
    """A question that was not answered: its site, and until when that was busy before it."""

    site: str
    free: float
    ends: float


class VirtualTime:
    """When the answers of simulated sites arrive, and which sites are online. Not thread-safe.

    It is a schedule of the simulator (:mod:`fedlearn.simulation.schedule`).

    ``clock``  the seconds of the job
    ``timed``  that these are the seconds of its rounds
    """

    timed = True

    def __init__(self, durations: Durations, availability: Availability) -> None:
        self._clock = VirtualClock()
        self.clock: Clock = self._clock
        self._durations = durations
        self._availability = availability
        self._arrivals: list[tuple[float, int, str]] = []
        self._open: dict[str, _Open] = {}
        self._free: dict[str, float] = {}
        self._count = 0
        self._listed = 0

    @classmethod
    def of(
        cls, setup: TimeSetup, seed: int, sites: Sequence[str], examples: Callable[[str], int]
    ) -> VirtualTime:
        """Return the virtual time of a job.

        :param examples: how many examples a site trains on.
        :raises ConfigError: naming what is wrong with a trace.
        """
        durations = Durations.of(setup, seed, sites, examples)
        return cls(durations, availability_of(setup, seed, sites))

    # Sites

    def online(self, sites: Sequence[str]) -> Sequence[str]:
        """Return which of the sites are online now, in the order given."""
        self._listed += 1
        if self._listed > _LISTED:
            # Who lists the sites so often without a question waits for others.
            self._wait(sites, _LONG_SECONDS)
        return self._there(sites)

    def wait_online(self, sites: Sequence[str], count: int, seconds: float) -> None:
        """Let time pass until ``count`` of the sites are online, at most so many seconds."""
        self._listed = 0
        end = self.clock.monotonic() + seconds
        while len(self._there(sites)) < count and (left := end - self.clock.monotonic()) > 0:
            self._wait(sites, left)

    def _there(self, sites: Sequence[str]) -> list[str]:
        now, online = self.clock.monotonic(), self._availability.online
        return [site for site in sites if online(site, now)]

    def _wait(self, sites: Sequence[str], seconds: float) -> None:
        """Let time pass until a site may come or go, at most so many seconds."""
        now = self.clock.monotonic()
        change = min((self._availability.changes(site, now) for site in sites), default=math.inf)
        # A moment is rounded: it must not be the one at which this began.
        self._clock.move(min(now + seconds, max(change, math.nextafter(now, math.inf))))

    # Questions

    def asked(self, id: str, call: Call, *, size: int) -> None:  # noqa: A002
        """Note a question of ``size`` bytes."""
        self._listed = 0
        site, kind = call.site, call.kind.split(".")[0]
        before = self._free.get(site, 0.0)
        begins = max(self.clock.monotonic(), before)
        ends = begins + self._durations.seconds(site, call.round, kind, size)
        self._open[id] = _Open(site, before, ends)
        self._free[site] = ends
        self._count += 1
        if not self._durations.dropped(site, call.round, kind):
            heapq.heappush(self._arrivals, (ends, self._count, id))

    def next(self, ids: Collection[str], seconds: float) -> str | None:
        """Return which of these questions is answered next, and let time pass until then.

        None when none is within ``seconds``, which have passed then.
        """
        self._listed = 0
        end = self.clock.monotonic() + seconds
        others: list[tuple[float, int, str]] = []
        found = None
        while self._arrivals and self._arrivals[0][0] <= end:
            arrival = heapq.heappop(self._arrivals)
            if arrival[2] not in self._open:
                continue  # it was withdrawn
            if arrival[2] in ids:
                found = arrival
                break
            others.append(arrival)
        for arrival in others:
            heapq.heappush(self._arrivals, arrival)
        if found is None:
            self._clock.move(end)
            return None
        self._clock.move(found[0])
        del self._open[found[2]]
        return found[2]

    def forgotten(self, ids: Collection[str]) -> None:
        """Note that these questions were withdrawn; their sites are busy until they have ended."""
        for id_ in ids:
            self._open.pop(id_, None)
        if len(self._arrivals) > 2 * len(self._open) + 64:
            self._arrivals = [each for each in self._arrivals if each[2] in self._open]
            heapq.heapify(self._arrivals)

    # Checkpoints

    def state(self) -> Mapping[str, Any]:
        """Return what a checkpoint has to keep, in types of JSON.

        Calls that are open are not in it: whoever goes on asks them again, as at the moment at
        which they were asked (:meth:`VirtualClock.at`).
        """
        now = self.clock.monotonic()
        free = dict(self._free)
        for each in reversed(self._open.values()):
            free[each.site] = each.free
        return {
            "setup": self._durations.setup_digest,
            "now": now,
            "free": {site: until for site, until in free.items() if until > now},
        }

    def restore(self, state: Mapping[str, Any] | None) -> None:
        """Go on from what :meth:`state` returned.

        :raises ConfigError: when it is that of a run without virtual time, or of another one.
        :raises StoreError: when it is not such a state.
        """
        if state is None or state.get("setup") != self._durations.setup_digest:
            raise ConfigError(
                "[time] of the simulation was changed since this run began",
                key="time",
                hint="take the change back, or begin a run without resuming",
            )
        now, free = state.get("now"), state.get("free")
        if not isinstance(now, float) or not isinstance(free, dict):
            raise StoreError("the checkpoint has no virtual time")
        self._clock.move(now)
        self._free = {str(site): float(until) for site, until in free.items()}
