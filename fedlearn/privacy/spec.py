"""The ``[privacy]`` table of a job: what is promised, to whom, and by which mechanism.

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

*Unit.* One client stands for one site, so the unit is the site: the guarantee hides what a
whole site contributed, not merely one record.

*Adjacency* says which two worlds must look alike:

``zero-out``       a site's updates are replaced by zeros (Kairouz et al. 2021,
                   arXiv:2103.00039, definition 1.1). Who took part is public, as the ledger
                   makes it; what they contributed is not. Sensitivity of the sum: ``clip``.
``add-or-remove``  a site is there or not. Participation itself is hidden, so the sum is
                   divided by the public ``expected_cohort``. Sensitivity: ``clip``.
``replace-one``    a site is exchanged for any other. Sensitivity: twice ``clip``.

The noise on the sum has the standard deviation ``noise_multiplier * sensitivity``.

*Sampling.* ``full``: every site takes part in every round. ``poisson``: each site joins a
round independently with probability ``sampling_rate``. ``fixed``: ``sample_size`` of
``population`` sites, without replacement. No amplification is credited: it would hold
against somebody who does not learn which sites were drawn, and the ledger names them.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

from fedlearn.errors import ConfigError

__all__ = [
    "MINIMUM_NOISE_MULTIPLIER",
    "AccountantName",
    "Adjacency",
    "Mechanism",
    "PrivacySpec",
    "Sampling",
    "Unit",
    "Where",
]

Mechanism: TypeAlias = Literal["central-gaussian"]
Unit: TypeAlias = Literal["site"]
Adjacency: TypeAlias = Literal["zero-out", "add-or-remove", "replace-one"]
AccountantName: TypeAlias = Literal["rdp", "pld"]
Sampling: TypeAlias = Literal["full", "poisson", "fixed"]
Where: TypeAlias = str | Callable[[str], str]

MINIMUM_NOISE_MULTIPLIER: Final = 0.05
_MAXIMUM: Final = 1e12
_CHOICES: Final[Mapping[str, tuple[str, ...]]] = {
    "mechanism": ("central-gaussian",),
    "unit": ("site",),
    "adjacency": ("zero-out", "add-or-remove", "replace-one"),
    "accountant": ("rdp", "pld"),
    "sampling": ("full", "poisson", "fixed"),
}
_NUMBERS: Final = (
    "clip",
    "noise_multiplier",
    "epsilon",
    "delta",
    "sampling_rate",
    "expected_cohort",
)
_COUNTS: Final = ("sample_size", "population")
_FLAGS: Final = ("insecure_deterministic_noise", "insecure_exact_metrics")
_REQUIRED: Final = ("mechanism", "clip", "noise_multiplier", "epsilon", "delta")
_KEYS: Final = (*_CHOICES, *_NUMBERS, *_COUNTS, *_FLAGS)


@dataclass(frozen=True, slots=True, kw_only=True)
class PrivacySpec:
    """What a job promises about privacy. Every instance is possible and complete.

    ``clip``              L2 norm bound of one site's update in one round, > 0
    ``noise_multiplier``  standard deviation of the noise on the sum over its sensitivity
    ``epsilon, delta``    the budget of all rounds of the job together
    ``sampling_rate``     for ``poisson``: probability of a site to be drawn, in (0, 1]
    ``sample_size``       for ``fixed``: sites drawn in a round, out of ``population``
    ``expected_cohort``   public denominator of the mean; None: the size of the cohort
    ``insecure_deterministic_noise``
        derive the noise from the job's seed, so that two deployments agree to the bit.
        Whoever knows the seed can subtract the noise: there is then no guarantee.
    ``insecure_exact_metrics``
        let losses and other metrics of a site leave it as they are, beside the guarantee.

    Raises :class:`fedlearn.errors.ConfigError` naming the key when a value is impossible.
    """

    clip: float
    noise_multiplier: float
    epsilon: float
    delta: float
    mechanism: Mechanism = "central-gaussian"
    unit: Unit = "site"
    adjacency: Adjacency = "zero-out"
    accountant: AccountantName = "rdp"
    sampling: Sampling = "full"
    sampling_rate: float | None = None
    sample_size: int | None = None
    population: int | None = None
    expected_cohort: float | None = None
    insecure_deterministic_noise: bool = False
    insecure_exact_metrics: bool = False

    def __post_init__(self) -> None:
        problem = _problem(self)
        if problem is not None:
            key, message = problem
            raise ConfigError(message, key=f"privacy.{key}")

    @classmethod
    def from_mapping(cls, table: Mapping[str, object], where: Where = "job.toml") -> PrivacySpec:
        """Read the ``[privacy]`` table of a job.

        ``where`` names the file, or maps a key to ``file:line``. Raises
        :class:`fedlearn.errors.ConfigError` for an unknown or missing key, a wrong type, a
        value out of range, or a combination that the accountant cannot account for.
        """

        def fail(key: str, message: str, hint: str = "") -> ConfigError:
            at = where(key) if callable(where) else where
            return ConfigError(message, where=at, key=f"privacy.{key}", hint=hint)

        for key in table:
            if key not in _KEYS:
                near = difflib.get_close_matches(key, _KEYS, n=1)
                meant = f"did you mean {near[0]!r}?" if near else f"known keys: {', '.join(_KEYS)}"
                raise fail(key, f"unknown key; {meant}")
        for key in _REQUIRED:
            if key not in table:
                raise fail(key, "missing; a privacy table always states it")
        values: dict[str, object] = {}
        for key, value in table.items():
            problem = _type_problem(key, value)
            if problem:
                raise fail(key, problem)
            values[key] = float(value) if key in _NUMBERS else value  # type: ignore[arg-type]
        try:
            return cls(**values)  # type: ignore[arg-type]
        except ConfigError as error:
            key = error.key.removeprefix("privacy.")
            raise fail(key, str(error).removeprefix(f"{error.key}: ")) from None

    def to_mapping(self) -> dict[str, str | float | int | bool]:
        """Return the table again, complete and JSON-ready, without keys that are None.

        Two equal specs give equal mappings, so it can enter a canonical digest.
        """
        return {key: value for key in sorted(_KEYS) if (value := getattr(self, key)) is not None}

    @property
    def sensitivity(self) -> float:
        """L2 sensitivity of the sum of clipped updates under the adjacency."""
        return 2 * self.clip if self.adjacency == "replace-one" else self.clip

    @property
    def sampling_text(self) -> str:
        """The sampling assumption in words, as it is printed next to an epsilon."""
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


def _type_problem(key: str, value: object) -> str:
    if key in _CHOICES:
        options = _CHOICES[key]
        if not isinstance(value, str) or value not in options:
            wanted = ", ".join(f'"{option}"' for option in options)
            return f"{value!r} is not one of {wanted}"
    elif key in _FLAGS:
        if not isinstance(value, bool):
            return f"{value!r} is not true or false"
    elif key in _COUNTS:
        if isinstance(value, bool) or not isinstance(value, int):
            return f"{value!r} is not a whole number"
    elif isinstance(value, bool) or not isinstance(value, int | float):
        return f"{value!r} is not a number"
    elif isinstance(value, int) and abs(value) > _MAXIMUM:
        return f"{value!r} is out of range"
    return ""


def _problem(spec: PrivacySpec) -> tuple[str, str] | None:
    """Return the key at fault and why, or None when the spec is possible."""
    return _range_problem(spec) or _sampling_problem(spec) or _denominator_problem(spec)


def _range_problem(spec: PrivacySpec) -> tuple[str, str] | None:
    for key in ("clip", "epsilon"):
        value = getattr(spec, key)
        if not (math.isfinite(value) and 1e-12 <= value <= _MAXIMUM):
            return key, f"{value!r} is not a positive number (1e-12 to 1e12)"
    if not (math.isfinite(spec.noise_multiplier) and spec.noise_multiplier <= 1e6):
        return "noise_multiplier", f"{spec.noise_multiplier!r} is not a number up to 1e6"
    if spec.noise_multiplier < MINIMUM_NOISE_MULTIPLIER:
        return "noise_multiplier", (
            f"{spec.noise_multiplier!r} is below {MINIMUM_NOISE_MULTIPLIER}; "
            "so little noise protects nobody (typical: 0.5 to 5)"
        )
    if not 1e-15 <= spec.delta < 0.5:
        return "delta", f"{spec.delta!r} is not in [1e-15, 0.5); it should be far below 1/sites"
    return None


def _sampling_problem(spec: PrivacySpec) -> tuple[str, str] | None:
    if spec.sampling == "poisson":
        if spec.sampling_rate is None:
            return "sampling_rate", 'missing; sampling = "poisson" needs a probability'
        if not 0 < spec.sampling_rate <= 1:
            return "sampling_rate", f"{spec.sampling_rate!r} is not a probability in (0, 1]"
    elif spec.sampling_rate is not None:
        return "sampling_rate", f'only for sampling = "poisson", not "{spec.sampling}"'
    if spec.sampling == "fixed":
        if spec.sample_size is None or spec.population is None:
            missing = "sample_size" if spec.sample_size is None else "population"
            return missing, 'missing; sampling = "fixed" needs sample_size and population'
        if not 1 <= spec.sample_size <= spec.population <= 10**9:
            return "sample_size", (
                f"{spec.sample_size} of {spec.population} sites cannot be drawn without replacement"
            )
    else:
        for key in _COUNTS:
            if getattr(spec, key) is not None:
                return key, f'only for sampling = "fixed", not "{spec.sampling}"'
    return None


def _denominator_problem(spec: PrivacySpec) -> tuple[str, str] | None:
    expected = spec.expected_cohort
    if expected is not None and not (math.isfinite(expected) and 1e-6 <= expected <= 1e9):
        return "expected_cohort", f"{expected!r} is not a positive number of sites"
    if spec.sampling == "fixed" and expected not in (None, spec.sample_size):
        return "expected_cohort", "it is sample_size where the sample has a fixed size"
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
