"""What the strategies of this package have in common: one exact mean, and a step after it.

The page is docs/adr/0047-algorithms.md.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from typing import Any, ClassVar, Final

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message
from flwr.serverapp.grid import Grid
from flwr.serverapp.strategy import FedAvg
from numpy.typing import NDArray

from fedlearn.errors import UpdateRejected
from fedlearn.privacy.difference import is_floating
from fedlearn.update.arrays import Array
from server.flower.aggregation.mean import MAX_MAGNITUDE, ExactMean

__all__ = ["MeanStrategy", "narrow_type", "scaled"]

_LEAST: Final = 1e-12
_MOST: Final = 1e12


class MeanStrategy(FedAvg):  # type: ignore[misc]
    """FedAvg, whose mean is over :meth:`layout` and is followed by :meth:`next_model`.

    A round is :meth:`begin`, :meth:`add` for each update, and :meth:`next_model`. All sums are
    exact, so the result has the same bits in any order of the updates.

    ``reads``    the metrics of a reply that the strategy reads, each from 1e-12 to 1e12
    ``uniform``  every update weighs 1, whatever number of examples it reports

    :param averaged: a pattern as of a shell. Arrays whose names match it are not trained by
        gradients and get the plain mean, like all that are no floating-point numbers; by default
        the statistics of torch's batch normalisation, whose variance must not become negative.
    """

    reads: ClassVar[tuple[str, ...]] = ()
    uniform: ClassVar[bool] = False
    transient: ClassVar[frozenset[str]] = frozenset({"_model", "_sites"})

    def __init__(self, *, averaged: str = "*running_*", **options: Any) -> None:
        super().__init__(**options)
        self.averaged = averaged
        self._model: Mapping[str, Array] = {}
        self._sites = 0

    def begin(self, model: Mapping[str, Array], sites: int) -> None:
        """Begin a round.

        :param model: the arrays of the model that travel in an update.
        :param sites: of the job, whether they are asked in this round or not; 0 for those that
            answer.
        """
        self._model = model
        self._sites = sites

    def sent(self) -> Mapping[str, ArrayRecord]:
        """Return the records that go to each site beside the model, by name."""
        return {}

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Choose nodes and make their messages, which have the records of :meth:`sent`."""
        messages = list(super().configure_train(server_round, arrays, config, grid))
        records = self.sent() if messages else {}
        for content in {id(each.content): each.content for each in messages}.values():
            for name, record in records.items():
                content[name] = record
        return messages

    def layout(self) -> Mapping[str, Array]:
        """Return arrays like those that the mean is over."""
        return self._model

    def add(
        self,
        mean: ExactMean,
        arrays: Mapping[str, Array],
        weight: int,
        reported: Mapping[str, float],
    ) -> None:
        """Add one update.

        :param reported: the numbers in :attr:`reads`, as :func:`reported_of` checked them.
        :raises UpdateRejected: when it cannot be added; nothing of it is in a sum then.
        """
        mean.add(arrays, weight)

    def next_model(self, mean: Mapping[str, Array], updates: float) -> dict[str, Array]:
        """Return the next model.

        :param mean: over :meth:`layout`; floating-point arrays may be wider than the model's.
        :param updates: how many the mean divides by.
        """
        raise NotImplementedError

    def trained(self, arrays: Mapping[str, Array]) -> dict[str, Array]:
        """Return the arrays that follow the algorithm; the others get the plain mean."""
        return {
            name: array
            for name, array in arrays.items()
            if is_floating(array) and not fnmatchcase(name, self.averaged)
        }

    def share(self, updates: float) -> float:
        """Return ``|S| / N``: the part of the job's sites that so many updates are."""
        return updates / (self._sites or updates)

    @classmethod
    def reported_of(cls, metrics: Mapping[str, object]) -> dict[str, float]:
        """Return the metrics in :attr:`reads`.

        :raises UpdateRejected: naming the first that is missing or out of range.
        """
        found = {}
        for name in cls.reads:
            value = metrics.get(name)
            # The comparison is false for NaN.
            if not isinstance(value, int | float) or not _LEAST <= value <= _MOST:
                shown = "is missing" if value is None else f"is {str(value)[:40]}"
                raise UpdateRejected(
                    f"the metric {name!r} {shown}; it must be from {_LEAST:g} to {_MOST:g}",
                    hint="the ClientApp reports what its part of the algorithm in "
                    "fedlearn.training returns",
                )
            found[name] = float(value)
        return found


def narrow_type(array: Array) -> np.dtype[Any]:
    """Return the type in which differences from an array are kept: float32, or float64."""
    return np.dtype(np.float64 if array.dtype == np.float64 else np.float32)


def scaled(
    difference: Mapping[str, NDArray[np.float64]],
    by: float,
    like: Mapping[str, Array],
) -> dict[str, Array]:
    """Return ``difference / by`` in the types of :func:`narrow_type`.

    :param difference: in float64; it is overwritten.
    :raises UpdateRejected: where a quotient is not finite in its type, or beyond 2^190.
    """
    found: dict[str, Array] = {}
    with np.errstate(over="ignore", invalid="ignore"):
        for name, values in difference.items():
            np.divide(values, by, out=values)
            found[name] = values.astype(narrow_type(like[name]), copy=False)
            # The comparison is false for NaN.
            if not np.abs(found[name]).max(initial=0) <= min(
                MAX_MAGNITUDE, float(np.finfo(found[name].dtype).max)
            ):
                raise UpdateRejected(
                    f"{name}: contains NaN or infinity, or a change that divided by {abs(by):g} is "
                    "beyond its type"
                )
    return found
