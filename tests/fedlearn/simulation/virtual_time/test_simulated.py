"""Jobs in virtual time: rounds and versions take the seconds of their sites, and repeat."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedlearn.errors import ConfigError, Interrupted, QuorumNotReached
from fedlearn.results.run_folder import RunFolder
from fedlearn.simulation import Hook, SimulatedRun, simulate
from fedlearn.simulation.setup import SimulationSetup
from fedlearn.simulation.virtual_time.durations import Durations
from fedlearn.simulation.virtual_time.setup import TimeSetup
from tests.harness.flower_federation import CLIENT_APP, write_app

JOB = """name = "timed"
app = "app"
rounds = 4
sites = ["a", "b", "c", "d", "e"]
policy = "policy.toml"
seed = 7
[strategy]
name = "fedavg"
[evaluate]
fraction = 0.0
"""
SITES = ("a", "b", "c", "d", "e")
SPREAD: dict[str, Any] = {"speed": "lognormal", "seconds": 20.0, "spread": 1.0}
BUFF: dict[str, Any] = {"strategy.name": "fedbuff", "strategy.options": {"buffer_size": 2}}


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("job")
    client = CLIENT_APP.replace('node_config["index"]', 'node_config["partition-id"]')
    write_app(folder / "app", client=client)
    (folder / "job.toml").write_text(JOB)
    return folder / "job.toml"


def run(job: Path, overrides: Mapping[str, Any] | None = None, **time: Any) -> SimulatedRun:
    return simulate(
        job, setup=SimulationSetup(time=TimeSetup(**(time or SPREAD))), overrides=overrides or {}
    )


def seconds(run: SimulatedRun) -> list[float]:
    found = [each.virtual_seconds for each in run.history if each.number]
    assert None not in found
    return [each for each in found if each is not None]


def taken(site: str, number: int, **time: Any) -> float:
    durations = Durations.of(TimeSetup(**time), 7, SITES, lambda site: 0)
    return durations.seconds(site, number, "train", 0)


def bits(run: SimulatedRun) -> dict[str, bytes]:
    return {name: array.tobytes() for name, array in run.model.items()}


def received(run: SimulatedRun) -> list[dict[str, Any]]:
    events = [event.to_json() for event, _ in RunFolder.load(run.folder).events()]
    return [fields for fields in events if fields["kind"] == "update.received"]


def test_a_round_takes_as_long_as_its_slowest_site(job: Path) -> None:
    time = {**SPREAD, "jitter": 0.5}
    found = run(job, **time)
    expected = [max(taken(site, number, **time) for site in SITES) for number in range(1, 5)]
    assert seconds(found) == pytest.approx(expected)
    assert len(set(expected)) == 4
    assert all(each.seconds < 20 for each in found.history)


def test_the_model_of_rounds_is_the_same_with_and_without_virtual_time(job: Path) -> None:
    assert bits(run(job)) == bits(simulate(job))


def test_versions_do_not_wait_for_slow_sites_and_repeat_to_the_bit(job: Path) -> None:
    rounds, versions = run(job), run(job, BUFF)
    assert sum(seconds(versions)) < sum(seconds(rounds))
    assert bits(run(job, BUFF)) == bits(versions) != bits(rounds)
    # The first version is made of the two fastest sites, when the second of them has answered.
    fastest = sorted(SITES, key=lambda site: taken(site, 1, **SPREAD))[:2]
    assert [fields["site"] for fields in received(versions)[:2]] == fastest
    assert seconds(versions)[0] == pytest.approx(taken(fastest[1], 1, **SPREAD))
    again = run(job, {**BUFF, "seed": 8})
    assert bits(again) != bits(versions)


def test_the_number_of_workers_changes_no_bit_of_a_version(job: Path) -> None:
    setup = SimulationSetup(time=TimeSetup(**SPREAD, dropout=0.1))
    overrides = {**BUFF, "rounds": 3, "deadline_s": 100.0, "quorum": 1}
    alone, together = (
        simulate(job, setup=setup, overrides=overrides, workers=workers) for workers in (0, 2)
    )
    assert bits(together) == bits(alone)
    assert seconds(together) == seconds(alone)
    names = ("round", "site", "staleness")
    assert [[each[name] for name in names] for each in received(together)] == [
        [each[name] for name in names] for each in received(alone)
    ]


@pytest.mark.parametrize("name", ["fedasync", "fedbuff"])
def test_a_simulation_that_is_interrupted_goes_on_to_the_same_bits(
    job: Path, tmp_path: Path, name: str
) -> None:
    class Stop(Hook):
        calls = 0

        def answered(self, call: Any, asked: Any, arrays: Any, metrics: Any) -> Any:
            self.calls += 1
            if self.calls == 7:
                raise KeyboardInterrupt
            return arrays

    options: dict[str, Any] = {"buffer_size": 2} if name == "fedbuff" else {}
    overrides = {
        "strategy.name": name,
        "strategy.options": options,
        "rounds": 6,
        "evaluate.fraction": 1.0,
    }
    setup = SimulationSetup(time=TimeSetup(**SPREAD, evaluation=0.1, availability="markov"))
    whole = simulate(job, setup=setup, overrides=overrides)
    folder = tmp_path / "run"
    with pytest.raises(Interrupted):
        simulate(job, setup=setup, overrides=overrides, folder=folder, hooks=[Stop()])
    with pytest.raises(ConfigError, match="is continued without"):
        simulate(job, overrides=overrides, folder=folder, resume=True)
    found = simulate(job, setup=setup, overrides=overrides, folder=folder, resume=True)
    assert bits(found) == bits(whole)
    assert seconds(found) == seconds(whole)
    assert [each.evaluate for each in found.history] == [each.evaluate for each in whole.history]


def test_a_deadline_is_one_of_virtual_seconds(job: Path) -> None:
    slowest = max(SITES, key=lambda site: taken(site, 1, **SPREAD))
    limit = taken(slowest, 1, **SPREAD) - 0.5
    found = run(job, {"deadline_s": limit, "quorum": 2, "rounds": 2})
    # It is busy with the withdrawn call when the second round begins, and late again.
    assert seconds(found) == pytest.approx([limit, limit])
    assert slowest not in {fields["site"] for fields in received(found)}
    with pytest.raises(QuorumNotReached, match="did not answer within"):
        run(job, {"deadline_s": limit, "quorum": 2, "stragglers": "fail"})


def test_a_site_that_is_not_available_is_offline_for_the_job(job: Path, tmp_path: Path) -> None:
    trace = tmp_path / "online.csv"
    rows = "".join(f"{site},0,1e6\n" for site in SITES[1:])
    trace.write_text("site,start_s,end_s\na,80,1e6\n" + rows)
    found = run(
        job,
        {"quorum": 2},
        seconds=30.0,
        availability="trace",
        availability_trace=trace,
    )
    sites = [{e["site"] for e in received(found) if e["round"] == n} for n in range(1, 5)]
    assert sites == [{*SITES[1:]}, {*SITES[1:]}, {*SITES[1:]}, {*SITES}]


def test_without_enough_sites_a_job_ends_at_its_deadline_of_virtual_time(
    job: Path, tmp_path: Path
) -> None:
    trace = tmp_path / "online.csv"
    trace.write_text("site,start_s,end_s\n" + "".join(f"{site},1e6,2e6\n" for site in SITES))
    with pytest.raises(QuorumNotReached, match="0 of 5 sites are online after 600 s"):
        run(job, availability="trace", availability_trace=trace)


def test_who_drops_out_is_late_in_rounds_and_holds_up_no_version(job: Path) -> None:
    overrides = {"deadline_s": 60.0, "quorum": 1}
    rounds = run(job, overrides, seconds=5.0, dropout=0.4)
    assert 60.0 in seconds(rounds)
    versions = run(job, {**overrides, **BUFF}, seconds=5.0, dropout=0.2)
    assert sum(seconds(versions)) < 60.0


def test_many_clients_take_the_place_of_the_sites_of_an_asynchronous_job(job: Path) -> None:
    overrides = {
        "strategy.name": "fedbuff",
        "strategy.options": {"buffer_size": 20, "concurrency": 40},
        "rounds": 3,
    }
    setup = SimulationSetup(time=TimeSetup(**SPREAD))
    found = simulate(job, clients=100, setup=setup, overrides=overrides)
    assert [each.sites for each in found.history if each.number] == [20, 20, 20]
    assert np.isfinite(found.model["0"]).all()


def test_examples_are_counted_in_the_data_of_the_sites(job: Path, tmp_path: Path) -> None:
    for number, site in enumerate(SITES, start=1):
        (tmp_path / "data" / site).mkdir(parents=True)
        np.savez(tmp_path / "data" / site / "data.npz", y=np.zeros(100 * number))
    time = TimeSetup(seconds=1.0, seconds_per_example=0.01)
    setup = SimulationSetup(time=time)
    found = simulate(job, data=tmp_path / "data", setup=setup, overrides={"rounds": 1})
    assert seconds(found) == pytest.approx([1 + 5.0])
    with pytest.raises(ConfigError, match="a has no data, whose examples could be counted"):
        simulate(job, setup=setup)
    (tmp_path / "data" / "b" / "data.npz").write_bytes(b"PK\x03\x04 cut short")
    with pytest.raises(ConfigError, match=r"b/data\.npz: its array 'y', the labels, cannot be"):
        simulate(job, data=tmp_path / "data", setup=setup)


def test_the_table_is_part_of_the_file_of_a_simulation(tmp_path: Path) -> None:
    file = tmp_path / "simulation.toml"
    file.write_text('[time]\nspeed = "trace"\nspeed_trace = "speeds.csv"\n')
    setup = SimulationSetup.load(file)
    assert setup.time is not None
    assert setup.time.speed_trace == tmp_path / "speeds.csv"
    file.write_text('[clients]\ncount = 3\n[time]\nspeed = "fast"\n')
    with pytest.raises(ConfigError, match=r"simulation\.toml:4: time\.speed: must be one of"):
        SimulationSetup.load(file)


def test_a_round_that_asks_more_sites_than_it_needs_takes_less_time(job: Path) -> None:
    overrides = {"quorum": 1, "rounds": 3}
    half = run(job, {**overrides, "strategy.options": {"fraction_train": 0.4}})
    options = {"fraction_train": 0.4, "over_select": 2.0}
    more = run(job, {**overrides, "strategy.options": options})
    assert [each.sites for each in more.history if each.number] == [2, 2, 2]
    assert sum(seconds(more)) < sum(seconds(half))
    assert bits(run(job, {**overrides, "strategy.options": options})) == bits(more)
