# ruff: noqa: RUF009 (an option is a field specifier; each makes a new field)
"""The ``[privacy]`` table of a job: its mechanism, its unit and its budget.

::

    [privacy]
    mechanism = "central-gaussian"   # clip in each client's TEE, noise in the coordinator's;
                                     # or "distributed-gaussian" or "local-gaussian"
    unit = "site"                    # what is protected: everything one site contributes
    adjacency = "zero-out"           # "zero-out", "add-or-remove" or "replace-one"
    clip = 1.0                       # L2 bound on a site's whole update in one round
    noise_multiplier = 1.1           # noise standard deviation over sensitivity
    epsilon = 8.0                    # the budget of the whole job
    delta = 1e-5
    accountant = "rdp"               # or "pld"
    sampling = "full"                # "full", "poisson" (sampling_rate), "fixed" (sample_size)
                                     # or "cyclic" (groups)

*Unit.* ``site`` hides the whole contribution of a site, and not only one record; fedlearn's own
code clips and adds the noise. ``user`` hides what one user's records contribute at a site, and
``example`` one record. For these two the app does a part, and the guarantee is that of this app:
its digest is in the job, and a site accepts such jobs by name (``privacy.unit`` in ``site.toml``).

``user``     the app groups records by ``user_column``, clips each user's contribution to ``clip``
             and divides the sum by ``users`` (:mod:`fedlearn.training.private`). Sensitivity of
             the sum over sites: ``clip / users``. A user with records at two sites is two users.
``example``  the app trains with DP-SGD (Abadi et al. 2016, arXiv:1607.00133), which clips the
             gradient of each example to ``clip`` and adds noise: ``mechanism = "dp-sgd"``. The
             batches are drawn in secret inside the client, which amplifies.

*Mechanism.* Clients clip updates in the Gaussian ones, outside of user code. They differ in whose
noise it is:

``central-gaussian``      the aggregator adds it to the sum. It sees the updates.
``distributed-gaussian``  each client adds its share, ``1 / sqrt(shares)`` of the standard
                          deviation. The sum of ``shares`` updates has the noise of the central
                          mechanism, and no party sees the sum without it (Kairouz et al. 2021,
                          arXiv:2102.06387). A round with fewer updates is not released.
``local-gaussian``        each client adds all of it, so that its update alone has the guarantee
                          (Kasiviswanathan et al. 2008, arXiv:0803.0924). The mean of n sites has
                          ``1 / sqrt(n)`` of that noise, not ``1 / n``.

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
only for observers who do not know which sites were drawn, and the ledger names them. ``cyclic``:
the sites are parted into ``groups``, and round t is that of group t modulo ``groups``. A site
takes part in one of ``groups`` rounds and is charged for these only; nothing is drawn.

*Adaptive clip.* With ``clip_quantile`` the clip of a round follows the norms of the updates
(Andrew et al. 2021, arXiv:1905.03871); see :mod:`fedlearn.privacy.adaptive`.

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
    text,
    whole,
)
from fedlearn import config
from fedlearn.privacy.constraints import problem

__all__ = ["MECHANISMS", "MINIMUM_NOISE_MULTIPLIER", "UNITS", "PrivacySpec"]

MECHANISMS: Final = ("central-gaussian", "distributed-gaussian", "local-gaussian", "dp-sgd")
UNITS: Final = ("example", "user", "site")
"""What may be protected, from the smallest to the largest."""

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
    ``groups``            for ``cyclic``: into how many the sites are parted
    ``expected_cohort``   public denominator of the mean; None: the size of the cohort
    ``shares``            for ``distributed-gaussian``: updates that a release needs, see above
    ``users``             for the unit ``user``: the public number by which a site divides the sum
                          of its users' contributions
    ``user_column``       for the unit ``user``: the column of the records that names the user
    ``batch_rate``        for ``dp-sgd``: probability of an example to be drawn for a step
    ``steps``             for ``dp-sgd``: the most steps of a site in one round
    ``noise``             ``banded``: correlated over ``groups`` rounds, so that the sum of many
                          rounds has less noise (:mod:`fedlearn.privacy.correlated`)
    ``clip_quantile``     the part of the updates that is to be within the clip; None: ``clip`` is
                          the same in every round
    ``clip_rate``         learning rate of the logarithm of the clip
    ``clip_noise``        standard deviation of the noise on the number of sites within the clip
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
    mechanism: str = option(choice(*MECHANISMS), default="central-gaussian", required=True)
    unit: str = option(choice(*UNITS), default="site")
    adjacency: str = option(choice("zero-out", "add-or-remove", "replace-one"), default="zero-out")
    accountant: str = option(choice("rdp", "pld"), default="rdp")
    sampling: str = option(choice("full", "poisson", "fixed", "cyclic"), default="full")
    sampling_rate: float | None = option(
        number(math.ulp(0), 1, expected="a probability in (0, 1]"), default=None
    )
    sample_size: int | None = option(whole(1, _MAX_SITES), default=None)
    population: int | None = option(whole(1, _MAX_SITES), default=None)
    expected_cohort: float | None = option(
        number(1e-6, 1e9, expected="a positive number of sites (1e-6 to 1e9)"), default=None
    )
    shares: int | None = option(whole(1, _MAX_SITES), default=None)
    groups: int | None = option(whole(2, _MAX_SITES), default=None)
    noise: str = option(choice("independent", "banded"), default="independent")
    clip_quantile: float | None = option(
        number(0.01, 0.99, expected="a part of the sites, from 0.01 to 0.99"), default=None
    )
    clip_rate: float = option(number(1e-3, 10), default=0.2)
    clip_noise: float | None = option(_positive(), default=None)
    users: int | None = option(whole(1, _MAX_SITES), default=None)
    user_column: str | None = option(text(most=200), default=None)
    batch_rate: float | None = option(
        number(1e-9, 1, expected="a probability above 0, up to 1"), default=None
    )
    steps: int | None = option(whole(1, 1_000_000), default=None)
    insecure_deterministic_noise: bool = option(flag(), default=False)
    insecure_exact_metrics: bool = option(flag(), default=False)

    def __post_init__(self) -> None:
        if found := problem(self):
            key, message = found
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
        values = dataclasses.asdict(self)
        for key, usual in _LATER.items():
            if values[key] == usual:
                del values[key]  # so that tables without it keep the digest of earlier releases
        return {key: value for key, value in sorted(values.items()) if value is not None}

    @property
    def sensitivity(self) -> float:
        """L2 sensitivity of the sum of clipped updates under the adjacency.

        For ``dp-sgd``, that of the sum of the gradients of a step.
        """
        clip = self.clip / (self.users or 1)
        return 2 * clip if self.adjacency == "replace-one" else clip

    @property
    def noised_by_app(self) -> bool:
        """Whether the app clips and adds the noise itself."""
        return self.mechanism == "dp-sgd"

    def protects(self, unit: str) -> bool:
        """Return whether the unit of this job is ``unit`` or a larger one, which contains it."""
        return UNITS.index(self.unit) >= UNITS.index(unit)

    @property
    def noised_by_clients(self) -> bool:
        """Whether clients add the noise, and not the aggregator."""
        return self.mechanism in ("distributed-gaussian", "local-gaussian")

    @property
    def updates_are_private(self) -> bool:
        """Whether the update of each site has the guarantee by itself, and not only their mean."""
        return self.mechanism in ("local-gaussian", "dp-sgd")

    @property
    def client_multiplier(self) -> float:
        """Standard deviation of the noise of one client over the sensitivity; 0 for none."""
        if self.mechanism == "distributed-gaussian":
            return self.noise_multiplier / math.sqrt(self.shares or 1)
        return self.noise_multiplier if self.noised_by_clients else 0.0

    @property
    def update_multiplier(self) -> float:
        """Standard deviation of the noise on the updates over the sensitivity.

        It is ``noise_multiplier``, or more where a part of the budget is spent on the adaptive
        clip: ``(z^-2 - (2 clip_noise)^-2)^(-1/2)`` (Andrew et al. 2021, theorem 1).
        """
        if self.clip_noise is None:
            return self.noise_multiplier
        rest = self.noise_multiplier**-2 - (2 * self.clip_noise) ** -2
        return 1 / math.sqrt(rest)

    def group(self, round: int) -> int:  # noqa: A002 the word for it everywhere else
        """Return the group of sites that takes part in a round, from 0; 0 where all may."""
        return (round - 1) % self.groups if self.groups is not None else 0

    def participations(self, rounds: int) -> int:
        """Return in how many of so many rounds one after the other a site takes part at most."""
        return rounds if self.groups is None else math.ceil(rounds / self.groups)

    @property
    def noise_text(self) -> str:
        """Whose noise it is as text; empty where it is the aggregator's, for the unit site."""
        if self.noised_by_app:
            return "clipping and noise: by the app of the job"
        if self.unit == "user":
            return f"clipping of each of {self.users} users: by the app of the job"
        if self.mechanism == "distributed-gaussian":
            return f"noise: shares of at least {self.shares} clients"
        return "noise: each client its own" if self.noised_by_clients else ""

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
        if self.sampling == "cyclic":
            banded = ", correlated noise" if self.noise == "banded" else ""
            return f"each site in one of {self.groups} rounds, no amplification{banded}"
        if self.batch_rate is not None:
            return (
                f"Poisson sampling of examples at rate {self.batch_rate:g} in the client, "
                f"{self.steps} steps in each round of a site"
            )
        return "full participation, no amplification"


_LATER: Final = {
    "noise": "independent",
    "clip_rate": 0.2,
}
"""Keys with a default that the first release did not have."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Job:
    privacy: PrivacySpec = option(table(PrivacySpec))
