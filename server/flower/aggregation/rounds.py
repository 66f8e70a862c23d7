"""The rounds of a job, driven by the aggregator: sum, noise, charge, seal, and only then release.

An application calls ``strategy.start(...)`` as in Flower; its process asks the aggregator for it
(:mod:`server.flower.application.app_grid`), and the rounds run here, where there is no user code.
The phases of a round and their order are those of Flower's ``Strategy.start``, with two
differences:

* the model of a round is sealed, together with the state of the strategy and the metrics so
  far. Under privacy that precedes its disclosure, so that whatever a crash interrupts was never
  shown, or is read back from the seal as it was. Otherwise the coordinator seals it while the
  next round trains, at most one at a time, and before the stage ends; a crash goes on from the
  checkpoint before it, and computes the same bits again (docs/adr/0040-off-the-path.md);
* when a site loses its admission during a round, and its update is in the result, the round is
  run again without it.

Under privacy the order is: exact sum, noise, charge, seal. Releases are counted over all
stages, repeats and restarts of a job (:meth:`server.jobs.job_channel.JobChannelHandler.charge`).

The generators of ``random``, numpy and torch are seeded for each phase, so a round depends on
the job's seed and on the state before it, and on nothing else.

The page is docs/adr/0004-resume.md.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp.grid import Grid
from flwr.serverapp.strategy import Result

from fedlearn.app.array_records import arrays_of, document_of, documented, record_of_document
from fedlearn.errors import JobError, QuorumNotReached, RoundError
from fedlearn.job.seeds import derive, seed_generators
from fedlearn.job.spec import JobSpec
from fedlearn.job.tables import MAX_ROUNDS
from fedlearn.update.arrays import decode, document, is_finite
from server.flower.aggregation.asynchronous.strategy import Asynchronous
from server.flower.aggregation.grid import JobGrid
from server.flower.aggregation.round_updates import ContributorRevoked
from server.flower.exchange.calls import MAX_RECORD_BYTES
from server.flower.exchange.coordinator import Coordinator
from server.flower.ipc.records import HISTORIES
from server.flower.ipc.strategy_state import Captured, NotCaptured, capture, restore
from server.flower.job_plan import Checkpoint

__all__ = ["Evaluate", "RoundStrategy", "Rounds", "ShouldStop", "Stage"]

_MAX_REPEATS: Final = 16
_MAX_STAGES: Final = 1_000

Evaluate = Callable[[int, ArrayRecord], MetricRecord | None]
"""Evaluates the model of a round at the coordinator; the application's own function."""
ShouldStop = Callable[[int, Result], bool]
"""Ends a stage after a round; an argument of ``Strategy.start`` since Flower 1.43."""


class RoundStrategy(Protocol):
    """What a round needs of a strategy; Flower's classes have it, and a stage's wrappers."""

    def summary(self) -> None: ...

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]: ...

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]: ...

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]: ...

    def aggregate_evaluate(
        self, server_round: int, replies: Iterable[Message]
    ) -> MetricRecord | None: ...


@dataclass(slots=True, kw_only=True)
class Stage:
    """One call of ``strategy.start``: its arguments, and what has become of them so far."""

    strategy: RoundStrategy
    arrays: ArrayRecord
    rounds: int
    timeout: float
    train_config: ConfigRecord = field(default_factory=ConfigRecord)
    evaluate_config: ConfigRecord = field(default_factory=ConfigRecord)
    evaluate: Evaluate | None = None
    should_stop: ShouldStop | None = None
    result: Result = field(default_factory=Result)


class Rounds:
    """Runs the rounds of one job, stage by stage.

    ``finished`` is the last round of the stage that runs, and ``result`` its result so far.
    """

    def __init__(self, coordinator: Coordinator, spec: JobSpec, grid: JobGrid) -> None:
        self._coordinator = coordinator
        self._spec = spec
        self._grid = grid
        self._stages = 0
        self._running = threading.Lock()
        self._reported = False
        self._last: Captured | None = None
        self.finished = 0
        self.result: Result | None = None
        self._made = False
        self._skipped = ""

    @property
    def next_stage(self) -> int:
        """The number of the next stage; 1 for the first."""
        return self._stages + 1

    def check_made(self) -> None:
        """Check that some round made a model, if there was a round.

        :raises RoundError: when the model is still the first one.
        """
        if self.finished and not self._made:
            raise RoundError(
                f"none of the {self.finished} rounds made a model: {self._skipped}",
                hint="the events `update.rejected` and `log` of these rounds have the reasons; "
                "see also the bounds of the strategy",
            )

    def run(self, stage: Stage) -> Result:
        """Run all rounds of a stage.

        The number of rounds of the first stage is the job's. ``stage.rounds`` is the
        application's wish, which counts only where it starts more than one strategy.

        :raises JobError: when another stage runs, or for too many stages or rounds.
        """
        if not self._running.acquire(blocking=False):
            raise JobError("the application started a strategy while another one runs")
        try:
            return self._run(stage)
        finally:
            self._grid.end_rounds()
            self._running.release()

    def _run(self, stage: Stage) -> Result:
        self._stages += 1
        first = self._stages == 1
        rounds = self._spec.rounds if first else stage.rounds
        if self._stages > _MAX_STAGES or not 1 <= rounds <= MAX_ROUNDS:
            raise JobError(
                f"stage {self._stages} with {rounds} rounds: a job has at most {_MAX_STAGES} "
                f"stages of 1 to {MAX_ROUNDS} rounds"
            )
        self._last = None
        self.result = stage.result
        stage.strategy.summary()
        self._grid.validator.remember_types(stage.arrays)
        done, evaluated = self._resume(stage) if first else (0, True)
        self._coordinator.event(
            "job.started",
            job=self._spec.name,
            rounds=rounds,
            sites=list(self._spec.sites),
            resumed_from=done,
            compression=self._spec.compression.title,
        )
        if done == 0:
            self._evaluate_here(stage, 0)
        elif not evaluated:
            # Its messages carry the number of that round, by which clients know their state.
            self._grid.begin_round(done, streams=False)
            self._evaluate(stage, done, rounds)
        # A stage that was to stop after its checkpoint does not go on because it was interrupted.
        stopped = done > 0 and _stops(stage, done)
        for number in range(done + 1, rounds + 1):
            if stopped:
                break
            self._whole_round(stage, number, rounds)
            self.finished = number
            stopped = _stops(stage, number)
        if isinstance(stage.strategy, Asynchronous):
            stage.strategy.end()
        self._coordinator.settle()
        return stage.result

    # One round

    def _whole_round(self, stage: Stage, number: int, rounds: int) -> None:
        started = self._grid.clock.monotonic()
        sent, received = self._coordinator.traffic()
        self._release(stage, number, rounds)
        if self._skipped:
            self._coordinator.event(
                "round.skipped", round=number, rounds=rounds, reason=self._skipped
            )
        sites, saved = len(self._grid.updates.contributors), self._grid.updates.saved
        self._evaluate(stage, number, rounds)
        sent_now, received_now = self._coordinator.traffic()
        self._coordinator.event(
            "round.finished",
            round=number,
            rounds=rounds,
            seconds=self._grid.clock.monotonic() - started,
            sites=sites,
            bytes=sent_now - sent + received_now - received,
            bytes_received=received_now - received,
            bytes_saved=saved,
            metrics=_shown(stage.result, number),
        )

    def _release(self, stage: Stage, number: int, rounds: int) -> None:
        """Make the model of a round, charge for it and seal it. It was not disclosed before."""
        saved = self._last if self._last is not None else self._state(stage)
        arrays, states = stage.arrays, dict(self._grid.validator.states)
        for _ in range(_MAX_REPEATS):
            try:
                self._train(stage, number, rounds)
                self._grid.updates.check_contributors()
                break
            except ContributorRevoked as revoked:
                if saved is None:
                    raise RoundError(
                        f"{revoked}, and the strategy's state cannot be set back",
                        hint="the job starts again from round 1 when it is resumed",
                    ) from revoked
                self._coordinator.event("log", line=f"round {number} is run again: {revoked}")
                self._set_back(stage, saved)
                stage.arrays = arrays
                self._grid.validator.states = states.copy()
        else:
            raise RoundError(f"round {number} lost a site {_MAX_REPEATS} times")
        if self._spec.privacy is not None:
            self._coordinator.charge(self._stages, number, self._grid.updates.inputs())
        self._save(stage, number)

    def _train(self, stage: Stage, number: int, rounds: int) -> None:
        self._seed(number, "train")
        strategy, grid = stage.strategy, self._grid
        grid.begin_round(number, streams=bool(getattr(strategy, "streams", False)))
        privacy = getattr(strategy, "privacy", None)
        cohort = None if privacy is None else privacy.cohort(self._spec.sites, number)
        grid.restrict(None if cohort is None else frozenset(cohort))
        own = hasattr(strategy, "captured")  # a strategy of the application may send no message

        def begun(sites: list[str]) -> None:
            self._coordinator.event("round.started", round=number, rounds=rounds, sites=sites)

        if isinstance(strategy, Asynchronous):
            arrays, metrics = strategy.next_version(
                number, stage.arrays, stage.train_config, timeout=stage.timeout, begun=begun
            )
        else:
            messages = list(
                strategy.configure_train(number, stage.arrays, stage.train_config, grid)
            )
            if not messages and privacy is None and not own:
                raise QuorumNotReached(
                    f"round {number}: the strategy asked no site to train",
                    hint="raise its fraction_train, or look at `fedlearn site list`",
                )
            asked = {grid.site(each.metadata.dst_node_id) for each in messages}
            begun([site for site in self._spec.sites if site in asked])
            enough = getattr(strategy, "enough", None)
            replies = grid.send_and_receive(messages, timeout=stage.timeout, enough=enough)
            arrays, metrics = strategy.aggregate_train(number, replies)
        self._skipped = ""
        if arrays is not None:
            _check_finite(arrays, number)
            # The arrays that the strategy made are freed: the seal, the sites and the application
            # all get this document.
            stage.arrays = stage.result.arrays = documented(arrays)
            self._made = True
        elif own and metrics is not None:
            # A strategy of the application may compute figures only, without a model.
            self._made = True
        else:
            used = len(grid.updates.contributors)
            self._skipped = f"the strategy made no model of the {used} updates that it received"
        if metrics is not None:
            stage.result.train_metrics_clientapp[number] = metrics
        grid.restrict(None)

    def _evaluate(self, stage: Stage, number: int, rounds: int) -> None:
        due = number % self._spec.evaluate.every == 0 or number == rounds
        if due and self._spec.evaluate.fraction > 0:
            self._seed(number, "evaluate")
            messages = stage.strategy.configure_evaluate(
                number, stage.arrays, stage.evaluate_config, self._grid
            )
            replies = self._grid.send_and_receive(messages, timeout=stage.timeout)
            metrics = stage.strategy.aggregate_evaluate(number, replies)
            if metrics is not None:
                stage.result.evaluate_metrics_clientapp[number] = metrics
        self._evaluate_here(stage, number)

    def _evaluate_here(self, stage: Stage, number: int) -> None:
        if stage.evaluate is not None:
            found = stage.evaluate(number, stage.arrays)
            if found is not None:
                stage.result.evaluate_metrics_serverapp[number] = found

    def _seed(self, number: int, phase: str) -> None:
        seed_generators(derive(self._spec.seed, "server", number, phase))

    # Checkpoints

    def _state(self, stage: Stage) -> Captured | None:
        """Return all state but the model; None when something cannot be captured."""
        try:
            own = getattr(stage.strategy, "captured", None)
            strategy = {"strategy": stage.strategy} if own is None else {}
            state, tensors = capture(strategy | _around(stage))
            if own is not None:
                held, arrays = own()
                state = {**state, "held": held}
                tensors = {**tensors, **{f"held/{name}": each for name, each in arrays.items()}}
            return state, tensors
        except NotCaptured as error:
            if not self._reported:
                self._reported = True
                self._coordinator.event(
                    "log",
                    level="warning",
                    line=f"this job starts again from round 1 if it is interrupted, because its "
                    f"strategy holds what cannot be written down: {error}",
                )
            return None

    def _save(self, stage: Stage, number: int) -> None:
        captured = self._last = self._state(stage)
        state, tensors = captured if captured is not None else ({}, {})
        resumable = captured is not None and self._stages == 1
        self._coordinator.save(
            Checkpoint(
                round=number,
                model=document_of(stage.arrays),
                tensors=document(tensors),
                state={
                    "resumable": resumable,
                    "evaluated": False,
                    "made": self._made,
                    "stage": self._stages,
                    "states": dict(self._grid.validator.states),
                    "captured": state,
                },
            )
        )

    def _resume(self, stage: Stage) -> tuple[int, bool]:
        """Go on from the last checkpoint; return its round, and whether it was evaluated."""
        checkpoint = self._coordinator.load()
        if checkpoint is None:
            return 0, True
        if not checkpoint.state.get("resumable"):
            self._coordinator.event(
                "log",
                level="warning",
                line="the job starts again from round 1: its state was "
                "not one that can be written down",
            )
            return 0, True
        tensors = decode(checkpoint.tensors, max_bytes=MAX_RECORD_BYTES)
        self._set_back(stage, (checkpoint.state["captured"], tensors))
        model = record_of_document(checkpoint.model, max_bytes=MAX_RECORD_BYTES)
        stage.arrays = stage.result.arrays = model
        self._grid.validator.states = dict(checkpoint.state.get("states", {}))
        self.finished = checkpoint.round
        # Checkpoints of earlier releases do not state it.
        self._made = bool(checkpoint.state.get("made", True))
        return checkpoint.round, bool(checkpoint.state.get("evaluated", True))

    def _set_back(self, stage: Stage, captured: Captured) -> None:
        state, tensors = captured
        own = getattr(stage.strategy, "restore", None)
        values: dict[str, Any] = _around(stage)
        if own is None:
            values["strategy"] = stage.strategy
        else:
            inner = {
                name.removeprefix("held/"): array
                for name, array in tensors.items()
                if name.startswith("held/")
            }
            own((state["held"], inner))
        restore(values, ({k: v for k, v in state.items() if k != "held"}, tensors))
        stage.train_config = values["train_config"]
        stage.evaluate_config = values["evaluate_config"]
        for name in HISTORIES:
            setattr(stage.result, name, values[name])


def _stops(stage: Stage, number: int) -> bool:
    """Return whether the application ends the stage after this round."""
    return stage.should_stop is not None and stage.should_stop(number, stage.result)


def _check_finite(arrays: ArrayRecord, number: int) -> None:
    for name, array in arrays_of(arrays).items():
        if not is_finite(array):
            raise JobError(
                f"round {number}: the model's array {name!r} contains NaN or infinity",
                hint="training diverged; lower the learning rate",
            )


def _around(stage: Stage) -> dict[str, Any]:
    """Return what a checkpoint holds beside the model and the strategy."""
    return {
        "train_config": stage.train_config,
        "evaluate_config": stage.evaluate_config,
        **{name: getattr(stage.result, name) for name in HISTORIES},
    }


def _shown(result: Result, number: int) -> dict[str, Any]:
    """Return the metrics of a round to show: evaluation takes precedence over training."""
    shown: dict[str, Any] = {}
    for name in HISTORIES:
        for key, value in getattr(result, name).get(number, {}).items():
            if isinstance(value, int | float):
                number_ = float(value)
                shown[key] = number_ if math.isfinite(number_) else repr(number_)
    return shown
