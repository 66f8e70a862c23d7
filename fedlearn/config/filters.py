"""The filters that a site demands for every update that leaves it: ``[privacy] filters``.

::

    [privacy]
    filters = [
      { kind = "clip", norm = 1.0 },                          # L2 norm of the whole difference
      { kind = "gaussian", sigma = 0.01 },                    # of the norm of the clip before it
      { kind = "topk", fraction = 0.1 },                      # the largest numbers of each array
      { kind = "percentile", percentile = 90, limit = 0.01 }, # the largest numbers, and limited
      { kind = "sign", step = 0.001 },                        # of each number its sign only
    ]

The page is docs/how-to/site-filters.md.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final

from attestation.config import InconsistentValues, choice, number, option

__all__ = ["FILTER_KINDS", "MOST_FILTERS", "FilterSpec", "order_fault"]

_PARAMETERS: Final[Mapping[str, tuple[str, ...]]] = MappingProxyType(
    {
        "clip": ("norm",),
        "gaussian": ("sigma",),
        "percentile": ("percentile", "limit"),
        "sign": ("step",),
        "topk": ("fraction",),
    }
)

FILTER_KINDS: Final = tuple(_PARAMETERS)
MOST_FILTERS: Final = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class FilterSpec:
    """One filter, with the parameters of its kind and no other.

    ``kind``        ``clip``: scale the difference from the model. ``gaussian``: add Gaussian noise.
                    ``topk``: keep the numbers of each array with the largest magnitudes.
                    ``percentile``: keep the numbers from a percentile of all magnitudes on, limited
                    (Shokri and Shmatikov 2015, doi:10.1145/2810103.2813687, section 5). ``sign``:
                    keep the sign of each number
    ``norm``        of ``clip``: the largest L2 norm, over all arrays
    ``sigma``       of ``gaussian``: standard deviation, as a multiple of the ``norm`` of the clip
                    before it
    ``fraction``    of ``topk``: the part of the numbers of each array that is kept
    ``percentile``  of ``percentile``: the least magnitude that is kept, as a percentile
    ``limit``       of ``percentile``: the largest magnitude of a number
    ``step``        of ``sign``: the magnitude of each number

    :raises InconsistentValues: from the constructor, naming the key.

    >>> FilterSpec(kind="clip", norm=1.0).to_mapping()
    {'kind': 'clip', 'norm': 1.0}
    >>> FilterSpec(kind="clip", sigma=1.0)
    Traceback (most recent call last):
        ...
    attestation.config.schema.InconsistentValues: sigma: not a parameter of "clip"
    norm: "clip" needs it
    """

    kind: str = option(choice(*FILTER_KINDS))
    norm: float | None = option(number(1e-12, 1e12), default=None)
    sigma: float | None = option(number(1e-12, 1e6), default=None)
    fraction: float | None = option(
        number(1e-6, 1, expected="a number from 0.000001 to 1"), default=None
    )
    percentile: float | None = option(number(0, 100), default=None)
    limit: float | None = option(number(1e-12, 1e12), default=None)
    step: float | None = option(number(1e-12, 1e12), default=None)

    def __post_init__(self) -> None:
        wanted, faults = _PARAMETERS[self.kind], []
        for item in dataclasses.fields(self)[1:]:
            given = getattr(self, item.name) is not None
            if given and item.name not in wanted:
                faults.append(((item.name,), f'not a parameter of "{self.kind}"'))
            if not given and item.name in wanted:
                faults.append(((item.name,), f'"{self.kind}" needs it'))
        if faults:
            raise InconsistentValues(*sorted(faults, key=lambda fault: "needs" in fault[1]))

    def to_mapping(self) -> dict[str, Any]:
        """Return the table, JSON-ready."""
        values = dataclasses.asdict(self)
        return {key: value for key, value in values.items() if value is not None}


def order_fault(filters: Sequence[FilterSpec]) -> Iterator[tuple[int, str]]:
    """Yield the place of each filter that cannot be where it is, and the reason.

    >>> list(order_fault([FilterSpec(kind="gaussian", sigma=1.0)]))
    [(0, 'needs a filter "clip" before it, which bounds what the noise hides')]
    """
    bounded = False
    for place, each in enumerate(filters):
        if each.kind == "clip":
            bounded = True
        elif each.kind == "gaussian":
            if not bounded:
                yield place, 'needs a filter "clip" before it, which bounds what the noise hides'
            bounded = False
        elif each.kind == "sign":
            bounded = False
