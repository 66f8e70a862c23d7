"""A coordinator parses a job and its policy once, and hashes its bundle once, each time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fedlearn.job.assignment import Assignment
from fedlearn.job.spec import JobSpec
from server.jobs.supervisor import JobSupervisor
from server.rpc import StartOrder
from tests.harness.passes import passes
from tests.harness.restarting_coordinator import (
    RestartingCoordinator,
    restarting_coordinator,
    tiny_bundle,
)

JOB = 'name = "alpha"\napp = "app"\nrounds = 1\nsites = ["site-a"]\npolicy = "policy.toml"\n'
POLICY = (
    'version = 1\nname = "p"\naccept = ["sample"]\ninsecure_sample = true\n'
    '[[reference]]\nclaim = "software"\nvalue = "ab"\n'
)
ONCE = {"spec": 1, "policy": 1, "hash": 1}


class Sent:
    """Orders as a connected site gets them."""

    def __init__(self) -> None:
        self.orders: list[Any] = []

    def send(self, order: object) -> None:
        self.orders.append(order)

    def close(self, reason: str) -> None:
        return None


@pytest.fixture
def start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[RestartingCoordinator]:
    monkeypatch.setattr(JobSupervisor, "_watch", lambda *_: None)
    with restarting_coordinator(tmp_path) as starting:
        yield starting


def test_a_job_is_read_once_from_its_submission_to_the_order_of_its_site(
    start: RestartingCoordinator, tmp_path: Path
) -> None:
    code = tiny_bundle(tmp_path / "app")
    coordinator, site = start(), Sent()
    coordinator.site_connected("site-a", site, version="1", running=())
    with passes(code) as counted:
        coordinator.submit_job("alice", job_toml=JOB, bundle=code, policy_toml=POLICY)
        (order,) = site.orders
        assert coordinator.fetch_bundle("site-a", Assignment._parse(order.assignment_json).bundle)
    assert counted == ONCE
    assert isinstance(order, StartOrder)
    assignment = Assignment._parse(order.assignment_json)
    kept = coordinator._job_store.get("alpha")
    assert JobSpec.from_json(assignment.spec).digest() == kept.spec.digest()
    assert (assignment.bundle, assignment.policy) == (kept.bundle.digest, POLICY)
    assert kept.bundle.data == code


def test_a_job_is_read_once_when_its_coordinator_starts_again(
    start: RestartingCoordinator, tmp_path: Path
) -> None:
    code = tiny_bundle(tmp_path / "app")
    start().submit_job("alice", job_toml=JOB, bundle=code, policy_toml=POLICY)
    start.stop()
    with passes(code) as counted:
        coordinator = start()
    assert coordinator.jobs.named("alpha") is not None
    assert counted == ONCE


def test_a_job_that_is_resumed_is_read_again_and_its_specification_is_not(
    start: RestartingCoordinator, tmp_path: Path
) -> None:
    code = tiny_bundle(tmp_path / "app")
    coordinator = start()
    coordinator.submit_job("alice", job_toml=JOB, bundle=code, policy_toml=POLICY)
    coordinator.cancel_job("alice", "alpha")
    with passes(code) as counted:
        coordinator.resume_job("alice", "alpha")
    assert counted == Counter(policy=1, hash=1)
    newer = POLICY.replace("version = 1", "version = 2")
    with passes(code) as counted:
        coordinator.replace_policy("alice", "alpha", newer)
    assert counted == {"policy": 1}
