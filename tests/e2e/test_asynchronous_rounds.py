"""Asynchronous jobs with real processes, one of whose sites is slow: versions, refusals, a kill."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedlearn.compression.spec import CompressionSpec
from server.flower.application.bundle import build
from server.flower.job_plan import Outcome
from server.flower.job_runner import JobRunner
from tests.harness.flower_federation import (
    CLIENT_APP,
    Channel,
    During,
    FlowerFederation,
    ended,
    make_plan,
    write_app,
)

pytestmark = pytest.mark.e2e

SLOW = CLIENT_APP.replace(
    'time.sleep(context.run_config["pause"])',
    'time.sleep(context.run_config["pause"] * (8 if context.node_config["index"] == 2 else 1))',
)
BUFFER: dict[str, Any] = {"strategy": "fedbuff", "options": {"buffer_size": 2}}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    assert SLOW != CLIENT_APP
    return build(write_app(tmp_path_factory.mktemp("src") / "app", client=SLOW))


@pytest.fixture
def federation(tmp_path: Path) -> Iterator[FlowerFederation]:
    made = FlowerFederation(tmp_path)
    yield made
    made.close()


def go(
    federation: FlowerFederation,
    bundle: bytes,
    *,
    during: During | None = None,
    plain: str = "",
    **plan: Any,
) -> tuple[Outcome, Channel]:
    """Run a job of three sites, of which the last is slow."""
    values = {"sites": 3, "quorum": 1, "run_config": {"pause": 0.2}, **BUFFER, **plan}
    made = make_plan(bundle, **values)
    host, channel = federation.host(made)
    for site in made.spec.sites:
        federation.client(made, site, cheats=site == plain)
    host.start()
    if during is not None:
        during(host, channel)
    outcome = ended(host, 60)
    host.close()
    return outcome, channel


def versions(channel: Channel) -> dict[int, list[tuple[str, int]]]:
    """Return the sites and the staleness of the updates in each version, in their order."""
    found: dict[int, list[tuple[str, int]]] = {}
    for fields in channel.of("update.received"):
        found.setdefault(fields["round"], []).append((fields["site"], fields["staleness"]))
    return found


def test_versions_do_not_wait_for_the_slow_site_and_its_update_enters_a_later_one(
    federation: FlowerFederation, bundle: bytes
) -> None:
    outcome, channel = go(federation, bundle, job="slow", rounds=8)
    assert (outcome.status, outcome.rounds) == ("finished", 8), outcome
    made = versions(channel)
    assert list(made) == [*range(1, 9)]
    for each in made.values():
        assert len({site for site, _ in each}) == len(each) == 2
    late = [staleness for each in made.values() for site, staleness in each if site == "site-2"]
    assert late
    assert max(late) >= 2
    assert {staleness for site, staleness in made[1] if site != "site-2"} == {0}
    assert len(channel.checkpoints) == 8
    # Most versions are made while the slow site trains: each takes a fraction of its 1.6 s.
    seconds = sorted(fields["seconds"] for fields in channel.of("round.finished"))
    assert seconds[len(seconds) // 2] < 1.2
    assert np.isfinite(channel.models[-1]["0"]).all()
    # A client's state lives on from call to call, whatever version the call trains.
    calls = [
        fields["metrics"]["calls"]
        for fields in channel.of("update.received")
        if fields["site"] == "site-0"
    ]
    assert calls == [*map(float, range(1, len(calls) + 1))]


@pytest.mark.long
def test_a_job_that_is_killed_goes_on_with_the_calls_that_were_open(
    federation: FlowerFederation, bundle: bytes
) -> None:
    def kill(host: JobRunner, channel: Channel) -> None:
        channel.wait_for("round.finished", 2)
        os.kill(host.pids[0], signal.SIGKILL)
        assert ended(host, 30).code == "crashed"
        host.start()

    outcome, channel = go(federation, bundle, job="killed", rounds=24, during=kill)
    assert outcome.status == "finished", outcome
    resumed = channel.of("job.started")[-1]["resumed_from"]
    assert resumed >= 2
    started = [fields["round"] for fields in channel.of("round.started")]
    assert started[-(24 - resumed) :] == [*range(resumed + 1, 25)]
    # The slow site trained version 0 when the job was killed; it did so again, with that model.
    slow = [fields for fields in channel.of("update.received") if fields["site"] == "site-2"]
    assert slow
    assert slow[0]["round"] - 1 - slow[0]["staleness"] == 0
    assert slow[0]["metrics"]["calls"] == 1.0


@pytest.mark.long
def test_updates_are_decoded_by_the_version_that_was_sent_and_too_old_ones_are_named(
    federation: FlowerFederation, bundle: bytes
) -> None:
    outcome, channel = go(
        federation,
        bundle,
        job="packed",
        rounds=16,
        plain="site-1",
        compression=CompressionSpec(update="int8"),
        options={"buffer_size": 1, "max_staleness": 1},
    )
    assert outcome.status == "finished", outcome
    refused = {fields["site"]: fields["reason"] for fields in channel.of("update.rejected")}
    assert "is not encoded as the job's [compression] declares" in refused["site-1"]
    assert re.fullmatch(
        r"it was trained on version \d+, and version \d+ is the newest: its staleness is \d+, and "
        "max_staleness is 1",
        refused["site-2"],
    )
    assert {site for each in versions(channel).values() for site, _ in each} == {"site-0"}
    # The app halves the model and adds at most 1 times the number of the call: decoded against
    # another version than it trained, the model would grow beyond twice that.
    assert np.abs(channel.models[-1]["0"]).max() < 2 * 16 + 1
