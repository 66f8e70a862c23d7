"""What the keys of ``[privacy]`` must not be together. Pure.

Each function takes the :class:`fedlearn.privacy.PrivacySpec` that is being made, whose module
imports this one, and returns the key and what is wrong, or None.

The page is docs/how-to/choose-privacy.md.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Final

__all__ = ["problem"]

Problem = tuple[str, str]


def problem(spec: Any) -> Problem | None:
    """Return the first key of a table that contradicts another one, with the reason."""
    return (
        _unit(spec)
        or _sampling(spec)
        or _denominator(spec)
        or _shares(spec)
        or _banded(spec)
        or _adaptive(spec)
    )


_SAMPLING: Final = {
    "sampling_rate": "poisson",
    "sample_size": "fixed",
    "population": "fixed",
    "groups": "cyclic",
}
"""Keys that one way of sampling needs, and no other one takes."""


_OF_UNIT: Final = {
    "users": "user",
    "user_column": "user",
    "batch_rate": "example",
    "steps": "example",
}
"""Keys that one unit needs, and no other one takes."""


def _unit(spec: Any) -> Problem | None:
    if (spec.unit == "example") != (spec.mechanism == "dp-sgd"):
        return "unit", (
            f'"{spec.unit}" does not go together with mechanism = "{spec.mechanism}": examples are '
            'protected by "dp-sgd", sites and users by the others'
        )
    for key, unit in _OF_UNIT.items():
        given = getattr(spec, key) not in (None, "")
        if given and spec.unit != unit:
            return key, f'only for unit = "{unit}", not "{spec.unit}"'
        if not given and spec.unit == unit:
            return key, f'missing; unit = "{unit}" needs {_MEANING[key]}'
    allowed = _ADJACENCY[spec.unit]
    if spec.adjacency not in allowed:
        return "adjacency", (
            f'must be {" or ".join(map(repr, allowed))} for unit = "{spec.unit}", not '
            f"{spec.adjacency!r}: how many there are at a site is public"
        )
    if spec.unit == "example" and spec.sampling not in ("full", "cyclic"):
        return "sampling", f'"{spec.sampling}" draws sites, not examples; use batch_rate'
    return None


_MEANING: Final = {
    "users": "the public number of users by which a site divides their sum",
    "user_column": "the name of the column that names the user",
    "batch_rate": "the probability of an example to be drawn for a step",
    "steps": "the number of steps of a site in a round",
}
_ADJACENCY: Final = {
    "site": ("zero-out", "add-or-remove", "replace-one"),
    "user": ("zero-out", "replace-one"),
    "example": ("zero-out",),
}


def _sampling(spec: Any) -> Problem | None:
    for key, sampling in _SAMPLING.items():
        given = getattr(spec, key) is not None
        if given and spec.sampling != sampling:
            return key, f'only for sampling = "{sampling}", not "{spec.sampling}"'
        if not given and spec.sampling == sampling:
            return key, f'missing; sampling = "{sampling}" {_NEEDS[sampling]}'
    if (spec.sample_size or 0) > (spec.population or 0):
        return "sample_size", (
            f"{spec.sample_size} of {spec.population} sites cannot be drawn without replacement"
        )
    return None


_NEEDS: Final = {
    "poisson": "needs a probability",
    "fixed": "needs sample_size and population",
    "cyclic": "needs the number of groups, of which one takes part in each round",
}


def _denominator(spec: Any) -> Problem | None:
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


def _shares(spec: Any) -> Problem | None:
    distributed = spec.mechanism == "distributed-gaussian"
    if distributed and spec.shares is None:
        return "shares", (
            'missing; mechanism = "distributed-gaussian" needs the number of clients whose noise '
            "adds up to noise_multiplier; a round with fewer is not released"
        )
    if spec.shares is not None and not distributed:
        return "shares", f'only for mechanism = "distributed-gaussian", not "{spec.mechanism}"'
    if spec.noised_by_clients and spec.adjacency == "add-or-remove":
        return "adjacency", (
            f'cannot be "add-or-remove" for mechanism = "{spec.mechanism}": the noise of a client '
            'that takes no part is missing too; use "zero-out" or "replace-one"'
        )
    return None


def _banded(spec: Any) -> Problem | None:
    if spec.noise == "independent":
        return None
    if spec.sampling != "cyclic" or spec.mechanism != "central-gaussian":
        return "noise", (
            '"banded" needs sampling = "cyclic" and mechanism = "central-gaussian": a site that '
            "takes part in each round would be hit by the noise that is subtracted again"
        )
    if spec.clip_quantile is not None:
        return "noise", '"banded" needs the same clip in every round: remove clip_quantile'
    return None


def _adaptive(spec: Any) -> Problem | None:
    if spec.clip_quantile is None:
        defaults = {each.name: each.default for each in dataclasses.fields(spec)}
        for key in ("clip_rate", "clip_noise"):
            if getattr(spec, key) != defaults[key]:
                return key, "only where clip follows the norms of the updates: set clip_quantile"
        return None
    if spec.mechanism != "central-gaussian" or spec.unit != "site":
        return "clip_quantile", (
            'needs mechanism = "central-gaussian" and unit = "site": the aggregator has to count, '
            "with noise, whose updates were within the clip"
        )
    if spec.clip_noise is None:
        return "clip_noise", (
            "missing; clip_quantile needs the standard deviation of the noise on the number of "
            "sites within the clip; a twentieth of the sites of a round is usual"
        )
    if not 2 * spec.clip_noise > spec.noise_multiplier:
        return "clip_noise", (
            f"must be above noise_multiplier / 2 = {spec.noise_multiplier / 2:g}, not "
            f"{spec.clip_noise:g}: the noise on the count alone costs more than noise_multiplier "
            "allows (Andrew et al. 2021, theorem 1)"
        )
    return None
