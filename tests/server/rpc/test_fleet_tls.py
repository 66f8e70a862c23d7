"""TLS connections that share one read buffer: nothing mixes, nothing waits, little memory."""

from __future__ import annotations

import asyncio
import gc
import hashlib
import socket
import ssl
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization

from fedlearn.identity.spiffe import COORDINATOR_DNS
from fedlearn.identity.tls import client_context
from server.rpc.fleet_tls import TlsAcceptor
from tests.harness.flower_federation import FlowerFederation

KIB = 1024


class Digest(asyncio.Protocol):
    """Hashes what arrives, and answers with the digest after so many bytes."""

    def __init__(self, size: int) -> None:
        self._left = size
        self._state = hashlib.sha256()
        self.lost = asyncio.Event()

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self._state.update(data)
        self._left -= len(data)
        if not self._left:
            self.transport.write(self._state.digest())

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost.set()


@pytest.fixture
def contexts(tmp_path: Path) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    federation = FlowerFederation(tmp_path)
    admitted = federation.admit("alpha", "site-a", node_id=5)
    federation.close()
    key = serialization.load_pem_private_key(admitted["key"].encode(), None)
    chain = x509.load_pem_x509_certificates(admitted["chain"].encode())
    root = x509.load_pem_x509_certificate(admitted["root"].encode())
    return federation.fleet._tls, client_context(chain, key, [root])  # type: ignore[arg-type]


def _acceptor(context: ssl.SSLContext, *, seconds: float = 10.0) -> TlsAcceptor:
    return TlsAcceptor(context, handshake_seconds=seconds, close_seconds=1.0)


async def _pair(acceptor: TlsAcceptor, protocol: Digest, context: ssl.SSLContext) -> ssl.SSLSocket:
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    shaking = asyncio.to_thread(context.wrap_socket, theirs, server_hostname=COORDINATOR_DNS)
    found, _ = await asyncio.gather(shaking, acceptor.accept(ours, protocol))
    return found


def test_bytes_of_connections_that_are_read_in_turn_do_not_mix(
    contexts: tuple[ssl.SSLContext, ssl.SSLContext],
) -> None:
    ours, theirs = contexts
    sent = [bytes([number]) * (300_000 + number) for number in range(8)]

    def send(sockets: list[ssl.SSLSocket]) -> list[bytes]:
        for start in range(0, 320_000, 50_000):  # some of each at a time
            for one, each in zip(sockets, sent, strict=True):
                one.sendall(each[start : start + 50_000])
        found = [one.recv(32) for one in sockets]
        for one in sockets:
            one.close()
        return found

    async def scene() -> list[bytes]:
        acceptor = _acceptor(ours)
        sockets = [await _pair(acceptor, Digest(len(each)), theirs) for each in sent]
        return await asyncio.to_thread(send, sockets)

    digests = asyncio.run(asyncio.wait_for(scene(), 20))
    assert digests == [hashlib.sha256(each).digest() for each in sent]


def test_a_connection_has_no_read_buffer_of_its_own(
    contexts: tuple[ssl.SSLContext, ssl.SSLContext],
) -> None:
    ours, theirs = contexts
    count = 20

    async def scene() -> int:
        acceptor = _acceptor(ours)
        held = [await _pair(acceptor, Digest(1), theirs)]
        gc.collect()
        before, _ = tracemalloc.get_traced_memory()
        held += [await _pair(acceptor, Digest(1), theirs) for _ in range(count)]
        gc.collect()
        after, _ = tracemalloc.get_traced_memory()
        for one in held:
            one.close()
        return after - before

    tracemalloc.start()
    try:
        used = asyncio.run(asyncio.wait_for(scene(), 20))
    finally:
        tracemalloc.stop()
    assert used / count < 32 * KIB, "asyncio's own buffer has 256 KiB"


def test_a_handshake_that_fails_or_does_not_come_ends_the_connection(
    contexts: tuple[ssl.SSLContext, ssl.SSLContext],
) -> None:
    ours, _ = contexts

    async def scene(first: bytes) -> bytes:
        one, other = socket.socketpair()
        one.setblocking(False)
        other.settimeout(5)
        other.sendall(first)
        with pytest.raises((OSError, TimeoutError)):
            await _acceptor(ours, seconds=0.3).accept(one, Digest(1))
        with other:
            found = b""
            while piece := await asyncio.to_thread(other.recv, 1000):
                found += piece
            return found

    assert asyncio.run(asyncio.wait_for(scene(b""), 20)) == b""
    assert len(asyncio.run(asyncio.wait_for(scene(b"GET / HTTP/1.1\r\n\r\n"), 20))) < 100
