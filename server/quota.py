"""How often one source may be written down; what goes beyond is counted and not lost.

Peers and sites make the ledger and the events of a job grow. Each source has a burst and then a
steady rate of its own, so that none uses the share of another, and a line states how many were
left out.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass

__all__ = ["Quota"]


@dataclass(slots=True)
class _Source:
    tokens: float
    at: float
    left_out: int = 0


class Quota:
    """Entries by source. Safe to use from many threads.

    :param burst: so many at once.
    :param every: seconds until one more.
    :param sources: how many sources are distinguished, the most recent ones.
    :param clock: monotonic seconds.
    """

    def __init__(
        self,
        *,
        burst: int,
        every: float,
        sources: int = 4096,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._burst = float(burst)
        self._every = every
        self._most = sources
        self._clock = clock
        self._lock = threading.Lock()
        self._sources: OrderedDict[str, _Source] = OrderedDict()

    def take(self, source: str, *, weight: int = 1) -> int | None:
        """Count one entry of ``source``; return how many were left out before it.

        ``None`` when this one is to be left out. ``weight`` is how many it counts for, at most a
        burst.
        """
        cost = min(float(weight), self._burst)
        with self._lock:
            found = self._refilled(source)
            if found.tokens < cost:
                found.left_out += 1
                return None
            found.tokens -= cost
            left_out, found.left_out = found.left_out, 0
            return left_out

    def settle(self) -> Mapping[str, int]:
        """Return the sources that may be written down again, and how many each has left out.

        To be called now and then, so that the last ones are reported even when no more come.
        """
        found = {}
        with self._lock:
            for source in [name for name, one in self._sources.items() if one.left_out]:
                one = self._refilled(source)
                if one.tokens >= 1.0:
                    one.tokens -= 1.0
                    found[source], one.left_out = one.left_out, 0
        return found

    def _refilled(self, source: str) -> _Source:
        """Return a source with what has come back to it. The caller holds the lock."""
        now = self._clock()
        found = self._sources.pop(source, None) or _Source(self._burst, now)
        found.tokens = min(self._burst, found.tokens + (now - found.at) / self._every)
        found.at = now
        self._sources[source] = found
        while len(self._sources) > self._most:
            self._sources.popitem(last=False)
        return found
