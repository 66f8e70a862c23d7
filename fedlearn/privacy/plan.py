"""Calibration: how much noise an epsilon needs, and what that noise does to the mean. Pure.

A plan answers, before anything is written into a job, which noise multiplier pays for so many
rounds, and how large the error is that the noise adds to the mean, as a multiple of the clip:

* unit ``site`` and ``user``: the noise on the mean of n sites has the standard deviation
  ``noise_multiplier * clip / n`` on each number of the model; of ``users`` at each site, each of
  whom is clipped, ``noise_multiplier * clip / (n * users)``;
* unit ``example``: each site adds ``noise_multiplier * clip / batch`` to the mean gradient of a
  step. Examples are drawn by Poisson sampling inside the client, which amplifies.

A whole model of d numbers gets noise of the norm ``error * sqrt(d)``; a contribution has a norm of
``clip`` at most. Their ratio is the *signal to noise*: below about 1, a round moves the model
more by noise than by data.

The page is docs/how-to/choose-privacy.md.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from fedlearn.errors import PrivacyError
from fedlearn.privacy.accountant import MAX_ROUNDS
from fedlearn.privacy.composition import Cost, calibrated, composed
from fedlearn.privacy.correlated import error_of_sums
from fedlearn.privacy.spec import MINIMUM_NOISE_MULTIPLIER

__all__ = ["UNITS", "Plan", "Point", "Question", "plan"]

UNITS: Final = ("site", "user", "example")
_SITES: Final = (5, 10, 50, 100, 1_000, 10_000)
_FACTORS: Final = (1, 2, 4, 8, 16)


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """What is asked of a plan.

    ``sites``       sites that answer in a round; None: a table for several numbers
    ``users``       for the unit ``user``: the users of one site
    ``examples``    for the unit ``example``: the examples of the smallest site
    ``batch``       the examples that a step draws on average
    ``steps``       of training at a site in one round; None: one pass over the examples
    ``groups``      for sites that take turns: of which one takes part in each round
    ``parameters``  numbers in the model
    ``max_error``   the largest error on a number of the mean, as a multiple of the clip

    :raises PrivacyError: from the constructor, naming what is missing or out of range.
    """

    epsilon: float
    delta: float
    rounds: int
    unit: str = "site"
    sites: int | None = None
    users: int | None = None
    examples: int | None = None
    batch: int | None = None
    steps: int | None = None
    groups: int | None = None
    parameters: int = 100_000
    max_error: float | None = None
    accountant: str = "rdp"

    def __post_init__(self) -> None:
        if self.unit not in UNITS:
            raise PrivacyError(f"there is no unit {self.unit!r}", hint=f"use {', '.join(UNITS)}")
        if not (math.isfinite(self.epsilon) and self.epsilon > 0):
            raise PrivacyError(f"epsilon is a positive number, not {self.epsilon!r}")
        if not 0 < self.delta < 0.5:
            raise PrivacyError(f"delta is a number above 0 and below 0.5, not {self.delta!r}")
        if not 1 <= self.rounds <= MAX_ROUNDS:
            raise PrivacyError(f"rounds are 1 to {MAX_ROUNDS}, not {self.rounds}")
        for name in ("sites", "users", "examples", "batch", "steps", "groups", "parameters"):
            value = getattr(self, name)
            if value is not None and not 1 <= value <= 10**9:
                raise PrivacyError(f"{name} are 1 to 1000000000, not {value}")
        if self.max_error is not None and not self.max_error > 0:
            raise PrivacyError(f"an error is a number above 0, not {self.max_error!r}")
        needed = {"site": (), "user": ("users",), "example": ("examples", "batch")}[self.unit]
        for name in ("users", "examples", "batch", "steps"):
            given = getattr(self, name) is not None
            if name in needed and not given:
                raise PrivacyError(f"the unit {self.unit} needs the number of {name}")
            if given and name not in (*needed, "steps"):
                raise PrivacyError(f"{name}: not for the unit {self.unit}")
        if self.steps is not None and self.unit != "example":
            raise PrivacyError(f"steps: not for the unit {self.unit}")
        if self.groups is not None and self.unit == "example":
            raise PrivacyError("groups: not for the unit example")
        if self.examples is not None and self.batch is not None and self.batch > self.examples:
            raise PrivacyError(
                f"a batch of {self.batch} cannot be drawn from {self.examples} examples"
            )

    def steps_of(self, batch: int) -> int:
        """Return the steps of a site in a round with batches of that size."""
        if self.examples is None:
            return 1
        if self.steps is not None:
            return self.steps
        return math.ceil(self.examples / batch)

    def costs(self, multiplier: float, batch: int = 0) -> dict[Cost, int]:
        """Return all releases of the job for a noise multiplier."""
        if self.examples is None:
            return {Cost(multiplier): math.ceil(self.rounds / (self.groups or 1))}
        rate = min(1.0, batch / self.examples)
        return {Cost(multiplier, rate): self.rounds * self.steps_of(batch)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """One line of the table of utility.

    ``of``                sites of a round, or examples of a batch
    ``noise_multiplier``  of this line
    ``error``             standard deviation of the noise on each number of the mean, over the clip
    ``signal_to_noise``   norm of a mean that is as long as the clip over the norm of the noise
    """

    of: int
    noise_multiplier: float
    error: float
    signal_to_noise: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The answer: noise, what it costs, and what it does to the mean."""

    question: Question
    noise_multiplier: float
    epsilon: float
    points: tuple[Point, ...]
    clip_advice: str

    @property
    def banded(self) -> float | None:
        """Error of the sums of rounds with correlated noise, over that with independent noise.

        None where sites do not take turns.
        """
        asked = self.question
        if asked.groups is None:
            return None
        bands = min(asked.groups, asked.rounds)
        return error_of_sums(bands, asked.rounds) / error_of_sums(1, asked.rounds)

    def to_json(self) -> dict[str, Any]:
        """Return the plan JSON-ready."""
        asked = self.question
        return {
            "unit": asked.unit,
            "epsilon": self.epsilon,
            "delta": asked.delta,
            "rounds": asked.rounds,
            "accountant": asked.accountant,
            "noise_multiplier": self.noise_multiplier,
            "parameters": asked.parameters,
            "clip": self.clip_advice,
            "groups": asked.groups,
            "banded": self.banded,
            "utility": [
                {
                    "batch" if asked.unit == "example" else "sites": point.of,
                    "noise_multiplier": point.noise_multiplier,
                    "error": point.error,
                    "signal_to_noise": point.signal_to_noise,
                }
                for point in self.points
            ],
        }


def plan(question: Question) -> Plan:
    """Return the plan for a question.

    :raises PrivacyError: when no amount of noise gives the epsilon, or when the noise that gives
        it exceeds ``max_error``; the message states what would be needed.

    >>> found = plan(Question(epsilon=3.0, delta=1e-5, rounds=50, sites=100))
    >>> found.noise_multiplier, round(found.points[0].error, 4)
    (10.6, 0.106)
    """
    batch = question.batch or 0
    multiplier = _noise(question, batch)
    found = Plan(
        question=question,
        noise_multiplier=multiplier,
        epsilon=composed(question.costs(multiplier, batch), question.accountant, question.delta),
        points=_points(question, multiplier),
        clip_advice=_ADVICE[question.unit],
    )
    _check_error(question, found.points[0])
    return found


_ADVICE: Final[Mapping[str, str]] = {
    "site": "start with the median L2 norm of the sites' updates without privacy, or let it follow "
    "the norms (clip_quantile = 0.5)",
    "user": "start with the median L2 norm of what one user's records change in a round",
    "example": "start with the median L2 norm of an example's gradient at the first step; with a "
    "smaller clip raise the learning rate",
}


def _noise(question: Question, batch: int) -> float:
    return calibrated(
        lambda multiplier: question.costs(multiplier, batch),
        epsilon=question.epsilon,
        delta=question.delta,
        accountant=question.accountant,
        least=MINIMUM_NOISE_MULTIPLIER,
    )


def _points(question: Question, multiplier: float) -> tuple[Point, ...]:
    if question.examples is not None and question.batch is not None:
        sizes = [question.batch * factor for factor in _FACTORS]
        sizes = [size for size in sizes if size <= question.examples]
        return tuple(_point(question, size, _noise(question, size), size) for size in sizes)
    counts = (question.sites,) if question.sites is not None else ()
    more = tuple(count for count in _SITES if count > (question.sites or 0))
    users = question.users or 1
    return tuple(_point(question, count, multiplier, count * users) for count in (*counts, *more))


def _point(question: Question, of: int, multiplier: float, divisor: int) -> Point:
    error = multiplier / divisor
    return Point(
        of=of,
        noise_multiplier=multiplier,
        error=error,
        signal_to_noise=1 / (error * math.sqrt(question.parameters)),
    )


def _check_error(question: Question, first: Point) -> None:
    most = question.max_error
    if most is None or first.error <= most:
        return
    factor = first.error / most
    if question.unit == "example":
        wish = f"batches of about {math.ceil((question.batch or 1) * factor)} examples"
    else:
        wish = f"{math.ceil(first.of * factor)} sites in each round"
    # Independent noise: the cost of R rounds depends on R / noise_multiplier^2.
    fewer = math.floor(question.rounds / factor**2)
    rounds = f", or about {fewer} round{'' if fewer == 1 else 's'}" if fewer else ""
    raise PrivacyError(
        f"epsilon {question.epsilon:g} at delta {question.delta:g} for {question.rounds} rounds "
        f"needs noise of {first.error:.4g} of the clip on each number of the mean; at most "
        f"{most:g} was asked for",
        hint=f"it would need {wish}{rounds}, or a larger epsilon",
    )
