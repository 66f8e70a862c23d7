"""The models of virtual time: what they promise on average, and that they are pure functions."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable
from typing import Any

import pytest

from attestation.config import InconsistentValues
from fedlearn import config
from fedlearn.errors import ConfigError
from fedlearn.simulation.virtual_time.availability import availability_of
from fedlearn.simulation.virtual_time.draws import exponential, lognormal, uniform
from fedlearn.simulation.virtual_time.durations import Durations
from fedlearn.simulation.virtual_time.setup import TimeSetup

SITES = tuple(f"s{n}" for n in range(400))


def durations(
    examples: Callable[[str], int] = lambda site: 0, seed: int = 7, **more: Any
) -> Durations:
    return Durations.of(TimeSetup(**more), seed, SITES, examples)


def test_draws_have_the_distributions_that_they_name() -> None:
    drawn = [uniform(1, "x", n) for n in range(2000)]
    assert statistics.fmean(drawn) == pytest.approx(0.5, abs=0.02)
    assert 0 < min(drawn) < max(drawn) < 1
    logs = [math.log(lognormal(0.7, 1, "x", n)) for n in range(2000)]
    assert statistics.fmean(logs) == pytest.approx(0, abs=0.05)
    assert statistics.stdev(logs) == pytest.approx(0.7, rel=0.05)
    stays = [exponential(30.0, 1, "x", n) for n in range(2000)]
    assert statistics.fmean(stays) == pytest.approx(30, rel=0.07)
    assert lognormal(0.0, 1, "x") == 1.0


def test_a_constant_speed_is_that_of_every_site_and_call() -> None:
    found = durations(speed="constant", seconds=20.0, evaluation=0.1)
    assert {found.seconds(site, 3, "train", 10**6) for site in SITES} == {20.0}
    assert found.seconds("s0", 3, "evaluate", 10**6) == 2.0
    assert found.seconds("s0", 3, "query", 10**6) == 0.0


def test_lognormal_speeds_spread_over_sites_and_jitter_between_calls() -> None:
    found = durations(speed="lognormal", seconds=20.0, spread=0.8)
    logs = [math.log(found.seconds(site, 1, "train", 0) / 20) for site in SITES]
    assert statistics.stdev(logs) == pytest.approx(0.8, rel=0.1)
    assert found.seconds("s1", 1, "train", 0) == found.seconds("s1", 2, "train", 0)
    jittered = durations(speed="lognormal", seconds=20.0, spread=0.0, jitter=0.3)
    calls = [math.log(jittered.seconds("s1", n, "train", 0) / 20) for n in range(400)]
    assert statistics.stdev(calls) == pytest.approx(0.3, rel=0.1)
    assert jittered.seconds("s1", 5, "train", 0) == jittered.seconds("s1", 5, "train", 0)
    other = durations(speed="lognormal", seconds=20.0, spread=0.8, seed=8)
    assert other.seconds("s1", 1, "train", 0) != found.seconds("s1", 1, "train", 0)


def test_examples_cost_what_the_speed_of_their_site_makes_of_them() -> None:
    found = durations(
        lambda site: 300 if site == "s1" else 100, seconds=5.0, seconds_per_example=0.01
    )
    assert found.seconds("s0", 1, "train", 0) == 6.0
    assert found.seconds("s1", 1, "train", 0) == 8.0

    def unread(site: str) -> int:
        raise AssertionError

    assert durations(unread, seconds=5.0).seconds("s0", 1, "train", 0) == 5.0


def test_bytes_take_time_both_ways() -> None:
    found = durations(
        seconds=0.0, download_mbit_s=80.0, upload_mbit_s=8.0, latency_s=0.05, upload_part=0.25
    )
    # 10 MB down at 10 MB/s, 2.5 MB up at 1 MB/s, and the latency twice.
    assert found.seconds("s0", 1, "train", 10_000_000) == pytest.approx(1.0 + 2.5 + 0.1)
    assert found.seconds("s0", 1, "evaluate", 10_000_000) == pytest.approx(1.0 + 0.1)
    spread = durations(seconds=0.0, download_mbit_s=80.0, bandwidth_spread=1.0)
    assert len({spread.seconds(site, 1, "train", 10**6) for site in SITES}) == len(SITES)


def test_a_share_of_calls_drops_out() -> None:
    found = durations(dropout=0.2)
    dropped = [found.dropped(site, n, "train") for site in SITES for n in range(5)]
    assert statistics.fmean(dropped) == pytest.approx(0.2, abs=0.03)
    assert not any(durations().dropped(site, 1, "train") for site in SITES)
    assert all(durations(dropout=1.0).dropped(site, 1, "train") for site in SITES)


# --- availability -------------------------------------------------------------------------


def share(model: Any, now: float) -> float:
    return statistics.fmean(model.online(site, now) for site in SITES)


def test_sites_are_always_there_unless_something_else_is_asked() -> None:
    model = availability_of(TimeSetup(), 7, SITES)
    assert share(model, 0.0) == 1.0
    assert model.changes("s0", 5.0) == math.inf


def test_bernoulli_draws_each_slot_anew() -> None:
    model = availability_of(
        TimeSetup(availability="bernoulli", available=0.3, slot_s=60.0), 7, SITES
    )
    assert [share(model, 60.0 * n) for n in range(5)] == pytest.approx([0.3] * 5, abs=0.08)
    there = [model.online("s0", t) for t in range(0, 6000, 10)]
    assert all(len(set(there[n : n + 6])) == 1 for n in range(0, 600, 6))
    assert len(set(there)) == 2
    assert model.changes("s0", 61.0) == 120.0


def test_markov_stays_on_and_off_for_its_mean_times() -> None:
    model = availability_of(TimeSetup(availability="markov", on_s=100.0, off_s=300.0), 7, SITES)
    for now in (0.0, 50.0, 5000.0):
        assert share(model, now) == pytest.approx(0.25, abs=0.07)
    stays: dict[bool, list[float]] = {True: [], False: []}
    for site in SITES[:40]:
        now = model.changes(site, 0.0)
        while now < 20_000:
            change = model.changes(site, now)
            assert change > now
            stays[model.online(site, now)].append(change - now)
            assert model.online(site, now) != model.online(site, change)
            now = change
    assert statistics.fmean(stays[True]) == pytest.approx(100, rel=0.1)
    assert statistics.fmean(stays[False]) == pytest.approx(300, rel=0.1)


def test_the_sine_follows_the_time_of_day() -> None:
    setup = TimeSetup(
        availability="sine", available=0.5, amplitude=0.4, period_s=86_400.0, phases=0.0
    )
    model = availability_of(setup, 7, SITES)
    assert share(model, 21_600.0) == pytest.approx(0.9, abs=0.06)
    assert share(model, 64_800.0) == pytest.approx(0.1, abs=0.06)
    zones = availability_of(TimeSetup(availability="sine", amplitude=0.4), 7, SITES)
    assert share(zones, 21_600.0) == pytest.approx(0.5, abs=0.08)


@pytest.mark.parametrize("name", ["bernoulli", "markov", "sine"])
def test_a_moment_has_one_answer_in_whatever_order_it_is_asked(name: str) -> None:
    moments = [0.0, 10_000.0, 17.0, 4711.0, 10_000.0, 3.5]
    forward = availability_of(TimeSetup(availability=name), 7, SITES)
    expected = {now: [forward.online(site, now) for site in SITES[:50]] for now in sorted(moments)}
    model = availability_of(TimeSetup(availability=name), 7, SITES)
    for now in moments:
        assert [model.online(site, now) for site in SITES[:50]] == expected[now]


# --- the table ----------------------------------------------------------------------------

WRONG = {
    'speed = "fast"': "speed: must be one of",
    "seconds = -1": "seconds: must be",
    "spread = 0.5": 'spread: is for speed = "lognormal" only, not "constant"',
    'speed = "trace"': 'speed_trace: is needed for "trace"',
    'speed = "trace"\nspeed_trace = "x.csv"\nseconds = 3': "seconds: is for speed",
    'availability = "markov"\nslot_s = 3': 'slot_s: is for availability = "bernoulli" and "sine"',
    'availability = "bernoulli"\navailable = 0': "available: must be a number above 0, up to 1",
    "dropout = 1.5": "dropout: must be",
    'trace_sites = "drawn"': 'trace_sites: is for a "trace" only',
    "bandwidth_spread = 1": "bandwidth_spread: needs download_mbit_s or upload_mbit_s",
    "clock = 3": "clock: ",
}


@pytest.mark.parametrize("source", sorted(WRONG))
def test_what_is_wrong_in_the_table_is_named_with_its_line(source: str) -> None:
    with pytest.raises(ConfigError) as caught:
        config.read(TimeSetup, source.encode(), where="simulation.toml")
    assert WRONG[source] in str(caught.value)
    assert str(caught.value).startswith("simulation.toml")


def test_defaults_belong_to_the_models_that_are_chosen() -> None:
    found = TimeSetup(speed="lognormal", availability="markov")
    assert (found.seconds, found.spread, found.jitter) == (10.0, 0.5, 0.0)
    assert (found.on_s, found.off_s, found.slot_s, found.available) == (3600.0, 3600.0, None, None)
    with pytest.raises(InconsistentValues):
        TimeSetup(on_s=5.0)
