"""``Strategy.start`` with checkpoints: the same rounds, and a place to go on from.

In a job's process :meth:`Rounds.install` puts :meth:`Rounds.start` in the place of Flower's
``Strategy.start``, after checking that the body it replaces is the one it was written after.
An application that calls ``strategy.start(...)`` does not notice. Around each round

* the generators of ``random``, numpy and torch are seeded, so a round depends on the job's
  seed and on the state before it, and on nothing else;
* a round into which a site's update went that lost its admission meanwhile is run again
  without it;
* the model, the state of the strategy and the metrics so far go to the coordinator, which
  seals them before the next round begins.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from logging import INFO
from typing import Any, Final, cast

import flwr.serverapp.strategy as strategies
from flwr.app import ArrayRecord, ConfigRecord, MetricRecord
from flwr.common import log
from flwr.serverapp.strategy import FedAvg, Result, Strategy

from fedlearn.errors import JobError, PrivacyError, RoundError
from fedlearn.flower import arrays_of, mismatch, record_of
from fedlearn.privacy import ServerPrivacy
from fedlearn.seeds import derive, seed_generators
from fedlearn.strategies import APP
from server.flower import contract
from server.flower.calls import Coordinator
from server.flower.capture import Captured, NotCaptured, capture, restore
from server.flower.fedavg import ExactFedAvg
from server.flower.grid import JobGrid, Tainted
from server.flower.plan import Checkpoint, JobPlan

__all__ = ["Rounds", "check_start"]

_CLASSES: Final = {
    "bulyan": "Bulyan",
    "fedadagrad": "FedAdagrad",
    "fedadam": "FedAdam",
    "fedavgm": "FedAvgM",
    "fedmedian": "FedMedian",
    "fedprox": "FedProx",
    "fedtrimmedavg": "FedTrimmedAvg",
    "fedyogi": "FedYogi",
    "krum": "Krum",
    "multikrum": "MultiKrum",
    "qfedavg": "QFedAvg",
}
_HISTORIES: Final = (
    "train_metrics_clientapp",
    "evaluate_metrics_clientapp",
    "evaluate_metrics_serverapp",
)
_MAX_REPEATS: Final = 16

Evaluate = Callable[[int, ArrayRecord], MetricRecord | None]
ShouldStop = Callable[[int, Result], bool]


def check_start() -> None:
    """Check that Flower's ``Strategy.start`` is the one that we take the place of.

    :raises FlowerMismatch: when it is not.
    """
    contract.check_start(Strategy.start)
    for name in _CLASSES.values():
        if not hasattr(strategies, name):
            raise mismatch(f"there is no strategy {name}")


@dataclass(slots=True)
class _Job:
    """What one call of ``start`` works on."""

    strategy: Strategy
    grid: JobGrid
    result: Result
    arrays: ArrayRecord
    timeout: float
    train_config: ConfigRecord
    evaluate_config: ConfigRecord
    evaluate_fn: Evaluate | None


class Rounds:
    """Runs the rounds of one job."""

    def __init__(self, coordinator: Coordinator, plan: JobPlan) -> None:
        self._coordinator = coordinator
        self._plan = plan
        self._stages = 0
        self._told = False
        self._last: Captured | None = None
        self.finished = 0

    def install(self) -> None:
        """Take the place of ``Strategy.start`` in this process.

        :raises FlowerMismatch: when it is another one than we know.
        """
        check_start()
        rounds = self

        def start(self: Strategy, *args: Any, **keywords: Any) -> Result:
            return rounds.start(self, *args, **keywords)

        Strategy.start = start

    def start(
        self,
        strategy: Strategy,
        grid: JobGrid,
        initial_arrays: ArrayRecord,
        num_rounds: int = 3,
        timeout: float = 3600,
        train_config: ConfigRecord | None = None,
        evaluate_config: ConfigRecord | None = None,
        evaluate_fn: Evaluate | None = None,
        should_stop: ShouldStop | None = None,
    ) -> Result:
        """Run all rounds; the arguments are those of Flower's ``start``.

        ``should_stop`` is asked after every round, whichever release of Flower is installed.

        The number of rounds is the job's. ``num_rounds`` is the application's wish, which
        counts only where an application starts more than one strategy.
        """
        self._stages += 1
        self._last = None
        rounds = self._plan.rounds if self._stages == 1 else num_rounds
        job = _Job(
            strategy=self._chosen(strategy),
            grid=grid,
            result=Result(),
            arrays=initial_arrays,
            timeout=timeout,
            train_config=ConfigRecord() if train_config is None else train_config,
            evaluate_config=ConfigRecord() if evaluate_config is None else evaluate_config,
            evaluate_fn=evaluate_fn,
        )
        log(INFO, "Starting %s strategy for %s rounds", type(job.strategy).__name__, rounds)
        job.strategy.summary()
        grid.remember_types(initial_arrays)
        done = self._resume(job) if self._stages == 1 else 0
        self._coordinator.event(
            "job.started",
            job=self._plan.job,
            rounds=rounds,
            sites=list(self._plan.sites),
            resumed_from=done,
        )
        if done == 0 and evaluate_fn is not None:
            found = evaluate_fn(0, job.arrays)
            if found is not None:
                job.result.evaluate_metrics_serverapp[0] = found
        for number in range(done + 1, rounds + 1):
            self._whole_round(job, number, rounds)
            self.finished = number
            if should_stop is not None and should_stop(number, job.result):
                break
        return job.result

    # One round

    def _whole_round(self, job: _Job, number: int, rounds: int) -> None:
        started = time.monotonic()
        before = self._traffic()
        saved = self._last if self._last is not None else self._state(job)
        arrays = job.arrays
        for _ in range(_MAX_REPEATS):
            try:
                self._train(job, number, rounds)
                job.grid.check_contributors()
                break
            except Tainted as tainted:
                if saved is None:
                    raise RoundError(
                        f"{tainted}, and the strategy's state cannot be set back",
                        hint="the job starts again from round 1 when it is resumed",
                    ) from tainted
                self._coordinator.event("log", line=f"round {number} is run again: {tainted}")
                self._set_back(job, saved)
                job.arrays = arrays
        else:
            raise RoundError(f"round {number} lost a site {_MAX_REPEATS} times")
        self._evaluate(job, number, rounds)
        sites = len(job.grid.contributors)
        self._save(job, number)
        self._coordinator.event(
            "round.finished",
            round=number,
            rounds=rounds,
            seconds=time.monotonic() - started,
            sites=sites,
            bytes=self._traffic() - before,
            metrics=_shown(job.result, number),
        )

    def _train(self, job: _Job, number: int, rounds: int) -> None:
        self._seed(number, "train")
        streams = bool(getattr(job.strategy, "streams", False))
        job.grid.begin_round(number, streams=streams)
        exact = job.strategy if isinstance(job.strategy, ExactFedAvg) else None
        privacy = None if exact is None else exact.privacy
        cohort = None if privacy is None else privacy.cohort(self._plan.sites, number)
        job.grid.restrict(None if cohort is None else frozenset(cohort))
        messages = list(
            job.strategy.configure_train(number, job.arrays, job.train_config, job.grid)
        )
        asked = {job.grid.site(each.metadata.dst_node_id) for each in messages}
        sites = [site for site in self._plan.sites if site in asked]
        self._coordinator.begin_round(number, sites)
        self._coordinator.event("round.started", round=number, rounds=rounds, sites=sites)
        replies = job.grid.send_and_receive(messages, timeout=job.timeout)
        arrays, metrics = job.strategy.aggregate_train(number, replies)
        if arrays is not None:
            job.arrays = job.result.arrays = arrays
        if metrics is not None:
            job.result.train_metrics_clientapp[number] = metrics
        job.grid.restrict(None)

    def _evaluate(self, job: _Job, number: int, rounds: int) -> None:
        due = number % self._plan.evaluate_every == 0 or number == rounds
        if due and self._plan.evaluate_fraction > 0:
            self._seed(number, "evaluate")
            messages: Iterable[Any] = job.strategy.configure_evaluate(
                number, job.arrays, job.evaluate_config, job.grid
            )
            replies = job.grid.send_and_receive(messages, timeout=job.timeout)
            metrics = job.strategy.aggregate_evaluate(number, replies)
            if metrics is not None:
                job.result.evaluate_metrics_clientapp[number] = metrics
        if job.evaluate_fn is not None:
            found = job.evaluate_fn(number, job.arrays)
            if found is not None:
                job.result.evaluate_metrics_serverapp[number] = found

    def _seed(self, number: int, phase: str) -> None:
        seed_generators(derive(self._plan.seed, "server", number, phase))

    def _traffic(self) -> int:
        return sum(self._coordinator.traffic())

    # What a strategy is

    def _chosen(self, strategy: Strategy) -> Strategy:
        plan, privacy = self._plan, self._privacy()
        if plan.strategy == APP or self._stages > 1:
            if privacy is None:
                return strategy
            if type(strategy) not in (FedAvg, ExactFedAvg):
                raise PrivacyError(
                    f"{type(strategy).__name__} does more than a mean that can carry noise",
                    hint='set [strategy] name = "fedavg"',
                )
            return ExactFedAvg.like(strategy, privacy)
        options = {
            "min_train_nodes": 1,
            "min_evaluate_nodes": 1,
            "min_available_nodes": plan.quorum if privacy is None else 1,
            "fraction_evaluate": plan.evaluate_fraction,
            **plan.options,
        }
        if plan.strategy == "fedavg":
            return ExactFedAvg(privacy=privacy, **options)
        if privacy is not None:
            raise PrivacyError(
                f"{plan.strategy} does more than a mean that can carry noise",
                hint='set [strategy] name = "fedavg"',
            )
        try:
            return cast("Strategy", getattr(strategies, _CLASSES[plan.strategy])(**options))
        except (TypeError, ValueError) as error:
            raise JobError(
                f"the strategy {plan.strategy} cannot be made: {error}",
                hint="see its options under [strategy.options]",
            ) from error

    def _privacy(self) -> ServerPrivacy | None:
        if self._plan.privacy is None:
            return None
        return ServerPrivacy.from_spec(self._plan.privacy, self._plan.noise_secret)

    # Checkpoints

    def _state(self, job: _Job) -> Captured | None:
        """Return all state but the model; None when something cannot be captured."""
        try:
            return capture(
                {
                    "strategy": job.strategy,
                    "train_config": job.train_config,
                    "evaluate_config": job.evaluate_config,
                    **_histories(job.result),
                }
            )
        except NotCaptured as error:
            if not self._told:
                self._told = True
                self._coordinator.event(
                    "log",
                    level="warning",
                    line=f"this job starts again from round 1 if it is interrupted, because its "
                    f"strategy holds what cannot be written down: {error}",
                )
            return None

    def _save(self, job: _Job, number: int) -> None:
        captured = self._last = self._state(job)
        state, tensors = captured if captured is not None else ({}, {})
        resumable = captured is not None and self._stages == 1
        self._coordinator.save(
            Checkpoint(
                round=number,
                model=arrays_of(job.arrays),
                tensors=tensors,
                state={"resumable": resumable, "stage": self._stages, "captured": state},
            )
        )

    def _resume(self, job: _Job) -> int:
        checkpoint = self._coordinator.load()
        if checkpoint is None:
            return 0
        if not checkpoint.state.get("resumable"):
            self._coordinator.event(
                "log",
                level="warning",
                line="the job starts again from round 1: its state was "
                "not one that can be written down",
            )
            return 0
        self._set_back(job, (checkpoint.state["captured"], dict(checkpoint.tensors)))
        job.arrays = job.result.arrays = record_of(checkpoint.model)
        self.finished = checkpoint.round
        return checkpoint.round

    def _set_back(self, job: _Job, captured: Captured) -> None:
        values: dict[str, Any] = {
            "strategy": job.strategy,
            "train_config": job.train_config,
            "evaluate_config": job.evaluate_config,
            **_histories(job.result),
        }
        restore(values, captured)
        job.train_config, job.evaluate_config = values["train_config"], values["evaluate_config"]
        _set_histories(job.result, values)


def _histories(result: Result) -> dict[str, Any]:
    return {name: getattr(result, name) for name in _HISTORIES}


def _set_histories(result: Result, values: dict[str, Any]) -> None:
    for name in _HISTORIES:
        setattr(result, name, values[name])


def _shown(result: Result, number: int) -> dict[str, Any]:
    """Return the metrics of a round for people: evaluation wins over training."""
    shown: dict[str, Any] = {}
    for name in (
        "train_metrics_clientapp",
        "evaluate_metrics_clientapp",
        "evaluate_metrics_serverapp",
    ):
        for key, value in getattr(result, name).get(number, {}).items():
            if isinstance(value, int | float):
                number_ = float(value)
                shown[key] = number_ if math.isfinite(number_) else repr(number_)
    return shown
