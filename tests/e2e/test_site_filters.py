"""A site's filters in a job with real processes: outside the app, and named in the events."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from server.flower.application.bundle import build
from tests.harness.flower_federation import FlowerFederation, ended, make_plan, write_app

pytestmark = pytest.mark.e2e

SIGN = {"kind": "sign", "step": 0.25}


@pytest.fixture
def federation(tmp_path: Path) -> Iterator[FlowerFederation]:
    made = FlowerFederation(tmp_path)
    yield made
    made.close()


def test_an_update_leaves_filtered_and_its_event_names_the_filters(
    federation: FlowerFederation, tmp_path: Path
) -> None:
    plan = make_plan(build(write_app(tmp_path / "app")), sites=2, rounds=2, strategy="fedavg")
    host, channel = federation.host(plan)
    for site in plan.spec.sites:
        federation.client(plan, site, filters=[SIGN])
    host.start()
    outcome = ended(host, 60)
    assert outcome.status == "finished"
    received = channel.of("update.received")
    assert [event["filters"] for event in received] == [["sign"]] * 4
    # Both sites move each number by a step, so the mean moves by 0.25 or less.
    first, second = (model["0"] for model in channel.models)
    moved = np.abs(second - first)
    assert moved.max() <= 0.25 + 1e-6
    assert channel.models[-1]["1"] == 0


def test_a_job_that_refuses_filters_gets_no_update_of_such_a_site(
    federation: FlowerFederation, tmp_path: Path
) -> None:
    plan = make_plan(
        build(write_app(tmp_path / "app")),
        sites=2,
        rounds=1,
        strategy="fedavg",
        aggregation={"site_filters": "refuse"},
    )
    federation.host(plan)
    client = federation.client(plan, "site-0", filters=[SIGN])
    assert client.wait(30) != 0
    log = (tmp_path / "client-site-0.log").read_text()
    assert "this site filters what leaves it (sign)" in log
