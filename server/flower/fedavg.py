"""The built-in strategy: FedAvg (McMahan et al. 2017, arXiv:1602.05629) with an exact mean.

It takes the options of Flower's own FedAvg and gives the same model up to rounding. It differs
in three ways: updates are added when they arrive and then let go, the sum is the same to the
last bit in any order (:mod:`server.aggregation`), and the model keeps its element types. A
job's privacy is applied here, on the mean and before anybody sees it.
"""

from __future__ import annotations

from collections.abc import Iterable
from logging import INFO
from typing import Any, cast

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.common import log
from flwr.serverapp.grid import Grid
from flwr.serverapp.strategy import FedAvg

from fedlearn.errors import UpdateRejected
from fedlearn.flower import arrays_of, record_of
from fedlearn.privacy import ServerPrivacy
from fedlearn.update import Array
from server.aggregation import ExactMean, whole_weight
from server.flower.grid import JobGrid

__all__ = ["ExactFedAvg"]


class ExactFedAvg(FedAvg):  # type: ignore[misc]
    """FedAvg whose result does not depend on the order of arrival; see the module.

    :param privacy: noise for the mean. Every update must then be clipped and weigh the same.
    """

    streams = True
    transient = frozenset({"privacy", "_grid", "_model"})

    def __init__(self, *, privacy: ServerPrivacy | None = None, **options: Any) -> None:
        super().__init__(**options)
        self.privacy = privacy
        self._grid: JobGrid | None = None
        self._model: dict[str, Array] = {}

    @classmethod
    def like(cls, strategy: FedAvg, privacy: ServerPrivacy | None) -> ExactFedAvg:
        """Return one with the options of a FedAvg of Flower."""
        made = cls(privacy=privacy)
        made.__dict__.update(strategy.__dict__)
        return made

    def summary(self) -> None:
        """Log the options."""
        super().summary()
        log(INFO, "\t└──> Mean: exact%s", ", with noise" if self.privacy else "")

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Choose nodes and make their messages, as FedAvg does."""
        self._grid = cast("JobGrid", grid)
        self._model = arrays_of(arrays)
        if self.privacy is not None and not list(grid.get_node_ids()):
            return []
        return cast(
            "Iterable[Message]", super().configure_train(server_round, arrays, config, grid)
        )

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Add the replies as they come, and return the mean and the mean metrics."""
        mean = ExactMean(self._model)
        told: list[tuple[int, RecordDict]] = []
        failures = 0
        for message in replies:
            if message.has_error():
                failures += 1
                continue
            try:
                self._add(mean, message.content)
            except UpdateRejected as error:
                failures += 1
                self._refuse(message.metadata.src_node_id, str(error))
                continue
            metrics = RecordDict(dict(message.content.metric_records.items()))
            told.append((message.metadata.src_node_id, metrics))
        log(INFO, "aggregate_train: added %s updates, %s failures", mean.updates, failures)
        if self._grid is not None:
            self._grid.check_quorum(mean.updates, mean.updates + failures)
        arrays = self._result(mean, server_round)
        if arrays is None:
            return None, None
        if not told or mean.weight == 0:
            return record_of(arrays), None
        told.sort(key=lambda pair: self._place(pair[0]))
        contents = [metrics for _, metrics in told]
        aggregated = self.train_metrics_aggr_fn(contents, self.weighted_by_key)
        return record_of(arrays), aggregated

    def _add(self, mean: ExactMean, content: RecordDict) -> None:
        records = list(content.array_records.values())
        metrics = list(content.metric_records.values())
        if len(records) != 1 or len(metrics) != 1:
            raise UpdateRejected("an update holds one ArrayRecord and one MetricRecord")
        if self.weighted_by_key not in metrics[0]:
            raise UpdateRejected(f"an update reports {self.weighted_by_key!r}, its weight")
        weight = whole_weight(metrics[0][self.weighted_by_key])
        arrays = arrays_of(records[0])
        if self.privacy is not None:
            if weight != 1:
                raise UpdateRejected("under privacy every update weighs 1")
            self.privacy.check(arrays, self._model)
        mean.add(arrays, weight)

    def _result(self, mean: ExactMean, server_round: int) -> dict[str, Array] | None:
        if self.privacy is not None:
            found = mean.result(wide=True) if mean.updates else self._model
            return self.privacy.after_mean(found, self._model, mean.updates, server_round)
        return mean.result() if mean.updates else None

    def _refuse(self, node: int, reason: str) -> None:
        if self._grid is not None:
            self._grid.refuse(node, reason)

    def _place(self, node: int) -> int:
        return self._grid.place(node) if self._grid is not None else node
