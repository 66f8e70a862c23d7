"""The one-run audit of epsilon in a simulated federation."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

from fedlearn.audit.epsilon import audit_epsilon
from fedlearn.errors import ConfigError, FedlearnError
from fedlearn.privacy.chain import GridNoise
from fedlearn.privacy.client import ClientPrivacy
from tests.fedlearn.audit.conftest import MakeTarget

CANARIES = 50


def private(noise: float = 1.0) -> str:
    return (
        f'[privacy]\nmechanism = "central-gaussian"\nclip = 0.5\nnoise_multiplier = {noise}\n'
        "epsilon = 100.0\ndelta = 1e-5\n"
    )


def test_without_noise_the_bound_is_large_and_nothing_is_claimed(make_target: MakeTarget) -> None:
    result = audit_epsilon(make_target(sites=2, rows=8, rounds=1), canaries=CANARIES)
    assert result.bound.epsilon > 1.5
    assert result.bound.right >= 0.9 * result.bound.guesses
    assert not result.fails
    assert result.to_json()["claim"] is None
    assert "the job claims nothing" in result.verdict


def test_with_noise_the_bound_stays_below_the_claim(make_target: MakeTarget) -> None:
    target = make_target(sites=2, rows=8, rounds=2, more=private())
    first = audit_epsilon(target, canaries=CANARIES)
    assert first.bound.epsilon < first.claim < 20
    assert not first.fails
    assert first.noise is not None
    assert first.noise.low < first.noise.claimed < first.noise.high
    assert first.noise.numbers == 2 * (2410 - CANARIES)
    assert "it is not refuted" in first.verdict


def test_a_seed_gives_the_same_result(make_target: MakeTarget) -> None:
    target = make_target(sites=2, rows=8, rounds=1, more=private())
    first, second, other = (audit_epsilon(target, canaries=6, seed=seed) for seed in (1, 1, 2))
    assert first.to_json() == second.to_json()
    assert not np.array_equal(first.scores, other.scores)


def test_half_of_the_noise_is_found(
    make_target: MakeTarget, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = GridNoise.apply

    def halved(self: GridNoise, delta: Any) -> Any:
        return kept(dataclasses.replace(self, multiplier=self.multiplier / 2), delta)

    monkeypatch.setattr(GridNoise, "apply", halved)
    target = make_target(sites=2, rows=8, rounds=1, more=private())
    result = audit_epsilon(target, canaries=CANARIES)
    assert result.bound.epsilon < result.claim  # the canaries alone do not find it
    assert result.noise is not None
    assert result.noise.measured == pytest.approx(result.noise.claimed / 2, rel=0.05)
    assert result.fails
    assert "THE NOISE IS TOO SMALL" in result.verdict


def test_missing_noise_refutes_the_claim(
    make_target: MakeTarget, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(GridNoise, "apply", lambda self, delta: delta)
    target = make_target(sites=2, rows=8, rounds=1, more=private(noise=4.0))
    result = audit_epsilon(target, canaries=CANARIES)
    assert result.bound.epsilon > result.claim
    assert result.fails
    assert "THE CLAIM IS REFUTED" in result.verdict


def test_an_update_beyond_the_clip_is_refused_by_the_aggregator(
    make_target: MakeTarget, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unclipped(self: ClientPrivacy, update: Any, *arguments: Any, **more: Any) -> Any:
        return update

    monkeypatch.setattr(ClientPrivacy, "outgoing", unclipped)
    target = make_target(sites=2, rows=8, rounds=1, more=private())
    with pytest.raises(
        FedlearnError, match="1 of the 4 updates that the round asked for can be used"
    ):
        audit_epsilon(target, canaries=4)


@pytest.mark.parametrize("mechanism", ["local", "distributed"])
def test_noise_of_the_clients_is_audited_too(make_target: MakeTarget, mechanism: str) -> None:
    text = private().replace("central", mechanism)
    if mechanism == "distributed":
        text += "shares = 2\n"
    result = audit_epsilon(make_target(sites=2, rows=8, rounds=1, more=text), canaries=20)
    assert result.noise is not None
    assert result.noise.low < result.noise.claimed < result.noise.high
    assert not result.fails


def test_canary_examples_are_found_without_noise(make_target: MakeTarget) -> None:
    target = make_target(
        sites=2,
        rows=60,
        rounds=2,
        config="learning-rate = 0.5\nlocal-epochs = 40\nbatch-size = 8",
    )
    result = audit_epsilon(target, kind="examples", canaries=80)
    assert result.canaries == "examples"
    assert result.bound.epsilon > 0.5


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"canaries": 1}, "must be at least 2"),
        ({"kind": "magic"}, "--kind"),
        ({"confidence": 1.0}, "--confidence"),
        ({"kind": "examples", "canaries": 90}, "has 40 examples, and 45 canaries"),
    ],
)
def test_what_cannot_be_audited_is_refused(
    make_target: MakeTarget, options: dict[str, Any], text: str
) -> None:
    with pytest.raises(ConfigError, match=text):
        audit_epsilon(make_target(sites=2, rounds=1), **options)


def test_a_claim_beside_that_of_the_job_is_refused(make_target: MakeTarget) -> None:
    with pytest.raises(ConfigError, match="--claim"):
        audit_epsilon(make_target(sites=2, more=private()), claim=1.0)


EXAMPLES = """\
[privacy]
mechanism = "dp-sgd"
unit = "example"
clip = 1.0
noise_multiplier = 1.0
batch_rate = 0.5
steps = 4
epsilon = 50.0
delta = 1e-5
"""


def test_example_level_privacy_is_audited_by_examples(make_target: MakeTarget) -> None:
    target = make_target(sites=2, rows=40, rounds=1, more=EXAMPLES)
    result = audit_epsilon(target, canaries=60)
    assert result.canaries == "examples"
    assert result.bound.epsilon < result.claim < 50
    assert not result.fails
    with pytest.raises(ConfigError, match="that of the job is example"):
        audit_epsilon(target, kind="sites")


def test_an_app_whose_parts_share_a_module_is_refused(make_target: MakeTarget) -> None:
    target = make_target(sites=2)
    project = target.app_folder() / "pyproject.toml"
    project.write_text(project.read_text().replace("client_app:app", "server_app:app"))
    with pytest.raises(ConfigError, match=r"are in one module, audited_app\.server_app"):
        audit_epsilon(target, canaries=4)


def test_fewer_numbers_than_canaries_are_refused(make_target: MakeTarget) -> None:
    target = make_target(sites=2, rounds=1)
    task = target.app_folder() / "audited_app/task.py"
    network = "nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))"
    assert network in task.read_text()
    task.write_text(task.read_text().replace(network, "nn.Linear(2, 1)"))
    with pytest.raises(ConfigError, match="the model has 3 numbers, and each of 5 canaries"):
        audit_epsilon(target, canaries=5)
