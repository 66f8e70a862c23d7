"""One job both ways: the weights of a simulation are those of a deployment, to the bit."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from fedlearn.compression.spec import CompressionSpec
from fedlearn.privacy import PrivacySpec, noise_secret
from fedlearn.simulation import SimulatedRun, simulate
from fedlearn.update.arrays import Array
from server.flower.application.bundle import build
from server.flower.job_plan import JobPlan
from tests.harness.flower_federation import (
    CLIENT_APP,
    FlowerFederation,
    ended,
    make_plan,
    write_app,
)

pytestmark = pytest.mark.e2e

CLIENT = CLIENT_APP.replace(
    'context.node_config["index"]',
    'context.node_config.get("partition-id", context.node_config.get("index"))',
)
"""Its state counts the calls, its updates are drawn from the seeded generator of each call."""

PRIVACY = PrivacySpec(
    epsilon=1e9, delta=1e-5, clip=1.0, noise_multiplier=0.5, insecure_deterministic_noise=True
)


def deployed(folder: Path, plan: JobPlan) -> dict[str, Array]:
    """Run a job with a coordinator, TLS and a process for each client and its app."""
    federation = FlowerFederation(folder)
    try:
        host, channel = federation.host(plan)
        for site in plan.spec.sites:
            federation.client(plan, site)
        host.start()
        outcome = ended(host, 120)
        assert outcome.status == "finished", outcome
        return channel.models[-1]
    finally:
        federation.close()


def simulated(folder: Path, plan: JobPlan, **more: Any) -> SimulatedRun:
    """Run the same job with simulated clients."""
    (folder / "job.toml").write_text(plan.spec.to_toml())
    return simulate(folder / "job.toml", **more)


def both(tmp_path: Path, **plan: Any) -> None:
    app = write_app(tmp_path / "app", client=CLIENT)
    made = make_plan(build(app), sites=3, rounds=2, **plan)
    privacy = made.spec.privacy
    if privacy is not None:
        secret = noise_secret(privacy, seed=made.spec.seed)
        made = dataclasses.replace(made, noise_secret=secret)
    (tmp_path / "deployed").mkdir()
    field = deployed(tmp_path / "deployed", made)
    here = simulated(tmp_path, made).model
    assert list(here) == list(field)
    for name, array in field.items():
        assert here[name].dtype == array.dtype
        assert here[name].tobytes() == array.tobytes(), name


def test_central_privacy_with_deterministic_noise_has_the_same_bits(tmp_path: Path) -> None:
    both(tmp_path, strategy="fedavg", privacy=PRIVACY)


@pytest.mark.long
@pytest.mark.parametrize(
    "plan",
    [
        pytest.param({}, id="the app's FedAvg"),
        pytest.param({"strategy": "fedadam", "options": {"eta": 0.1}}, id="FedAdam"),
        pytest.param({"strategy": "fedmedian"}, id="a rule over single updates"),
        pytest.param(
            {"compression": CompressionSpec(update="topk", fraction=0.25)},
            id="compressed, with error feedback",
        ),
        pytest.param({"updates": "visible-to-app"}, id="a strategy in the application"),
    ],
)
def test_the_weights_are_those_of_a_deployment_to_the_bit(
    tmp_path: Path, plan: dict[str, Any]
) -> None:
    both(tmp_path, **plan)
