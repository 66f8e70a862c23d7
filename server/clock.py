"""The time of a coordinator, which neither a clock that jumps nor a pause of the process disturbs.

:func:`awake` counts the seconds in which the process ran: while it is suspended, no peer can show
that it is online. :class:`SteadyClock` derives dates from it. A date of the machine that differs
for a moment is ignored; one that stays different is adopted, and what has a lifetime is notified
how far to move its end.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Final

__all__ = ["SteadyClock", "awake"]

_LOG = logging.getLogger(__name__)
_TICK_SECONDS: Final = 0.5
_LONGEST_STEP: Final = 5.0
"""A longer step between two ticks is a pause of the process; a busy machine makes shorter ones."""

_NEAR: Final = timedelta(seconds=1)
_ADOPT_SECONDS: Final = 30.0


class _Awake:
    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._last = time.monotonic()
        self._total = 0.0
        self._paused = 0.0
        self._ticking = False

    def __call__(self) -> float:
        with self._lock:
            now = time.monotonic()
            step = min(now - self._last, _LONGEST_STEP)
            self._total += step
            self._paused += now - self._last - step
            self._last = now
            ticking, self._ticking = self._ticking, True
            total = self._total
        if not ticking:
            threading.Thread(target=self._tick, name="awake", daemon=True).start()
        return total

    def paused(self) -> float:
        self()
        with self._lock:
            return self._paused

    def _tick(self) -> None:
        while True:
            time.sleep(_TICK_SECONDS)
            self()


_awake: Final = _Awake()


def awake() -> float:
    """Return seconds from some moment on, without those in which the process did not run."""
    return _awake()


class SteadyClock:
    """The date (aware, UTC). Safe to use from many threads.

    :param wall: the machine's date.
    :param elapsed: seconds that count, see :func:`awake`.
    :param paused: seconds that did not, as the process was stopped.
    """

    def __init__(
        self,
        *,
        wall: Callable[[], datetime] = lambda: datetime.now(UTC),
        elapsed: Callable[[], float] = awake,
        paused: Callable[[], float] = _awake.paused,
    ) -> None:
        self._wall = wall
        self._elapsed = elapsed
        self._lock = threading.Lock()
        self._base = wall()
        self._from = elapsed()
        self._paused = paused
        self._paused_before = paused()
        self._differs: tuple[float, timedelta] | None = None
        self._subscribers: list[Callable[[timedelta], object]] = []

    def __call__(self) -> datetime:
        """Return the date."""
        with self._lock:
            return self._now()

    def subscribe(self, moved: Callable[[timedelta], object]) -> None:
        """Have ``moved`` called by how much the date was moved, whenever it was."""
        self._subscribers.append(moved)

    def tick(self) -> None:
        """Compare with the machine's date. To be called about once a second."""
        with self._lock:
            drift = self._wall() - self._now()
            at, paused = self._elapsed(), self._paused()
            pause, self._paused_before = paused - self._paused_before, paused
            if abs(drift) < _NEAR:
                self._base += drift
                self._differs = None
                return
            explained = abs(drift - timedelta(seconds=pause)) < _NEAR
            if not explained:
                if self._differs is None or abs(self._differs[1] - drift) >= _NEAR:
                    self._differs = (at, drift)
                    return
                if at - self._differs[0] < _ADOPT_SECONDS:
                    return
            self._base += drift
            self._differs = None
        _LOG.warning("the date was moved by %s, as the machine's clock was", drift)
        for moved in self._subscribers:
            moved(drift)

    def _now(self) -> datetime:
        return self._base + timedelta(seconds=self._elapsed() - self._from)
