"""Secure aggregation in jobs with real processes: the sum is exact, and clients drop out."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedlearn.secure_aggregation.spec import SecAggSpec
from server.flower.application.bundle import build
from server.flower.job_plan import Outcome
from tests.harness.flower_federation import (
    CLIENT_APP,
    PYPROJECT,
    Channel,
    FlowerFederation,
    ended,
    make_plan,
    write_app,
)

pytestmark = pytest.mark.e2e

SECRET = "a value of the data"
CLIENT = CLIENT_APP.replace(
    'raise ValueError("planted failure")', f'raise ValueError("{SECRET}")'
).replace(
    'time.sleep(context.run_config["pause"])',
    'first = context.node_config["site"] == context.run_config["first"]\n'
    '    time.sleep(0 if first else context.run_config["pause"])',
)
PARAMETERS = SecAggSpec(threshold=0.51, clip_range=4.0)
SECURE = {"secure": "secagg+", "secagg": PARAMETERS}
SITES = 6
PROJECT = PYPROJECT + 'first = ""\n'


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return build(write_app(tmp_path_factory.mktemp("src") / "app", client=CLIENT, project=PROJECT))


@pytest.fixture
def federation(tmp_path: Path) -> Iterator[FlowerFederation]:
    made = FlowerFederation(tmp_path)
    yield made
    made.close()


def run(
    federation: FlowerFederation, bundle: bytes, *, job: str, kill: bool = False, **plan: Any
) -> tuple[Outcome, Channel]:
    fast = f"site-{plan.get('sites', SITES) - 1}"
    plan["run_config"] = {"first": fast, **plan.get("run_config", {})}
    values: dict[str, Any] = {
        "sites": SITES,
        "rounds": 2,
        "strategy": "fedavg",
        "seconds": 60.0,
        **plan,
    }
    made = make_plan(bundle, job=job, **values)
    host, channel = federation.host(made)
    clients = {site: federation.client(made, site) for site in made.spec.sites}
    host.start()
    if kill:
        channel.wait_for("update.received")
        assert channel.of("update.received")[0]["site"] == fast
        clients[fast].kill()
    outcome = ended(host, 90)
    host.close()
    return outcome, channel


@pytest.mark.long
def test_the_model_is_that_of_the_mean_and_no_update_or_metric_is_seen(
    federation: FlowerFederation, bundle: bytes
) -> None:
    plain, mean = run(federation, bundle, job="plain")
    secure, masked = run(federation, bundle, job="secure", aggregation=SECURE)
    assert plain.status == secure.status == "finished"
    assert len(masked.of("update.received")) == 2 * SITES
    for ours, theirs in zip(masked.models, mean.models, strict=True):
        np.testing.assert_allclose(ours["0"], theirs["0"], atol=2 * PARAMETERS.step)
        assert ours["1"] == 0  # not floating-point: as in the first model
    for event in masked.of("update.received"):
        assert event["metrics"] == {}
        assert event["examples"] == 0
    assert all(event["metrics"] == {} for event in masked.of("round.finished"))
    again, repeated = run(federation, bundle, job="again", aggregation=SECURE)
    assert again.status == "finished"
    assert [each["0"].tobytes() for each in repeated.models] == [
        each["0"].tobytes() for each in masked.models
    ]


def test_a_site_that_dies_after_masking_is_in_the_sum(
    federation: FlowerFederation, bundle: bytes
) -> None:
    secure, masked = run(
        federation,
        bundle,
        job="secure",
        kill=True,
        aggregation=SECURE,
        sites=5,
        rounds=1,
        quorum=4,
        run_config={"pause": 2.0},
    )
    assert secure.status == "finished"
    assert {event["site"] for event in masked.of("update.received")} == {
        f"site-{number}" for number in range(5)
    }
    assert np.abs(masked.models[-1]["0"]).max() > 0


@pytest.mark.long
def test_a_site_that_fails_and_one_that_dies_after_masking_do_not_change_the_mean(
    federation: FlowerFederation, bundle: bytes
) -> None:
    config = {"fail-on": "site-2", "pause": 2.0}
    shared: dict[str, Any] = {"rounds": 1, "quorum": 4, "run_config": config}
    plain, mean = run(federation, bundle, job="plain", **shared)
    secure, masked = run(federation, bundle, job="secure", kill=True, aggregation=SECURE, **shared)
    assert plain.status == secure.status == "finished"
    assert {event["site"] for event in masked.of("update.received")} == {
        f"site-{number}" for number in (0, 1, 3, 4, 5)
    }
    np.testing.assert_allclose(
        masked.models[-1]["0"], mean.models[-1]["0"], atol=2 * PARAMETERS.step
    )
    (rejected,) = masked.of("update.rejected")
    assert rejected["site"] == "site-2"
    assert "with secure aggregation the reason does not leave" in rejected["reason"]
    assert SECRET in mean.of("update.rejected")[0]["reason"]


@pytest.mark.long
def test_too_few_survivors_end_the_job_with_a_named_error(
    federation: FlowerFederation, bundle: bytes
) -> None:
    secure, masked = run(
        federation,
        bundle,
        job="secure",
        rounds=1,
        quorum=3,
        run_config={"fail-on": "site-2"},
        aggregation={**SECURE, "secagg": SecAggSpec(threshold=1.0)},
    )
    assert secure.status == "failed"
    assert secure.code == "quorum"
    assert "the sum cannot be unmasked: site-0: " in secure.message
    assert not masked.models
