"""A round that asks more sites than it needs closes when enough have answered."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from flwr.app import RecordDict

from fedlearn.app.array_records import arrays_of, record_of
from fedlearn.errors import QuorumNotReached
from fedlearn.update.arrays import Array
from server.flower.aggregation.builtin import BuiltIn
from server.flower.aggregation.grid import JobGrid
from server.flower.aggregation.round_updates import Rules
from server.flower.aggregation.rounds import Rounds, Stage
from server.flower.ipc.task import enter_run
from tests.fakes.timed_sites import TimedSites, Train, update
from tests.harness.job_plans import job_plan

TAKES = {f"s{n}": float(n + 1) for n in range(8)}


@pytest.fixture(autouse=True)
def _run() -> None:
    enter_run(9)


def train(site: str, number: int, arrays: dict[str, Array]) -> RecordDict:
    return update({"w": arrays["w"] + np.float32(TAKES[site])})


def run(train: Train = train, *, rounds: int = 1, **plan: Any) -> tuple[TimedSites, float]:
    options = {"fraction_train": 0.5, "over_select": 1.5}
    spec = job_plan(
        sites=tuple(TAKES),
        strategy="fedavg",
        options=options,
        rounds=rounds,
        evaluate_fraction=0.0,
        **{"seconds": 60.0, "quorum": 4, **plan},
    ).spec
    sites = TimedSites(TAKES, TAKES, train)
    rules = Rules(
        sites=spec.sites,
        quorum=spec.quorum,
        seconds=spec.deadline_s,
        stragglers=spec.stragglers,
        max_update_bytes=10**6,
    )
    grid = JobGrid(sites, rules, sites.clock)
    few = {"min_train_nodes": 1, "min_evaluate_nodes": 1, "min_available_nodes": 1}
    strategy = BuiltIn("fedavg", {**few, "fraction_evaluate": 0.0, **options})
    model = record_of({"w": np.zeros(3, np.float32)})
    stage = Stage(strategy=strategy, arrays=model, rounds=rounds, timeout=600)
    found = Rounds(sites, spec, grid).run(stage)
    return sites, float(arrays_of(found.arrays)["w"][0])


def test_the_first_updates_make_the_model_and_the_others_are_named() -> None:
    sites, value = run(rounds=2)
    (first, second) = (fields["sites"] for fields in sites.of("round.started"))
    assert len(first) == len(second) == 6  # 1.5 times the 4 of 8
    fastest = sorted(first, key=TAKES.__getitem__)[:4]
    used = [each["site"] for each in sites.of("update.received") if each["round"] == 1]
    assert used == fastest
    assert sites.of("round.finished")[0]["seconds"] == TAKES[fastest[-1]]
    again = [each["site"] for each in sites.of("update.received") if each["round"] == 2]
    assert value == sum(map(TAKES.__getitem__, (*used, *again))) / 4
    late = [each for each in sites.of("update.rejected") if each["round"] == 1]
    assert {each["site"] for each in late} == set(first) - set(fastest)
    assert {each["reason"] for each in late} == {"the round was closed by the first 4 updates"}
    assert len(sites.forgotten) == 4


def test_a_refused_update_is_replaced_by_the_next_one() -> None:
    def odd(site: str, number: int, arrays: dict[str, Array]) -> RecordDict:
        found = arrays["w"] + np.float32(TAKES[site])
        return update({"w": found * np.float32("nan") if site in fastest[:2] else found})

    fastest: list[str] = []
    first = run()[0].of("round.started")[0]["sites"]
    fastest = sorted(first, key=TAKES.__getitem__)
    sites, value = run(odd)
    used = [each["site"] for each in sites.of("update.received")]
    assert used == fastest[2:6]
    assert value == sum(map(TAKES.__getitem__, used)) / 4


def test_who_is_not_needed_is_no_straggler_and_who_is_late_is_one() -> None:
    assert len(run(stragglers="fail")[0].of("update.received")) == 4

    def silent(site: str, number: int, arrays: dict[str, Array]) -> RecordDict | None:
        return train(site, number, arrays) if site in ("s0", "s1", "s2") else None

    with pytest.raises(QuorumNotReached):
        run(silent)
