"""A budget that is charged before a round, and refuses the round that would exceed it."""

from __future__ import annotations

import threading
from collections.abc import Iterable

from fedlearn.errors import PrivacyError
from fedlearn.privacy.accountant import Spent, noise_multiplier_for, rounds_within, spent
from fedlearn.privacy.spec import PrivacySpec

__all__ = ["Budget"]


class Budget:
    """The epsilon and delta of one job, spent round by round; thread-safe.

    A round is paid for once, by its number. Running it again after a crash costs nothing
    more, because the coordinator seals the result of a round before it shows it to anybody:
    whatever a first attempt computed was never seen.

    ``charged`` are the rounds that were paid for before, from the ``privacy`` entries of the
    ledger.
    """

    def __init__(self, spec: PrivacySpec, charged: Iterable[int] = ()) -> None:
        self.spec = spec
        self._charged = {_checked(number) for number in charged}
        self._lock = threading.Lock()

    @property
    def spent(self) -> Spent:
        """What the rounds so far cost."""
        with self._lock:
            return spent(self.spec, len(self._charged))

    @property
    def rounds_left(self) -> int:
        """How many more rounds the budget pays for."""
        with self._lock:
            return max(rounds_within(self.spec) - len(self._charged), 0)

    def charge(self, round: int) -> Spent:  # noqa: A002 the word for it everywhere else
        """Pay for a round and return what is spent with it; call it before the round.

        Raises :class:`fedlearn.errors.PrivacyError`, and charges nothing, when the budget
        would be exceeded.
        """
        number = _checked(round)
        with self._lock:
            after = len(self._charged | {number})
            cost = spent(self.spec, after)
            if number not in self._charged and not cost.epsilon <= self.spec.epsilon:
                so_far = spent(self.spec, len(self._charged))
                raise PrivacyError(
                    f"round {number} would exceed the privacy budget of epsilon "
                    f"{self.spec.epsilon:g}: it would make {cost}; spent so far: {so_far}",
                    hint="the job ends here; more rounds need more noise or a larger epsilon, "
                    "in a new job",
                )
            self._charged.add(number)
            return cost

    @staticmethod
    def require(spec: PrivacySpec, rounds: int) -> Spent:
        """Return what a job of ``rounds`` rounds will cost, before it is accepted.

        Raises :class:`fedlearn.errors.PrivacyError` when the budget does not pay for it, and
        says how many rounds it pays for and which noise would do.
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
        raise PrivacyError(f"{number!r} is not the number of a round")
    return number
