"""Which answer comes next, and what the time is: without virtual time, the order of the job."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Final, Protocol

from fedlearn.clock import Clock
from fedlearn.errors import ConfigError
from fedlearn.simulation.hooks import Call

__all__ = ["InOrder", "Schedule"]

_LISTED: Final = 5
_LONG_SECONDS: Final = 8 * 86_400.0
"""More than any deadline of a job."""


class Schedule(Protocol):
    """Decides which sites are online and in which order answers arrive.

    The calls themselves are made when the aggregator waits for them, so that a schedule needs no
    thread. It has its own generator, with a seed of its own.

    ``clock``  measures the job's deadlines; :meth:`next` moves it
    ``timed``  whether its seconds are those of the sites
    """

    clock: Clock
    timed: bool

    def online(self, sites: Sequence[str]) -> Sequence[str]:
        """Return which of the sites are online now, in the order given."""
        ...

    def wait_online(self, sites: Sequence[str], count: int, seconds: float) -> None:
        """Let time pass until ``count`` of the sites are online, at most so many seconds."""
        ...

    def asked(self, id: str, call: Call, *, size: int) -> None:  # noqa: A002
        """Note that a question of ``size`` bytes was sent."""
        ...

    def next(self, ids: Collection[str], seconds: float) -> str | None:
        """Return which of these questions is answered next, and let time pass until then.

        None when none is within ``seconds``, which have passed then.
        """
        ...

    def forgotten(self, ids: Collection[str]) -> None:
        """Note that these questions were withdrawn."""
        ...

    def state(self) -> Mapping[str, Any] | None:
        """Return what a checkpoint has to keep, in types of JSON."""
        ...

    def restore(self, state: Mapping[str, Any] | None) -> None:
        """Go on from what :meth:`state` returned.

        :raises ConfigError: when it is the state of another schedule.
        """
        ...


class InOrder:
    """All sites are online, answer in the order of the job, and take no time.

    A deadline is reached only where the job waits for what cannot happen, as a strategy that
    wants more nodes than there are.
    """

    timed = False

    def __init__(self) -> None:
        self.clock: Clock = _StillClock()
        self._open: dict[str, None] = {}
        self._listed = 0

    def online(self, sites: Sequence[str]) -> Sequence[str]:
        # A strategy that lists the nodes so often without a question waits for more of them.
        self._listed += 1
        if self._listed > _LISTED:
            self.clock.sleep(_LONG_SECONDS)
        return sites

    def wait_online(self, sites: Sequence[str], count: int, seconds: float) -> None:
        self.clock.sleep(seconds)

    def asked(self, id: str, call: Call, *, size: int) -> None:  # noqa: A002
        self._open[id] = None
        self._listed = 0

    def next(self, ids: Collection[str], seconds: float) -> str | None:
        first = next((id_ for id_ in self._open if id_ in ids), None)
        if first is None:
            self.clock.sleep(seconds)
        else:
            del self._open[first]
        return first

    def forgotten(self, ids: Collection[str]) -> None:
        for id_ in ids:
            self._open.pop(id_, None)

    def state(self) -> Mapping[str, Any] | None:
        return None

    def restore(self, state: Mapping[str, Any] | None) -> None:
        if state is not None:
            raise ConfigError(
                "the run was begun in virtual time, and is continued without",
                key="time",
                hint="name its simulation.toml (--setup), or begin a run without resuming",
            )


class _StillClock:
    """A clock that moves only when somebody waits for nothing."""

    def __init__(self) -> None:
        self._now = 0.0

    def monotonic(self) -> float:
        return self._now

    def sleep(self, seconds: float) -> None:
        self._now += max(0.0, seconds)

    def at(self, moment: float) -> AbstractContextManager[float]:
        del moment
        return nullcontext(self._now)
