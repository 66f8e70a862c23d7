"""The virtual clock and its queue: what arrives next, who is online, what a checkpoint keeps."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from fedlearn.errors import ConfigError, StoreError
from fedlearn.simulation.hooks import Call
from fedlearn.simulation.schedule import InOrder
from fedlearn.simulation.virtual_time.availability import availability_of
from fedlearn.simulation.virtual_time.durations import Durations
from fedlearn.simulation.virtual_time.setup import TimeSetup
from fedlearn.simulation.virtual_time.timeline import VirtualTime

SITES = ("a", "b", "c")


@dataclass(frozen=True)
class Fixed:
    """Availability by hand: when each site is there."""

    there: dict[str, list[tuple[float, float]]] = field(default_factory=dict)

    def online(self, site: str, now: float) -> bool:
        spans = self.there.get(site, [(0.0, math.inf)])
        return any(start <= now < end for start, end in spans)

    def changes(self, site: str, now: float) -> float:
        spans = self.there.get(site, [(0.0, math.inf)])
        return min((m for span in spans for m in span if m > now), default=math.inf)


def train(site: str, number: int = 1) -> Call:
    return Call(site=site, round=number, kind="train")


def timeline(seconds: dict[str, float], availability: Any = None, **setup: Any) -> VirtualTime:
    trace = {site: (value,) for site, value in seconds.items()}
    times = TimeSetup(speed="trace", speed_trace=Path("unread.csv"), **setup)
    durations = Durations(times, 7, trace=trace)
    return VirtualTime(durations, availability or Fixed())


def test_answers_arrive_in_the_order_of_their_times() -> None:
    time = timeline({"a": 5.0, "b": 2.0, "c": 9.0})
    for site in SITES:
        time.asked(site, train(site), size=10)
    ids = {"a", "b", "c"}
    assert [(time.next(ids, 100), time.clock.monotonic()) for _ in SITES] == [
        ("b", 2.0),
        ("a", 5.0),
        ("c", 9.0),
    ]
    assert time.next(ids, 100.0) is None
    assert time.clock.monotonic() == 109.0


def test_a_deadline_passes_and_the_answer_is_still_under_way() -> None:
    time = timeline({"a": 5.0})
    time.asked("1", train("a"), size=10)
    assert time.next({"1"}, 4.0) is None
    assert time.clock.monotonic() == 4.0
    assert time.next({"1"}, 4.0) == "1"
    assert time.clock.monotonic() == 5.0


def test_those_that_arrive_together_come_in_the_order_in_which_they_were_asked() -> None:
    time = timeline(dict.fromkeys(SITES, 3.0))
    for id_, site in zip("321", SITES, strict=True):
        time.asked(id_, train(site), size=10)
    assert [time.next({"1", "2", "3"}, 9) for _ in SITES] == ["3", "2", "1"]


def test_an_answer_that_nobody_waits_for_now_is_kept() -> None:
    time = timeline({"a": 1.0, "b": 4.0})
    time.asked("train", train("a"), size=10)
    time.asked("other", train("b"), size=10)
    assert time.next({"other"}, 10.0) == "other"
    assert time.next({"train"}, 10.0) == "train"
    assert time.clock.monotonic() == 4.0  # it had arrived by then


def test_a_withdrawn_call_keeps_its_site_busy() -> None:
    time = timeline({"a": 5.0})
    time.asked("1", train("a"), size=10)
    time.forgotten(["1"])
    time.clock.sleep(1.0)
    time.asked("2", train("a", 2), size=10)
    assert time.next({"1", "2"}, 100.0) == "2"
    assert time.clock.monotonic() == 10.0


def test_who_drops_out_never_answers_and_is_busy_for_as_long() -> None:
    time = timeline({"a": 5.0}, dropout=1.0)
    time.asked("1", train("a"), size=10)
    assert time.next({"1"}, 600.0) is None
    assert time.clock.monotonic() == 600.0


def test_sites_are_online_when_the_model_has_them_there_and_waiting_passes_the_time() -> None:
    time = timeline({}, Fixed({"a": [(10.0, 20.0)], "b": [(15.0, 30.0)]}))
    assert time.online(SITES) == ["c"]
    time.wait_online(SITES, 2, 100.0)
    assert (time.clock.monotonic(), time.online(SITES)) == (10.0, ["a", "c"])
    time.wait_online(SITES, 3, 3.0)
    assert time.clock.monotonic() == 13.0
    time.wait_online(SITES, 3, 100.0)
    assert (time.clock.monotonic(), time.online(SITES)) == (15.0, ["a", "b", "c"])
    time.wait_online(SITES, 4, 60.0)
    assert time.clock.monotonic() == 75.0


def test_who_lists_the_sites_again_and_again_waits_for_others() -> None:
    time = timeline({"c": 1.0}, Fixed({"a": [(50.0, 90.0)]}))
    assert [len(time.online(SITES)) for _ in range(5)] == [2] * 5
    assert time.clock.monotonic() == 0.0
    assert len(time.online(SITES)) == 3
    assert time.clock.monotonic() == 50.0
    time.asked("1", train("c"), size=1)
    assert [len(time.online(SITES)) for _ in range(5)] == [3] * 5
    assert time.clock.monotonic() == 50.0


def test_many_withdrawn_calls_do_not_stay_in_memory() -> None:
    time = timeline({"a": 1.0})
    for number in range(1000):
        time.asked(str(number), train("a", number), size=1)
        time.forgotten([str(number)])
    assert len(time._arrivals) < 200
    assert time._open == {}


def test_a_job_goes_on_from_a_checkpoint_as_if_nothing_had_happened() -> None:
    def ask(time: VirtualTime) -> None:
        for site in SITES:
            time.asked(site, train(site), size=10)

    seconds = {"a": 1.0, "b": 20.0, "c": 3.0}
    whole = timeline(seconds)
    ask(whole)
    assert [whole.next(set(SITES), 99) for _ in range(2)] == ["a", "c"]
    whole.forgotten(["nobody"])
    state = json.loads(json.dumps(whole.state()))
    assert state["now"] == 3.0

    resumed = timeline(seconds)
    resumed.restore(state)
    with resumed.clock.at(0.0):
        resumed.asked("b", train("b"), size=10)
    assert resumed.clock.monotonic() == 3.0
    for time in (whole, resumed):
        time.asked("a2", train("a", 2), size=10)
        assert [time.next({"a2", "b"}, 99) for _ in range(2)] == ["a2", "b"]
        assert time.clock.monotonic() == 20.0


def test_a_site_that_is_busy_with_a_withdrawn_call_is_so_after_a_checkpoint() -> None:
    time = timeline({"a": 5.0})
    time.asked("1", train("a"), size=10)
    time.forgotten(["1"])
    state = json.loads(json.dumps(time.state()))
    assert state["free"] == {"a": 5.0}
    resumed = timeline({"a": 5.0})
    resumed.restore(state)
    resumed.asked("2", train("a"), size=10)
    assert resumed.next({"2"}, 99) == "2"
    assert resumed.clock.monotonic() == 10.0


@pytest.mark.parametrize("part", [{}, {"now": "1", "free": {}}, {"now": 1.0, "free": []}])
def test_a_state_that_is_none_is_refused(part: dict[str, Any]) -> None:
    state = {"setup": timeline({}).state()["setup"], **part}
    with pytest.raises(StoreError, match="no virtual time"):
        timeline({}).restore(state)


def test_the_state_of_another_time_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"time: .* was changed since this run began"):
        timeline({}).restore(timeline({}, latency_s=1.0).state())
    with pytest.raises(ConfigError, match="was changed since this run began"):
        timeline({}).restore(InOrder().state())
    with pytest.raises(ConfigError, match="was begun in virtual time, and is continued without"):
        InOrder().restore(timeline({}).state())
    InOrder().restore(InOrder().state())


def test_models_of_availability_move_the_clock_forward() -> None:
    for name in ("bernoulli", "markov", "sine"):
        setup = TimeSetup(availability=name)
        sites = tuple(f"s{n}" for n in range(20))
        time = VirtualTime(
            Durations.of(setup, 7, sites, lambda site: 0), availability_of(setup, 7, sites)
        )
        time.wait_online(sites, 21, 7200.0)
        assert time.clock.monotonic() == 7200.0
