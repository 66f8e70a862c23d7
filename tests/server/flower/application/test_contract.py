"""Flower is what we think it is, and what crosses to a job's process is what it should be."""

from __future__ import annotations

import ast
import json
import socket
import subprocess
import sys
import tomllib
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import ArrayRecord
from flwr.serverapp.strategy import FedAdam, FedAvg, Result, Strategy

from fedlearn.app import flower, flower_pin
from fedlearn.app.flower import FlowerMismatch
from fedlearn.errors import JobError, TransportError
from fedlearn.privacy import PrivacySpec
from fedlearn.sandbox.process_channel import ProcessChannel
from server.flower.application import app_grid as appgrid
from server.flower.application import contract
from server.flower.ipc.records import HISTORIES
from server.flower.ipc.strategy_state import NotCaptured, capture, restore
from server.flower.job_plan import from_record, to_record
from tests.harness.job_plans import job_plan

ROOT = Path(__file__).resolve().parents[4]


def test_the_installed_flower_fits() -> None:
    contract.check()


@pytest.mark.parametrize("found", ["1.40.2", "1.44.0", "2.0", "1", "nightly"])
def test_a_release_outside_the_range_is_named_before_it_is_imported(
    monkeypatch: pytest.MonkeyPatch, found: str
) -> None:
    monkeypatch.setattr(flower_pin, "version", lambda _: found)
    with pytest.raises(
        FlowerMismatch, match=rf"Flower {found} is installed; .* flwr>=1\.41,<1\.44"
    ):
        flower_pin.prepare()


@pytest.mark.parametrize("found", ["1.41.0", "1.42.0", "1.43.0", "1.43.1.dev20261101"])
def test_a_release_of_the_range_is_taken(monkeypatch: pytest.MonkeyPatch, found: str) -> None:
    monkeypatch.setattr(flower_pin, "version", lambda _: found)
    flower_pin.prepare()


def test_no_flower_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(_: str) -> str:
        raise PackageNotFoundError

    monkeypatch.setattr(flower_pin, "version", missing)
    with pytest.raises(FlowerMismatch, match="not installed"):
        flower_pin.prepare()


def test_the_range_is_that_of_the_package() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert f"flwr{flower_pin.WANTED}" in settings["project"]["dependencies"]


_PUBLIC = {
    "flwr",
    "flwr.app",
    "flwr.clientapp",
    "flwr.common",
    "flwr.serverapp",
    "flwr.serverapp.grid",
    "flwr.serverapp.strategy",
}
_BESIDE = {
    "flwr.cli.build",
    "flwr.supercore.run",
    "flwr.supercore.task_identity",
}
"""What ADR 0012 lists: modules that are not Flower's public interface."""


def test_flower_is_used_by_its_public_interface_and_what_the_decision_lists() -> None:
    found: dict[str, set[str]] = {}
    for package in ("attestation", "edge", "fedlearn", "server"):
        for path in (ROOT / package).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
                if isinstance(node, ast.Import):
                    names = [each.name for each in node.names]
                for name in names:
                    if name.split(".")[0] == "flwr":
                        found.setdefault(name, set()).add(str(path.relative_to(ROOT)))
    assert {"flwr.app", "flwr.serverapp.strategy"} <= set(found)
    assert {name: found[name] for name in set(found) - _PUBLIC - _BESIDE} == {}


def test_the_coordinators_own_process_loads_no_flower() -> None:
    code = (
        "import sys, server.main, server.service, server.coordinator, server.jobs.active_jobs;"
        "import server.flower.job_runner, edge.client.flower.fleet;"
        "print([name for name in ('flwr', 'torch') if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, text=True
    )
    assert done.stdout.strip() == "[]"


def test_another_start_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def fewer(self, grid, initial_arrays, num_rounds=3):  # type: ignore[no-untyped-def]
        return None

    monkeypatch.setattr(Strategy, "start", fewer)
    with pytest.raises(FlowerMismatch, match="start takes self, grid"):
        contract.check()

    def other_body(  # type: ignore[no-untyped-def]
        self,
        grid,
        initial_arrays,
        num_rounds=3,
        timeout=3600,
        train_config=None,
        evaluate_config=None,
        evaluate_fn=None,
    ):
        return None

    monkeypatch.setattr(Strategy, "start", other_body)
    with pytest.raises(FlowerMismatch, match="the body of Strategy"):
        contract.check()

    def unknown(  # type: ignore[no-untyped-def]
        self,
        grid,
        initial_arrays,
        num_rounds=3,
        timeout=3600,
        train_config=None,
        evaluate_config=None,
        evaluate_fn=None,
        on_round=None,
    ):
        return None

    with pytest.raises(FlowerMismatch, match=r"start takes .*on_round"):
        contract.check_start(unknown)


class Flower143:
    """What 1.43 changed in ``Strategy``, as its announcement describes."""

    def start(  # type: ignore[no-untyped-def]
        self,
        grid,
        initial_arrays,
        num_rounds=3,
        timeout=3600,
        train_config=None,
        evaluate_config=None,
        evaluate_fn=None,
        should_stop=None,
    ):
        return "the body of Flower"


def test_the_start_of_1_43_is_known_and_its_argument_is_handed_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    contract.check_start(Flower143.start)
    asked: list[Any] = []

    class Aggregator:
        """The aggregator, which calls for the application's function and ends the stage."""

        def call_serving(
            self, name: str, fields: dict[str, Any], blobs: list[Any], handler: Callable[..., Any]
        ) -> tuple[dict[str, Any], list[Any]]:
            asked.append((name, fields["should_stop"], fields["rounds"]))
            result: dict[str, Any] = {"arrays": None, **{each: [] for each in HISTORIES}}
            asked.append(handler("should_stop", {**result, "round": 2}, [])[0]["stop"])
            return result, []

    rules = appgrid.JobRules(sites=("a",), seconds=1, stragglers="drop", seed=1, max_bytes=1000)
    aggregator: Any = Aggregator()
    grid = appgrid.AppGrid(aggregator, None, rules)
    monkeypatch.setattr(Strategy, "start", Flower143.start)
    with appgrid.installed():
        result = FedAvg().start(
            grid=grid,
            initial_arrays=ArrayRecord([np.zeros(1)]),
            should_stop=lambda server_round, found: server_round == 2 and found is not None,
        )
    assert Strategy.start is Flower143.start
    assert asked == [("start", True, 3), True]
    assert isinstance(result, Result)


# What a strategy holds


def test_the_state_of_a_strategy_goes_and_comes_back_to_the_bit() -> None:
    strategy = FedAdam(eta=0.1 + 0.2)
    strategy.m_t = {"0": np.random.default_rng(1).random(3).astype(np.float32)}
    strategy.odd = {"x": (1, 2.5, None, "t"), 3: [b"\0\xff", float("inf")]}
    strategy.rng = np.random.default_rng(4)
    strategy.rng.random(3)
    strategy.record = ArrayRecord([np.zeros(2)])
    state, tensors = capture({"strategy": strategy})
    expected = strategy.rng.random()

    other = FedAdam()
    other.rng = np.random.default_rng()
    restore({"strategy": other}, (state, tensors))
    assert other.eta == strategy.eta
    assert other.m_t["0"].tobytes() == strategy.m_t["0"].tobytes()
    assert other.odd == strategy.odd
    assert other.rng.random() == expected
    assert other.train_metrics_aggr_fn is not None


def test_what_cannot_be_written_down_is_named() -> None:
    strategy = FedAdam()
    strategy.socket = object()
    with pytest.raises(NotCaptured, match=r"strategy/socket: builtins\.object"):
        capture({"strategy": strategy})


def test_a_plan_that_cannot_work_is_refused() -> None:
    header, blobs = to_record(job_plan())
    invalid: tuple[dict[str, Any], ...] = (
        {"quorum": 3},
        {"quorum": -1},
        {"sites": []},
        {"sites": ["a", "a"]},
        {"policy_digest": "short"},
        {"deadline_s": 0.0},
        {"rounds": 0},
        {"seed": -1},
        {"strategy": {"name": "magic"}},
        {"aggregation": {"updates": "shown"}},
    )
    for wrong in invalid:
        spec = json.dumps({**json.loads(header["spec"]), **wrong})
        with pytest.raises(JobError):
            from_record({**header, "spec": spec}, [memoryview(each) for each in blobs])


def test_flower_learns_what_is_missing() -> None:
    with pytest.raises(FlowerMismatch, match="list has no nothing"):
        flower.has(list, "nothing")


def test_a_plan_crosses_the_process_channel_whole() -> None:
    spec = PrivacySpec(clip=1.0, noise_multiplier=1.0, epsilon=1.0, delta=1e-5)
    plan = job_plan(privacy=spec, noise_secret=bytes(32), run_config={"a": 1}, stragglers="fail")
    visible = job_plan(updates="visible-to-app")
    header, blobs = to_record(visible)
    assert from_record(header, [memoryview(bytearray(blob)) for blob in blobs]) == visible
    assert plan.digest == plan.spec.digest()
    ours, theirs = socket.socketpair()
    header, blobs = to_record(plan)
    ProcessChannel(ours, limit=2000).send(header, blobs)
    received = ProcessChannel(theirs, limit=2000).receive()
    assert received is not None
    assert from_record(*received) == plan
    ProcessChannel(ours, limit=1000).close()
    assert ProcessChannel(theirs, limit=1000).receive() is None


@pytest.mark.parametrize(
    "data",
    [
        b"\xff\xff\xff\xff",
        b"\0\0\0\x02{}",
        b"\0\0\0\x02[]",
        b'\0\0\0\x19{"files":[],"blobs":[-1]}',
        b'\0\0\0\x1b{"files":[],"blobs":[9999]}',
        b'\0\0\0\x18{"files":[],"blobs":[5]}abc',
    ],
)
def test_a_record_that_is_not_one_is_refused(data: bytes) -> None:
    ours, theirs = socket.socketpair()
    ours.sendall(data)
    ours.close()
    with pytest.raises(TransportError):
        ProcessChannel(theirs, limit=1000).receive()
