"""The options of the asynchronous strategies, and what they exclude in a job."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final, Self

from attestation.config import FieldType, choice, number, text, whole
from fedlearn.job.asynchronous.staleness import (
    CONSTANT,
    DEFAULT_B,
    HINGE,
    POLYNOMIAL,
    staleness_weight,
)
from fedlearn.job.placement import MAX_SITES

__all__ = [
    "ASYNCHRONOUS",
    "EQUAL",
    "EXAMPLES",
    "OPTIONS",
    "REQUIRED_OPTIONS",
    "AsynchronousOptions",
    "asynchronous_faults",
    "updates_of_a_version",
]

FEDASYNC: Final = "fedasync"
FEDBUFF: Final = "fedbuff"

ASYNCHRONOUS: Final = frozenset({FEDASYNC, FEDBUFF})
"""The strategies without rounds."""

EXAMPLES: Final = "examples"
EQUAL: Final = "equal"

_LARGEST: Final = 1e9
_MOST_VERSIONS: Final = 10_000


def _positive(most: float = _LARGEST) -> FieldType[float]:
    return number(math.ulp(0), most, expected=f"a number above 0, up to {most:g}")


_COMMON: Final[Mapping[str, FieldType[Any]]] = {
    "concurrency": whole(1, MAX_SITES),
    "fraction_evaluate": number(0, 1),
    "max_staleness": whole(0, _MOST_VERSIONS),
    "staleness": choice(CONSTANT, POLYNOMIAL, HINGE),
    "staleness_a": _positive(),
    "staleness_b": number(0, _LARGEST),
    "weighted_by_key": text(most=64),
}

OPTIONS: Final[Mapping[str, Mapping[str, FieldType[Any]]]] = MappingProxyType(
    {
        FEDASYNC: {
            **_COMMON,
            "mixing": _positive(1.0),
            "proximal_mu": number(0, _LARGEST),
        },
        FEDBUFF: {
            **_COMMON,
            "buffer_size": whole(1, MAX_SITES),
            "server_learning_rate": _positive(),
            "weights": choice(EXAMPLES, EQUAL),
        },
    }
)
"""Options by strategy, with their types."""

REQUIRED_OPTIONS: Final[Mapping[str, tuple[str, ...]]] = MappingProxyType(
    {FEDBUFF: ("buffer_size",)}
)
"""Options without a default."""

_DEFAULT_A: Final = {CONSTANT: 0.0, POLYNOMIAL: 0.5, HINGE: 10.0}


@dataclass(frozen=True, slots=True, kw_only=True)
class AsynchronousOptions:
    """The options of an asynchronous strategy, with their defaults.

    ``concurrency``           how many sites train at once; by default all of the job
    ``buffer_size``           of how many updates a version is made; 1 for ``fedasync``
    ``max_staleness``         an update that is staler is refused; None for no bound
    ``staleness``             ``constant``, ``polynomial`` or ``hinge``; see
                              :func:`staleness_weight`
    ``staleness_a``           its ``a``: 0.5 for ``polynomial`` and 10 for ``hinge`` by default,
                              as in the experiments of the paper
    ``staleness_b``           its ``b``: 4 by default, for ``hinge``
    ``rate``                  what the mean of the differences is multiplied by:
                              ``server_learning_rate`` of ``fedbuff`` (1 by default), ``mixing`` of
                              ``fedasync`` (0.6 by default)
    ``weights``               ``examples`` or ``equal``: what an update weighs before its staleness
    ``proximal_mu``           sent to the clients of ``fedasync``, as FedProx does
    ``to_sent``               whether the difference of an update is that to the version which it
                              was trained on, and not to the newest
    """

    concurrency: int
    buffer_size: int
    max_staleness: int | None = None
    staleness: str = POLYNOMIAL
    staleness_a: float = _DEFAULT_A[POLYNOMIAL]
    staleness_b: float = DEFAULT_B
    rate: float = 1.0
    weights: str = EXAMPLES
    proximal_mu: float = 0.0
    to_sent: bool = True

    @classmethod
    def of(cls, name: str, options: Mapping[str, Any], sites: int) -> Self:
        """Return the options of a strategy of a job with so many sites.

        :raises KeyError: when an option without a default is missing.

        >>> AsynchronousOptions.of("fedbuff", {"buffer_size": 2}, 5).concurrency
        5
        """
        buffered = name == FEDBUFF
        kind = str(options.get("staleness", POLYNOMIAL))
        return cls(
            concurrency=min(sites, int(options.get("concurrency", sites))),
            buffer_size=updates_of_a_version(name, options),
            max_staleness=options.get("max_staleness"),
            staleness=kind,
            staleness_a=float(options.get("staleness_a", _DEFAULT_A[kind])),
            staleness_b=float(options.get("staleness_b", DEFAULT_B)),
            rate=float(
                options.get("server_learning_rate", 1.0) if buffered else options.get("mixing", 0.6)
            ),
            weights=str(options.get("weights", EXAMPLES)) if buffered else EQUAL,
            proximal_mu=float(options.get("proximal_mu", 0.0)),
            to_sent=buffered,
        )

    def weight(self, staleness: int) -> float:
        """Return what an update of some staleness is multiplied by."""
        return staleness_weight(self.staleness, staleness, a=self.staleness_a, b=self.staleness_b)


def updates_of_a_version(name: str, options: Mapping[str, Any]) -> int:
    """Return of how many updates a version of an asynchronous strategy is made.

    :raises KeyError: for ``fedbuff`` without a ``buffer_size``.
    """
    return int(options["buffer_size"]) if name == FEDBUFF else 1


def asynchronous_faults(
    name: str, options: Mapping[str, Any], *, sites: int, quorum: int
) -> Iterator[tuple[tuple[str, ...], str]]:
    """Yield what excludes each other in a job with an asynchronous strategy: key and sentence.

    The options are of the types in :data:`OPTIONS`, and none without a default is missing.
    """
    size = updates_of_a_version(name, options)
    here = ("strategy", "options")
    if size > sites:
        yield (
            (*here, "buffer_size"),
            f"must be at most the {sites} sites, not {size}: a site is in a version once at most",
        )
    if options.get("concurrency", 1) > sites:
        yield (*here, "concurrency"), f"must be at most the {sites} sites that can train at once"
    if quorum > size:
        what = "buffer_size" if name == FEDBUFF else "the one update of which a version is made"
        yield (
            ("quorum",),
            f"must be at most {what}, {size}, not {quorum}: it is how many updates a version "
            "needs when its deadline is over",
        )
    kind = options.get("staleness", POLYNOMIAL)
    if "staleness_b" in options and kind != HINGE:
        yield (*here, "staleness_b"), f'is for staleness = "hinge" only, not "{kind}"'
    if "staleness_a" in options and kind == CONSTANT:
        yield (*here, "staleness_a"), 'has no effect with staleness = "constant"'
