"""How long a call of a site takes: computing, and sending both ways."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from fedlearn.simulation.virtual_time.draws import lognormal, uniform
from fedlearn.simulation.virtual_time.setup import TimeSetup
from fedlearn.simulation.virtual_time.traces import of_sites, speed_trace

__all__ = ["Durations"]

_MEGABIT: Final = 1e6 / 8


@dataclass(frozen=True, slots=True)
class Durations:
    """The durations of the calls of one job. Make them with :meth:`of`."""

    setup: TimeSetup
    seed: int
    examples: Mapping[str, int] = field(default_factory=dict)
    trace: Mapping[str, Sequence[float]] = field(default_factory=dict)

    @classmethod
    def of(
        cls, setup: TimeSetup, seed: int, sites: Sequence[str], examples: Callable[[str], int]
    ) -> Durations:
        """Read what the setup needs: a trace, and how many examples each site has.

        :param examples: how many examples a site trains on; it is called only where the setup has
            ``seconds_per_example``.
        :raises ConfigError: naming what is wrong with the trace. What ``examples`` raises is not
            changed.
        """
        trace: Mapping[str, Sequence[float]] = {}
        if setup.speed_trace is not None:
            drawn = setup.trace_sites == "drawn"
            path = setup.speed_trace
            trace = of_sites(speed_trace(path), sites, drawn=drawn, seed=seed, path=path)
        counted = {site: examples(site) for site in sites} if setup.seconds_per_example else {}
        return cls(setup, seed, counted, trace)

    @property
    def setup_digest(self) -> str:
        """A digest of the setup, in hexadecimal. Of a trace, only the path is in it."""
        return hashlib.sha256(repr(self.setup).encode()).hexdigest()

    def seconds(self, site: str, round_: int, kind: str, size: int) -> float:
        """Return how long a call takes, from the question to the answer.

        :param kind: of the message: what trains takes the time of the setup, ``evaluate`` a part of
            it, and others none beside the network's.
        :param size: of the question, in bytes.
        """
        return self.computing(site, round_, kind) + self.network(site, kind, size)

    def computing(self, site: str, round_: int, kind: str) -> float:
        """Return how long the app works."""
        setup = self.setup
        part = {"train": 1.0, "evaluate": setup.evaluation}.get(kind, 0.0)
        if not part:
            return 0.0
        factor = self._factor(site, round_)
        if setup.speed == "trace":
            values = self.trace[site]
            seconds = values[(round_ - 1) % len(values)]
        else:
            assert setup.seconds is not None
            seconds = setup.seconds * factor
        if setup.seconds_per_example:
            seconds += setup.seconds_per_example * factor * self.examples[site]
        return part * seconds

    def network(self, site: str, kind: str, size: int) -> float:
        """Return how long the question and the answer travel.

        Only the answer to a message to train has a model in it.
        """
        setup = self.setup
        factor = lognormal(setup.bandwidth_spread, self.seed, "bandwidth", site)
        answer = size * setup.upload_part if kind == "train" else 0.0
        seconds = 2 * setup.latency_s
        for mbit_s, sent in ((setup.download_mbit_s, size), (setup.upload_mbit_s, answer)):
            if mbit_s:
                seconds += sent / (mbit_s * factor * _MEGABIT)
        return seconds

    def dropped(self, site: str, round_: int, kind: str) -> bool:
        """Return whether a site begins a call and never answers it."""
        chance = self.setup.dropout
        return chance > 0 and uniform(self.seed, "dropout", site, round_, kind) < chance

    def _factor(self, site: str, round_: int) -> float:
        setup = self.setup
        if setup.speed != "lognormal":
            return 1.0
        assert setup.spread is not None
        assert setup.jitter is not None
        return lognormal(setup.spread, self.seed, "speed", site) * lognormal(
            setup.jitter, self.seed, "call", site, round_
        )
