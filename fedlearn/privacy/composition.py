"""What Gaussian releases cost together, computed by Google's ``dp-accounting``. Pure.

A release is a :class:`Cost`: a Gaussian mechanism whose noise multiplier is relative to its
sensitivity, of data that is whole or was drawn by Poisson sampling in secret. The accountants

``rdp``  Renyi differential privacy (Mironov 2017, arXiv:1702.07476; sampled: Mironov, Talwar and
         Zhang 2019, arXiv:1908.10530); fast, an upper bound
``pld``  privacy loss distributions (Doroshenko et al. 2022, arXiv:2207.04380); tighter, also
         an upper bound, slower, and only for costs that are worth the name

are always called with ``ADD_OR_REMOVE_ONE``: the multiplier is relative to the sensitivity, so a
Gaussian mechanism of whole data costs the same under every adjacency, and a sampled one is used
under relations with and without one unit only.

The page is docs/reference/api/privacy.md.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

from fedlearn.errors import PrivacyError

__all__ = ["LARGEST_MULTIPLIER", "Cost", "calibrated", "composed"]

LARGEST_MULTIPLIER: Final = 1e6
"""The largest noise multiplier of a job."""

_PLD_LIMIT: Final = 100.0


@dataclass(frozen=True, slots=True)
class Cost:
    """One release: its noise multiplier, and the rate at which its units were drawn (1: all)."""

    noise_multiplier: float
    rate: float = 1.0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.noise_multiplier) and self.noise_multiplier > 0):
            raise PrivacyError(
                f"a noise multiplier of {self.noise_multiplier!r} bounds nothing; it is a number "
                "above 0"
            )
        if not 0 < self.rate <= 1:
            raise PrivacyError(f"a sampling rate is a number above 0, up to 1, not {self.rate!r}")


def composed(costs: Mapping[Cost, int], accountant: str, delta: float) -> float:
    """Return the epsilon at ``delta`` of so many releases of each cost; infinity if unbounded.

    ``accountant`` is ``rdp`` or ``pld``.

    >>> round(composed({Cost(1.0, 0.01): 1000}, "rdp", 1e-5), 3)
    2.101
    """
    if not any(costs.values()):
        return 0.0
    with _quiet():
        found = _epsilon(costs, "rdp", delta)
        # The support of a privacy loss distribution grows with the loss. For a budget that is
        # much too large it needs gigabytes, and RDP shows that the budget is exceeded.
        if accountant == "pld" and found <= _PLD_LIMIT:
            found = _epsilon(costs, "pld", delta)
    return found


def calibrated(
    costs: Callable[[float], Mapping[Cost, int]],
    *,
    epsilon: float,
    delta: float,
    accountant: str,
    least: float,
) -> float:
    """Return the smallest noise multiplier whose costs fit, rounded up to three digits.

    ``costs`` returns the releases for a noise multiplier; more noise costs less. The result is
    at least ``least``.

    :raises PrivacyError: when :data:`LARGEST_MULTIPLIER` does not suffice, stating what it gives.
    """

    def enough(multiplier: float) -> bool:
        return composed(costs(multiplier), accountant, delta) <= epsilon

    low, high = least, max(1.0, least)
    if accountant == "pld":
        # PLD never costs more than RDP, which is fast and gives a close bound.
        high = calibrated(costs, epsilon=epsilon, delta=delta, accountant="rdp", least=least)
        low = max(high / 1.5, low)
    while not enough(high):
        if high >= LARGEST_MULTIPLIER:
            floor = composed(costs(high), accountant, delta)
            raise PrivacyError(
                f"no amount of noise makes these releases fit into epsilon {epsilon:g} at delta "
                f"{delta:g}: the largest noise multiplier of a job, {high:g}, gives {floor:.4g}",
                hint=f"ask for an epsilon of at least {_rounded_up(floor):g}, for a larger delta, "
                "or for fewer rounds",
            )
        low, high = high, min(high * 4, LARGEST_MULTIPLIER)
    while high - low > 1e-3 * high:
        middle = (low + high) / 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return max(min(_rounded_up(high), LARGEST_MULTIPLIER), least)


def _rounded_up(value: float) -> float:
    """Return ``value`` rounded up to three digits."""
    unit = 10.0 ** (math.floor(math.log10(value)) - 2)
    # Decimal text rather than a product, so that it prints with three digits.
    return float(f"{math.ceil(value / unit) * unit:.6g}")


def _epsilon(costs: Mapping[Cost, int], name: str, delta: float) -> float:
    import dp_accounting
    from dp_accounting import pld, rdp

    relation = dp_accounting.NeighboringRelation.ADD_OR_REMOVE_ONE
    made = pld.PLDAccountant if name == "pld" else rdp.RdpAccountant
    accountant: Any = made(neighboring_relation=relation)
    for cost, count in costs.items():
        if count:
            event = dp_accounting.GaussianDpEvent(cost.noise_multiplier)
            if cost.rate < 1:
                event = dp_accounting.PoissonSampledDpEvent(cost.rate, event)
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
