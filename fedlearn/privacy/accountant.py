"""The privacy cost of rounds, computed by Google's ``dp-accounting``.

The noise multiplier of a spec is relative to the sensitivity under its adjacency.
``dp-accounting`` defines it in the same way with one exception: its PLD accountant takes the
multiplier of ``REPLACE_ONE`` relative to the clipping norm, which is half of the sensitivity. A
Gaussian mechanism with a multiplier relative to the sensitivity costs the same under every
adjacency, so the accountant is always called with ``ADD_OR_REMOVE_ONE``.

No amplification by subsampling is credited. It holds only for observers who do not know which
sites were drawn, and the ledger and the events of a job name them.

``rdp``  Renyi differential privacy (Mironov 2017, arXiv:1702.07476); fast, an upper bound
``pld``  privacy loss distributions (Doroshenko et al. 2022, arXiv:2207.04380); tighter, also
         an upper bound, slower, and only for costs that are worth the name

The page is docs/reference/api/privacy.md.
"""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
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
    if not 0 <= rounds <= MAX_ROUNDS:
        raise PrivacyError(f"{rounds} rounds cannot be accounted for; at most {MAX_ROUNDS}")
    return _epsilon(spec, rounds)


def spent(spec: PrivacySpec, rounds: int) -> Spent:
    """Return what ``rounds`` rounds cost together.

    >>> spec = PrivacySpec(clip=1.0, noise_multiplier=1.5, epsilon=8.0, delta=1e-5)
    >>> cost = spent(spec, rounds=5)
    >>> round(cost.epsilon, 3), cost.delta
    (7.532, 1e-05)
    """
    return Spent(epsilon=epsilon(spec, rounds), delta=spec.delta, rounds=rounds, spec=spec)


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
    # Decimal text rather than a product, so that it prints with three digits.
    return max(float(f"{math.ceil(high / unit) * unit:.6g}"), MINIMUM_NOISE_MULTIPLIER)


def composed_epsilon(parts: Iterable[tuple[PrivacySpec, int]], delta: float) -> float:
    """Return the epsilon at ``delta`` of several jobs on the same data, each of so many rounds.

    The composition is that of Renyi differential privacy, whatever accountant the jobs name.
    The bound limits how well the outputs distinguish the data from no contribution at all: each
    adjacency of :mod:`fedlearn.privacy.spec` covers these two cases.

    Raises :class:`fedlearn.errors.PrivacyError` for a number of rounds that is out of range.
    """
    rounds: Counter[float] = Counter()
    for spec, count in parts:
        if not 0 <= count <= MAX_ROUNDS:
            raise PrivacyError(f"{count} rounds cannot be accounted for; at most {MAX_ROUNDS}")
        rounds[spec.noise_multiplier] += count
    if not rounds.total():
        return 0.0
    with _quiet():
        return _composed(rounds, "rdp", delta)


@lru_cache(maxsize=4096)
def _epsilon(spec: PrivacySpec, rounds: int) -> float:
    if rounds == 0:
        return 0.0
    with _quiet():
        one = {spec.noise_multiplier: rounds}
        found = _composed(one, "rdp", spec.delta)
        # The support of a privacy loss distribution grows with the loss. For a budget that is
        # much too large it needs gigabytes, and RDP shows that the budget is exceeded.
        if spec.accountant == "pld" and found <= _PLD_LIMIT:
            found = _composed(one, "pld", spec.delta)
    return found


def _composed(rounds: Mapping[float, int], name: str, delta: float) -> float:
    """Return the epsilon of so many rounds with each noise multiplier."""
    import dp_accounting
    from dp_accounting import pld, rdp

    relation = dp_accounting.NeighboringRelation.ADD_OR_REMOVE_ONE
    made = pld.PLDAccountant if name == "pld" else rdp.RdpAccountant
    accountant: Any = made(neighboring_relation=relation)
    for multiplier, count in rounds.items():
        if count:
            event = dp_accounting.GaussianDpEvent(multiplier)
            accountant.compose(dp_accounting.SelfComposedDpEvent(event, count))
    return float(accountant.get_epsilon(delta))


@contextmanager
def _quiet() -> Iterator[None]:
    """Suppress the accountant's log lines about Renyi orders that it leaves out."""
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
