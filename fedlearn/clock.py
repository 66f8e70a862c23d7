"""The clock by which a job measures its deadlines; a simulation replaces it by its own."""

from __future__ import annotations

import time
from typing import Final, Protocol

__all__ = ["REAL", "Clock"]


class Clock(Protocol):
    """Seconds that pass. They begin anywhere and never go back."""

    def monotonic(self) -> float:
        """Return the seconds now."""
        ...

    def sleep(self, seconds: float) -> None:
        """Return when so many seconds have passed."""
        ...


class _RealClock:
    def monotonic(self) -> float:
        return time.monotonic()

    def sleep(self, seconds: float) -> None:
        time.sleep(seconds)


REAL: Final[Clock] = _RealClock()
"""The clock of the machine."""
