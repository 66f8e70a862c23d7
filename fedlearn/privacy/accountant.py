"""How much privacy rounds cost: Google's ``dp-accounting``, asked the right question.

The noise multiplier of a spec is relative to the sensitivity under its adjacency. That is
what ``dp-accounting`` means by it except in one place: its PLD accountant takes the
multiplier of ``REPLACE_ONE`` relative to the clipping norm, half of that. A Gaussian
mechanism without sampling costs the same under every adjacency once it is relative to the
sensitivity, so full participation is always asked as ``ADD_OR_REMOVE_ONE``.

``rdp``  Renyi differential privacy (Mironov 2017, arXiv:1702.07476); fast, an upper bound
``pld``  privacy loss distributions (Doroshenko et al. 2022, arXiv:2207.04380); tighter, also
         an upper bound, slower, and only for costs that are worth the name
"""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, Final

from fedlearn.errors import PrivacyError
from fedlearn.privacy.spec import MINIMUM_NOISE_MULTIPLIER, PrivacySpec

__all__ = [
    "MAX_ROUNDS",
    "Spent",
    "composed_epsilon",
    "epsilon",
    "noise_multiplier_for",
    "rounds_within",
    "spent",
]

MAX_ROUNDS: Final = 1_000_000
_PLD_LIMIT: Final = 100.0
_LARGEST_MULTIPLIER: Final = 1e6


@dataclass(frozen=True, slots=True, kw_only=True)
class Spent:
    """What some rounds cost. Its text never leaves out what the number depends on."""

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
        if spec.insecure_deterministic_noise:
            text += "; NO GUARANTEE: the noise is derived from the job's seed"
        if spec.insecure_exact_metrics:
            text += "; metrics of each site leave it exactly and are not covered"
        return text

    def to_json(self) -> dict[str, str | float | int | bool]:
        """Return all of it JSON-ready, as it goes into the ledger next to job and round."""
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

    Use :func:`spent` for anything that a person reads. Raises
    :class:`fedlearn.errors.PrivacyError` for an impossible number of rounds.
    """
    if not 0 <= rounds <= MAX_ROUNDS:
        raise PrivacyError(f"{rounds} rounds cannot be accounted for; at most {MAX_ROUNDS}")
    return _epsilon(spec, rounds)


def spent(spec: PrivacySpec, rounds: int) -> Spent:
    """Return what ``rounds`` rounds cost together."""
    return Spent(epsilon=epsilon(spec, rounds), delta=spec.delta, rounds=rounds, spec=spec)


@lru_cache(maxsize=32)
def rounds_within(spec: PrivacySpec) -> int:
    """Return the largest number of rounds that the budget pays for, up to ``MAX_ROUNDS``."""

    def pays(rounds: int) -> bool:
        return rounds <= MAX_ROUNDS and epsilon(spec, rounds) <= spec.epsilon

    low, step = 0, 1
    if spec.accountant == "pld":
        # PLD never costs more than RDP, whose answer is cheap and close.
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

    It is the smallest but for the rounding up to three digits. Raises
    :class:`fedlearn.errors.PrivacyError` when not even the largest one suffices.
    """

    def enough(multiplier: float) -> bool:
        return epsilon(replace(spec, noise_multiplier=multiplier), rounds) <= spec.epsilon

    low, high = MINIMUM_NOISE_MULTIPLIER, 1.0
    if spec.accountant == "pld":
        high = noise_multiplier_for(replace(spec, accountant="rdp"), rounds)
        low = max(high / 1.3, low)
    while not enough(high):
        low, high = high, high * 4
        if high > _LARGEST_MULTIPLIER:
            raise PrivacyError(f"no amount of noise makes {rounds} rounds fit into the budget")
    while high - low > 1e-3 * high:
        middle = (low + high) / 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    unit = 10.0 ** (math.floor(math.log10(high)) - 2)
    # Decimal text rather than a product, so that it reads as it was rounded.
    return max(float(f"{math.ceil(high / unit) * unit:.6g}"), MINIMUM_NOISE_MULTIPLIER)


def composed_epsilon(parts: Iterable[tuple[PrivacySpec, int]], delta: float) -> float:
    """Return the epsilon at ``delta`` of several jobs on the same data, each of so many rounds.

    The composition is that of Renyi differential privacy, whatever accountant the jobs name.
    What is bounded is how well the outputs tell the data from no contribution at all: each
    adjacency of :mod:`fedlearn.privacy.spec` covers these two worlds. Jobs with a sample of fixed
    size, which ``dp-accounting`` composes under another relation than the others, are added by
    basic composition, with half of ``delta`` for each of the two groups (Dwork and Roth 2014,
    theorem 3.16).

    Raises :class:`fedlearn.errors.PrivacyError` for an impossible number of rounds.
    """
    rounds: Counter[tuple[float | str | int | None, ...]] = Counter()
    example: dict[tuple[float | str | int | None, ...], PrivacySpec] = {}
    for spec, count in parts:
        if not 0 <= count <= MAX_ROUNDS:
            raise PrivacyError(f"{count} rounds cannot be accounted for; at most {MAX_ROUNDS}")
        kind = (
            spec.noise_multiplier,
            spec.sampling,
            spec.sampling_rate,
            spec.sample_size,
            spec.population,
        )
        rounds[kind] += count
        example.setdefault(kind, spec)
    groups = [
        [
            (example[kind], count)
            for kind, count in rounds.items()
            if count and fixed == (kind[1] == "fixed")
        ]
        for fixed in (False, True)
    ]
    groups = [group for group in groups if group]
    with _quiet():
        return math.fsum(_renyi(group, delta / len(groups)) for group in groups)


def _renyi(parts: Sequence[tuple[PrivacySpec, int]], delta: float) -> float:
    import dp_accounting
    from dp_accounting import rdp

    relation = _event(parts[0][0])[1]
    if relation is dp_accounting.NeighboringRelation.REPLACE_SPECIAL:
        # The Renyi divergences of Poisson sampling are the same under both relations.
        relation = dp_accounting.NeighboringRelation.ADD_OR_REMOVE_ONE
    accountant: Any = rdp.RdpAccountant(neighboring_relation=relation)
    for spec, rounds in parts:
        accountant.compose(dp_accounting.SelfComposedDpEvent(_event(spec)[0], rounds))
    return float(accountant.get_epsilon(delta))


@lru_cache(maxsize=4096)
def _epsilon(spec: PrivacySpec, rounds: int) -> float:
    if rounds == 0:
        return 0.0
    with _quiet():
        found = _compose(spec, rounds, "rdp")
        # The support of a privacy loss distribution grows with the loss: a budget that is
        # already absurd would cost gigabytes to compute, and RDP says so for nothing.
        if spec.accountant == "pld" and found <= _PLD_LIMIT:
            found = _compose(spec, rounds, "pld")
    return found


def _compose(spec: PrivacySpec, rounds: int, accountant: str) -> float:
    import dp_accounting
    from dp_accounting import pld, rdp

    event, neighbouring = _event(spec)
    if accountant == "pld":
        composed: Any = pld.PLDAccountant(neighboring_relation=neighbouring)
    else:
        composed = rdp.RdpAccountant(neighboring_relation=neighbouring)
    composed.compose(dp_accounting.SelfComposedDpEvent(event, rounds))
    return float(composed.get_epsilon(spec.delta))


def _event(spec: PrivacySpec) -> tuple[Any, Any]:
    """Return one round of a mechanism, and the relation that it is accounted for under."""
    import dp_accounting

    relation = dp_accounting.NeighboringRelation
    event: Any = dp_accounting.GaussianDpEvent(spec.noise_multiplier)
    if spec.sampling == "poisson":
        sampled = dp_accounting.PoissonSampledDpEvent(spec.sampling_rate, event)
        zero_out = spec.adjacency == "zero-out"
        return sampled, relation.REPLACE_SPECIAL if zero_out else relation.ADD_OR_REMOVE_ONE
    if spec.sampling == "fixed":
        drawn = dp_accounting.SampledWithoutReplacementDpEvent(
            spec.population, spec.sample_size, event
        )
        return drawn, relation.REPLACE_ONE
    return event, relation.ADD_OR_REMOVE_ONE


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the accountant's remarks about Renyi orders that it leaves out off the terminal."""
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
