"""The order of a stage: what is checked, sealed and asked, and when it ends."""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, MetricRecord

from fedlearn.clock import REAL
from fedlearn.errors import DiskError, JobError
from server.flower.aggregation.rounds import Rounds, ShouldStop, Stage
from server.flower.job_plan import Checkpoint


class Coordinator:
    """Remembers in which order it was asked; seals in memory."""

    def __init__(self, last: Checkpoint | None = None) -> None:
        self.last = last
        self.asked: list[str] = []
        self.fails: Exception | None = None

    def event(self, kind: str, **fields: Any) -> None:
        if kind.startswith("round."):
            self.asked.append(f"{kind} {fields['round']}")

    def save(self, checkpoint: Checkpoint) -> None:
        self.asked.append(f"save {checkpoint.round}")
        self.last = checkpoint

    def settle(self) -> None:
        self.asked.append("settle")
        if self.fails is not None:
            raise self.fails

    def load(self) -> Checkpoint | None:
        return self.last

    def traffic(self) -> tuple[int, int]:
        return 0, 0


class Strategy:
    """A strategy of an application that adds 1 in each round, without a site."""

    def __init__(self, values: Mapping[int, float] | None = None) -> None:
        self._values = values or {}

    def summary(self) -> None:
        return None

    def captured(self) -> tuple[dict[str, Any], dict[str, Any]]:
        return {}, {}

    def restore(self, captured: Any) -> None:
        return None

    def configure_train(self, server_round: int, *_: Any) -> list[Any]:
        self._number = server_round
        return []

    configure_evaluate = configure_train

    def aggregate_train(self, server_round: int, _: Any) -> tuple[ArrayRecord, MetricRecord]:
        value = self._values.get(server_round, float(server_round))
        return model(value), MetricRecord({"loss": value})

    def aggregate_evaluate(self, server_round: int, _: Any) -> None:
        return None


def model(value: float) -> ArrayRecord:
    return ArrayRecord({"w": Array(np.full(3, value, np.float32))})


def run(
    coordinator: Coordinator,
    *,
    strategy: Strategy | None = None,
    should_stop: ShouldStop | None = None,
    rounds: int = 4,
    states: dict[str, str] | None = None,
) -> float:
    """Run one stage; return the value that its model has at the end."""
    validator = SimpleNamespace(
        remember_types=lambda _: None, states={} if states is None else states
    )
    updates = SimpleNamespace(check_contributors=lambda: None, contributors=frozenset(), saved=0)
    grid: Any = SimpleNamespace(
        updates=updates,
        validator=validator,
        begin_round=lambda *_, **__: None,
        restrict=lambda _: None,
        send_and_receive=lambda *_, **__: [],
        end_rounds=lambda: None,
        clock=REAL,
    )
    spec: Any = SimpleNamespace(
        name="job",
        rounds=rounds,
        sites=(),
        seed=1,
        privacy=None,
        compression=SimpleNamespace(title="none"),
        evaluate=SimpleNamespace(every=1, fraction=1.0),
    )
    stage = Stage(
        strategy=strategy or Strategy(),
        arrays=model(0.0),
        rounds=rounds,
        timeout=1.0,
        should_stop=should_stop,
    )
    found = Rounds(coordinator, spec, grid).run(stage)  # type: ignore[arg-type]
    if states is not None:
        states.update(validator.states)
    return float(found.arrays["w"].numpy()[0])


def test_what_sites_reported_of_their_states_is_in_the_checkpoint() -> None:
    coordinator = Coordinator()
    run(coordinator, rounds=2, states={"a": "ab" * 32})
    assert coordinator.last is not None
    assert coordinator.last.state["states"] == {"a": "ab" * 32}
    known: dict[str, str] = {}
    run(Coordinator(coordinator.last), rounds=3, states=known)
    assert known == {"a": "ab" * 32}


def test_a_stage_ends_when_its_last_checkpoint_is_sealed() -> None:
    coordinator = Coordinator()
    assert run(coordinator, rounds=2) == 2.0
    each = [[f"round.started {n}", f"save {n}", f"round.finished {n}"] for n in (1, 2)]
    assert coordinator.asked == [*each[0], *each[1], "settle"]


def test_a_checkpoint_that_could_not_be_sealed_ends_the_stage_with_its_error() -> None:
    coordinator = Coordinator()
    coordinator.fails = DiskError("no space left")
    with pytest.raises(DiskError, match="no space left"):
        run(coordinator, rounds=1)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_model_that_diverged_is_neither_sealed_nor_sent(value: float) -> None:
    coordinator = Coordinator()
    with pytest.raises(JobError, match="round 2: the model's array 'w' contains NaN") as caught:
        run(coordinator, strategy=Strategy({2: value}))
    assert "learning rate" in caught.value.hint
    assert coordinator.last is not None
    assert coordinator.last.round == 1
    assert "round.started 3" not in coordinator.asked


def test_a_stage_stops_after_the_round_that_the_application_names() -> None:
    seen: list[tuple[int, float]] = []

    def stops(number: int, result: Any) -> bool:
        seen.append((number, result.train_metrics_clientapp[number]["loss"]))
        return number == 2

    coordinator = Coordinator()
    assert run(coordinator, should_stop=stops) == 2.0
    assert seen == [(1, 1.0), (2, 2.0)]
    assert coordinator.asked[-1] == "settle"


def test_a_stage_that_was_to_stop_does_not_go_on_after_an_interruption() -> None:
    before = Coordinator()
    run(before, rounds=2)
    after = Coordinator(before.last)
    assert run(after, should_stop=lambda number, _: number == 2) == 2.0
    assert after.asked == ["settle"]
    # Without it, the other rounds follow.
    assert run(Coordinator(before.last), should_stop=lambda *_: False) == 4.0
