"""Admissions overlap, and a change of rules does not overlap with them."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from server.admission.locks import AdmissionLocks
from server.jobs.supervisor import JobSupervisor
from tests.harness.restarting_coordinator import restarting_coordinator, tiny_bundle

SECONDS = 10.0
JOB = 'name = "alpha"\napp = "app"\nrounds = 1\nsites = ["site-a"]\npolicy = "policy.toml"\n'
POLICY = (
    'version = 1\nname = "p"\naccept = ["sample"]\ninsecure_sample = true\n'
    '[[reference]]\nclaim = "software"\nvalue = "ab"\n'
)


def test_admissions_of_different_clients_overlap() -> None:
    locks, all_inside = AdmissionLocks(), threading.Barrier(8)

    def admit(number: int) -> None:
        with locks.admitting(number):
            all_inside.wait(SECONDS)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(admit, range(8)))


def test_admissions_that_share_a_site_or_a_key_take_turns() -> None:
    locks, inside = AdmissionLocks(), list[int]()
    most = 0

    def admit(number: int) -> None:
        nonlocal most
        parties = ("site", f"key {number}") if number % 2 else (f"site {number}", "site")
        with locks.admitting(*parties):
            inside.append(number)
            most = max(most, len(inside))
            time.sleep(0.001)
            inside.remove(number)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(admit, range(64)))
    assert most == 1


def test_a_change_waits_for_admissions_and_goes_before_later_ones() -> None:
    locks, order = AdmissionLocks(), list[str]()
    inside, leave = threading.Event(), threading.Event()

    def first() -> None:
        with locks.admitting("a"):
            inside.set()
            leave.wait(SECONDS)
            order.append("first")

    def change() -> None:
        with locks.changing(), locks.changing():
            order.append("change")

    def second() -> None:
        with locks.admitting("b"):
            order.append("second")

    with ThreadPoolExecutor(3) as pool:
        tasks = [pool.submit(first)]
        assert inside.wait(SECONDS)
        tasks.append(pool.submit(change))
        _until(lambda: locks._waiting == 1)
        tasks.append(pool.submit(second))
        time.sleep(0.05)
        assert order == []
        leave.set()
        for task in tasks:
            task.result(SECONDS)
    assert order == ["first", "change", "second"]


def test_an_admission_that_raises_gives_its_place_back() -> None:
    locks = AdmissionLocks()
    with pytest.raises(ValueError, match="planted"), locks.admitting("a"):
        raise ValueError("planted")
    with pytest.raises(ValueError, match="planted"), locks.changing():
        raise ValueError("planted")
    with locks.changing():
        pass
    with locks.admitting("a"):
        pass


def test_a_policy_is_replaced_while_a_client_is_admitted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The gate waits for the admission, and the admission reads the open jobs."""
    monkeypatch.setattr(JobSupervisor, "_watch", lambda *_: None)
    with restarting_coordinator(tmp_path) as start:
        coordinator = start()
        bundle = tiny_bundle(tmp_path / "app")
        name = coordinator.submit_job("alice", job_toml=JOB, bundle=bundle, policy_toml=POLICY).name
        locks = coordinator.gate._locks

        def admission() -> bool:
            with locks.admitting("a"):
                _until(lambda: locks._waiting == 1)
                return coordinator.admission.admittable(name) is not None

        with ThreadPoolExecutor(2) as pool:
            admitted = pool.submit(admission)
            replaced = pool.submit(
                coordinator.replace_policy, "alice", name, POLICY.replace('"p"', '"q"')
            )
            assert admitted.result(SECONDS)
            replaced.result(SECONDS)
        job = coordinator.admission.admittable(name)
    assert job is not None
    assert job.policy.name == "q"


def _until(holds: Callable[[], bool]) -> None:
    end = time.monotonic() + SECONDS
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.001)
