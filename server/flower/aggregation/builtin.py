"""The built-in strategies, as the aggregator runs them: aggregation that holds no user code.

The names and options are those of ``flwr.serverapp.strategy``. FedAvg (McMahan et al. 2017,
arXiv:1602.05629), FedProx and the server optimisers (FedAvgM, FedAdagrad, FedAdam, FedYogi)
work on one exact mean: updates are added when they arrive and then released, and the sum is the
same to the last bit in any order (:mod:`server.flower.aggregation.mean`). So do SCAFFOLD, FedNova
and FedDyn (:mod:`server.flower.aggregation.strategies`). A job's privacy puts its
noise on that mean, before anything else sees it; what an optimiser makes of a noised mean is
post-processing and costs nothing (Dwork and Roth 2014, proposition 2.1). The robust rules
(median, trimmed mean, Krum, Bulyan, geometric median, norm clipping, FLTrust) and q-FedAvg look at
the single updates, a block of them at a time (:mod:`server.flower.aggregation.robust`).

Flower's classes, and ours that derive from them, have the options, choose the nodes and make the
messages.

A model keeps its element types. One reply is one failure domain: a reply whose records or
metrics differ from those of the others is left out, and named.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from logging import INFO
from typing import Any, Final, cast

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, MetricRecord, RecordDict
from flwr.common import log
from flwr.serverapp.grid import Grid
from flwr.serverapp.strategy import FedAvg, Strategy

from fedlearn.app.array_records import arrays_of, record_of, records_of
from fedlearn.errors import JobError, PrivacyError, UpdateRejected
from fedlearn.job.constraints.robust_rules import PRE_AGGREGATION, outliers
from fedlearn.job.strategies import MEAN_FAMILY, OVER_SELECT, STREAMING, privacy_fault
from fedlearn.privacy import ServerPrivacy
from fedlearn.update.arrays import Array, check_like
from server.flower.aggregation.grid import JobGrid
from server.flower.aggregation.mean import MAX_WEIGHT, ExactMean, whole_weight
from server.flower.aggregation.private_mean import PrivateMean, check_private
from server.flower.aggregation.robust.blocks import as_type
from server.flower.aggregation.robust.rules import RULES, RoundInput
from server.flower.aggregation.strategies.classes import class_of
from server.flower.aggregation.strategies.mean_strategy import MeanStrategy
from server.flower.aggregation.strategies.over_selection import over_selected

__all__ = ["BuiltIn"]

_PLAIN_MEAN: Final = frozenset({"fedavg", "fedprox"})
_MAX_WEIGHT: Final = float(MAX_WEIGHT)

Aggregate = Callable[[list[RecordDict], str], MetricRecord]


class BuiltIn(Strategy):  # type: ignore[misc]
    """A strategy, over exact means where it is one of :data:`STREAMING`, else by a rule.

    :param name: one of :data:`server.flower.aggregation.strategies.classes.CLASSES`.
    :param options: keyword arguments of that class.
    :param privacy: noise for the mean. Every update must then be clipped and weigh the same.
    :param train_metrics: aggregates the metrics of training instead of a weighted mean.
    :param evaluate_metrics: the same for evaluation.
    :param travels: whether an array of the model is in an update
        (:meth:`fedlearn.compression.spec.CompressionSpec.travels`). The others stay as they
        are: they are not aggregated and get no noise.
    :param sites: of the job, which SCAFFOLD and FedDyn count; 0 for those that answer.
    ``enough`` is how many updates close a round; None for all that were asked for.

    :raises JobError: when the class does not accept these options.
    :raises PrivacyError: when the strategy needs more than the noised mean, and the job has
        privacy.
    """

    transient = frozenset(
        {"privacy", "_banded", "_grid", "_model", "_part", "_site_count", "_travels", "stage"}
    )

    def __init__(
        self,
        name: str,
        options: Mapping[str, Any],
        *,
        privacy: ServerPrivacy | None = None,
        train_metrics: Aggregate | None = None,
        evaluate_metrics: Aggregate | None = None,
        travels: Callable[[str], bool] = lambda name: True,
        sites: int = 0,
    ) -> None:
        private = privacy is not None and privacy.spec.updates_are_private
        if privacy is not None and (fault := privacy_fault(name, updates=private)):
            raise PrivacyError(
                f"{name} {fault}",
                hint=f"under [privacy] use one of {', '.join(sorted(MEAN_FAMILY))}",
            )
        try:
            self.inner: FedAvg = class_of(name)(
                **_of_class(name, options),
                train_metrics_aggr_fn=train_metrics,
                evaluate_metrics_aggr_fn=evaluate_metrics,
            )
        except (TypeError, ValueError) as error:
            raise JobError(
                f"the strategy {name} cannot be made: {error}",
                hint="see its options under [strategy.options]",
            ) from error
        self.name = name
        self.privacy = privacy
        self.outliers = outliers(name, options)
        self.streams = name in STREAMING
        self._times = float(options.get(OVER_SELECT, 1.0))
        self.enough: int | None = None
        self._site_count = sites
        self.stage = 1
        self.clip: float | None = None if privacy is None else privacy.first_clip
        self.digests: list[str] = []  # of the rounds whose noise later ones subtract
        self._banded = None if privacy is None else privacy.banded(self.digests)
        self._grid: JobGrid | None = None
        self._model: dict[str, Array] = {}
        self._travels = travels
        self._part: dict[str, Array] = {}

    def summary(self) -> None:
        """Log the options."""
        self.inner.summary()
        if self.streams:
            log(INFO, "\t└──> Mean: exact%s", ", with noise" if self.privacy else "")

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Choose nodes and make their messages, as Flower does."""
        self._grid = cast("JobGrid", grid)
        self._model = arrays_of(arrays)
        self._part = self._travelling(self._model)
        self._grid.clip = self.clip
        if self.privacy is not None and not list(grid.get_node_ids()):
            return []
        if isinstance(self.inner, MeanStrategy):
            self.inner.begin(self._part, self._site_count)
        with over_selected(self.inner, self._times, grid) as self.enough:
            messages = list(self.inner.configure_train(server_round, arrays, config, grid))
        if self.name == "qfedavg":
            self.inner.current_arrays = None  # the rule has the model; a checkpoint has it once
        return messages

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Choose nodes and make their messages, as Flower does."""
        self._grid = cast("JobGrid", grid)
        return list(self.inner.configure_evaluate(server_round, arrays, config, grid))

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Return the next model and the mean metrics of its updates."""
        if self.streams:
            return self._over_mean(server_round, replies)
        usable = [message for message in replies if self._usable(message)]
        chosen = self._alike(usable, train=True)
        self._check_quorum(len(chosen), len(usable))
        if not chosen:
            return None, None
        given = RoundInput(
            model=self._part,
            updates=[self._travelling(self._single(each.content)) for each in chosen],
            weights=[int(self._weight(message.content)) for message in chosen],
            losses=[self._loss(message.content) for message in chosen],
            sites=self._sites(chosen) if self.name == "fltrust" else (),
            outliers=self.outliers,
        )
        arrays, used = RULES[self.name](self.inner, given)
        log(INFO, "aggregate_train: used %s of %s updates", len(used), len(chosen))
        if arrays is None:
            return None, None
        metrics = self._metrics([chosen[index] for index in used])
        return record_of(self._model | arrays), metrics

    def aggregate_evaluate(
        self, server_round: int, replies: Iterable[Message]
    ) -> MetricRecord | None:
        """Return the mean metrics of an evaluation; None where no site reported any."""
        chosen = self._alike([each for each in replies if each.has_content()], train=False)
        if not self._weighs(chosen):
            return None
        return cast("MetricRecord | None", self.inner.aggregate_evaluate(server_round, chosen))

    # The exact mean

    def _over_mean(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        own = self._own
        mean = self._empty_mean(self._part if own is None else own.layout())
        received: list[Message] = []
        asked = 0
        for message in replies:
            asked += 1
            if message.has_error():
                continue
            try:
                self._add(mean, message.content)
            except UpdateRejected as error:
                self._refuse(message, str(error))
                continue
            # The arrays are in the sum; only the metrics are kept until the round's end.
            message.content = self._shown(message.content)
            received.append(message)
        log(INFO, "aggregate_train: added %s of %s updates", mean.updates, asked)
        self._check_quorum(mean.updates, asked)
        arrays = self._result(mean, server_round, asked)
        if arrays is None:
            return None, None
        received.sort(key=lambda message: self._place(message.metadata.src_node_id))
        metrics = self._metrics(self._alike(received, train=True))
        return self._optimised(server_round, arrays), metrics

    def _empty_mean(self, layout: Mapping[str, Array]) -> ExactMean | PrivateMean:
        if self.privacy is None:
            return ExactMean(layout)
        if self._banded is not None:
            self._banded.digests = self.digests  # a checkpoint, or a repeat, sets them back
        return PrivateMean(
            self.privacy, layout, clip=self.clip, stage=self.stage, banded=self._banded
        )

    def _add(self, mean: ExactMean | PrivateMean, content: RecordDict) -> None:
        arrays = self._travelling(self._update(content))
        weight = whole_weight(self._weight(content))
        if isinstance(mean, PrivateMean):
            mean.add(arrays, weight, records_of(content, MetricRecord))
            return
        if self._own is None:
            mean.add(arrays, weight)
            return
        check_like(arrays, self._part)
        (metrics,) = records_of(content, MetricRecord).values()
        reported = self._own.reported_of(metrics)
        self._own.add(mean, arrays, 1 if self._own.uniform else weight, reported)

    @property
    def _own(self) -> MeanStrategy | None:
        """The strategy, where it is one of ours over exact means."""
        return self.inner if isinstance(self.inner, MeanStrategy) else None

    def _shown(self, content: RecordDict) -> RecordDict:
        """Return the metrics of a reply without those that only the strategy reads."""
        reads = () if self._own is None else self._own.reads
        return RecordDict(
            {
                name: MetricRecord({key: each for key, each in record.items() if key not in reads})
                for name, record in records_of(content, MetricRecord).items()
            }
        )

    def _result(
        self, mean: ExactMean | PrivateMean, server_round: int, asked: int
    ) -> dict[str, Array] | None:
        own = self._own
        if isinstance(mean, PrivateMean):
            assert self.privacy is not None
            found = mean.result(server_round, asked)
            self.clip = mean.next_clip
            counted = self.privacy.denominator(asked)
        elif mean.updates and mean.weight:
            counted = float(mean.updates)  # before the sum is released
            found = mean.result(wide=own is not None, release=True)
        else:
            return None
        if own is not None:
            found = own.next_model(found, counted)
            found = {name: _typed(found[name], like) for name, like in self._part.items()}
        return self._model | found

    def _travelling(self, arrays: Mapping[str, Array]) -> dict[str, Array]:
        return {name: array for name, array in arrays.items() if self._travels(name)}

    def _optimised(self, server_round: int, mean: dict[str, Array]) -> ArrayRecord:
        """Hand the mean to the server's optimiser, as the only update that there is."""
        if self.name in _PLAIN_MEAN or self._own is not None:
            return record_of(mean)
        content = RecordDict(
            {"arrays": record_of(mean), "metrics": MetricRecord({self.inner.weighted_by_key: 1})}
        )
        only = Message(content, 0, MessageType.TRAIN)
        arrays, _ = self.inner.aggregate_train(server_round, [only])
        if arrays is None:
            raise JobError(f"the strategy {self.name} made no model of the mean")
        return self._as_model(arrays)

    def _as_model(self, arrays: ArrayRecord) -> ArrayRecord:
        """Return arrays in the element types of the model; Flower computes in wider ones."""
        found = arrays_of(arrays)
        if set(found) != set(self._model):
            raise JobError(f"the strategy {self.name} changed the names of the model's arrays")
        return record_of({name: _typed(found[name], like) for name, like in self._model.items()})

    def _metrics(self, chosen: Sequence[Message]) -> MetricRecord | None:
        """Return the metrics of training of some replies; None where they weigh nothing."""
        if not self._weighs(chosen):
            return None
        contents = [message.content for message in chosen]
        found = self.inner.train_metrics_aggr_fn(contents, self.inner.weighted_by_key)
        return cast("MetricRecord | None", found)

    def _weighs(self, replies: Sequence[Message]) -> bool:
        return any(self._weight(message.content) for message in replies)

    # Which replies are used

    def _update(self, content: RecordDict) -> dict[str, Array]:
        """Return the arrays of a reply; raises UpdateRejected where it is not one update."""
        records = list(records_of(content, ArrayRecord).values())
        if len(records) != 1 or len(records_of(content, MetricRecord)) != 1:
            raise UpdateRejected("an update holds one ArrayRecord and one MetricRecord")
        return arrays_of(records[0])

    def _single(self, content: RecordDict) -> dict[str, Array]:
        """Return the arrays of a reply in the order of the model.

        :raises UpdateRejected: unless they have its names, element types and shapes.
        """
        arrays = self._update(content)
        ordered = {name: arrays[name] for name in self._model if name in arrays}
        check_like(ordered | arrays, self._model)
        return ordered

    def _loss(self, content: RecordDict) -> float:
        """Return the training loss of a reply, where the strategy reads it.

        :raises UpdateRejected: when there is none, or it is below 0 or not finite.
        """
        key = getattr(self.inner, "train_loss_key", None)
        if key is None:
            return 0.0
        for record in records_of(content, MetricRecord).values():
            value = record.get(key)
            if isinstance(value, int | float) and math.isfinite(value) and value >= 0:
                return float(value)
        raise UpdateRejected(
            f"a reply reports {key!r}, its training loss, as a finite number from 0 on",
            hint="see train_loss_key under [strategy.options]",
        )

    def _weight(self, content: RecordDict) -> int | float:
        """Return the weight that a reply reports; raises UpdateRejected where there is none."""
        key = self.inner.weighted_by_key
        for record in records_of(content, MetricRecord).values():
            value = record.get(key)
            if isinstance(value, int | float):
                return value
        raise UpdateRejected(f"a reply reports {key!r}, its weight")

    def _usable(self, message: Message) -> bool:
        """Whether a reply holds one update; the reason why not goes to the grid."""
        if message.has_error():
            return False
        try:
            single = self._single(message.content)
            weight = whole_weight(self._weight(message.content))
            if self.privacy is not None:
                check_private(self.privacy, self._travelling(single), self._part, weight)
            self._loss(message.content)
        except UpdateRejected as error:
            self._refuse(message, str(error))
            return False
        return True

    def _alike(self, replies: Sequence[Message], *, train: bool) -> list[Message]:
        """Return the replies whose metrics are those that most replies have.

        Flower's functions expect the same metrics of every reply. Ties go to the reply that
        comes first in the order of the job. Where an update is in the mean already, only its
        metrics are left out.
        """
        shapes: list[Any] = []
        for message in replies:
            try:
                weight = self._weight(message.content)
                fit = (
                    0 <= weight <= _MAX_WEIGHT
                    and len(records_of(message.content, MetricRecord)) == 1
                )
            except UpdateRejected:
                fit = False
            shapes.append(_shape(message.content) if fit else None)
        counts = Counter(shape for shape in shapes if shape is not None)
        if not counts:
            return []
        usual, _ = counts.most_common(1)[0]
        chosen: list[Message] = []
        for message, shape in zip(replies, shapes, strict=True):
            if shape == usual:
                chosen.append(message)
            elif train and not self.streams:
                self._refuse(message, "its metrics are not those that the other sites report")
            elif self._grid is not None:
                self._grid.note(message.metadata.src_node_id, "its metrics are left out")
        return chosen

    def _refuse(self, message: Message, reason: str) -> None:
        if self._grid is not None:
            self._grid.refuse(message.metadata.src_node_id, reason)

    def _place(self, node: int) -> int:
        return self._grid.place(node) if self._grid is not None else node

    def _sites(self, replies: Sequence[Message]) -> list[str]:
        grid = self._grid
        return [] if grid is None else [grid.site(each.metadata.src_node_id) for each in replies]

    def _check_quorum(self, count: int, asked: int) -> None:
        if self._grid is not None:
            self._grid.check_quorum(count, asked)


def _of_class(name: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of a strategy that its class has.

    Others are of the mixing that precedes a rule, and of the choice of sites.
    """
    own = {OVER_SELECT, *PRE_AGGREGATION.get(name, ())}
    return {option: value for option, value in options.items() if option not in own}


def _shape(content: RecordDict) -> tuple[tuple[str, int], ...]:
    """Return the names of a reply's metrics, and how many numbers each has (-1: not a list)."""
    return tuple(
        sorted(
            (name, len(value) if isinstance(value, list) else -1)
            for record in records_of(content, MetricRecord).values()
            for name, value in record.items()
        )
    )


def _typed(array: Array, like: Array) -> Array:
    if array.shape != like.shape:
        raise JobError(f"the strategy made an array of shape {array.shape} out of {like.shape}")
    if array.dtype.kind not in "fiub":
        raise JobError(f"{array.dtype} cannot be written back as {like.dtype}")
    # An array without axes comes out of arithmetic as a scalar.
    return as_type(np.asarray(array), like.dtype)
