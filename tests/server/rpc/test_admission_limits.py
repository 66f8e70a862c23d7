"""The default limits let the clients of a hospital in, which share an address, and no flood."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from edge.client.admission import AdmissionParams, ClientKeys, seek_admission
from edge.protocol.rpc import GateClient
from fedlearn.errors import Throttled
from fedlearn.identity.voucher import sign_voucher
from server.admission.challenges import Limits
from tests.harness.deployment import Deployment
from tests.harness.forwarder import Forwarder
from tests.harness.listeners import DeploymentListeners

CLIENTS = 60


@pytest.fixture
def hospital(deployment: Deployment) -> list[str]:
    """Sixty sites that take part in the job ``alpha``."""
    names = [f"ward-{number}" for number in range(CLIENTS)]
    deployment.site_keys |= {name: deployment.enroll(name) for name in names}
    deployment.jobs["alpha"] = dataclasses.replace(deployment.jobs["alpha"], sites=frozenset(names))
    return names


@pytest.fixture
def listeners(deployment: Deployment) -> Iterator[DeploymentListeners]:
    made = DeploymentListeners(deployment)
    yield made
    made.stop()


def _admit(deployment: Deployment, gate: str, site: str) -> None:
    client = deployment.client(site=site)
    params = AdmissionParams(
        job="alpha",
        site=site,
        client="c1",
        workload=deployment.jobs["alpha"].workload,
        keys=ClientKeys.fresh(),
        policy=deployment.policy,
        trust=deployment.trust,
    )

    def voucher(nonce: bytes, tls_key: bytes) -> bytes:
        return sign_voucher(
            deployment.site_keys[site],
            job="alpha",
            site=site,
            client="c1",
            nonce=nonce,
            tls_key=tls_key,
        )

    with GateClient.connect(gate, ca_pin=deployment.ca.key_digest) as channel:
        seek_admission(channel, client.attester, params, voucher, now=deployment.clock)


def test_sixty_clients_behind_one_address_are_admitted_at_once(
    deployment: Deployment, listeners: DeploymentListeners, hospital: list[str]
) -> None:
    together = threading.Barrier(CLIENTS)

    def admit(site: str) -> None:
        together.wait(30)
        _admit(deployment, listeners.gate, site)

    with ThreadPoolExecutor(CLIENTS) as pool:
        list(pool.map(admit, hospital))
    live = deployment.registry.of_job("alpha", now=deployment.clock())
    assert sorted(admission.site for admission in live) == sorted(hospital)
    assert deployment.kinds().count("admission") == CLIENTS


def test_a_flood_from_one_address_is_refused_with_its_limit_and_leaves_the_gate_to_others(
    deployment: Deployment, listeners: DeploymentListeners, hospital: list[str]
) -> None:
    limits = Limits()
    far = Forwarder("127.0.0.2", listeners.gate)
    with GateClient.connect(far.address, ca_pin=deployment.ca.key_digest) as flood:
        flood.attempts = 1
        nonces = _refusal(lambda: flood.challenge("alpha", "ward-1"), limits)
        proofs = _refusal(lambda: flood.attest_coordinator("alpha", bytes(32)), limits)
    far.close()
    assert f"{limits.outstanding_per_peer} nonces are outstanding" in str(nonces)
    assert nonces.hint == "use one, or wait 60 s"
    assert "too many requests from this address" in str(proofs)
    assert proofs.hint == f"at most {limits.rate_per_peer:g} a second are answered"
    _admit(deployment, listeners.gate, "ward-0")
    assert len(deployment.registry.of_job("alpha", now=deployment.clock())) == 1


def _refusal(call: Callable[[], object], limits: Limits) -> Throttled:
    """Call again and again; return the refusal, which comes after what is allowed at once."""
    for made in range(4 * limits.burst_per_peer):
        try:
            call()
        except Throttled as refused:
            assert made >= limits.burst_per_peer
            return refused
    raise AssertionError("no call was refused")
