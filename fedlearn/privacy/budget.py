"""A budget that is charged before a release, and refuses the release that would exceed it."""

from __future__ import annotations

import threading
from collections.abc import Iterable

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
    ledger.
    """

    def __init__(self, spec: PrivacySpec, charged: Iterable[int] = ()) -> None:
        self.spec = spec
        self._charged = {_checked(number) for number in charged}
        self._lock = threading.Lock()

    @property
    def spent(self) -> Spent:
        """The cost of the releases so far."""
        with self._lock:
            return spent(self.spec, len(self._charged))

    @property
    def releases(self) -> int:
        """The number of releases that have been charged."""
        with self._lock:
            return len(self._charged)

    def charge(self, release: int) -> Spent:
        """Charge a release and return what is spent with it; call it before the release.

        Raises :class:`fedlearn.errors.PrivacyError`, and charges nothing, when the budget
        would be exceeded.
        """
        number = _checked(release)
        with self._lock:
            after = len(self._charged | {number})
            cost = spent(self.spec, after)
            if number not in self._charged and not cost.epsilon <= self.spec.epsilon:
                so_far = spent(self.spec, len(self._charged))
                raise PrivacyError(
                    f"release {number} would exceed the privacy budget of epsilon "
                    f"{self.spec.epsilon:g}: it would make {cost}; spent so far: {so_far}",
                    hint="the job ends; more rounds need more noise or a larger epsilon, "
                    "in a new job",
                )
            self._charged.add(number)
            return cost

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
