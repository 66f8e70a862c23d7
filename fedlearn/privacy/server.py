"""The coordinator's side, inside its TEE: noise on the sum before anybody sees it."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

from fedlearn.errors import PrivacyError, UpdateRejected
from fedlearn.job.seeds import derive
from fedlearn.privacy.adaptive import next_clip
from fedlearn.privacy.chain import Chain, Deviates, GridNoise, l2_norm
from fedlearn.privacy.correlated import BandedNoise
from fedlearn.privacy.difference import add_back, difference, is_floating, spacing
from fedlearn.privacy.noise import SECRET_BYTES, GaussianStream, round_bytes
from fedlearn.privacy.shares import ClientNoise, GridSum
from fedlearn.privacy.spec import PrivacySpec
from fedlearn.update.arrays import Array, check_like

__all__ = ["ServerPrivacy", "noise_secret", "simulated_secret"]

_TOLERANCE: Final = 1 + 1e-9


def noise_secret(spec: PrivacySpec, *, seed: int | None = None, site: str = "") -> bytes:
    """Return the 32-byte noise secret of a new job, from the operating system's generator.

    ``site`` is empty for the coordinator's, and the name of the site for that of a client. Draw
    it once per job and keep it sealed next to the job's state: a resumed job needs it
    to produce the same bits, and with it the noise can be subtracted. If the spec has
    ``insecure_deterministic_noise``, it is derived from the job's ``seed`` instead.
    """
    if not spec.insecure_deterministic_noise:
        return os.urandom(SECRET_BYTES)
    if seed is None:
        raise PrivacyError(
            "insecure_deterministic_noise needs the seed of the job",
            hint="set seed in the job, or remove insecure_deterministic_noise",
        )
    return derive(seed, "insecure deterministic noise", *filter(None, [site]), length=SECRET_BYTES)


def simulated_secret(spec: PrivacySpec, *, seed: int, site: str = "") -> bytes:
    """Return the secret of a simulation: that of ``insecure_deterministic_noise``.

    Drawn from the system it would be another one after each resumption and in each repeat. A
    simulation promises nothing.
    """
    insecure = replace(spec, insecure_deterministic_noise=True)
    return noise_secret(insecure, seed=seed, site=site)


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerPrivacy:
    """Prepares the mean of a round to become the next global model.

    The mean must weigh every site alike.
    """

    spec: PrivacySpec
    secret: bytes = field(repr=False)

    @classmethod
    def from_spec(cls, spec: PrivacySpec, secret: bytes) -> ServerPrivacy:
        """Return the coordinator's side of ``spec``; ``secret`` is from :func:`noise_secret`.

        Raises :class:`fedlearn.errors.PrivacyError` for a secret of fewer than 32 bytes.
        """
        GaussianStream(secret)
        return cls(spec=spec, secret=secret)

    @property
    def first_clip(self) -> float | None:
        """The clip of the first round where it follows the updates, else None."""
        return None if self.spec.clip_quantile is None else self.spec.clip

    def cohort(self, sites: Sequence[str], round: int) -> tuple[str, ...]:  # noqa: A002
        """Draw the sites of a round as the accountant assumes.

        The draw is derived from the secret, so that it is secret and a resumed job draws the same
        sites; it does not depend on the order of ``sites``. Under Poisson sampling it may be
        empty. Raises :class:`fedlearn.errors.PrivacyError` when ``sites`` is not the
        population that the spec names.
        """
        ordered = sorted(set(sites))
        if self.spec.sampling == "full":
            return tuple(ordered)
        if self.spec.groups is not None:
            return tuple(ordered[self.spec.group(round) :: self.spec.groups])
        words = GaussianStream(self.secret, b"cohort", round_bytes(round)).words(len(ordered))
        drawn = [int(word) for word in words]
        if self.spec.sampling == "poisson":
            limit = int((self.spec.sampling_rate or 0.0) * 2**64)
            return tuple(site for site, word in zip(ordered, drawn, strict=True) if word < limit)
        if len(ordered) != self.spec.population:
            raise PrivacyError(
                f"{len(ordered)} sites, but the spec has population = {self.spec.population}"
            )
        shuffled = sorted(range(len(ordered)), key=lambda index: drawn[index])
        return tuple(ordered[index] for index in sorted(shuffled[: self.spec.sample_size]))

    def check(
        self,
        update: Mapping[str, Array],
        reference: Mapping[str, Array],
        *,
        clip: float | None = None,
    ) -> None:
        """Check that an update was clipped; raises UpdateRejected stating its norm.

        ``clip`` is that of the round; None: that of the spec. Where clients add the noise, the
        bound includes it.
        """
        check_like(update, reference)
        try:
            norm = l2_norm(difference(update, reference))
        except PrivacyError as error:
            raise UpdateRejected(str(error), hint=error.hint) from None
        if self.spec.noised_by_app:
            return
        bound = self.spec.clip if clip is None else clip
        noise = ""
        if self.spec.noised_by_clients:
            bound, noise = ClientNoise.of(self.spec, reference).bound, " and noise"
        if not norm <= bound * _TOLERANCE:
            raise UpdateRejected(
                f"the update has a norm of {norm:.6g}; clip{noise} is {bound:g}",
                hint="the client did not apply the privacy of its job",
            )

    def denominator(self, asked: int) -> float:
        """Return the divisor of the sum, a public number.

        ``asked`` is the number of sites that the round asked, whatever they answered: a refused
        update counts as zeros, so that the scale of the others does not disclose the refusal.
        """
        if self.spec.expected_cohort is not None:
            return self.spec.expected_cohort
        if self.spec.sample_size is not None:
            return float(self.spec.sample_size)
        return float(asked)

    def after_mean(
        self,
        mean: Mapping[str, Array],
        reference: Mapping[str, Array],
        cohort_size: int,
        round: int,  # noqa: A002 the word for it everywhere else
        *,
        stage: int = 1,
        asked: int | None = None,
        clip: float | None = None,
        banded: BandedNoise | None = None,
    ) -> dict[str, Array]:
        """Return the mean with noise, in the types and shapes of ``reference``.

        ``mean`` is the unweighted mean of the ``cohort_size`` updates of the round, in the
        type of the model or in a wider one (a float64 mean needs the least extra noise);
        ``reference`` the global model that they started from. The sum of the differences
        gets Gaussian noise of standard deviation ``noise_multiplier * sensitivity`` on every
        number, and is divided by :meth:`denominator` of ``asked``, the number of sites that
        the round asked (None: ``cohort_size``). ``stage`` counts the strategies that a job
        started; equal sums of two stages get independent noise. ``clip`` is that of the round, None
        that of the spec. ``banded`` has the noise of the earlier rounds where it is correlated, and
        gets that of this one. The sensitivity is enlarged by
        what rounding can add. Arrays that are not floating-point stay as they are in the
        reference. The inputs are not changed, and the same inputs give the same bits.

        Charge the release to the :class:`fedlearn.privacy.Budget`, and seal the result, before the
        result is shown or sent.

        Raises :class:`fedlearn.errors.PrivacyError` when the mean cannot be that of so many clipped
        updates: the guarantee would not hold.
        """
        if list(mean) != list(reference):
            raise PrivacyError("the mean does not have the arrays of the model in their order")
        for name, base in reference.items():
            if mean[name].shape != base.shape or is_floating(mean[name]) != is_floating(base):
                raise PrivacyError(f"{name}: the mean has another shape or kind than the model")
        if cohort_size < 0 or (self.spec.sample_size or cohort_size) < cohort_size:
            raise PrivacyError(f"a cohort of {cohort_size} sites is not one of this job")
        asked = cohort_size if asked is None else asked
        if asked < cohort_size:
            raise PrivacyError(f"{cohort_size} updates of {asked} sites that were asked")
        divisor = self.denominator(asked)
        if divisor == 0:
            raise PrivacyError("no site took part, so there is no mean")
        total = difference(mean, reference)
        for array in total.values():
            array *= float(cohort_size)
        if self.spec.noised_by_app:
            # Each update has its noise; whatever is made of them is post-processing.
            return add_back({name: each / divisor for name, each in total.items()}, reference)
        clip = self.spec.clip if clip is None else clip
        slack = self._rounding_slack(mean, reference, asked, clip)
        norm, bound = l2_norm(total), clip * cohort_size
        if not norm <= bound * _TOLERANCE + slack:
            raise PrivacyError(
                f"round {round}: the sum has a norm of {norm:.6g}; {cohort_size} updates clipped "
                f"to {clip:g} cannot add up to more than {bound:.6g}",
                hint="every client must clip, and the mean must weigh all sites alike",
            )
        noise = GridNoise(
            multiplier=self.spec.update_multiplier,
            sensitivity=self.spec.sensitivity / self.spec.clip * clip + slack,
            secret=self.secret,
            purpose=b"release" + round_bytes(stage) + round_bytes(round),
            deviates=self._correlated(banded, stage, round),
        )
        noised = Chain((noise,)).apply(total)
        for array in noised.values():
            array /= divisor
        return add_back(noised, reference)

    def banded(self, digests: list[str]) -> BandedNoise | None:
        """Return the correlated noise after the rounds with these digests; None for another."""
        if self.spec.noise != "banded" or self.spec.groups is None:
            return None
        return BandedNoise(self.spec.groups, self.secret, digests)

    def _correlated(
        self,
        banded: BandedNoise | None,
        stage: int,
        round: int,  # noqa: A002
    ) -> Deviates | None:
        if self.spec.noise != "banded":
            return None
        if banded is None or stage != 1:
            raise PrivacyError(
                "correlated noise is that of the rounds of one strategy",
                hint='use noise = "independent" for a job whose app starts several strategies',
            )
        return lambda digest, count: banded.next(round, digest, count)

    def after_sum(
        self,
        total: GridSum,
        reference: Mapping[str, Array],
        *,
        asked: int,
    ) -> dict[str, Array]:
        """Return the mean of updates to which their clients have added the noise.

        ``asked`` as for :meth:`after_mean`. Raises :class:`fedlearn.errors.PrivacyError` when
        fewer clients than ``shares`` of the spec have added their noise: the sum has too little.
        """
        if not total.updates <= asked:
            raise PrivacyError(f"{total.updates} updates of {asked} sites that were asked")
        if total.updates < (self.spec.shares or 1):
            raise PrivacyError(
                f"{total.updates} of {asked} clients have added their share of the noise, and the "
                f"guarantee needs {self.spec.shares or 1}",
                hint="the round is not released; lower shares in a new job, or ask more sites",
            )
        divisor = self.denominator(asked)
        return add_back({name: each / divisor for name, each in total.total().items()}, reference)

    def next_clip(
        self,
        clip: float,
        *,
        within: int,
        answered: int,
        asked: int,
        round: int,  # noqa: A002
        stage: int = 1,
    ) -> float:
        """Return the clip of the next round; see :mod:`fedlearn.privacy.adaptive`."""
        return next_clip(
            self.spec,
            clip,
            within=within,
            answered=answered,
            divisor=self.denominator(asked),
            secret=self.secret,
            purpose=b"clip" + round_bytes(stage) + round_bytes(round),
        )

    def _rounding_slack(
        self,
        mean: Mapping[str, Array],
        reference: Mapping[str, Array],
        cohort_size: int,
        clip: float,
    ) -> float:
        """Return a bound of the distance that rounding can add between two neighbouring sums.

        Computed from public values only: no mean is farther from the reference than
        ``clip``, and it is rounded by half of the spacing of its type.
        """
        parts = []
        for name, base in reference.items():
            if is_floating(base) and base.size:
                reach = np.abs(difference({name: base}, {name: np.zeros_like(base)})[name])
                reach += clip
                unit: NDArray[np.float64] = spacing(reach, mean[name].dtype)
                unit += 4 * np.spacing(reach)
                parts.append(float(np.sum(np.square(unit))))
        slack = cohort_size * math.sqrt(math.fsum(parts))
        if self.spec.unit == "user":
            slack *= 2  # the app rounds its mean over users to the same type
        if not math.isfinite(slack):
            raise PrivacyError("the global model has numbers beyond the range of its own type")
        return slack
