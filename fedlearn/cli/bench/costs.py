"""What a stage of the comparison took, as plain values."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

__all__ = ["EVERYTHING", "PLAIN", "STAGES", "TARGET", "Comparison", "Run", "Stage"]

PLAIN: Final = "plain"
EVERYTHING: Final = "everything"
STAGES: Final[Mapping[str, str]] = {
    PLAIN: "insecure: Flower's own loop, one process a site over TCP",
    "mutual TLS": "plain, and TLS 1.3 with certificates at both ends",
    "attestation": "plain, and evidence both ways before the first round",
    "sealing": "plain, and the model of each round sealed and synchronized",
    "ledger": "plain, and an entry for each update and round, synchronized",
    EVERYTHING: "fedlearn: its own processes, with all of these, sandboxes and exact mean",
}
"""The stages in order, and what each is."""

TARGET: Final = 1.05
"""The time of a round with everything, in times of a plain one, that is to be reached."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One run of the job.

    ``start``   seconds until the first round begins
    ``rounds``  seconds of each round; the first one loads data and libraries too
    ``end``     seconds from the last round to the end of the job
    ``parts``   seconds that a protection took of each round, measured around its calls
    ``once``    the same, once for the whole job
    ``cpu``     processor seconds of each kind of process over the whole job
    """

    start: float
    rounds: Sequence[float]
    end: float = 0.0
    parts: Mapping[str, float] = field(default_factory=dict)
    once: Mapping[str, float] = field(default_factory=dict)
    cpu: Mapping[str, float] = field(default_factory=dict)

    @property
    def later(self) -> Sequence[float]:
        """The rounds but the first, if there are others."""
        return self.rounds[1:] or self.rounds


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """All runs of one stage. Every figure is a median over its runs or rounds."""

    name: str
    runs: Sequence[Run]

    @property
    def round_s(self) -> float:
        """Seconds of a round."""
        return statistics.median(value for run in self.runs for value in run.later)

    @property
    def job_s(self) -> float:
        """Seconds of the whole job."""
        return statistics.median(run.start + sum(run.rounds) + run.end for run in self.runs)

    @property
    def start_s(self) -> float:
        """Seconds until the first round begins."""
        return statistics.median(run.start for run in self.runs)

    def parts(self) -> dict[str, float]:
        """Seconds of a round that each protection took."""
        return _medians([run.parts for run in self.runs])

    def once(self) -> dict[str, float]:
        """Seconds that each protection took once."""
        return _medians([run.once for run in self.runs])

    def cpu(self) -> dict[str, float]:
        """Processor seconds of each kind of process."""
        return _medians([run.cpu for run in self.runs])


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """All stages of one job. ``job`` states in words what was trained."""

    job: str
    stages: Sequence[Stage]

    def stage(self, name: str) -> Stage:
        """Return a stage by its name."""
        return next(stage for stage in self.stages if stage.name == name)

    def ratio(self, stage: Stage) -> float:
        """Return the time of a round, in times of a plain one."""
        return stage.round_s / self.stage(PLAIN).round_s

    def to_json(self) -> dict[str, Any]:
        """Return everything JSON-ready; seconds, and ratios to the plain stage.

        ``met`` is None when the stage with everything did not run.
        """
        whole = [self.ratio(stage) for stage in self.stages if stage.name == EVERYTHING]
        plain = self.stage(PLAIN)
        return {
            "job": self.job,
            "stages": [
                {
                    "name": stage.name,
                    "what": STAGES[stage.name],
                    "start_s": round(stage.start_s, 3),
                    "round_s": round(stage.round_s, 4),
                    "rounds_s": [round(v, 4) for run in stage.runs for v in run.later],
                    "job_s": round(stage.job_s, 3),
                    "round_ratio": round(self.ratio(stage), 4),
                    "job_ratio": round(stage.job_s / plain.job_s, 4),
                    "parts_s": {name: round(v, 6) for name, v in stage.parts().items()},
                    "once_s": {name: round(v, 6) for name, v in stage.once().items()},
                    "cpu_s": {name: round(v, 3) for name, v in stage.cpu().items()},
                }
                for stage in self.stages
            ],
            "target": TARGET,
            "met": whole[0] <= TARGET if whole else None,
        }


def _medians(found: Sequence[Mapping[str, float]]) -> dict[str, float]:
    names = dict.fromkeys(name for each in found for name in each)
    return {name: statistics.median(each.get(name, 0.0) for each in found) for name in names}
