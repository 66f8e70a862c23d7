"""Jobs whose updates are compressed, with real processes: the same bits, and who refuses what."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedlearn.compression.spec import CompressionSpec
from fedlearn.privacy import PrivacySpec
from server.flower.application.bundle import build
from server.flower.job_plan import Outcome
from server.flower.job_runner import JobRunner
from tests.harness.flower_federation import (
    Channel,
    During,
    FlowerFederation,
    ended,
    make_plan,
    write_app,
)

pytestmark = pytest.mark.e2e

INT8 = CompressionSpec(update="int8")
SIZE = 100_000


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return build(write_app(tmp_path_factory.mktemp("src") / "app"))


@pytest.fixture
def federation(tmp_path: Path) -> Iterator[FlowerFederation]:
    made = FlowerFederation(tmp_path)
    yield made
    made.close()


def go(
    federation: FlowerFederation,
    bundle: bytes,
    *,
    plain: str = "",
    during: During | None = None,
    **plan: Any,
) -> tuple[Outcome, Channel]:
    """Run a job of two sites; the client of the site ``plain`` does not compress."""
    values = {"sites": 2, "run_config": {"size": SIZE}, "strategy": "fedavg", **plan}
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


def model(channel: Channel) -> dict[str, Any]:
    return {name: np.array(array) for name, array in channel.models[-1].items()}


def test_a_job_that_is_killed_ends_with_the_bits_of_one_that_is_not(
    federation: FlowerFederation, bundle: bytes
) -> None:
    config = {"size": SIZE, "pause": 0.3}
    whole, expected = go(federation, bundle, job="whole", run_config=config, compression=INT8)
    assert whole.status == "finished", whole

    def kill(host: JobRunner, channel: Channel) -> None:
        channel.wait_for("update.received", 3)  # in the middle of round 2
        os.kill(host.pids[0], signal.SIGKILL)
        assert ended(host, 30).code == "crashed"
        host.start()

    resumed, channel = go(
        federation, bundle, job="killed", run_config=config, compression=INT8, during=kill
    )
    assert resumed.status == "finished", resumed
    assert channel.of("job.started")[-1]["resumed_from"] >= 1
    assert channel.of("job.started")[-1]["compression"] == "int8 with error feedback"
    found, wanted = model(channel), model(expected)
    assert {name: array.tobytes() for name, array in found.items()} == {
        name: array.tobytes() for name, array in wanted.items()
    }
    # What travelled is a quarter, and the report states what was saved.
    for fields in expected.of("round.finished"):
        assert fields["bytes_received"] < 2 * SIZE * 1.1 + 10_000
        assert fields["bytes_saved"] == pytest.approx(2 * 3 * SIZE, rel=0.02)
        assert fields["bytes_received"] < fields["bytes"]
    exact, plain = go(federation, bundle, job="plain")
    assert exact.status == "finished"
    assert [fields["bytes_saved"] for fields in plain.of("round.finished")] == [0, 0, 0]
    assert np.abs(model(plain)["0"] - wanted["0"]).max() < 0.02


def test_a_client_that_does_not_compress_is_refused_by_name(
    federation: FlowerFederation, bundle: bytes
) -> None:
    outcome, channel = go(
        federation, bundle, job="one-plain", plain="site-1", quorum=1, compression=INT8, rounds=1
    )
    assert outcome.status == "finished", outcome
    (rejected,) = channel.of("update.rejected")
    assert rejected["site"] == "site-1"
    assert (
        "is not encoded as the job's [compression] declares (int8 with error feedback)"
        in (rejected["reason"])
    )
    assert channel.of("round.finished")[0]["sites"] == 1


@pytest.mark.long
def test_under_privacy_what_is_decoded_is_within_the_bound(
    federation: FlowerFederation, bundle: bytes
) -> None:
    privacy = PrivacySpec(clip=1.0, noise_multiplier=1.0, epsilon=50.0, delta=1e-5)
    spec = CompressionSpec(update="int8", error_feedback=False)
    outcome, channel = go(
        federation, bundle, job="private", privacy=privacy, compression=spec, noise_secret=bytes(32)
    )
    assert outcome.status == "finished", outcome
    assert not channel.of("update.rejected")
    assert [fields["sites"] for fields in channel.of("round.finished")] == [2, 2, 2]


@pytest.mark.long
def test_a_robust_rule_and_a_strategy_of_the_app_get_decoded_updates(
    federation: FlowerFederation, bundle: bytes
) -> None:
    topk = CompressionSpec(update="topk", fraction=0.5)
    plans: dict[str, dict[str, Any]] = {
        "robust": {"strategy": "fedmedian"},
        "visible": {"strategy": "app", "updates": "visible-to-app"},
    }
    for job, plan in plans.items():
        outcome, channel = go(federation, bundle, job=job, rounds=2, compression=topk, **plan)
        assert outcome.status == "finished", (outcome, channel.events[-3:])
        assert model(channel)["0"].shape == (SIZE,)
        assert channel.of("round.finished")[1]["bytes_saved"] > SIZE


def test_arrays_that_do_not_travel_stay_as_they_are(
    federation: FlowerFederation, bundle: bytes
) -> None:
    only = CompressionSpec(arrays=("1",))
    outcome, channel = go(federation, bundle, job="adapter", rounds=2, compression=only)
    assert outcome.status == "finished", outcome
    first, last = channel.models
    assert first["0"].tobytes() == last["0"].tobytes()
    assert (int(first["1"]), int(last["1"])) == (1, 2)
    assert channel.of("round.finished")[0]["bytes_received"] < 10_000
    none = CompressionSpec(arrays=("lora*",))
    refused, _ = go(federation, bundle, job="none", compression=none)
    assert refused.status == "failed"
    assert "no array of the model matches 'lora*'; it has 0, 1" in refused.message
