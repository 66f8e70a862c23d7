"""The privacy cost of the rounds of a job, from its ``[privacy]`` table.

:mod:`fedlearn.privacy.composition` adds the releases up, with ``dp-accounting``. No amplification
by sampling sites is credited. It holds only for observers who do not know which sites were drawn,
and the ledger and the events of a job name them.

The page is docs/reference/api/privacy.md.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Final

from fedlearn.errors import PrivacyError
from fedlearn.privacy.composition import Cost, calibrated, composed
from fedlearn.privacy.spec import MINIMUM_NOISE_MULTIPLIER, PrivacySpec

__all__ = [
    "MAX_ROUNDS",
    "Spent",
    "composed_epsilon",
    "costs",
    "costs_for",
    "epsilon",
    "noise_multiplier_for",
    "rounds_within",
    "spent",
]

MAX_ROUNDS: Final = 1_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Spent:
    """The cost of some rounds. Its text always states what the number depends on."""

    epsilon: float
    delta: float
    rounds: int
    spec: PrivacySpec

    def __str__(self) -> str:
        spec = self.spec
        text = (
            f"epsilon {self.epsilon:.4g} at delta {self.delta:g} after {self.rounds} "
            f"round{'' if self.rounds == 1 else 's'}; unit: {spec.unit} ({spec.adjacency}); "
            f"sampling: {spec.sampling_text}; accountant: {spec.accountant}"
        )
        if spec.noise_text:
            text += f"; {spec.noise_text}"
        if spec.insecure_deterministic_noise:
            text += "; NO GUARANTEE: the noise is derived from the job's seed"
        if spec.insecure_exact_metrics:
            text += "; metrics of each site leave it exactly and are not covered"
        return text

    def to_json(self) -> dict[str, str | float | int | bool]:
        """Return the values JSON-ready, as the ledger has them next to job and round."""
        return {
            "epsilon": self.epsilon,
            "delta": self.delta,
            "rounds": self.rounds,
            "unit": self.spec.unit,
            "adjacency": self.spec.adjacency,
            "sampling": self.spec.sampling_text,
            "accountant": self.spec.accountant,
            "noise_multiplier": self.spec.noise_multiplier,
            "insecure_deterministic_noise": self.spec.insecure_deterministic_noise,
            "insecure_exact_metrics": self.spec.insecure_exact_metrics,
        }


def epsilon(spec: PrivacySpec, rounds: int) -> float:
    """Return the epsilon at ``spec.delta`` of ``rounds`` rounds; infinity if unbounded.

    Use :func:`spent` for output that people read. Raises
    :class:`fedlearn.errors.PrivacyError` for a number of rounds that is out of range.
    """
    return _epsilon(spec, spec.participations(rounds))


def spent(spec: PrivacySpec, rounds: int, *, updates: int | None = None) -> Spent:
    """Return what ``rounds`` rounds cost together.

    ``updates`` is in how many of them the site took part that did so most often; by default
    what the sampling of the spec allows for rounds one after the other.

    >>> spec = PrivacySpec(clip=1.0, noise_multiplier=1.5, epsilon=8.0, delta=1e-5)
    >>> cost = spent(spec, rounds=5)
    >>> round(cost.epsilon, 3), cost.delta
    (7.532, 1e-05)
    """
    found = epsilon(spec, rounds) if updates is None else _epsilon(spec, updates)
    return Spent(epsilon=found, delta=spec.delta, rounds=rounds, spec=spec)


@lru_cache(maxsize=32)
def rounds_within(spec: PrivacySpec) -> int:
    """Return the largest number of rounds that the budget pays for, up to ``MAX_ROUNDS``.

    >>> rounds_within(PrivacySpec(clip=1.0, noise_multiplier=1.5, epsilon=8.0, delta=1e-5))
    5
    """

    def pays(rounds: int) -> bool:
        return rounds <= MAX_ROUNDS and epsilon(spec, rounds) <= spec.epsilon

    low, step = 0, 1
    if spec.accountant == "pld":
        # PLD never costs more than RDP, which is fast and gives a close bound.
        low = rounds_within(replace(spec, accountant="rdp"))
        step = max(low // 4, 1)
    while pays(low + step):
        low, step = low + step, step * 2
    high = low + step
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if pays(middle) else (low, middle)
    return low


@lru_cache(maxsize=32)
def noise_multiplier_for(spec: PrivacySpec, rounds: int) -> float:
    """Return a noise multiplier with which the budget of ``spec`` pays for ``rounds`` rounds.

    It is the smallest one, rounded up to three digits. Raises
    :class:`fedlearn.errors.PrivacyError` when the largest one does not suffice.

    >>> spec = PrivacySpec(clip=1.0, noise_multiplier=1.0, epsilon=8.0, delta=1e-5)
    >>> noise_multiplier_for(spec, rounds=5)
    1.43
    """
    return calibrated(
        lambda multiplier: costs(
            replace(spec, noise_multiplier=multiplier), spec.participations(rounds)
        ),
        epsilon=spec.epsilon,
        delta=spec.delta,
        accountant=spec.accountant,
        least=MINIMUM_NOISE_MULTIPLIER,
    )


def costs(spec: PrivacySpec, updates: int) -> dict[Cost, int]:
    """Return what so many updates of one site cost, as the accountant counts them.

    Raises :class:`fedlearn.errors.PrivacyError` for a number that is out of range.
    """
    if not 0 <= updates <= MAX_ROUNDS:
        raise PrivacyError(f"{updates} rounds cannot be accounted for; at most {MAX_ROUNDS}")
    if spec.batch_rate is not None and spec.steps is not None:
        return {Cost(spec.noise_multiplier, spec.batch_rate): updates * spec.steps}
    return {Cost(spec.noise_multiplier): updates}


def costs_for(
    unit: str, spec: PrivacySpec, updates: int, *, records: int | None = None
) -> dict[Cost, int] | None:
    """Return what so many updates of a job cost one ``unit``, which need not be that of the job.

    :param records: the most records of one user, where it is known.
    :returns: None where nothing bounds the cost: the job protects a smaller unit.

    * The unit of the job: as it is.
    * A smaller unit, as an example of a job that protects sites: what the larger one contributes
      may move from any point within its bound to any other one, which is twice as far as to
      nothing. Half of the noise multiplier, but for ``replace-one``, which has that distance.
    * The user, of a job that protects examples: a user's ``records`` are a group. The noise
      multiplier divided by their number, and no amplification: a step in which all of them were
      drawn bounds every other one (the Renyi divergence of a mixture over draws that do not
      depend on the data is at most that of the worst draw).
    * The site, of a job that protects users or examples: None.
    """
    if spec.unit == unit:
        return costs(spec, updates)
    if spec.protects(unit):
        factor = 1.0 if spec.adjacency == "replace-one" else 0.5
        return {
            Cost(cost.noise_multiplier * factor, cost.rate): count
            for cost, count in costs(spec, updates).items()
        }
    if unit == "user" and records is not None:
        found: Counter[Cost] = Counter()
        for cost, count in costs(spec, updates).items():
            found[Cost(cost.noise_multiplier / records)] += count
        return found
    return None


def composed_epsilon(
    parts: Iterable[tuple[PrivacySpec, int]],
    delta: float,
    *,
    unit: str = "site",
    records: int | None = None,
) -> float:
    """Return the epsilon at ``delta`` of several jobs on the same data, each of so many updates.

    It is that of one ``unit``, whatever the jobs protect: see :func:`costs_for`. Infinity where
    nothing bounds it. The composition is that of Renyi differential privacy, whatever accountant
    the jobs name. The bound limits how well the outputs distinguish the data from no contribution
    at all: each adjacency of :mod:`fedlearn.privacy.spec` covers these two cases.

    Raises :class:`fedlearn.errors.PrivacyError` for a number of updates that is out of range.
    """
    total: Counter[Cost] = Counter()
    for spec, count in parts:
        found = costs_for(unit, spec, count, records=records)
        if found is None:
            return math.inf
        total.update(found)
    return composed(total, "rdp", delta)


@lru_cache(maxsize=4096)
def _epsilon(spec: PrivacySpec, updates: int) -> float:
    return composed(costs(spec, updates), spec.accountant, spec.delta)
