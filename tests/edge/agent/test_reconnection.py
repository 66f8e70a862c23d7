"""An agent is back soon after its coordinator is: real listeners that go and come."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from edge.agent.agent import Agent
from edge.config.site import Accept, SiteConfig
from edge.protocol.rpc import ControlClient, enroll
from fedlearn.errors import FedlearnError, Throttled
from server.rpc import Welcome
from tests.fakes.no_clients import NoClients
from tests.harness.cluster import reserve_port
from tests.harness.deployment import Deployment
from tests.harness.listeners import DeploymentListeners

BACK_SECONDS = 5.0


class Coordinator:
    """Listeners that can be killed and started again at the same addresses."""

    def __init__(self, deployment: Deployment) -> None:
        self._deployment = deployment
        self.gate, self.control = (f"127.0.0.1:{reserve_port()}" for _ in range(2))
        self.listeners: Any = None
        self.start()

    def start(self) -> None:
        welcome = Welcome(
            fleet_address="127.0.0.1:1", control_address=self.control, order_key=b"order"
        )
        self.listeners = DeploymentListeners(
            self._deployment,
            welcome=welcome,
            gate=self.gate,
            control=self.control,
        )

    def kill(self) -> None:
        listeners, self.listeners = self.listeners, None
        if listeners is not None:
            listeners.stop()

    def connected(self, site: str) -> bool:
        return bool(self.listeners.running._sites_service.connected(site))


@pytest.fixture
def coordinator(deployment: Deployment) -> Iterator[Coordinator]:
    made = Coordinator(deployment)
    yield made
    made.kill()


@pytest.fixture
def agent(coordinator: Coordinator, deployment: Deployment, tmp_path: Path) -> Iterator[Agent]:
    token = deployment.sites.invitations.create_token("site-c", needs_approval=False)
    identity = enroll(dataclasses.replace(token, address=coordinator.gate).encode())
    made = Agent(
        SiteConfig(state=tmp_path, accept=Accept()), identity, launcher=lambda _: NoClients()
    )

    def run() -> None:
        with contextlib.suppress(FedlearnError):
            made.run()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    yield made
    made.stop()
    thread.join(10)
    assert not thread.is_alive()


def seconds_until(so: Callable[[], bool], limit: float = 30.0) -> float:
    began = time.monotonic()
    while not so():
        assert time.monotonic() - began < limit, "it did not come to that"
        time.sleep(0.02)
    return time.monotonic() - began


def test_an_agent_is_back_within_five_seconds_whenever_its_coordinator_answers(
    coordinator: Coordinator, agent: Agent
) -> None:
    seconds_until(lambda: coordinator.connected("site-c"))
    # Killed again and again, soon after each start: no pause is longer for it.
    for _ in range(4):
        coordinator.kill()
        time.sleep(0.3)
        coordinator.start()
        assert seconds_until(lambda: coordinator.connected("site-c")) < BACK_SECONDS
    # Away for longer than the pauses of ten attempts.
    coordinator.kill()
    time.sleep(9.0)
    coordinator.start()
    assert seconds_until(lambda: coordinator.connected("site-c")) < BACK_SECONDS


def test_an_agent_that_is_turned_away_asks_ever_more_seldom(
    coordinator: Coordinator, agent: Agent, monkeypatch: pytest.MonkeyPatch
) -> None:
    seconds_until(lambda: coordinator.connected("site-c"))
    asked: list[float] = []

    def follow(self: ControlClient, *_: object, **__: object) -> Iterator[Any]:
        asked.append(time.monotonic())
        raise Throttled("too many")
        yield  # type: ignore[unreachable]  # makes a generator of it

    monkeypatch.setattr(ControlClient, "follow", follow)
    coordinator.kill()
    coordinator.start()
    time.sleep(5.0)
    pauses = [after - before for before, after in itertools.pairwise(asked)]
    assert 2 <= len(asked) <= 7
    assert pauses[-1] > pauses[0]
