"""FedBuff and FedAsync: a version of the model is made of the updates that arrive first.

:class:`server.flower.aggregation.rounds.Rounds` makes, seals and evaluates a version as it does the
model of a round. What differs is here: which updates a version is made of, and that sites go on
training while it is made. The formulas are in :mod:`fedlearn.job.asynchronous`.

Sites evaluate a version where they are idle, so that no evaluation waits for training; the last
version is evaluated by all sites, after the calls that are still open are withdrawn.

Which updates a version consists of depends on when they arrive. The ledger has the updates of each
version with their staleness, so that the sum can be checked afterwards; a simulation
has arrivals of its own and repeats to the bit.

The page is docs/adr/0044-asynchronous.md.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from logging import INFO
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.common import log
from flwr.serverapp.grid import Grid

from fedlearn.app.array_records import arrays_of, record_of, records_of
from fedlearn.errors import QuorumNotReached, UpdateRejected
from fedlearn.job.asynchronous.options import EXAMPLES, AsynchronousOptions
from fedlearn.job.spec import JobSpec
from fedlearn.update.arrays import Array
from server.flower.aggregation.asynchronous.buffer import VersionBuffer
from server.flower.aggregation.asynchronous.calls import Calls, OpenCall
from server.flower.aggregation.builtin import BuiltIn
from server.flower.aggregation.grid import JobGrid
from server.flower.aggregation.mean import whole_weight
from server.flower.exchange.coordinator import Coordinator

__all__ = ["Asynchronous"]


class Asynchronous(BuiltIn):
    """The asynchronous strategy of a job, as the aggregator runs it. Not thread-safe.

    ``next_version`` takes the place of Flower's ``configure_train`` and ``aggregate_train``, and
    ``captured`` and ``restore`` are its state in a checkpoint: the calls that are open.
    """

    def __init__(
        self,
        coordinator: Coordinator,
        grid: JobGrid,
        spec: JobSpec,
        travels: Callable[[str], bool] = lambda name: True,
    ) -> None:
        options, name = spec.strategy.options, spec.strategy.name
        kept = {
            key: options[key] for key in ("fraction_evaluate", "weighted_by_key") if key in options
        }
        super().__init__(
            "fedavg",
            {
                "min_train_nodes": 1,
                "min_evaluate_nodes": 1,
                "min_available_nodes": 1,
                "fraction_evaluate": spec.evaluate.fraction,
                **kept,
            },
            travels=travels,
        )
        self.name = name
        self.options = AsynchronousOptions.of(name, options, len(spec.sites))
        self._spec = spec
        self._of_job = grid
        config = {"proximal-mu": self.options.proximal_mu} if self.options.proximal_mu else {}
        self._calls = Calls(
            coordinator, grid, spec, concurrency=self.options.concurrency, config=config
        )

    def summary(self) -> None:
        """Log the options."""
        log(INFO, "\t└──> %s: %s", self.name, self.options)

    def next_version(
        self,
        number: int,
        arrays: ArrayRecord,
        config: ConfigRecord,
        *,
        timeout: float,
        begun: Callable[[list[str]], object],
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Make a version out of the updates that arrive; return it with the mean of their metrics.

        :param number: of the version, from 1.
        :param arrays: the version before it.
        :param config: what a message to train states.
        :param timeout: seconds; the deadline of the job holds in any case.
        :param begun: is called with the sites that train, before answers are awaited.
        :returns: None in place of the arrays where the updates weigh nothing.
        :raises QuorumNotReached: when too few updates arrive.
        """
        grid, options = self._of_job, self.options
        self._grid = grid
        self._model = arrays_of(arrays)
        self._part = self._travelling(self._model)
        seconds = min(self._spec.deadline_s, timeout)
        begun(self._calls.begin(number, arrays, config, seconds))
        buffer = VersionBuffer(self._part)
        received: list[Message] = []
        for call, message in self._calls.answers(lambda: buffer.updates >= options.buffer_size):
            if not message.has_content():
                continue
            # The grid reports the update afterwards, unless it is refused here.
            grid.updates.add(call.site)
            try:
                self._enter(buffer, call, message.content, number)
            except UpdateRejected as error:
                grid.refuse(call.node, str(error))
                continue
            message.content = RecordDict(records_of(message.content, MetricRecord))
            received.append(message)
        if buffer.updates < self._spec.quorum:
            raise QuorumNotReached(
                f"version {number}: {buffer.updates} updates within {seconds:g} s can be used, "
                f"{self._spec.quorum} are needed",
                hint="see the events of this version for what happened to the others; raise "
                "`deadline_s`, or lower `quorum`",
            )
        log(INFO, "next_version: %s updates", buffer.updates)
        found = buffer.result(options.rate)
        if found is None:
            return None, None
        received.sort(key=lambda message: self._place(message.metadata.src_node_id))
        metrics = self._metrics(self._alike(received, train=True))
        return record_of(self._model | found), metrics

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Ask sites that are idle to evaluate a version; all sites for the last one."""
        if server_round >= self._spec.rounds:
            self._calls.withdraw()
        busy = self._calls.busy
        idle = frozenset(node.site for node in self._of_job.online()) - busy
        if not idle:
            return []
        self._of_job.restrict(idle)
        try:
            return super().configure_evaluate(server_round, arrays, config, grid)
        finally:
            self._of_job.restrict(None)

    def end(self) -> None:
        """Withdraw all calls that are open; the last request to a strategy."""
        self._calls.withdraw()

    # Checkpoints

    def captured(self) -> tuple[dict[str, Any], dict[str, Array]]:
        """Return the state for a checkpoint, JSON-ready, and the arrays in it."""
        calls, arrays = self._calls.captured()
        return {"calls": calls}, arrays

    def restore(self, captured: tuple[Mapping[str, Any], Mapping[str, Array]]) -> None:
        """Go on from :meth:`captured`."""
        state, arrays = captured
        self._calls.restore(state["calls"], arrays)

    # Inside

    def _enter(
        self, buffer: VersionBuffer, call: OpenCall, content: RecordDict, number: int
    ) -> None:
        """Add an update to a version. :raises UpdateRejected: naming why it does not enter."""
        options = self.options
        staleness = number - call.number
        most = options.max_staleness
        if most is not None and staleness > most:
            raise UpdateRejected(
                f"it was trained on version {call.version}, and version {number - 1} is the "
                f"newest: its staleness is {staleness}, and max_staleness is {most}"
            )
        update = self._travelling(self._single(content))
        weight = whole_weight(self._weight(content))
        reference = self._travelling(arrays_of(call.model)) if options.to_sent else self._part
        buffer.add(
            update,
            reference,
            scale=options.weight(staleness),
            weight=weight if options.weights == EXAMPLES else 1,
        )
