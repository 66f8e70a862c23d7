"""A budget that is charged before a release, and refuses the release that would exceed it."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterable, Mapping

from fedlearn.errors import PrivacyError
from fedlearn.privacy.accountant import Spent, noise_multiplier_for, rounds_within, spent
from fedlearn.privacy.spec import PrivacySpec

__all__ = ["Budget"]


class Budget:
    """The epsilon and delta of one job, spent release by release; thread-safe.

    A release is one noised aggregate that leaves the aggregator. Releases are numbered from 1
    over all stages, repeats, restarts and resumptions of a job, and each is charged once, by its
    number, before it happens. The caller decides whether an attempt is a release of its own
    (:meth:`server.jobs.job_channel.JobChannelHandler.charge`).

    ``charged`` are the releases that were charged before, from the ``privacy`` entries of the
    ledger; a mapping to their rounds where the sites take turns (``sampling = "cyclic"``).
    """

    def __init__(self, spec: PrivacySpec, charged: Iterable[int] | Mapping[int, int] = ()) -> None:
        self.spec = spec
        rounds = charged if isinstance(charged, Mapping) else dict.fromkeys(charged)
        self._charged = {_checked(each): self._group(round_) for each, round_ in rounds.items()}
        self._lock = threading.Lock()

    @property
    def spent(self) -> Spent:
        """The cost of the releases so far."""
        with self._lock:
            return self._cost(self._charged)

    @property
    def releases(self) -> int:
        """The number of releases that have been charged."""
        with self._lock:
            return len(self._charged)

    def charge(self, release: int, round: int | None = None) -> Spent:  # noqa: A002
        """Charge a release and return what is spent with it; call it before the release.

        ``round`` is needed where the sites take turns: it states whose turn it is. Raises
        :class:`fedlearn.errors.PrivacyError`, and charges nothing, when the budget would be
        exceeded.
        """
        number = _checked(release)
        with self._lock:
            after = {number: self._group(round)} | self._charged
            cost = self._cost(after)
            if number not in self._charged and not cost.epsilon <= self.spec.epsilon:
                so_far = self._cost(self._charged)
                raise PrivacyError(
                    f"release {number} would exceed the privacy budget of epsilon "
                    f"{self.spec.epsilon:g}: it would make {cost}; spent so far: {so_far}",
                    hint="the job ends; more rounds need more noise or a larger epsilon, "
                    "in a new job",
                )
            self._charged = after
            return cost

    def _group(self, round: int | None) -> int:  # noqa: A002
        if round is None and self.spec.groups is not None:
            raise PrivacyError("a release in which sites take turns is charged with its round")
        return self.spec.group(round or 1)

    def _cost(self, charged: Mapping[int, int]) -> Spent:
        """Return the cost for the sites that took part most often."""
        most = max(Counter(charged.values()).values(), default=0)
        return spent(self.spec, len(charged), updates=most)

    @staticmethod
    def require(spec: PrivacySpec, rounds: int) -> Spent:
        """Return the cost of a job of ``rounds`` rounds, before it is accepted.

        Raises :class:`fedlearn.errors.PrivacyError` when it exceeds the budget, stating how many
        rounds fit, and which noise multiplier would suffice.
        """
        cost = spent(spec, rounds)
        if not cost.epsilon <= spec.epsilon:
            enough = noise_multiplier_for(spec, rounds)
            raise PrivacyError(
                f"{rounds} rounds exceed the privacy budget of epsilon {spec.epsilon:g}: {cost}",
                hint=f"the budget pays for {rounds_within(spec)} rounds; for {rounds} rounds "
                f"set noise_multiplier = {enough:g}",
            )
        return cost


def _checked(number: int) -> int:
    if type(number) is not int or number < 1:
        raise PrivacyError(f"{number!r} is not the number of a release")
    return number
