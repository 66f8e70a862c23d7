"""One peer starves nobody at the gRPC listeners: real sockets, several addresses of loopback."""

from __future__ import annotations

import dataclasses
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import pytest

from attestation.binding import Binding
from attestation.evidence import Evidence
from edge.client.admission import (
    AdmissionParams,
    ClientKeys,
    control_of,
    renew_admission,
    seek_admission,
)
from edge.protocol.rpc import AdmittedClient, GateClient
from fedlearn.identity.voucher import sign_voucher
from fedlearn.wire import fedlearn_pb2 as pb
from fedlearn.wire import fedlearn_pb2_grpc as rpc
from fedlearn.wire.channel import open_channel
from server.rpc.connections import Caps, Connections, network_of
from tests.harness.deployment import Deployment, key_pem, new_csr
from tests.harness.forwarder import Forwarder
from tests.harness.listeners import DeploymentListeners

SECONDS = 5.0
"""In which an honest call is answered, whatever the others do."""


@pytest.fixture
def away() -> Iterator[Callable[[str], str]]:
    """Return an address that leads to ``target`` from 127.0.0.2."""
    made: list[Forwarder] = []

    def lead(target: str) -> str:
        made.append(Forwarder("127.0.0.2", target))
        return made[-1].address

    yield lead
    for one in made:
        one.close()


@pytest.fixture
def started(deployment: Deployment) -> Iterator[Callable[..., DeploymentListeners]]:
    """Start the listeners with limits of their own."""
    made: list[DeploymentListeners] = []

    def start(**limits: Any) -> DeploymentListeners:
        made.append(DeploymentListeners(deployment, **limits))
        return made[-1]

    yield start
    for one in made:
        one.stop()


class Holder:
    """Opens calls, sends nothing in them, and counts how they end."""

    def __init__(self) -> None:
        self._over = threading.Event()
        self._channels: list[Any] = []
        self.calls: list[Any] = []

    def hold(self, channel: grpc.Channel, method: str, count: int) -> None:
        self._channels.append(channel)
        call = channel.stream_unary(
            method, request_serializer=lambda m: m, response_deserializer=lambda m: m
        )
        self.calls += [call.future(self._silence()) for _ in range(count)]

    def _silence(self) -> Iterator[bytes]:
        self._over.wait(60)
        yield b""

    def ended(self, count: int, seconds: float = 10) -> list[Any]:
        """Wait until so many have ended; return their codes."""
        end = time.monotonic() + seconds
        while sum(call.done() for call in self.calls) < count:
            assert time.monotonic() < end, f"{sum(call.done() for call in self.calls)} ended"
            time.sleep(0.02)
        return [call.code() for call in self.calls if call.done()]

    def close(self) -> None:
        self._over.set()
        for channel in self._channels:
            channel.close()


@pytest.fixture
def holder() -> Iterator[Holder]:
    made = Holder()
    yield made
    made.close()


CHALLENGE = "/fedlearn.v1.Gate/Challenge"


def test_an_address_that_holds_all_it_can_leaves_the_gate_to_others(
    started: Callable[..., Any], away: Callable[[str], str], holder: Holder, deployment: Deployment
) -> None:
    listeners = started(gate_calls=16, gate_calls_per_peer=8, caps=Caps(unknown_per_peer=6))
    roots, far = deployment.ca.certificate_pem, away(listeners.gate)
    for _ in range(10):
        holder.hold(open_channel(far, roots=roots), CHALLENGE, 10)
    # Those that got a connection and no place, and those that got no connection.
    codes = holder.ended(92)
    assert set(codes) <= {grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.UNAVAILABLE}
    with open_channel(listeners.gate, roots=roots) as honest:
        stub = rpc.GateStub(honest)
        reply = stub.Challenge(pb.ChallengeRequest(job="alpha", site="site-a"), timeout=SECONDS)
    assert len(reply.nonce) == 32
    assert listeners.running.connections["gate"].unknown <= 7


def test_a_call_without_a_message_ends_and_gives_its_place_back(
    started: Callable[..., Any], holder: Holder, deployment: Deployment
) -> None:
    listeners = started(gate_calls_per_peer=2, first_message=0.5)
    channel = open_channel(listeners.gate, roots=deployment.ca.certificate_pem)
    holder.hold(channel, CHALLENGE, 2)
    assert holder.ended(2) == [grpc.StatusCode.UNAUTHENTICATED] * 2
    assert "message of the call was not there after 0.5 s" in holder.calls[0].details()
    stub = rpc.GateStub(channel)
    reply = stub.Challenge(pb.ChallengeRequest(job="alpha", site="site-a"), timeout=SECONDS)
    assert len(reply.nonce) == 32


def test_one_address_leaves_a_slow_attester_to_others(
    started: Callable[..., Any],
    away: Callable[[str], str],
    deployment: Deployment,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lock, collect = threading.Lock(), deployment.proof._attester.collect

    def slowly(binding: Binding) -> Evidence:
        with lock:
            time.sleep(0.2)
            return collect(binding)

    monkeypatch.setattr(deployment.proof._attester, "collect", slowly)
    listeners = started(gate_calls_per_peer=32)
    request = pb.AttestCoordinatorRequest(job="alpha", nonce=bytes(32))
    roots = deployment.ca.certificate_pem
    with (
        open_channel(away(listeners.gate), roots=roots) as far,
        open_channel(listeners.gate, roots=roots) as honest,
    ):
        calls = [rpc.GateStub(far).AttestCoordinator.future(request, timeout=20) for _ in range(30)]
        while not calls[-1].done():
            time.sleep(0.01)
        began = time.monotonic()
        assert rpc.GateStub(honest).AttestCoordinator(request, timeout=SECONDS).evidence
        assert time.monotonic() - began < 2
        codes = [call.code() for call in calls]
    assert codes.count(grpc.StatusCode.RESOURCE_EXHAUSTED) >= 20


def test_a_call_that_ends_without_a_message_is_refused(
    started: Callable[..., Any], deployment: Deployment
) -> None:
    listeners = started()
    with open_channel(listeners.gate, roots=deployment.ca.certificate_pem) as channel:
        call = channel.stream_unary(
            CHALLENGE, request_serializer=lambda m: m, response_deserializer=lambda m: m
        )
        with pytest.raises(grpc.RpcError, match="ended without a message"):
            call(iter(()), timeout=SECONDS)


def test_a_client_renews_while_strangers_at_its_own_address_hold_the_gate(
    started: Callable[..., Any], holder: Holder, deployment: Deployment
) -> None:
    listeners = started(gate_calls=8, caps=Caps(unknown_per_peer=4))
    client = deployment.client()
    params = AdmissionParams(
        job="alpha",
        site="site-a",
        client="c1",
        workload=deployment.jobs["alpha"].workload,
        keys=ClientKeys.fresh(),
        policy=deployment.policy,
        trust=deployment.trust,
    )

    def voucher(nonce: bytes, tls_key: bytes) -> bytes:
        key = deployment.site_keys["site-a"]
        return sign_voucher(
            key, job="alpha", site="site-a", client="c1", nonce=nonce, tls_key=tls_key
        )

    with GateClient.connect(listeners.gate, ca_pin=deployment.ca.key_digest) as gate:
        admitted = seek_admission(gate, client.attester, params, voucher, now=deployment.clock)
    for _ in range(6):
        channel = open_channel(listeners.gate, roots=deployment.ca.certificate_pem)
        holder.hold(channel, CHALLENGE, 8)
    holder.ended(40)
    admitted = _at(admitted, listeners.control)
    with control_of(gate, admitted, params.keys) as control:
        renewed = renew_admission(gate, control, client.attester, params)
    assert renewed.chain != admitted.chain
    assert deployment.kinds()[-1] == "renewal"


def _at(admitted: AdmittedClient, control: str) -> AdmittedClient:
    return dataclasses.replace(admitted, control_address=control)


def test_a_sites_certificate_does_not_lock_operators_out(
    started: Callable[..., Any], holder: Holder, deployment: Deployment
) -> None:
    listeners = started(control_calls=64, threads=2, watchers=2)
    key = deployment.site_keys["site-a"]
    site = deployment.ca.issue_site(new_csr(key), site="site-a", now=deployment.clock())
    for _ in range(6):
        channel = open_channel(
            listeners.control,
            roots=deployment.ca.certificate_pem,
            chain=site.chain_pem,
            key=key_pem(key),
        )
        for method in ("RenewSite", "FetchBundle", "Follow"):
            holder.hold(channel, f"/fedlearn.v1.Sites/{method}", 12)
    # 16 calls and 8 streams may be under way; what goes beyond is refused at its head.
    codes = holder.ended(216 - 24)
    assert grpc.StatusCode.RESOURCE_EXHAUSTED in codes
    chain, operator = deployment.operator()
    with open_channel(
        listeners.control,
        roots=deployment.ca.certificate_pem,
        chain=chain,
        key=key_pem(operator),
    ) as channel:
        stub = rpc.OperatorStub(channel)
        assert stub.ListJobs(pb.Empty(), timeout=SECONDS).jobs[0].name == "alpha"
        follow = stub.FollowJob(pb.FollowJobRequest(name="alpha"), timeout=SECONDS)
        assert next(follow).sequence == 1
        follow.cancel()


def test_an_identity_holds_few_connections_and_the_oldest_goes(
    started: Callable[..., Any], deployment: Deployment
) -> None:
    listeners = started(caps=Caps(per_identity=3))
    chain, key = deployment.operator()
    pem = key_pem(key)
    channels = []
    for _ in range(6):
        channel = open_channel(
            listeners.control, roots=deployment.ca.certificate_pem, chain=chain, key=pem
        )
        channels.append(channel)
        rpc.OperatorStub(channel).ListJobs(pb.Empty(), timeout=SECONDS)
        held = listeners.running.connections["control"]
        assert held.of("spiffe://test.example/operator/alice") <= 3
    assert held.unknown == 0
    # Whoever lost a connection makes another one with the next call.
    assert rpc.OperatorStub(channels[0]).ListJobs(pb.Empty(), timeout=SECONDS, wait_for_ready=True)
    for channel in channels:
        channel.close()


def test_silent_connections_are_reset_beyond_the_cap_and_ended_in_time(
    started: Callable[..., Any], away: Callable[[str], str], deployment: Deployment
) -> None:
    listeners = started(caps=Caps(unknown_per_peer=5))
    port = int(listeners.gate.rpartition(":")[2])
    silent = [
        socket.create_connection(("127.0.0.1", port), source_address=("127.0.0.3", 0))
        for _ in range(12)
    ]
    time.sleep(0.3)
    reset = 0
    for one in silent:
        one.settimeout(0.05)
        try:
            reset += one.recv(1) == b""
        except TimeoutError:
            continue
        except OSError:
            reset += 1
    assert reset == 7
    with open_channel(listeners.gate, roots=deployment.ca.certificate_pem) as honest:
        stub = rpc.GateStub(honest)
        stub.Challenge(pb.ChallengeRequest(job="alpha", site="site-a"), timeout=SECONDS)
    # The handshake has ten seconds.
    end = time.monotonic() + 15
    while listeners.running.connections["gate"].unknown > 1 and time.monotonic() < end:
        time.sleep(0.1)
    assert listeners.running.connections["gate"].unknown <= 1
    for one in silent:
        one.close()


def test_a_peer_that_goes_on_after_refusals_is_cut_off(
    started: Callable[..., Any], deployment: Deployment
) -> None:
    listeners = started(gate_calls_per_peer=1, first_message=30.0)
    holder = Holder()
    with open_channel(listeners.gate, roots=deployment.ca.certificate_pem) as channel:
        holder.hold(channel, CHALLENGE, 2)
        assert holder.ended(1) == [grpc.StatusCode.RESOURCE_EXHAUSTED]
        held = next(call for call in holder.calls if not call.done())
        stub = rpc.GateStub(channel)
        codes = []
        for _ in range(150):
            try:
                stub.Challenge(pb.ChallengeRequest(job="alpha", site="site-a"), timeout=SECONDS)
                codes.append(grpc.StatusCode.OK)
            except grpc.RpcError as error:
                codes.append(error.code())
    holder.close()
    # The connection was cut, and with it the call that held the one place.
    assert codes[:50] == [grpc.StatusCode.RESOURCE_EXHAUSTED] * 50
    assert held.code() is grpc.StatusCode.UNAVAILABLE
    assert codes[-1] in (grpc.StatusCode.OK, grpc.StatusCode.RESOURCE_EXHAUSTED)


@pytest.mark.parametrize(
    ("address", "network"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
    ],
)
def test_a_party_is_an_address_or_a_network_of_64_bits(address: str, network: str) -> None:
    assert network_of(address) == network


def test_places_are_given_back(deployment: Deployment) -> None:
    held = Connections(Caps(unknown=2, unknown_per_peer=1))
    first = held.take("192.0.2.1", lambda: None)
    assert first is not None
    assert held.take("192.0.2.1", lambda: None) is None
    second = held.take("192.0.2.2", lambda: None)
    assert second is not None
    assert held.take("192.0.2.3", lambda: None) is None
    second.identify("spiffe://a/site/b")
    assert (held.unknown, held.of("spiffe://a/site/b")) == (1, 1)
    for one in (first, first, second, second):
        one.close()
    assert (held.unknown, held.of("spiffe://a/site/b")) == (0, 0)
