"""The table ``[time]`` of ``simulation.toml``: how long sites take, and when they are there.

>>> from fedlearn import config
>>> source = b'''
... speed = "lognormal"
... seconds = 20
... spread = 0.8
... upload_mbit_s = 10
... availability = "sine"
... dropout = 0.05
... '''
>>> setup = config.read(TimeSetup, source, where="simulation.toml")
>>> setup.availability, setup.available
('sine', 0.5)

The page is docs/how-to/virtual-time.md.
"""

# ruff: noqa: RUF009 (an option is a field specifier; each makes a new field)

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from attestation.config import (
    FieldType,
    InconsistentValues,
    choice,
    file_path,
    number,
    option,
    toml,
)

__all__ = ["AVAILABILITIES", "SPEEDS", "TimeSetup"]

SPEEDS: Final = ("constant", "lognormal", "trace")
AVAILABILITIES: Final = ("always", "bernoulli", "markov", "sine", "trace")

_YEAR: Final = 366 * 86_400.0
_FASTEST: Final = 1e9
_SPREAD: Final = 5.0

_DEFAULTS: Final = {
    "seconds": 10.0,
    "spread": 0.5,
    "available": 0.5,
    "slot_s": 60.0,
    "on_s": 3600.0,
    "off_s": 3600.0,
    "amplitude": 0.4,
    "period_s": 86_400.0,
    "phases": 1.0,
}
_FOR: Final = {
    "seconds": ("speed", ("constant", "lognormal")),
    "spread": ("speed", ("lognormal",)),
    "jitter": ("speed", ("lognormal",)),
    "speed_trace": ("speed", ("trace",)),
    "available": ("availability", ("bernoulli", "sine")),
    "slot_s": ("availability", ("bernoulli", "sine")),
    "on_s": ("availability", ("markov",)),
    "off_s": ("availability", ("markov",)),
    "amplitude": ("availability", ("sine",)),
    "period_s": ("availability", ("sine",)),
    "phases": ("availability", ("sine",)),
    "availability_trace": ("availability", ("trace",)),
}
"""Keys that only some models have: the key of the model, and the models."""


def _duration(least: float = 0.0) -> FieldType[float]:
    return number(least, _YEAR)


def _positive(most: float) -> FieldType[float]:
    return number(math.ulp(0), most, expected=f"a number above 0, up to {most:g}")


@dataclass(frozen=True, slots=True, kw_only=True)
class TimeSetup:
    """Virtual time of a simulation, in seconds.

    ``speed``                how long a site trains: ``constant`` for all; ``lognormal``, a factor
                             for each site and each call; ``trace``, from a file
    ``seconds``              of one call to train, for ``lognormal`` of the median site; 10 by
                             default
    ``spread``               for ``lognormal``: deviation of the logarithm between sites; 0.5 by
                             default
    ``jitter``               for ``lognormal``: the same between the calls of one site; 0 by default
    ``speed_trace``          for ``trace``: a CSV file with the columns ``site`` and ``seconds``
    ``evaluation``           which part of the time for training an evaluation takes
    ``seconds_per_example``  added for each example that a site trains on, times the factor of the
                             site
    ``download_mbit_s``      bandwidth to the median site; 0: no time is counted
    ``upload_mbit_s``        bandwidth from the median site; 0: no time is counted
    ``bandwidth_spread``     deviation of the bandwidth's logarithm between sites
    ``latency_s``            added for each message, in either direction
    ``upload_part``          the size of an update, as part of that of the model that was sent; less
                             than 1 with ``[compression]``
    ``availability``         ``always``; ``bernoulli``: drawn for each site and slot; ``markov``:
                             times on and off are exponential; ``sine``: as ``bernoulli``, with a
                             probability that follows the time of day; ``trace``, from a file
    ``available``            the probability, for ``sine`` its mean; 0.5 by default
    ``slot_s``               how long a draw holds; 60 by default
    ``on_s``                 for ``markov``: the mean time for which a site stays; 3600 by default
    ``off_s``                for ``markov``: the mean time for which it is away; 3600 by default
    ``amplitude``            of the sine; 0.4 by default
    ``period_s``             of the sine; a day by default
    ``phases``               for ``sine``: over which part of a period the phases of the sites are
                             spread, as time zones do; 1 by default
    ``availability_trace``   for ``trace``: a CSV file with the columns ``site``, ``start_s`` and
                             ``end_s``; it repeats after its last end
    ``trace_sites``          ``named``: a trace names the sites of the job. ``drawn``: its devices
                             are others, and each site behaves as one that is drawn
    ``dropout``              the probability that a site begins a call and never answers it

    After construction a key of the chosen models is never None, except for a trace of others.

    :raises InconsistentValues: from the constructor, naming the key.
    """

    speed: str = option(choice(*SPEEDS), default="constant")
    seconds: float | None = option(_duration(), default=None)
    spread: float | None = option(number(0, _SPREAD), default=None)
    jitter: float | None = option(number(0, _SPREAD), default=None)
    speed_trace: Path | None = option(file_path(), default=None)
    evaluation: float = option(number(0, 1), default=0.0)
    seconds_per_example: float = option(number(0, 86_400), default=0.0)
    download_mbit_s: float = option(number(0, _FASTEST), default=0.0)
    upload_mbit_s: float = option(number(0, _FASTEST), default=0.0)
    bandwidth_spread: float = option(number(0, _SPREAD), default=0.0)
    latency_s: float = option(number(0, 3600), default=0.0)
    upload_part: float = option(number(0, 10), default=1.0)
    availability: str = option(choice(*AVAILABILITIES), default="always")
    available: float | None = option(_positive(1), default=None)
    slot_s: float | None = option(_duration(1.0), default=None)
    on_s: float | None = option(_duration(1.0), default=None)
    off_s: float | None = option(_duration(1.0), default=None)
    amplitude: float | None = option(number(0, 1), default=None)
    period_s: float | None = option(_duration(1.0), default=None)
    phases: float | None = option(number(0, 1), default=None)
    availability_trace: Path | None = option(file_path(), default=None)
    trace_sites: str = option(choice("named", "drawn"), default="named")
    dropout: float = option(number(0, 1), default=0.0)

    def __post_init__(self) -> None:
        if faults := [*self._faults()]:
            raise InconsistentValues(*faults)
        for key, (chosen, models) in _FOR.items():
            if getattr(self, key) is None and getattr(self, chosen) in models:
                default = 0.0 if key == "jitter" else _DEFAULTS.get(key)
                object.__setattr__(self, key, default)

    def _faults(self) -> Iterator[tuple[toml.Path, str]]:
        for key, (chosen, models) in _FOR.items():
            if getattr(self, key) is not None and getattr(self, chosen) not in models:
                listed = " and ".join(f'"{model}"' for model in models)
                yield (key,), f'is for {chosen} = {listed} only, not "{getattr(self, chosen)}"'
        for key, model in (("speed_trace", self.speed), ("availability_trace", self.availability)):
            if model == "trace" and getattr(self, key) is None:
                yield (key,), 'is needed for "trace": the path of a CSV file'
        if self.trace_sites == "drawn" and "trace" not in (self.speed, self.availability):
            yield ("trace_sites",), 'is for a "trace" only'
        if self.bandwidth_spread and not (self.download_mbit_s or self.upload_mbit_s):
            yield ("bandwidth_spread",), "needs download_mbit_s or upload_mbit_s"
