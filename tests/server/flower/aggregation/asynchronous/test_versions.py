"""FedBuff and FedAsync by hand: which updates a version has, and what it is made of."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from flwr.app import RecordDict
from hypothesis import given, settings
from hypothesis import strategies as st

from fedlearn.app.array_records import arrays_of, record_of
from fedlearn.errors import QuorumNotReached, RoundError
from fedlearn.job.asynchronous.staleness import staleness_weight
from fedlearn.update.arrays import BF16, Array, to_bfloat16, to_float32
from server.flower.aggregation.asynchronous.buffer import VersionBuffer
from server.flower.aggregation.asynchronous.strategy import Asynchronous
from server.flower.aggregation.grid import JobGrid
from server.flower.aggregation.round_updates import Rules
from server.flower.aggregation.rounds import Rounds, Stage
from server.flower.ipc.task import enter_run
from tests.fakes.timed_sites import TimedSites, Train, update
from tests.harness.job_plans import job_plan

SECONDS = {"a": 1.0, "b": 2.5, "c": 10.0}
STEPS = {"a": 1.0, "b": 10.0, "c": 100.0}


@pytest.fixture(autouse=True)
def _run() -> None:
    enter_run(9)


def steps(site: str, number: int, arrays: dict[str, Array]) -> RecordDict:
    """Add the site's step to every number of the model."""
    del number
    return update({"w": arrays["w"] + np.float32(STEPS[site])}, loss=STEPS[site])


class Job:
    """A job over sites with a clock of their own."""

    def __init__(
        self,
        name: str = "fedbuff",
        options: Mapping[str, Any] | None = None,
        *,
        takes: Mapping[str, float] = SECONDS,
        train: Train = steps,
        rounds: int = 3,
        **plan: Any,
    ) -> None:
        given = {"buffer_size": 2} if name == "fedbuff" else {}
        self.spec = job_plan(
            sites=tuple(takes),
            strategy=name,
            options={**given, "staleness": "constant", **(options or {})},
            rounds=rounds,
            **{"seconds": 60.0, "evaluate_fraction": 0.0, **plan},
        ).spec
        self.sites = TimedSites(takes, takes, train)
        self._values = np.zeros(3, np.float32)

    def run(self, model: Mapping[str, Array] | None = None) -> dict[str, Array]:
        """Run it, from its last checkpoint if there is one; return the model."""
        spec, coordinator = self.spec, self.sites
        rules = Rules(
            sites=spec.sites,
            quorum=spec.quorum,
            seconds=spec.deadline_s,
            stragglers=spec.stragglers,
            max_update_bytes=10**6,
        )
        grid = JobGrid(coordinator, rules, coordinator.clock)
        grid.grace = 0.0
        strategy = Asynchronous(coordinator, grid, spec)
        first = {"w": self._values} if model is None else model
        stage = Stage(strategy=strategy, arrays=record_of(first), rounds=spec.rounds, timeout=600)
        self.result = Rounds(coordinator, spec, grid).run(stage)
        return arrays_of(self.result.arrays)

    def who(self) -> list[tuple[int, str, int]]:
        """Return version, site and staleness of each update that is in a version."""
        return [
            (fields["round"], fields["site"], fields["staleness"])
            for fields in self.sites.of("update.received")
        ]


def test_a_version_is_made_of_the_updates_that_arrive_first() -> None:
    job = Job(rounds=3)
    # 1.0: a of version 0. 2.5: b of version 0, which makes version 1; a and b are asked again.
    # 3.5: a of 1. 5.0: b of 1, version 2. 6.0: a of 2. 7.5: b of 2, version 3. c is late by 2.5.
    value = float(job.run()["w"][0])
    assert job.who() == [
        (1, "a", 0),
        (1, "b", 0),
        (2, "a", 0),
        (2, "b", 0),
        (3, "a", 0),
        (3, "b", 0),
    ]
    assert value == 3 * (1 + 10) / 2
    assert [each["seconds"] for each in job.sites.of("round.finished")] == [2.5, 2.5, 2.5]
    assert [each["sites"] for each in job.sites.of("round.finished")] == [2, 2, 2]
    # c trained version 0 all along, and its call was withdrawn at the end.
    assert [ask[:2] for ask in job.sites.asked if ask[1] == "c"] == [(0.0, "c")]
    assert len(job.sites.forgotten) == 1
    assert [each["sites"] for each in job.sites.of("round.started")] == [["a", "b", "c"]] * 3
    assert job.result.train_metrics_clientapp[3]["loss"] == pytest.approx(5.5)


def test_a_stale_update_is_a_difference_to_the_version_that_was_sent_and_weighs_less() -> None:
    job = Job(rounds=5, options={"staleness": "polynomial", "staleness_a": 0.5})
    # Versions 1 to 3 are made at 2.5, 5.0 and 7.5. c answers version 0 at 10.0, with b of 3
    # behind it: a at 8.5 and c make version 4, with a staleness of 3 for c; it weighs 1/2.
    value = float(job.run()["w"][0])
    assert job.who()[6:] == [(4, "a", 0), (4, "c", 3), (5, "b", 1), (5, "a", 0)]
    expected = 3 * 5.5 + (1 + 100 / 2) / 2 + (10 / 2**0.5 + 1) / 2
    assert value == pytest.approx(expected, rel=1e-6)


def test_examples_weigh_and_the_staleness_makes_the_step_smaller() -> None:
    def train(site: str, number: int, arrays: dict[str, Array]) -> RecordDict:
        return update({"w": arrays["w"] + np.float32(STEPS[site])}, examples={"a": 3}.get(site, 1))

    options = {"staleness": "hinge", "staleness_a": 1.0, "staleness_b": 0, "buffer_size": 1}
    seconds = {"a": 2.0, "b": 3.0}
    # Version 1: a of 0 at 2.0. Version 2: b of 0 at 3.0, staleness 1, which weighs 1/2.
    job = Job(options=options, takes=seconds, rounds=2, train=train)
    assert float(job.run()["w"][0]) == 1 + 10 / 2
    for weights, expected in (("examples", (3 * 1 + 10) / 4), ("equal", (1 + 10) / 2)):
        job = Job(options={"weights": weights}, takes=seconds, rounds=1, train=train)
        assert float(job.run()["w"][0]) == expected
    halved = Job(options={"server_learning_rate": 0.5}, takes=seconds, rounds=1)
    assert float(halved.run()["w"][0]) == 2.75


def test_fedasync_mixes_the_model_of_a_site_with_the_newest() -> None:
    options = {"mixing": 0.5, "staleness": "polynomial", "staleness_a": 1.0}
    job = Job("fedasync", options, takes={"a": 2.0, "b": 3.0}, rounds=3)
    found = float(job.run()["w"][0])
    first = 0 + 0.5 * (1 - 0)
    second = first + 0.5 / 2 * (10 - first)  # b trained version 0, and 1 is the newest
    third = second + 0.5 / 2 * (first + 1 - second)  # a trained version 1
    assert job.who() == [(1, "a", 0), (2, "b", 1), (3, "a", 1)]
    assert found == pytest.approx(third, rel=1e-6)
    assert [each["round"] for each in job.sites.of("round.finished")] == [1, 2, 3]


def test_fedasync_sends_the_proximal_term_to_its_clients() -> None:
    seen: list[float] = []
    job = Job("fedasync", {"proximal_mu": 0.005}, rounds=1)
    push = job.sites.push

    def noted(flat: Any) -> list[str]:
        from fedlearn.app.flower import inflate

        for index in range(len(flat.messages)):
            config = inflate(flat.frames(index)[0], flat.objects).content["config"]
            seen.append(config["proximal-mu"])
        return push(flat)

    job.sites.push = noted  # type: ignore[method-assign]
    job.run()
    assert seen == [0.005] * 3


@settings(max_examples=20, deadline=None)
@given(
    values=st.lists(
        st.tuples(st.integers(-1000, 1000), st.integers(1, 50), st.floats(0.1, 9)),
        min_size=1,
        max_size=6,
    )
)
def test_with_all_sites_in_each_version_it_is_the_mean(
    values: list[tuple[int, int, float]],
) -> None:
    enter_run(9)
    sites = {f"s{n}": value for n, value in enumerate(values)}

    def train(site: str, number: int, arrays: dict[str, Array]) -> RecordDict:
        step, examples, _ = sites[site]
        return update({"w": arrays["w"] + np.float32(step * number)}, examples=examples)

    job = Job(
        options={"buffer_size": len(sites)},
        takes={site: seconds for site, (_, _, seconds) in sites.items()},
        train=train,
        rounds=2,
    )
    found = job.run()["w"]
    mean = np.average([step for step, _, _ in values], weights=[n for _, n, _ in values])
    np.testing.assert_allclose(found, np.full(3, 3 * mean), rtol=1e-5, atol=1e-3)
    assert {staleness for _, _, staleness in job.who()} == {0}
    assert len(job.who()) == 2 * len(sites)


# --- which updates are refused ----------------------------------------------------------


def test_an_update_that_is_too_stale_is_refused_and_the_version_is_what_it_would_be_without() -> (
    None
):
    without = Job(takes={"a": 1.0, "b": 2.5}, rounds=5)
    job = Job(rounds=5, options={"max_staleness": 2})
    assert job.run()["w"].tobytes() == without.run()["w"].tobytes()
    (refused,) = job.sites.of("update.rejected")
    assert (refused["round"], refused["site"]) == (4, "c")
    assert refused["reason"] == (
        "it was trained on version 0, and version 3 is the newest: its staleness is 3, and "
        "max_staleness is 2"
    )
    assert not [who for who in job.who() if who[1] == "c"]


ODD: dict[str, Any] = {
    "NaN": lambda w: update({"w": w * np.float32("nan")}),
    "infinity": lambda w: update({"w": w + np.float32("inf")}),
    "another shape": lambda w: update({"w": np.zeros(4, np.float32)}),
    "another name": lambda w: update({"v": w}),
    "another type": lambda w: update({"w": w.astype(np.float64)}),
    "more examples than it has": lambda w: update({"w": w}, examples=1001),
    "no arrays": lambda w: RecordDict({"metrics": update({"w": w})["metrics"]}),
    "an error": lambda w: "planted",
}


@pytest.mark.parametrize("name", sorted(ODD))
def test_an_odd_reply_is_refused_and_the_version_is_what_it_would_be_without(name: str) -> None:
    def train(site: str, number: int, arrays: dict[str, Array]) -> Any:
        return ODD[name](arrays["w"]) if site == "x" else steps(site, number, arrays)

    without = Job(takes={"a": 1.0, "b": 2.5}, rounds=2)
    job = Job(takes={"x": 0.5, "a": 1.0, "b": 2.5}, rounds=2, train=train)
    assert job.run()["w"].tobytes() == without.run()["w"].tobytes()
    assert [(each["round"], each["site"]) for each in job.sites.of("update.rejected")] == [
        (1, "x"),
        (2, "x"),
    ]
    # It is asked again with the next version, and not before: it cannot keep the job busy.
    assert [ask[0] for ask in job.sites.asked if ask[1] == "x"] == [0.0, 2.5]


def test_a_fast_site_cannot_fill_a_version_alone() -> None:
    job = Job(takes={"fast": 0.1, "a": 1.0, "b": 2.5}, rounds=2, train=lambda s, n, w: update(w))
    job.run()
    for version in (1, 2):
        sites = [site for number, site, _ in job.who() if number == version]
        assert len(sites) == len(set(sites)) == 2


# --- deadlines and lost sites -------------------------------------------------------------


def silent(site: str, number: int, arrays: dict[str, Array]) -> RecordDict | None:
    return None if site == "c" else steps(site, number, arrays)


def test_a_site_that_never_answers_is_named_at_the_deadline_and_asked_again() -> None:
    takes = {"a": 1.0, "b": 2.5, "c": 1.0}
    job = Job(train=silent, rounds=5, takes=takes, seconds=6.0)
    job.run()
    (late,) = job.sites.of("update.rejected")
    assert (late["site"], late["reason"]) == ("c", "no answer within 6 s")
    assert [ask[0] for ask in job.sites.asked if ask[1] == "c"] == [0.0, 7.5]


def test_a_late_site_ends_a_job_that_wants_no_stragglers() -> None:
    takes = {"a": 1.0, "b": 2.5, "c": 1.0}
    job = Job(train=silent, rounds=9, takes=takes, seconds=6.0, stragglers="fail")
    with pytest.raises(QuorumNotReached, match="c did not answer within 6 s"):
        job.run()


def test_at_the_deadline_a_version_is_made_of_the_quorum_or_not_at_all() -> None:
    options = {"buffer_size": 3}
    made = Job(
        options=options, train=silent, rounds=1, takes={"a": 1.0, "b": 2.5, "c": 1.0}, quorum=2
    )
    assert float(made.run()["w"][0]) == 5.5
    assert made.sites.of("round.finished")[0]["seconds"] == 60.0
    short = Job(
        options=options, train=silent, rounds=1, takes={"a": 1.0, "b": 2.5, "c": 1.0}, quorum=3
    )
    with pytest.raises(
        QuorumNotReached, match="version 1: 2 updates within 60 s can be used, 3 are"
    ):
        short.run()


def test_a_site_that_is_offline_costs_no_waiting_and_one_that_returns_is_asked() -> None:
    def train(site: str, number: int, arrays: dict[str, Array]) -> RecordDict:
        if number == 2:
            job.sites.gone.clear()
        return steps(site, number, arrays)

    job = Job(rounds=4, train=train, quorum=2)
    job.sites.gone.add("c")
    job.run()
    assert [each["sites"] for each in job.sites.of("round.started")][:2] == [["a", "b"]] * 2
    assert [ask[1] for ask in job.sites.asked][-1] in {"a", "b", "c"}
    assert "c" in [ask[1] for ask in job.sites.asked]


def test_without_a_site_that_could_answer_a_version_ends_at_once() -> None:
    job = Job(rounds=1, train=lambda site, *_: "planted")
    with pytest.raises(QuorumNotReached, match="0 updates"):
        job.run()
    assert job.sites.clock.now == 10.0  # when the last of them has answered


# --- concurrency ----------------------------------------------------------------------------


def test_so_many_sites_train_at_once_and_no_more() -> None:
    seconds = {f"s{n}": 1.0 + n / 7 for n in range(10)}
    job = Job(
        options={"buffer_size": 3, "concurrency": 4},
        takes=seconds,
        train=lambda site, number, arrays: update(arrays),
        rounds=6,
    )
    job.run()
    assert [len(each["sites"]) for each in job.sites.of("round.started")] == [4] * 6
    assert len({ask[1] for ask in job.sites.asked}) > 6  # they are drawn from all
    again = Job(
        options={"buffer_size": 3, "concurrency": 4},
        takes=seconds,
        train=lambda site, number, arrays: update(arrays),
        rounds=6,
    )
    again.run()
    assert again.sites.asked == job.sites.asked


# --- resuming -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["fedasync", "fedbuff"])
@pytest.mark.parametrize("after", [3, 5, 7])
def test_a_job_that_is_killed_makes_the_same_versions(name: str, after: int) -> None:
    def train(site: str, number: int, arrays: dict[str, Array]) -> RecordDict:
        return update({"w": arrays["w"] * np.float32(0.9) + np.float32(STEPS[site] / number)})

    options = {"staleness": "polynomial"}
    whole = Job(name, options, rounds=8, train=train, evaluate_fraction=1.0)
    expected = whole.run()

    killed = Job(name, options, rounds=8, train=train, evaluate_fraction=1.0)
    killed.sites.dies = lambda: len(killed.sites.of("update.received")) >= after
    with pytest.raises(KeyboardInterrupt):
        killed.run()
    resumed = Job(name, options, rounds=8, train=train, evaluate_fraction=1.0)
    resumed.sites.checkpoints = killed.sites.checkpoints
    resumed.sites.clock.now = killed.sites.saved_at
    found = resumed.run()
    assert found["w"].tobytes() == expected["w"].tobytes()
    done = resumed.sites.of("job.started")[0]["resumed_from"]
    assert 0 < done < 8
    assert resumed.who() == [who for who in whole.who() if who[0] > done]
    assert [each["seconds"] for each in resumed.sites.of("round.finished")] == [
        each["seconds"] for each in whole.sites.of("round.finished") if each["round"] > done
    ]
    assert resumed.result.evaluate_metrics_clientapp == whole.result.evaluate_metrics_clientapp


def test_a_site_that_loses_its_admission_is_not_in_the_version_that_is_made_again() -> None:
    job = Job(
        rounds=2,
        takes={"x": 0.8, **SECONDS},
        train=lambda site, n, w: (
            update({"w": w["w"] + np.float32(1000)}) if site == "x" else steps(site, n, w)
        ),
    )
    live = job.sites.live_sites

    def revoked() -> dict[str, int]:
        # x is revoked while version 2 is made, after its update has arrived.
        if len(job.sites.of("update.received")) == 4:
            job.sites.revoked.add("x")
            job.sites.gone.add("x")
        return live()

    job.sites.live_sites = revoked  # type: ignore[method-assign]
    value = float(job.run()["w"][0])
    assert any("run again" in each["line"] for each in job.sites.of("log"))
    last = [who for who in job.who() if who[0] == 2][-2:]
    assert "x" not in {site for _, site, _ in last}
    assert value == pytest.approx((1 + 1000) / 2 + sum(STEPS[site] for _, site, _ in last) / 2)


# --- evaluation -------------------------------------------------------------------------------


def test_idle_sites_evaluate_a_version_and_all_sites_the_last() -> None:
    job = Job(rounds=2, evaluate_fraction=1.0)
    job.run()
    asked = [(site, number) for _, site, number, kind in job.sites.asked if kind == "evaluate"]
    assert sorted(asked) == [("a", 1), ("a", 2), ("b", 1), ("b", 2), ("c", 2)]
    assert set(job.result.evaluate_metrics_clientapp) == {1, 2}


# --- the sum -------------------------------------------------------------------------------------

TYPES: dict[str, Array] = {
    "f4": np.array([1.0, -2.0], np.float32),
    "f8": np.array([1.0, -2.0]),
    "f2": np.array([1.0, -2.0], np.float16),
    "bf16": to_bfloat16(np.array([1.0, -2.0], np.float32)),
    "i8": np.array([4, -4], np.int64),
    "bool": np.array([True, False]),
    "scalar": np.array(3, np.int64),
}


@pytest.mark.parametrize("name", sorted(TYPES))
def test_a_model_keeps_its_element_types(name: str) -> None:
    model = {"w": TYPES[name]}
    buffer = VersionBuffer(model)
    buffer.add(model, model, scale=0.5, weight=3)
    found = buffer.result(1.0)
    assert found is not None
    assert found["w"].dtype == TYPES[name].dtype
    assert found["w"].tobytes() == TYPES[name].tobytes()


def test_the_order_of_arrival_changes_no_bit() -> None:
    rng = np.random.default_rng(1)
    model = {
        "w": rng.normal(size=1000).astype(np.float32),
        "b": to_bfloat16(np.ones(3, np.float32)),
    }
    updates = [
        ({"w": rng.normal(size=1000).astype(np.float32), "b": model["b"]}, 0.3 + n, n + 1)
        for n in range(6)
    ]
    found = []
    for order in (range(6), reversed(range(6))):
        buffer = VersionBuffer(model)
        for index in order:
            arrays, scale, weight = updates[index]
            buffer.add(arrays, model, scale=scale, weight=weight)
        result = buffer.result(0.7)
        assert result is not None
        found.append(result)
    assert found[0]["w"].tobytes() == found[1]["w"].tobytes()
    assert to_float32(found[0]["b"]).tolist() == [1.0] * 3
    assert found[0]["b"].dtype == BF16


def test_updates_that_weigh_nothing_make_no_version() -> None:
    job = Job(rounds=1, train=lambda site, number, arrays: update(arrays, examples=0))
    with pytest.raises(RoundError, match="none of the 1 rounds made a model"):
        rounds_of(job)


def rounds_of(job: Job) -> None:
    spec, coordinator = job.spec, job.sites
    rules = Rules(
        sites=spec.sites, quorum=1, seconds=60.0, stragglers="drop", max_update_bytes=10**6
    )
    grid = JobGrid(coordinator, rules, coordinator.clock)
    rounds = Rounds(coordinator, spec, grid)
    model = record_of({"w": np.zeros(3, np.float32)})
    rounds.run(
        Stage(strategy=Asynchronous(coordinator, grid, spec), arrays=model, rounds=1, timeout=60)
    )
    assert coordinator.of("round.skipped")
    rounds.check_made()


@pytest.mark.parametrize("staleness", [0, 1, 7])
def test_weights_of_staleness_are_those_of_the_paper(staleness: int) -> None:
    assert staleness_weight("constant", staleness, a=9) == 1
    assert staleness_weight("polynomial", staleness, a=0.5) == pytest.approx(
        (staleness + 1) ** -0.5
    )
    expected = 1.0 if staleness <= 4 else 1 / (10 * (staleness - 4) + 1)
    assert staleness_weight("hinge", staleness, a=10, b=4) == pytest.approx(expected)
