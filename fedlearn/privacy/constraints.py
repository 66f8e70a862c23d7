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
    return _sampling(spec) or _denominator(spec) or _shares(spec) or _adaptive(spec)


_SAMPLING: Final = {
    "sampling_rate": "poisson",
    "sample_size": "fixed",
    "population": "fixed",
    "groups": "cyclic",
}
"""Keys that one way of sampling needs, and no other one takes."""


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


def _adaptive(spec: Any) -> Problem | None:
    if spec.clip_quantile is None:
        defaults = {each.name: each.default for each in dataclasses.fields(spec)}
        for key in ("clip_rate", "clip_noise"):
            if getattr(spec, key) != defaults[key]:
                return key, "only where clip follows the norms of the updates: set clip_quantile"
        return None
    if spec.mechanism != "central-gaussian":
        return "clip_quantile", (
            'needs mechanism = "central-gaussian": the aggregator has to count, with noise, '
            "whose updates were within the clip"
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
