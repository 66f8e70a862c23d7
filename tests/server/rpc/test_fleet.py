"""The mTLS front: who gets in, and everybody who does not, over real sockets."""

from __future__ import annotations

import gc
import hashlib
import socket
import ssl
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from flwr.app import RecordDict

from edge.client.flower.fleet import Fleet, Identity
from fedlearn.app.array_records import record_of
from fedlearn.app.flower import Packer, flatten, inflate, unpack
from fedlearn.errors import AdmissionDenied, ConfigError, TransportError, UpdateRejected
from fedlearn.identity.spiffe import COORDINATOR_DNS
from fedlearn.identity.tls import client_context, server_context
from server.flower.exchange.job_exchange import JobExchange
from server.identity.peer_certificates import PeerCertificate
from server.rpc.fleet import FleetServer
from server.rpc.fleet_api import Receive, Scope, Send
from server.rpc.fleet_connections import FleetConnection
from tests.fakes.exchange import ask, message
from tests.harness.flower_federation import FlowerFederation
from tests.harness.job_plans import job_plan


class EchoLink:
    """A link that returns who called, with how much."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, str, int]] = []
        self.absences: list[str] = []
        self.bytes_read = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        caller = scope["fedlearn.caller"]
        self.calls.append((scope["path"], caller.site, caller.node_id))
        while True:
            event = await receive()
            self.bytes_read += len(event.get("body", b""))
            if not event.get("more_body"):
                break
        caller.still_live()
        head = [(b"content-length", b"2")]
        await send({"type": "http.response.start", "status": 200, "headers": head})
        await send({"type": "http.response.body", "body": b"ok"})

    def absent(self, site: str) -> None:
        self.absences.append(site)


class Hosted:
    def __init__(self) -> None:
        self.link = EchoLink()


@pytest.fixture
def federation(tmp_path: Path) -> Iterator[FlowerFederation]:
    made = FlowerFederation(tmp_path)
    made.hosts = {"alpha": Hosted(), "beta": Hosted()}
    yield made
    made.hosts = {}
    made.close()


def _identity(admitted: dict[str, Any]) -> Identity:
    key = serialization.load_pem_private_key(admitted["key"].encode(), None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    return Identity(
        chain=tuple(x509.load_pem_x509_certificates(admitted["chain"].encode())),
        key=key,
        authorities=(x509.load_pem_x509_certificate(admitted["root"].encode()),),
    )


class Caller:
    def __init__(self, federation: FlowerFederation, admitted: dict[str, Any]) -> None:
        identity = _identity(admitted)
        self.fleet = Fleet("127.0.0.1:1", identity, max_message_bytes=1)
        context = client_context(identity.chain, identity.key, identity.authorities)
        self.client = httpx.Client(verify=context, trust_env=False)
        self.url = f"https://127.0.0.1:{federation.address[1]}"
        self.headers = {"flwr-public-key": self.fleet._session.key}

    def post(self, path: str = "/v1/fleet/fetch", **more: Any) -> httpx.Response:
        return self.client.request(
            more.pop("method", "POST"),
            self.url + path,
            content=more.pop("content", b"x"),
            headers={**self.headers, **more.pop("headers", {})},
            extensions={"sni_hostname": COORDINATOR_DNS},
        )


@pytest.fixture
def caller(federation: FlowerFederation) -> Caller:
    return Caller(federation, federation.admit("alpha", "site-a", node_id=5))


def test_an_admitted_client_reaches_the_link_of_its_job(
    federation: FlowerFederation, caller: Caller
) -> None:
    for path in ("fetch", "deliver", "activate-node", "send-node-heartbeat"):
        assert caller.post(f"/v1/fleet/{path}").text == "ok"
    assert set(federation.hosts["alpha"].link.calls) == {
        (f"/v1/fleet/{path}", "site-a", 5)
        for path in ("fetch", "deliver", "activate-node", "send-node-heartbeat")
    }
    assert federation.hosts["beta"].link.calls == []


@pytest.mark.parametrize(
    "path",
    [
        "/v1/control/start-run",
        "/v1/runtime/pull-messages",
        "/v1/fleet/register-node",
        "/v1/fleet/unregister-node",
        "/v1/fleet/pull-object",
        "/v1/fleet/get-run",
        "/v1/fleet/fetch/",
        "/v1/fleet/../control/start-run",
        "//v1/fleet/fetch",
        "/",
        "/docs",
    ],
)
def test_there_is_nothing_but_the_actions_of_a_client(
    federation: FlowerFederation, caller: Caller, path: str
) -> None:
    response = caller.post(path)
    assert response.status_code == 404
    assert federation.hosts["alpha"].link.calls == []


def test_only_post(caller: Caller) -> None:
    assert caller.post(method="GET").status_code == 405


def test_no_certificate_is_no_connection(federation: FlowerFederation) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(cadata=federation.ca.certificate_pem.decode())
    url = f"https://127.0.0.1:{federation.address[1]}/v1/fleet/fetch"
    with (
        httpx.Client(verify=context, trust_env=False) as client,
        pytest.raises(httpx.TransportError),
    ):
        client.post(url, content=b"x", extensions={"sni_hostname": COORDINATOR_DNS})


def test_tls_1_2_is_no_connection(federation: FlowerFederation, caller: Caller) -> None:
    identity = _identity(federation.admit("alpha", "site-b", node_id=6))
    context = client_context(identity.chain, identity.key, identity.authorities)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    with (
        socket.create_connection(federation.address) as raw,
        pytest.raises((ssl.SSLError, ConnectionResetError)),
    ):
        context.wrap_socket(raw, server_hostname=COORDINATOR_DNS)


def test_a_certificate_of_another_authority_is_no_connection(
    federation: FlowerFederation, tmp_path: Path
) -> None:
    other = FlowerFederation(tmp_path / "other")
    try:
        stranger = other.admit("alpha", "site-a", node_id=5)
        stranger["root"] = federation.ca.certificate_pem.decode()
        with pytest.raises(httpx.TransportError):
            Caller(federation, stranger).post()
    finally:
        other.close()


def test_a_certificate_without_an_admission_is_refused(federation: FlowerFederation) -> None:
    admitted = federation.admit("alpha", "site-a", node_id=5)
    federation.registry.revoke(admitted["thumbprint"], "planted", now=datetime.now(UTC))
    response = Caller(federation, admitted).post()
    assert response.status_code == 401
    assert "planted" in response.text
    assert federation.hosts["alpha"].link.calls == []


class Raw:
    """One TLS connection, used by hand."""

    def __init__(self, federation: FlowerFederation, admitted: dict[str, Any]) -> None:
        identity = _identity(admitted)
        context = client_context(identity.chain, identity.key, identity.authorities)
        self.key = Caller(federation, admitted).headers["flwr-public-key"]
        raw = socket.create_connection(federation.address)
        self.tls = context.wrap_socket(raw, server_hostname=COORDINATOR_DNS)
        self.tls.settimeout(10)

    def post(self, *lines: str, body: bytes = b"", path: str = "/v1/fleet/fetch") -> bytes:
        head = [f"POST {path} HTTP/1.1", "host: x", f"flwr-public-key: {self.key}", *lines]
        self.tls.sendall("\r\n".join([*head, "", ""]).encode() + body)
        return self.tls.recv(4000)

    def ended(self) -> bool:
        """Wait until the other side ends the connection."""
        try:
            while self.tls.recv(1000):
                pass
            return True
        except TimeoutError:
            return False
        except OSError:
            return True
        finally:
            self.tls.close()


@pytest.mark.parametrize("how", ["revoke", "quarantine"])
def test_an_admission_that_ends_takes_its_connections_with_it(
    federation: FlowerFederation, how: str
) -> None:
    admitted = federation.admit("alpha", "site-a", node_id=5)
    raw = Raw(federation, admitted)
    assert b" 200 " in raw.post("content-length: 1", body=b"x")
    end = getattr(federation.registry, how)
    end(admitted["thumbprint"], "planted", now=datetime.now(UTC))
    begun = time.monotonic()
    assert raw.ended()
    assert time.monotonic() - begun < 2
    response = Caller(federation, admitted).post()
    assert response.status_code == 401
    assert "planted" in response.text


def test_an_expired_admission_ends_an_open_connection(federation: FlowerFederation) -> None:
    raw = Raw(federation, federation.admit("alpha", "site-a", node_id=5, seconds=3))
    assert b" 200 " in raw.post("content-length: 1", body=b"x")
    begun = time.monotonic()
    assert raw.ended()
    assert time.monotonic() - begun < 5


def test_the_job_of_the_certificate_chooses_the_link(
    federation: FlowerFederation, caller: Caller
) -> None:
    other = Caller(federation, federation.admit("beta", "site-a", node_id=9))
    assert other.post().status_code == 200
    assert federation.hosts["beta"].link.calls == [("/v1/fleet/fetch", "site-a", 9)]
    assert federation.hosts["alpha"].link.calls == []


def test_a_job_that_does_not_run_is_gone(federation: FlowerFederation) -> None:
    response = Caller(federation, federation.admit("gamma", "site-a", node_id=5)).post()
    assert response.status_code == 410


def test_another_public_key_in_the_header_is_refused(
    federation: FlowerFederation, caller: Caller
) -> None:
    other = Caller(federation, federation.admit("alpha", "site-b", node_id=6))
    assert caller.post(headers=other.headers).status_code == 401
    assert caller.post(headers={"flwr-public-key": ""}).status_code == 401
    del caller.headers["flwr-public-key"]
    assert caller.post().status_code == 401
    assert federation.hosts["alpha"].link.calls == []


def test_a_body_is_bounded_before_it_is_read(federation: FlowerFederation, caller: Caller) -> None:
    admitted = federation.admit("alpha", "site-b", node_id=6)
    control, update = "/v1/fleet/fetch", "/v1/fleet/deliver"
    for path, line, status in [
        (control, f"content-length: {64 * 1024 + 1}", b" 413 "),
        (update, f"content-length: {2**40}", b" 413 "),
        (update, f"content-length: {10**30}", b" 400 "),
        (update, "transfer-encoding: chunked", b" 411 "),
        (update, "x-nothing: sent", b" 411 "),
    ]:
        assert status in Raw(federation, admitted).post(line, path=path)
    link = federation.hosts["alpha"].link
    assert (link.calls, link.bytes_read) == ([], 0)
    big = caller.post("/v1/fleet/deliver", content=bytes(200_000))
    assert (big.status_code, link.bytes_read) == (200, 200_000)


def test_a_head_is_bounded(caller: Caller) -> None:
    with pytest.raises(httpx.TransportError):
        caller.post(headers={"x-long": "a" * 400_000})


def test_nothing_keeps_a_connection_that_has_ended(
    federation: FlowerFederation, caller: Caller
) -> None:
    """Its admission lives on for minutes, and a timer waits for its end."""

    def connections() -> int:
        gc.collect()
        return sum(isinstance(found, FleetConnection) for found in gc.get_objects())

    before = connections()
    assert caller.post().status_code == 200
    assert connections() == before + 1
    caller.client.close()
    end = time.monotonic() + 8
    while connections() > before and time.monotonic() < end:
        time.sleep(0.05)
    assert connections() == before


def test_the_last_connection_of_a_client_is_noticed(
    federation: FlowerFederation, caller: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.rpc.fleet_connections._ABSENT_SECONDS", 0.5)
    assert caller.post().status_code == 200
    caller.client.close()
    end = time.monotonic() + 8
    while not federation.hosts["alpha"].link.absences and time.monotonic() < end:
        time.sleep(0.05)
    assert federation.hosts["alpha"].link.absences == ["site-a"]


def test_a_client_at_work_is_there_after_its_certificate_was_renewed(
    federation: FlowerFederation, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It holds a connection though nothing is asked or answered while the app trains."""
    monkeypatch.setattr("server.rpc.fleet_connections._ABSENT_SECONDS", 0.5)
    link = federation.hosts["alpha"].link
    admitted = federation.admit("alpha", "site-a", node_id=5)
    address = f"127.0.0.1:{federation.address[1]}"
    fleet = Fleet(address, _identity(admitted), max_message_bytes=1024)
    fleet._active = True
    fleet.heartbeat()
    fleet.renew(_identity(admitted))
    time.sleep(1.5)
    assert link.absences == []
    fleet.close()


def test_the_client_states_why_it_is_not_let_in(federation: FlowerFederation) -> None:
    admitted = federation.admit("alpha", "site-a", node_id=5)
    address = f"127.0.0.1:{federation.address[1]}"
    fleet = Fleet(address, _identity(admitted), max_message_bytes=1000)
    federation.registry.quarantine(admitted["thumbprint"], "planted", now=datetime.now(UTC))
    with pytest.raises(AdmissionDenied, match="planted"):
        fleet.activate()
    closed = Fleet("127.0.0.1:1", _identity(admitted), max_message_bytes=1000)
    with pytest.raises(TransportError, match="cannot be reached"):
        closed.activate()


def test_a_weak_context_or_a_taken_port_is_refused(federation: FlowerFederation) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    with pytest.raises(ValueError, match="authority"):
        server_context([federation.root], key, [])
    with pytest.raises(ConfigError, match="client certificate"):
        FleetServer(
            tls=ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER),
            registry=federation.registry,
            link_of=lambda _: None,
            trust_domain="test.example",
        )
    taken = FleetServer(
        tls=federation.fleet._tls,
        registry=federation.registry,
        link_of=lambda _: None,
        trust_domain="test.example",
        port=federation.address[1],
    )
    with pytest.raises(ConfigError, match="cannot be bound: Address already in use"):
        taken.start()


def test_a_client_keeps_its_connection_from_one_call_to_the_next(
    federation: FlowerFederation, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = []
    whole = federation.fleet.clients.opened

    def counting(connection: FleetConnection, peer: PeerCertificate) -> None:
        opened.append(connection)
        whole(connection, peer)

    monkeypatch.setattr(federation.fleet.clients, "opened", counting)
    admitted = federation.admit("alpha", "site-a", node_id=5)
    address = f"127.0.0.1:{federation.address[1]}"
    fleet = Fleet(address, _identity(admitted), max_message_bytes=1024)
    for _ in range(3):
        assert fleet.deliver(flatten([message(RecordDict(), to=1)]))
    fleet.close()
    assert len(opened) == 1


class Exchange:
    def __init__(self) -> None:
        self.link = JobExchange(job_plan(sites=("site-a",)))


def test_an_answer_that_nobody_waits_for_is_refused_unread_and_the_client_learns_it(
    federation: FlowerFederation, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken = []
    monkeypatch.setattr(
        "server.flower.exchange.resumption.MessageReader",
        lambda length, **_: taken.append(length),
    )
    exchange = federation.hosts["alpha"] = Exchange()
    number = exchange.link.create_node("site-a", b"key")
    admitted = federation.admit("alpha", "site-a", node_id=number)
    address = f"127.0.0.1:{federation.address[1]}"
    fleet = Fleet(address, _identity(admitted), max_message_bytes=1 << 30)
    assert fleet.activate() == (number, exchange.link.run_id)
    content = RecordDict({"a": record_of({"w": np.zeros(4_000_000, np.float32)})})
    flat = flatten([message(Packer().content(content), to=1, by=number)])
    for _ in range(10):
        assert fleet.deliver(flat) is False
    fleet.heartbeat()
    assert taken == []
    fleet.close()


def test_a_message_goes_through_the_front_and_its_answer_comes_back(
    federation: FlowerFederation,
) -> None:
    exchange = federation.hosts["alpha"] = Exchange()
    number = exchange.link.create_node("site-a", b"key")
    admitted = federation.admit("alpha", "site-a", node_id=number)
    address = f"127.0.0.1:{federation.address[1]}"
    fleet = Fleet(address, _identity(admitted), max_message_bytes=1 << 20)
    fleet.activate()
    (question,) = ask(exchange.link, number)
    work = fleet.fetch()
    assert work is not None
    assert work.id == question
    packed = Packer().content(unpack(inflate(work.head, work.objects).content, max_bytes=1 << 20))
    answer = flatten([message(packed, to=1, by=number, reply_to=question)])
    assert fleet.deliver(answer) is True
    (reply,) = exchange.link.pull([question], 5)
    assert reply.digest == hashlib.sha256(bytes(answer.frames(0)[2])).hexdigest()
    large = RecordDict({"a": record_of({"w": np.zeros(1 << 19, np.float32)})})
    with pytest.raises(UpdateRejected, match="at most 1048576"):
        fleet.deliver(flatten([message(Packer().content(large), to=1, by=number)]))
    fleet.close()
