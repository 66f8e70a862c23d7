"""The parameters of secure aggregation in a job, ``[aggregation.secagg]``."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from attestation.config import InconsistentValues, number, option, whole

__all__ = ["LEAST_CLIENTS", "SECAGG_PLUS", "SecAggSpec"]

SECAGG_PLUS: Final = "secagg+"
"""The one protocol that ``[aggregation] secure`` may name."""

LEAST_CLIENTS: Final = 3
"""The least number of updates in a sum: of two, each client knows the other's from the sum."""

_WORDS: Final = (32, 64)
_MOST_SITES: Final = 8191


@dataclass(frozen=True, slots=True, kw_only=True)
class SecAggSpec:
    """Parameters of SecAgg+.

    ``neighbours``    clients with which each one shares its secrets, even; 0 for all others, which
                      is the protocol of Bonawitz et al. 2017
    ``threshold``     part of a client's neighbours that recover its secrets, above a half. The
                      others may drop out in a round; fewer learn nothing
    ``clip_range``    numbers of the difference from the model are limited to
                      ``[-clip_range, clip_range]``
    ``bits``          of a number as an integer, with its sign
    ``max_weight``    the largest weight of an update
    ``modulus_bits``  of the integers that travel: 32 or 64

    :raises InconsistentValues: from the constructor, naming the key.

    >>> SecAggSpec(clip_range=127, bits=8).step
    1.0
    """

    neighbours: int = option(whole(0, _MOST_SITES), default=0)
    threshold: float = option(number(0.5, 1, expected="a number above 0.5, up to 1"), default=2 / 3)
    clip_range: float = option(
        number(1e-9, 1e9, expected="a number from 1e-09 to 1e+09"), default=8.0
    )
    bits: int = option(whole(4, 48), default=24)
    max_weight: int = option(whole(1, 2**29 - 1), default=2**20)
    modulus_bits: int = option(whole(32, 64), default=64)

    def __post_init__(self) -> None:
        if faults := [((key,), fault) for key, fault in self._faults()]:
            raise InconsistentValues(*faults)

    def _faults(self) -> Iterator[tuple[str, str]]:
        if self.neighbours % 2 or self.neighbours == 2:
            yield "neighbours", f"must be 0 or an even number from 4 on, not {self.neighbours}"
        if self.threshold <= 0.5:
            # Half of the neighbours could give one secret of a client, and half the other one.
            yield "threshold", "must be above 0.5: with less, a server can get both secrets"
        if self.modulus_bits not in _WORDS:
            yield "modulus_bits", f"must be 32 or 64, not {self.modulus_bits}"
        elif fault := self.overflow(LEAST_CLIENTS):
            yield "bits", fault

    @property
    def largest(self) -> int:
        """The integer that ``clip_range`` becomes."""
        return int(2 ** (self.bits - 1) - 1)

    @property
    def step(self) -> float:
        """The number that the integer 1 stands for."""
        return self.clip_range / self.largest

    def overflow(self, sites: int) -> str:
        """Return why the sum of so many updates may not fit the modulus; empty where it does.

        >>> SecAggSpec().overflow(8000)
        ''
        >>> SecAggSpec(max_weight=2**29 - 1).overflow(8000)
        'the sum of 8000 updates needs 66 bits with bits = 24 and max_weight = 536870911, and \
modulus_bits is 64; lower max_weight or bits'
        """
        needed = (sites * self.max_weight * self.largest).bit_length() + 1
        if needed <= self.modulus_bits:
            return ""
        return (
            f"the sum of {sites} updates needs {needed} bits with bits = {self.bits} and "
            f"max_weight = {self.max_weight}, and modulus_bits is {self.modulus_bits}; lower "
            "max_weight or bits"
        )

    def to_mapping(self) -> dict[str, Any]:
        """Return the table, JSON-ready, with defaults written out."""
        return dataclasses.asdict(self)
