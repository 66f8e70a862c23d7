"""An agent's certificate that lives for seconds: renewed in time, on real listeners and clocks."""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509

from edge.agent.agent import Agent
from edge.config.site import Accept, SiteConfig
from edge.protocol.identity import SiteIdentity
from edge.protocol.rpc import ControlClient, enroll
from fedlearn.errors import FedlearnError, NotEnrolled, TransportError
from server.identity.site import SiteStatus
from server.rpc import Welcome
from tests.fakes.no_clients import NoClients
from tests.harness.cluster import reserve_port
from tests.harness.deployment import Deployment, new_key
from tests.harness.listeners import DeploymentListeners

LIFETIME = timedelta(seconds=4)


@pytest.fixture
def brief(deployment: Deployment, monkeypatch: pytest.MonkeyPatch) -> Iterator[DeploymentListeners]:
    """Listeners of a coordinator whose sites' certificates live for four seconds."""
    # The allowance for slow clocks is longer than these lives.
    monkeypatch.setattr("server.identity.pki._SKEW", timedelta(0))
    control = f"127.0.0.1:{reserve_port()}"
    welcome = Welcome(
        fleet_address="127.0.0.1:1",
        control_address=control,
        order_key=b"order",
        site_lifetime=LIFETIME,
    )
    listeners = DeploymentListeners(deployment, welcome=welcome, control=control)
    yield listeners
    listeners.stop()


@pytest.fixture
def identity(brief: DeploymentListeners, tmp_path: Path) -> SiteIdentity:
    """The freshly enrolled ``site-c``."""
    token = brief.deployment.sites.invitations.create_token("site-c", needs_approval=False)
    made = enroll(dataclasses.replace(token, address=brief.gate).encode())
    made.save(tmp_path)
    return made


@pytest.fixture
def agent(identity: SiteIdentity, tmp_path: Path) -> Iterator[Callable[[], list[FedlearnError]]]:
    """Start the agent of ``site-c``; what it raises comes in the list."""
    raised: list[FedlearnError] = []
    config = SiteConfig(state=tmp_path, accept=Accept())
    made = Agent(config, identity, launcher=lambda _: NoClients())

    def run() -> None:
        try:
            made.run()
        except FedlearnError as error:
            raised.append(error)

    thread = threading.Thread(target=run, daemon=True)

    def start() -> list[FedlearnError]:
        thread.start()
        return raised

    yield start
    made.stop()
    thread.join(10)
    assert not thread.is_alive()


def serial(folder: Path) -> int:
    return x509.load_pem_x509_certificates((folder / "site.pem").read_bytes())[0].serial_number


def over(identity: SiteIdentity) -> bool:
    assert identity.expires is not None
    return datetime.now(UTC) >= identity.expires


def eventually(so: Callable[[], Any], seconds: float = 15.0) -> None:
    end = time.monotonic() + seconds
    while not so():
        assert time.monotonic() < end, "it did not come to that"
        time.sleep(0.02)


def test_an_agent_renews_in_time_and_stays_connected(
    brief: DeploymentListeners,
    identity: SiteIdentity,
    agent: Callable[[], list[FedlearnError]],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO", logger="edge")
    connected = brief.running._sites_service.connected
    raised = agent()
    eventually(lambda: connected("site-c"))
    serials, away, longest = {serial(tmp_path)}, 0.0, 0.0
    began = time.monotonic()
    # Three times as long as one certificate lives.
    while time.monotonic() - began < 3 * LIFETIME.total_seconds():
        now = time.monotonic()
        serials.add(serial(tmp_path))
        leaf = x509.load_pem_x509_certificates((tmp_path / "site.pem").read_bytes())[0]
        assert datetime.now(UTC) < leaf.not_valid_after_utc, "it had none that counts"
        if connected("site-c"):
            away = 0.0
        else:
            away = away or now
            longest = max(longest, now - away)
        time.sleep(0.01)
    assert raised == []
    assert connected("site-c")
    assert longest < 1.0
    assert len(serials) >= 4
    # Nothing went wrong on the way: no stream ran into the end of its certificate.
    assert [r.getMessage() for r in caplog.records if r.levelname == "WARNING"] == []
    # One key for all of them, as it was enrolled.
    kept = SiteIdentity.load(tmp_path)
    assert kept.key.public_key() == identity.key.public_key()


def test_a_removed_site_does_not_renew(
    brief: DeploymentListeners,
    identity: SiteIdentity,
    agent: Callable[[], list[FedlearnError]],
    tmp_path: Path,
) -> None:
    raised = agent()
    eventually(lambda: brief.running._sites_service.connected("site-c"))
    with ControlClient.of_site(identity) as open_before:
        assert open_before.renew_site(identity).chain != identity.chain
        brief.deployment.sites.remove("site-c")
        last = serial(tmp_path)
        with pytest.raises(NotEnrolled, match="site-c is removed"):
            open_before.renew_site(identity)
    eventually(lambda: raised)
    assert isinstance(raised[0], NotEnrolled)
    time.sleep(LIFETIME.total_seconds() / 2 + 0.5)
    assert serial(tmp_path) == last
    # Nor with the token that it came with, now that its certificate has expired.
    eventually(lambda: over(SiteIdentity.load(tmp_path)))
    with pytest.raises(FedlearnError, match="void"):
        enroll(identity.token, identity=identity)
    assert brief.deployment.sites.show("site-c").status is SiteStatus.REMOVED


def test_a_site_renews_for_its_own_key_only(
    brief: DeploymentListeners, identity: SiteIdentity
) -> None:
    other = dataclasses.replace(identity, key=new_key())
    with (
        ControlClient.of_site(identity) as control,
        pytest.raises(TransportError, match="enrolled with another key"),
    ):
        control.renew_site(other)


def test_an_expired_certificate_renews_nothing_and_the_token_brings_the_site_back(
    brief: DeploymentListeners, identity: SiteIdentity
) -> None:
    """As after days offline."""
    with ControlClient.of_site(identity) as control:
        assert control.renew_site(identity).chain
        eventually(lambda: over(identity))
        # The connection is open and was good when it was made.
        with pytest.raises(TransportError, match="expired"):
            control.renew_site(identity)
    assert not over(enroll(identity.token, identity=identity))
