"""When a simulated site is online: a function of the seed, the site and the moment."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol

from fedlearn.simulation.virtual_time.draws import exponential, uniform
from fedlearn.simulation.virtual_time.setup import TimeSetup
from fedlearn.simulation.virtual_time.traces import Intervals, availability_trace, of_sites

__all__ = ["Availability", "availability_of"]


class Availability(Protocol):
    """Whether sites are online, at moments that are seconds from 0."""

    def online(self, site: str, now: float) -> bool:
        """Return whether a site is online."""
        ...

    def changes(self, site: str, now: float) -> float:
        """Return the first moment after ``now`` at which a site may come or go; inf for never."""
        ...


def availability_of(setup: TimeSetup, seed: int, sites: Sequence[str]) -> Availability:
    """Return the model of a setup.

    :raises ConfigError: naming what is wrong with its trace.
    """
    match setup.availability:
        case "bernoulli":
            assert setup.available is not None
            assert setup.slot_s is not None
            return _Slots(seed, setup.slot_s, mean=setup.available)
        case "sine":
            assert setup.available is not None
            assert setup.slot_s is not None
            assert setup.amplitude is not None
            assert setup.period_s is not None
            assert setup.phases is not None
            return _Slots(
                seed,
                setup.slot_s,
                mean=setup.available,
                amplitude=setup.amplitude,
                period=setup.period_s,
                phases=setup.phases,
            )
        case "markov":
            assert setup.on_s is not None
            assert setup.off_s is not None
            return _Markov(seed, setup.on_s, setup.off_s)
        case "trace":
            path = setup.availability_trace
            assert path is not None
            devices = availability_trace(path)
            drawn = setup.trace_sites == "drawn"
            return _Trace(of_sites(devices, sites, drawn=drawn, seed=seed, path=path))
    return _Always()


class _Always:
    def online(self, site: str, now: float) -> bool:
        return True

    def changes(self, site: str, now: float) -> float:
        return math.inf


@dataclass(slots=True)
class _Slots:
    """A draw for each site and slot. The last draw of each site is kept, because it is costly."""

    seed: int
    slot: float
    mean: float
    amplitude: float = 0.0
    period: float = 1.0
    phases: float = 0.0
    drawn: dict[str, tuple[int, bool]] = field(default_factory=dict)
    shifts: dict[str, float] = field(default_factory=dict)

    def online(self, site: str, now: float) -> bool:
        number = int(now // self.slot)
        known = self.drawn.get(site)
        if known is None or known[0] != number:
            chance = self.chance(site, number * self.slot)
            drawn = uniform(self.seed, "available", site, number) < chance
            known = self.drawn[site] = (number, drawn)
        return known[1]

    def changes(self, site: str, now: float) -> float:
        return (now // self.slot + 1) * self.slot

    def chance(self, site: str, now: float) -> float:
        """Return with which probability a site is online in the slot that begins at ``now``."""
        if not self.amplitude:
            return self.mean
        shift = self.shifts.get(site)
        if shift is None:
            shift = self.shifts[site] = self.phases * uniform(self.seed, "phase", site)
        wave = math.sin(2 * math.pi * (now / self.period + shift))
        return min(1.0, max(0.0, self.mean + self.amplitude * wave))


_START: Final = (-1, 0.0, 0.0, False)


@dataclass(slots=True)
class _Markov:
    """Alternating times on and off, from a stationary beginning.

    The present interval of each site is kept; an earlier moment begins anew.
    """

    seed: int
    on: float
    off: float
    present: dict[str, tuple[int, float, float, bool]] = field(default_factory=dict)
    """The number of the interval, its start, its end, and whether the site is online in it."""

    def online(self, site: str, now: float) -> bool:
        return self._interval(site, now)[3]

    def changes(self, site: str, now: float) -> float:
        return self._interval(site, now)[2]

    def _interval(self, site: str, now: float) -> tuple[int, float, float, bool]:
        number, start, end, on = self.present.get(site, _START)
        if now < start:
            number, start, end, on = _START
        while number < 0 or now >= end:
            number += 1
            if number:
                on, start = not on, end
            else:
                # Exponential times have no memory, so the first one is one like the others.
                on = uniform(self.seed, "first", site) < self.on / (self.on + self.off)
                start = 0.0
            mean = self.on if on else self.off
            end = start + exponential(mean, self.seed, "stay", site, number)
        self.present[site] = (number, start, end, on)
        return self.present[site]


@dataclass(frozen=True, slots=True)
class _Trace:
    devices: Mapping[str, Intervals]

    def online(self, site: str, now: float) -> bool:
        return self.devices[site].online(now)

    def changes(self, site: str, now: float) -> float:
        return self.devices[site].changes(now)
