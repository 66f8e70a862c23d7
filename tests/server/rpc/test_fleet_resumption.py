"""Transfers between a real client and the Fleet listener that are cut, and go on."""

from __future__ import annotations

import contextlib
import hashlib
import json
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from flwr.app import ArrayRecord, RecordDict

from edge.client.flower.fleet import Fleet, Identity
from fedlearn.app.flower import Flat, Packer, flatten
from fedlearn.errors import AdmissionDenied, TransportError
from fedlearn.identity.spiffe import COORDINATOR_DNS
from fedlearn.identity.tls import client_context
from fedlearn.sandbox.memory_file import FilePart
from server.flower.exchange.job_exchange import JobExchange
from tests.fakes.exchange import ask, body, message
from tests.harness.flower_federation import FlowerFederation
from tests.harness.job_plans import job_plan

SIZE = 1 << 20  # float32 values: 4 MiB
MIB = 1 << 20


class Cutter:
    """A relay that ends a connection after so many bytes, in one direction, each time it is set."""

    def __init__(self, target: tuple[str, int]) -> None:
        self._target = target
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = "{}:{}".format(*self._listener.getsockname())
        self.after: dict[str, int] = {}
        self.passed = {"up": 0, "down": 0}
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                far = socket.create_connection(self._target)
                for one, other, way in ((near, far, "up"), (far, near, "down")):
                    threading.Thread(target=self._pass, args=(one, other, way), daemon=True).start()

    def _pass(self, source: socket.socket, target: socket.socket, way: str) -> None:
        with contextlib.suppress(OSError):
            while piece := source.recv(65536):
                self.passed[way] += len(piece)
                if way in self.after and self.passed[way] >= self.after[way]:
                    del self.after[way]
                    break
                target.sendall(piece)
        for one in (source, target):
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)

    def cut(self, way: str, after: int) -> None:
        self.passed = {"up": 0, "down": 0}
        self.after = {way: after}

    def close(self) -> None:
        self._listener.close()


class Hosted:
    def __init__(self) -> None:
        self.link = JobExchange(job_plan(sites=("site-a",)))


class Site:
    """A federation with one client, which reaches it through a relay."""

    def __init__(self, folder: Path) -> None:
        self.federation = FlowerFederation(folder)
        self.link = Hosted().link
        self.federation.hosts = {"alpha": self}
        self.node = self.link.create_node("site-a", b"key")
        self.relay = Cutter(self.federation.address)
        self.admitted, self.identity = self.admit()
        self.fleet = Fleet(self.relay.address, self.identity, max_message_bytes=1 << 30)
        self.fleet.activate()
        content = Packer().content(RecordDict({"a": ArrayRecord([_values(1)])}))
        (self.question,) = ask(self.link, self.node, content=content)

    def admit(self, seconds: float = 1200) -> tuple[dict[str, Any], Identity]:
        admitted = self.federation.admit("alpha", "site-a", node_id=self.node, seconds=seconds)
        key = serialization.load_pem_private_key(admitted["key"].encode(), None)
        return admitted, Identity(
            chain=tuple(x509.load_pem_x509_certificates(admitted["chain"].encode())),
            key=key,  # type: ignore[arg-type]
            authorities=(x509.load_pem_x509_certificate(admitted["root"].encode()),),
        )

    def answer(self) -> Flat:
        content = Packer().content(RecordDict({"a": ArrayRecord([_values(2)])}))
        return flatten([message(content, to=1, by=self.node, reply_to=self.question)])

    def again(self, action: Any) -> Any:
        """Repeat an action until the coordinator has noticed that the last one was cut."""
        end = time.monotonic() + 10
        while True:
            try:
                return action()
            except AdmissionDenied:
                raise
            except TransportError:
                assert time.monotonic() < end
                time.sleep(0.05)

    def check(self, flat: Flat) -> None:
        (reply,) = self.link.pull([self.question], 5)
        sent = list(map(bytes, flat.frames(0)[1:]))
        assert list(map(bytes, reply.objects.values())) == sent
        assert reply.digest == hashlib.sha256(sent[1]).hexdigest()

    def close(self) -> None:
        self.fleet.close()
        self.relay.close()
        self.link.close(completed=False)
        self.federation.hosts = {}
        self.federation.close()


def _values(seed: int) -> Any:
    return np.random.default_rng(seed).random(SIZE, np.float32)


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    made = Site(tmp_path)
    yield made
    made.close()


def test_a_fetch_goes_on_where_it_was_cut(site: Site) -> None:
    site.relay.cut("down", 3 * MIB)
    with pytest.raises(TransportError):
        site.fleet.fetch()
    site.relay.passed = {"up": 0, "down": 0}
    work = site.again(site.fleet.fetch)
    assert site.relay.passed["down"] < 1.5 * MIB
    _, expected = site.link.question_in_hand(site.node)
    assert [work.head, *map(bytes, work.objects.values())] == list(map(bytes, expected))
    assert isinstance(list(work.objects.values())[1], FilePart)


def test_a_fetch_begins_anew_when_the_question_is_another(site: Site) -> None:
    site.relay.cut("down", 3 * MIB)
    with pytest.raises(TransportError):
        site.fleet.fetch()
    site.link.forget([site.question])
    (second,) = ask(site.link, site.node)
    site.fleet._session.close()
    site.fleet.renew(site.identity)
    assert site.fleet._fetched is not None
    # Nothing is in hand until it is fetched: the rest of the first is refused, the second comes.
    found = site.again(lambda: site.fleet.fetch())
    assert found.id == second


def test_a_delivery_goes_on_where_it_was_cut(site: Site) -> None:
    site.fleet.fetch()
    flat = site.answer()
    site.relay.cut("up", 3 * MIB)
    with pytest.raises(TransportError):
        site.fleet.deliver(flat)
    site.relay.passed = {"up": 0, "down": 0}
    assert site.again(lambda: site.fleet.deliver(flat)) is True
    assert site.relay.passed["up"] < 3 * MIB
    site.check(flat)


def test_another_answer_after_a_cut_has_nothing_of_the_first(site: Site) -> None:
    site.fleet.fetch()
    site.relay.cut("up", 3 * MIB)
    with pytest.raises(TransportError):
        site.fleet.deliver(site.answer())
    content = Packer().content(RecordDict({"a": ArrayRecord([_values(3)])}))
    flat = flatten([message(content, to=1, by=site.node, reply_to=site.question)])
    assert site.again(lambda: site.fleet.deliver(flat)) is True
    site.check(flat)


class Slow:
    """Delivers the beginning of a body by hand, over a connection of its own."""

    def __init__(self, site: Site, identity: Identity, data: bytes, name: str) -> None:
        context = client_context(identity.chain, identity.key, identity.authorities)
        raw = socket.create_connection(site.federation.address)
        self.tls: ssl.SSLSocket = context.wrap_socket(raw, server_hostname=COORDINATOR_DNS)
        self.tls.settimeout(10)
        key = Fleet("127.0.0.1:1", identity, max_message_bytes=1)._session.key
        head = [
            "POST /v1/fleet/deliver HTTP/1.1",
            "host: x",
            f"flwr-public-key: {key}",
            f"content-length: {len(data)}",
            f"fedlearn-delivery: {name}",
        ]
        self.tls.sendall("\r\n".join([*head, "", ""]).encode())

    def ended(self) -> bytes:
        found = b""
        with contextlib.suppress(OSError):
            while piece := self.tls.recv(65536):
                found += piece
        self.tls.close()
        return found


def test_a_delivery_goes_on_after_its_certificate_ended_and_was_renewed(site: Site) -> None:
    site.fleet.fetch()
    flat = site.answer()
    data = body(flat.frames(0))
    _, short = site.admit(seconds=2)
    name = "0f" * 16
    slow = Slow(site, short, data, name)
    slow.tls.sendall(data[:MIB])
    assert slow.ended() == b"", "the connection is aborted with the admission"
    asked = json.dumps({"delivery": name, "length": len(data)}).encode()
    found = json.loads(site.fleet._post("delivery-offset", asked))
    assert found == {"offset": MIB}
    assert site.fleet._send(name, flat.frames(0), len(data), MIB) is True
    site.check(flat)


def test_one_byte_a_second_is_refused_and_the_rest_may_follow(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.rpc.fleet_streams._STILL_SECONDS", 0.5)
    site.fleet.fetch()
    flat = site.answer()
    data = body(flat.frames(0))
    name = "0f" * 16
    slow = Slow(site, site.identity, data, name)
    with contextlib.suppress(OSError):
        for byte in data[:40]:
            slow.tls.sendall(bytes([byte]))
            time.sleep(0.1)
    assert b" 408 " in slow.ended()
    assert site.fleet._offset(name, len(data)) > 0
    assert site.fleet.deliver(flat) is True
    site.check(flat)


def test_what_a_revoked_client_began_is_not_kept_for_the_next_one(site: Site) -> None:
    site.fleet.fetch()
    flat = site.answer()
    site.relay.cut("up", 3 * MIB)
    with pytest.raises(TransportError):
        site.fleet.deliver(flat)
    site.federation.registry.revoke(site.admitted["thumbprint"], "planted", now=datetime.now(UTC))
    site.link.delete_node("site-a")
    with pytest.raises(AdmissionDenied):
        site.fleet.deliver(flat)
    site.link.create_node("site-a", b"key")
    _, identity = site.admit()
    site.fleet.renew(identity)
    site.fleet.activate()
    (site.question,) = ask(site.link, site.node)
    site.fleet.fetch()
    assert site.fleet._delivery is not None
    assert site.fleet._offset(site.fleet._delivery.name, len(body(flat.frames(0)))) == 0
    flat = site.answer()
    assert site.fleet.deliver(flat) is True
    site.check(flat)


def test_both_ends_of_a_connection_send_small_pieces_at_once(site: Site) -> None:
    """Nagle's algorithm (RFC 896) and delayed acknowledgements would cost 40 ms a call."""
    site.fleet.heartbeat()
    (connection,) = site.fleet._session._idle
    assert connection.sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
    for one in next(iter(site.federation.fleet.clients._connections.values())):
        ours = one.transport.get_extra_info("socket")
        assert ours.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
