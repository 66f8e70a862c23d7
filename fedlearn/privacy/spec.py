# ruff: noqa: RUF009 (an option is a field specifier; each makes a new field)
"""The ``[privacy]`` table of a job: its mechanism, its unit and its budget.

::

    [privacy]
    mechanism = "central-gaussian"   # clip in each client's TEE, noise in the coordinator's
    unit = "site"                    # what is protected: everything one site contributes
    adjacency = "zero-out"           # "zero-out", "add-or-remove" or "replace-one"
    clip = 1.0                       # L2 bound on a site's whole update in one round
    noise_multiplier = 1.1           # noise standard deviation over sensitivity
    epsilon = 8.0                    # the budget of the whole job
    delta = 1e-5
    accountant = "rdp"               # or "pld"
    sampling = "full"                # "full", "poisson" (sampling_rate) or "fixed" (sample_size)

*Unit.* One client represents one site, so the unit is the site: the guarantee hides the whole
contribution of a site, and not only one record.

*Adjacency* defines which two cases an observer cannot distinguish:

``zero-out``       a site's updates are replaced by zeros (Kairouz et al. 2021,
                   arXiv:2103.00039, definition 1.1). Who took part is public, as the ledger
                   makes it; what they contributed is not. Sensitivity of the sum: ``clip``.
``add-or-remove``  a site takes part or not. Participation itself is hidden, so the sum is
                   divided by the public ``expected_cohort``. Sensitivity: ``clip``.
``replace-one``    a site is replaced by any other. Sensitivity: twice ``clip``.

The noise on the sum has the standard deviation ``noise_multiplier * sensitivity``.

*Sampling.* ``full``: every site takes part in every round. ``poisson``: each site joins a
round independently with probability ``sampling_rate``. ``fixed``: ``sample_size`` of
``population`` sites, without replacement. No amplification is credited: it holds
only for observers who do not know which sites were drawn, and the ledger names them.

The page is docs/how-to/choose-epsilon-and-clip.md.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from attestation.config import (
    FieldType,
    InconsistentValues,
    choice,
    flag,
    number,
    option,
    table,
    whole,
)
from fedlearn import config

__all__ = ["MINIMUM_NOISE_MULTIPLIER", "PrivacySpec"]

MINIMUM_NOISE_MULTIPLIER: Final = 0.05
_MAX_SITES: Final = 10**9


def _positive() -> FieldType[float]:
    return number(1e-12, 1e12, expected="a positive number (1e-12 to 1e12)")


@dataclass(frozen=True, slots=True, kw_only=True)
class PrivacySpec:
    """The differential privacy of a job.

    ``clip``              L2 norm bound of one site's update in one round
    ``noise_multiplier``  standard deviation of the noise on the sum over its sensitivity
    ``epsilon``, ``delta``
                          the budget of all rounds of the job together
    ``mechanism``         where updates are clipped and where noise is added
    ``unit``              what is protected: everything that one site contributes
    ``adjacency``         which two cases an observer cannot distinguish, see above
    ``accountant``        how the budget is counted
    ``sampling``          which sites take part in a round, see above
    ``sampling_rate``     for ``poisson``: probability of a site to be drawn
    ``sample_size``       for ``fixed``: sites drawn in a round, out of ``population``
    ``population``        for ``fixed``: sites that are drawn from
    ``expected_cohort``   public denominator of the mean; None: the size of the cohort
    ``insecure_deterministic_noise``
        derive the noise from the job's seed, so that two deployments agree to the bit. There is
        no guarantee then: with the seed, the noise can be subtracted.
    ``insecure_exact_metrics``
        losses and other metrics of a site leave it unchanged; the guarantee does not cover them.

    :meth:`from_mapping` checks the range of every value. The constructor checks that the values
    are consistent.

    :raises InconsistentValues: from the constructor, naming the key.

    >>> spec = PrivacySpec(clip=1.0, noise_multiplier=1.5, epsilon=8.0, delta=1e-5)
    >>> spec.unit, spec.adjacency, spec.sensitivity
    ('site', 'zero-out', 1.0)
    >>> PrivacySpec(
    ...     clip=1.0, noise_multiplier=1.5, epsilon=8.0, delta=1e-5, sampling="poisson"
    ... )  # doctest: +ELLIPSIS
    Traceback (most recent call last):
        ...
    attestation.config.schema.InconsistentValues: sampling_rate: missing; sampling = "poisson" ...
    """

    clip: float = option(_positive())
    noise_multiplier: float = option(
        number(
            MINIMUM_NOISE_MULTIPLIER,
            1e6,
            expected=f"a number from {MINIMUM_NOISE_MULTIPLIER} up to 1e6 "
            "(less noise gives no privacy; typical: 0.5 to 5)",
        )
    )
    epsilon: float = option(_positive())
    delta: float = option(
        number(
            1e-15,
            math.nextafter(0.5, 0),
            expected="a number in [1e-15, 0.5), far below 1/sites",
        )
    )
    mechanism: str = option(choice("central-gaussian"), default="central-gaussian", required=True)
    unit: str = option(choice("site"), default="site")
    adjacency: str = option(choice("zero-out", "add-or-remove", "replace-one"), default="zero-out")
    accountant: str = option(choice("rdp", "pld"), default="rdp")
    sampling: str = option(choice("full", "poisson", "fixed"), default="full")
    sampling_rate: float | None = option(
        number(math.ulp(0), 1, expected="a probability in (0, 1]"), default=None
    )
    sample_size: int | None = option(whole(1, _MAX_SITES), default=None)
    population: int | None = option(whole(1, _MAX_SITES), default=None)
    expected_cohort: float | None = option(
        number(1e-6, 1e9, expected="a positive number of sites (1e-6 to 1e9)"), default=None
    )
    insecure_deterministic_noise: bool = option(flag(), default=False)
    insecure_exact_metrics: bool = option(flag(), default=False)

    def __post_init__(self) -> None:
        if problem := _sampling_problem(self) or _denominator_problem(self):
            key, message = problem
            raise InconsistentValues(((key,), message))

    @classmethod
    def from_mapping(cls, values: Mapping[str, object], where: str = "job.toml") -> PrivacySpec:
        """Return the ``[privacy]`` table of a job; ``where`` names the file.

        :raises ConfigError: naming each key that is unknown, missing, of a wrong type or out of
            its range, or a combination that the accountant cannot account for.
        """
        return config.read(_Job, {"privacy": values}, where=where).privacy

    def to_mapping(self) -> dict[str, str | float | int | bool]:
        """Return the complete table, JSON-ready, without keys that are None.

        Two equal specs give equal mappings, so it can enter a canonical digest.
        """
        values = sorted(dataclasses.asdict(self).items())
        return {key: value for key, value in values if value is not None}

    @property
    def sensitivity(self) -> float:
        """L2 sensitivity of the sum of clipped updates under the adjacency."""
        return 2 * self.clip if self.adjacency == "replace-one" else self.clip

    @property
    def sampling_text(self) -> str:
        """The sampling assumption as text, as it is printed next to an epsilon."""
        if self.sampling == "poisson":
            return (
                f"Poisson sampling of sites at rate {self.sampling_rate:g}, draw in the ledger, "
                "no amplification"
            )
        if self.sampling == "fixed":
            return (
                f"{self.sample_size} of {self.population} sites without replacement, "
                "draw in the ledger, no amplification"
            )
        return "full participation, no amplification"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Job:
    privacy: PrivacySpec = option(table(PrivacySpec))


def _sampling_problem(spec: PrivacySpec) -> tuple[str, str] | None:
    if spec.sampling == "poisson":
        if spec.sampling_rate is None:
            return "sampling_rate", 'missing; sampling = "poisson" needs a probability'
    elif spec.sampling_rate is not None:
        return "sampling_rate", f'only for sampling = "poisson", not "{spec.sampling}"'
    if spec.sampling == "fixed":
        if spec.sample_size is None or spec.population is None:
            missing = "sample_size" if spec.sample_size is None else "population"
            return missing, 'missing; sampling = "fixed" needs sample_size and population'
        if spec.sample_size > spec.population:
            return "sample_size", (
                f"{spec.sample_size} of {spec.population} sites cannot be drawn without replacement"
            )
    else:
        for key in ("sample_size", "population"):
            if getattr(spec, key) is not None:
                return key, f'only for sampling = "fixed", not "{spec.sampling}"'
    return None


def _denominator_problem(spec: PrivacySpec) -> tuple[str, str] | None:
    expected = spec.expected_cohort
    if spec.sampling == "fixed" and expected not in (None, spec.sample_size):
        return "expected_cohort", "is sample_size if the sample has a fixed size"
    if expected is None and spec.adjacency == "add-or-remove":
        return "expected_cohort", (
            'missing; under "add-or-remove" the size of the cohort is itself private, so the '
            "mean is taken over a public number"
        )
    if expected is None and spec.sampling == "poisson":
        return "expected_cohort", (
            "missing; under Poisson sampling the mean is taken over a public number, "
            "sampling_rate times the number of sites"
        )
    return None
