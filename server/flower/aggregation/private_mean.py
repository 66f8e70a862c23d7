"""The mean of a round under ``[privacy]``: updates that were checked, and what may be released.

Where the aggregator adds the noise, the sum is exact (:mod:`server.flower.aggregation.mean`); where
clients have added it, the sum is that of the steps of their grid (:mod:`fedlearn.privacy.shares`).
"""

from __future__ import annotations

from collections.abc import Mapping

from flwr.app import MetricRecord

from fedlearn.errors import UpdateRejected
from fedlearn.privacy import ServerPrivacy
from fedlearn.privacy.adaptive import taken_bit
from fedlearn.privacy.correlated import BandedNoise
from fedlearn.privacy.shares import GridSum
from fedlearn.update.arrays import Array
from server.flower.aggregation.mean import ExactMean

__all__ = ["PrivateMean", "check_private"]


class PrivateMean:
    """The updates of one round. Not thread-safe.

    ``next_clip`` is the clip of the next round where it follows the updates, once
    :meth:`result` has returned.

    :param model: the arrays that travel in an update.
    :param clip: of this round, where it follows the updates; else None.
    :param stage: the number of the strategy that the job started.
    :param banded: the noise of the earlier rounds, where it is correlated.
    """

    def __init__(
        self,
        privacy: ServerPrivacy,
        model: Mapping[str, Array],
        *,
        clip: float | None,
        stage: int,
        banded: BandedNoise | None = None,
    ) -> None:
        self._banded = banded
        self._privacy = privacy
        self._model = model
        self._clip = self.next_clip = clip
        self._stage = stage
        self._within = 0
        self._sum = (
            GridSum(privacy.spec, model) if privacy.spec.noised_by_clients else ExactMean(model)
        )

    @property
    def updates(self) -> int:
        """How many updates were added."""
        return self._sum.updates

    def add(
        self, arrays: Mapping[str, Array], weight: int, metrics: Mapping[str, MetricRecord]
    ) -> None:
        """Add one update; take the bit of an adaptive clip out of its metrics.

        :raises UpdateRejected: when the client did not apply the privacy of the job.
        """
        within = 0 if self._clip is None else taken_bit(metrics)
        check_private(self._privacy, arrays, self._model, weight, clip=self._clip)
        self._sum.add(arrays, weight)
        self._within += within

    def result(self, round_: int, asked: int) -> dict[str, Array]:
        """Return the mean with the noise that the guarantee needs.

        :param asked: how many sites the round asked.
        :raises PrivacyError: when it cannot be released.
        """
        found = self._sum
        if isinstance(found, GridSum):
            return self._privacy.after_sum(found, self._model, asked=asked)
        if self._clip is not None:
            self.next_clip = self._privacy.next_clip(
                self._clip,
                within=self._within,
                answered=found.updates,
                asked=asked,
                round=round_,
                stage=self._stage,
            )
        updates = found.updates  # before the sum is released
        return self._privacy.after_mean(
            found.result(wide=True, release=True) if updates else self._model,
            self._model,
            updates,
            round_,
            stage=self._stage,
            asked=asked,
            clip=self._clip,
            banded=self._banded,
        )


def check_private(
    privacy: ServerPrivacy,
    arrays: Mapping[str, Array],
    model: Mapping[str, Array],
    weight: int,
    *,
    clip: float | None = None,
) -> None:
    """Check one update of a job with ``[privacy]``.

    :raises UpdateRejected: when it weighs more than others, or its norm is too large.
    """
    if weight != 1:
        raise UpdateRejected("under privacy every update weighs 1")
    privacy.check(arrays, model, clip=clip)
