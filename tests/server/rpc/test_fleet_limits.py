"""What one peer may hold at the Fleet listener, and for how long: over real sockets."""

from __future__ import annotations

import asyncio
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from edge.client.flower.fleet import Fleet, Identity
from fedlearn.errors import AdmissionDenied
from fedlearn.identity.spiffe import COORDINATOR_DNS
from fedlearn.identity.tls import client_context
from server.rpc.connections import Caps
from server.rpc.fleet_api import Receive, Scope, Send
from server.rpc.fleet_streams import ArrivingBody, DeliveryMemory, RequestRefused
from tests.harness.flower_federation import FlowerFederation

MIB = 1024 * 1024


class Link:
    """Reads bodies, or refuses them unread; answers with as much as it is instructed to."""

    def __init__(self) -> None:
        self.refuses = False
        self.answer = b"ok"
        self.read: list[int] = []
        self.reading = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        status = 410
        if not self.refuses:
            status = 200
            got, more = 0, True
            while more:
                event = await receive()
                self.reading += not got
                got += len(event.get("body", b""))
                more = event.get("more_body", False)
            self.read.append(got)
        head = [(b"content-length", str(len(self.answer)).encode())]
        await send({"type": "http.response.start", "status": status, "headers": head})
        await send({"type": "http.response.body", "body": self.answer})

    def absent(self, site: str) -> None:
        """Nothing to note."""


class Hosted:
    def __init__(self) -> None:
        self.link = Link()


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., FlowerFederation]]:
    """Start a front with limits of its own."""
    made: list[FlowerFederation] = []

    def started(**limits: Any) -> FlowerFederation:
        federation = FlowerFederation(tmp_path, **limits)
        federation.hosts = {"alpha": Hosted()}
        made.append(federation)
        return federation

    yield started
    for federation in made:
        federation.hosts = {}
        federation.close()


class Peer:
    """An admitted client whose bytes are written by hand."""

    def __init__(self, federation: FlowerFederation, site: str = "site-a", node: int = 5) -> None:
        self._federation = federation
        admitted = federation.admit("alpha", site, node_id=node)
        self.thumbprint = admitted["thumbprint"]
        key = serialization.load_pem_private_key(admitted["key"].encode(), None)
        assert isinstance(key, ec.EllipticCurvePrivateKey)
        self.identity = Identity(
            chain=tuple(x509.load_pem_x509_certificates(admitted["chain"].encode())),
            key=key,
            authorities=(x509.load_pem_x509_certificate(admitted["root"].encode()),),
        )
        self.key = Fleet("127.0.0.1:1", self.identity, max_message_bytes=1)._session.key
        self.context = client_context(
            self.identity.chain, self.identity.key, self.identity.authorities
        )

    def connect(self, **options: Any) -> ssl.SSLSocket:
        raw = socket.create_connection(self._federation.address, **options)
        tls = self.context.wrap_socket(raw, server_hostname=COORDINATOR_DNS)
        tls.settimeout(10)
        return tls

    def head(self, length: int, action: str = "deliver") -> bytes:
        lines = [f"POST /v1/fleet/{action} HTTP/1.1", "host: x", f"flwr-public-key: {self.key}"]
        return "\r\n".join([*lines, f"content-length: {length}", "", ""]).encode()


def answer(tls: ssl.SSLSocket, until: bytes = b"ok") -> bytes:
    """Return an answer, which may come in pieces."""
    found = b""
    while until not in found and (piece := tls.recv(65536)):
        found += piece
    return found


def trickled(tls: ssl.SSLSocket, data: bytes) -> float:
    """Send ten bytes a second; return after how many seconds the other side had enough."""
    began = time.monotonic()
    for byte in data:
        try:
            tls.sendall(bytes([byte]))
        except OSError:
            return time.monotonic() - began
        time.sleep(0.1)
    pytest.fail("every byte was taken")


def ends(tls: socket.socket, within: float) -> float:
    """Return after how many seconds the other side ended the connection."""
    began = time.monotonic()
    tls.settimeout(within)
    try:
        while tls.recv(65536):
            pass
    except TimeoutError:
        pytest.fail(f"open after {within} s")
    except OSError:
        pass
    return time.monotonic() - began


def test_silent_connections_are_capped_for_an_address_and_ended(
    start: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.rpc.fleet._HANDSHAKE_SECONDS", 1.0)
    federation = start(caps=Caps(unknown_per_peer=5))
    silent = [
        socket.create_connection(federation.address, source_address=("127.0.0.2", 0))
        for _ in range(20)
    ]
    time.sleep(0.2)
    assert federation.fleet.counted.unknown == 5
    # Another address, and whoever has a certificate and an admission, notices nothing.
    with Peer(federation).connect() as tls:
        tls.sendall(Peer(federation, "site-b", 6).head(1, "fetch"))
        tls.sendall(b"x")
        assert b" 401 " in tls.recv(1000)
    for one in silent:
        assert ends(one, 3.0) < 2.5
        one.close()
    # A peer meets the end before the front has counted it.
    end = time.monotonic() + 3.0
    while federation.fleet.counted.unknown and time.monotonic() < end:
        time.sleep(0.01)
    assert federation.fleet.counted.unknown == 0


@pytest.mark.parametrize("written", [b"", b"POST /v1/fl", b"\r\n\r\n"])
def test_a_head_has_its_time_whoever_sends_it(
    start: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, written: bytes
) -> None:
    monkeypatch.setattr("server.rpc.fleet_connections._HEAD_SECONDS", 0.6)
    tls = Peer(start()).connect()
    tls.sendall(written)
    assert ends(tls, 5.0) < 3.0


def test_a_head_that_trickles_in_after_an_answer_has_no_more(
    start: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.rpc.fleet_connections._HEAD_SECONDS", 0.8)
    peer = Peer(start())
    tls = peer.connect()
    tls.sendall(peer.head(1, "fetch") + b"x")
    assert b" 200 " in answer(tls)
    time.sleep(1.0)  # between two requests a connection may be idle
    assert trickled(tls, b"\r\n" * 3 + peer.head(1)) < 3


def test_a_connection_without_a_live_admission_is_informed_and_ends(
    start: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.rpc.fleet_connections._REFUSED_SECONDS", 1.0)
    federation = start()
    peer = Peer(federation)
    federation.registry.revoke(peer.thumbprint, "the site was removed", now=datetime.now(UTC))
    silent, asking = peer.connect(), peer.connect()
    assert federation.fleet.counted.unknown == 2
    asking.sendall(peer.head(1, "fetch") + b"x")
    received = answer(asking, b"removed")
    assert b" 401 " in received
    assert b"the site was removed" in received
    assert ends(silent, 4.0) < 3.0


def test_a_key_holds_few_connections_and_the_oldest_goes(start: Callable[..., Any]) -> None:
    federation = start(caps=Caps(per_identity=3))
    peer = Peer(federation)
    made = [peer.connect()]
    for _ in range(3):
        time.sleep(0.05)
        made.append(peer.connect())
    assert ends(made[0], 3.0) < 2.0
    made[-1].sendall(peer.head(1, "fetch") + b"x")
    assert b" 200 " in answer(made[-1])
    assert federation.fleet.counted.of(peer.thumbprint.hex()) == 3


def test_a_body_that_stands_still_ends(
    start: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.rpc.fleet_streams._STILL_SECONDS", 0.5)
    peer = Peer(start())
    tls = peer.connect()
    tls.sendall(peer.head(MIB) + b"begun")
    assert b" 408 " in tls.recv(1000)
    assert ends(tls, 5.0) < 4.0


def test_a_body_that_trickles_in_ends(
    start: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.rpc.fleet_streams._STILL_SECONDS", 0.6)
    federation = start()
    peer = Peer(federation)
    tls = peer.connect()
    tls.sendall(peer.head(MIB))
    assert trickled(tls, b"x" * 100) < 8
    assert federation.hosts["alpha"].link.read == []


def test_an_honest_body_may_take_its_time(
    start: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Above the least rate it may last longer than it may stand still."""
    monkeypatch.setattr("server.rpc.fleet_streams._STILL_SECONDS", 0.5)
    federation = start()
    peer = Peer(federation)
    tls = peer.connect()
    tls.sendall(peer.head(MIB))
    for _ in range(16):
        tls.sendall(bytes(MIB // 16))
        time.sleep(0.1)
    assert b" 200 " in answer(tls)
    assert federation.hosts["alpha"].link.read == [MIB]


def test_a_body_that_the_link_refuses_is_not_read(start: Callable[..., Any]) -> None:
    federation = start()
    link = federation.hosts["alpha"].link
    link.refuses, link.answer = True, b"no question is in hand"
    peer = Peer(federation)
    tls = peer.connect()
    tls.sendall(peer.head(512 * MIB))
    sent = 0
    try:
        while sent < 512 * MIB:
            tls.sendall(bytes(64 * 1024))
            sent += 64 * 1024
    except OSError:
        pass
    assert sent < 64 * MIB
    assert link.read == []
    client = httpx.Client(verify=peer.context, trust_env=False)
    url = f"https://127.0.0.1:{federation.address[1]}/v1/fleet/deliver"
    response = client.post(
        url,
        content=bytes(20 * MIB),
        headers={"flwr-public-key": peer.key},
        extensions={"sni_hostname": COORDINATOR_DNS},
    )
    assert (response.status_code, response.text) == (410, "no question is in hand")


def test_what_deliveries_announce_together_is_bounded(start: Callable[..., Any]) -> None:
    federation = start(max_deliveries_bytes=MIB)
    link = federation.hosts["alpha"].link
    first, second = Peer(federation), Peer(federation, "site-b", 6)
    one, two = first.connect(), second.connect()
    one.sendall(first.head(MIB) + bytes(1000))
    time.sleep(0.3)
    two.sendall(second.head(1000) + bytes(1000))
    time.sleep(0.5)
    assert link.reading == 1, "the second was read though the first holds all there is"
    one.sendall(bytes(MIB - 1000))
    assert b" 200 " in answer(one)
    assert b" 200 " in answer(two)
    # Who leaves in the middle gives back what it took.
    three = first.connect()
    three.sendall(first.head(MIB) + bytes(1000))
    time.sleep(0.3)
    three.close()
    two.sendall(second.head(1000) + bytes(1000))
    assert b" 200 " in answer(two)


def test_an_answer_that_nobody_takes_ends(
    start: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.rpc.fleet_streams._STILL_SECONDS", 0.5)
    monkeypatch.setattr("server.rpc.fleet_streams._LEAST_RATE", 64 * MIB)
    federation = start()
    federation.hosts["alpha"].link.answer = bytes(128 * MIB)
    peer = Peer(federation)
    tls = peer.connect()
    tls.sendall(peer.head(1, "fetch") + b"x")
    for held in (1, 0):
        end = time.monotonic() + 8
        while federation.fleet.counted.of(peer.thumbprint.hex()) != held:
            assert time.monotonic() < end
            time.sleep(0.005)
    tls.close()


@pytest.mark.parametrize(("piece", "most"), [(b"x", 1024), (bytes(256 * 1024), 4)])
def test_few_pieces_wait_whatever_their_size(piece: bytes, most: int) -> None:
    calls: list[str] = []
    flow: Any = SimpleNamespace(
        pause_reading=lambda: calls.append("pause"), resume_reading=lambda: calls.append("resume")
    )

    async def scene() -> tuple[int, list[Any]]:
        body = ArrivingBody(flow)
        count = 0
        while not calls:
            body.put(piece)
            count += 1
        found = [await body.receive() for _ in range(count)]
        assert calls == ["pause", "resume"]
        waiting = asyncio.ensure_future(body.receive())
        await asyncio.sleep(0)
        body.put(b"last")
        body.lose()
        return count, [*found, await waiting, await body.receive()]

    count, found = asyncio.run(scene())
    assert count == most
    assert [each.get("body") for each in found] == [piece] * most + [b"last", None]
    assert found[-1] == {"type": "http.disconnect"}


def test_memory_is_reserved_in_turn_and_released() -> None:
    async def scene() -> list[str]:
        memory, order = DeliveryMemory(10), []

        async def taking(name: str, size: int, give: asyncio.Event) -> None:
            await memory.reserve(size)
            order.append(name)
            await give.wait()
            memory.release(size)

        gives = {name: asyncio.Event() for name in "abcd"}
        tasks = {}
        for name, size in (("a", 8), ("b", 20), ("c", 2), ("d", 5)):
            tasks[name] = asyncio.ensure_future(taking(name, size, gives[name]))
            await asyncio.sleep(0)
        assert order == ["a"]
        tasks["b"].cancel()
        gives["a"].set()
        await asyncio.sleep(0.01)
        assert order == ["a", "c", "d"]
        for give in gives.values():
            give.set()
        await asyncio.gather(*tasks.values(), return_exceptions=True)
        await memory.reserve(99)  # alone, anything is taken
        return order

    assert asyncio.run(scene()) == ["a", "c", "d"]


def test_floods_of_requests_on_one_connection_leave_others_alone(start: Callable[..., Any]) -> None:
    federation = start()
    peer, other = Peer(federation), Peer(federation, "site-b", 6)
    over = threading.Event()

    def flood() -> None:
        tls = peer.connect()
        many = (peer.head(1, "fetch") + b"x") * 200
        try:
            while not over.is_set():
                tls.sendall(many)
                tls.recv(65536)
        except OSError:
            pass

    threads = [threading.Thread(target=flood, daemon=True) for _ in range(3)]
    for thread in threads:
        thread.start()
    time.sleep(0.3)
    tls = other.connect()
    began = time.monotonic()
    tls.sendall(other.head(1, "fetch") + b"x")
    assert b" 200 " in answer(tls)
    assert time.monotonic() - began < 2
    over.set()
    for thread in threads:
        thread.join(10)


def test_a_refusal_is_no_admission_denial() -> None:
    assert not issubclass(RequestRefused, AdmissionDenied)
