"""The clock by which a job measures its deadlines; a simulation replaces it by its own."""

from __future__ import annotations

import time
from contextlib import AbstractContextManager, nullcontext
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

    def at(self, moment: float) -> AbstractContextManager[float]:
        """Do something as at an earlier moment, which a checkpoint has; yield when that is.

        For the clock of a machine it is now: what it measured before a restart has no meaning.
        """
        ...


class _RealClock:
    def monotonic(self) -> float:
        return time.monotonic()

    def sleep(self, seconds: float) -> None:
        time.sleep(seconds)

    def at(self, moment: float) -> AbstractContextManager[float]:
        del moment
        return nullcontext(time.monotonic())


REAL: Final[Clock] = _RealClock()
"""The clock of the machine."""
