"""Every way in which a connection fails, tried with real sockets: each has a message of its own."""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from edge.protocol.rpc import GateClient
from fedlearn.errors import TransportError
from fedlearn.identity.login import OperatorLogin
from fedlearn.wire import fedlearn_pb2 as pb
from fedlearn.wire.operator import OperatorClient
from fedlearn.wire.pinning import fetch_pinned
from fedlearn.wire.unreachable import Unreachable
from server.identity.pki import CertificateAuthority
from tests.fakes.lone_coordinator import LoneCoordinator, new_identity


@pytest.fixture
def lone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LoneCoordinator]:
    monkeypatch.setattr(OperatorClient, "attempts", 1)
    with LoneCoordinator.started(tmp_path) as running:
        yield running


@contextlib.contextmanager
def listening(handle: Callable[[socket.socket], object]) -> Iterator[str]:
    """A server that gives each connection to ``handle``; its address."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def accept() -> None:
            with contextlib.suppress(OSError):
                while True:
                    connection, _ = server.accept()
                    threading.Thread(target=handle, args=(connection,), daemon=True).start()

        threading.Thread(target=accept, daemon=True).start()
        yield f"127.0.0.1:{server.getsockname()[1]}"
        server.shutdown(socket.SHUT_RDWR)


def failure(lone: LoneCoordinator, address: str = "", **other: bytes) -> TransportError:
    login = OperatorLogin.load(lone.login)
    identity = {"ca": login.ca, "chain": login.chain, "key": login.key, **other}
    with (
        OperatorClient(address=address or lone.address, **identity) as client,
        pytest.raises(TransportError) as caught,
    ):
        client.list_jobs()
    assert caught.value.hint
    return caught.value


def pinning_failure(address: str) -> TransportError:
    with pytest.raises(TransportError) as caught:
        fetch_pinned(address, ca_pin=bytes(32), now=datetime.now(UTC), timeout=5)
    assert caught.value.hint
    return caught.value


def unused() -> str:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return f"127.0.0.1:{server.getsockname()[1]}"


def web(connection: socket.socket) -> None:
    """A web server without TLS."""
    with connection:
        connection.recv(4096)
        connection.sendall(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")


def secure(folder: Path, ca: CertificateAuthority) -> Callable[[socket.socket], None]:
    """A web server with TLS, whose certificate ``ca`` signed."""
    key, chain = new_identity(ca, server=True)
    (folder / "key.pem").write_bytes(key)
    (folder / "chain.pem").write_bytes(chain)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "chain.pem", folder / "key.pem")
    context.set_alpn_protocols(["http/1.1"])

    def handle(connection: socket.socket) -> None:
        with contextlib.suppress(OSError), context.wrap_socket(connection, server_side=True) as tls:
            tls.recv(1)

    return handle


def test_each_cause_has_a_message_of_its_own(lone: LoneCoordinator, tmp_path: Path) -> None:
    ca = CertificateAuthority.create("test.example", datetime.now(UTC))
    key, chain = new_identity(ca, server=False)
    found: dict[str, TransportError] = {
        "refused": failure(lone, unused()),
        "unknown host": failure(lone, "no-such-host.invalid:443"),
        "own certificate": failure(lone, chain=chain, key=key),
        "wrong CA": failure(lone, ca=ca.certificate_pem),
    }
    with listening(web) as address:
        found["plain"] = failure(lone, address)
    with listening(secure(tmp_path, ca)) as address:
        found["web with TLS"] = failure(lone, address, ca=ca.certificate_pem)
    with listening(lambda connection: connection.close()) as address:
        found["closes"] = failure(lone, address)
    expected = {
        "refused": "nothing listens on that port",
        "unknown host": "its host name is not known here",
        "own certificate": "it closed the connection",
        "wrong CA": "not signed by the expected CA",
        "plain": "does not speak TLS",
        "web with TLS": "speaks TLS, but not gRPC",
        "closes": "it closed the connection",
    }
    for name, text in expected.items():
        assert text in str(found[name]), name
    later = {name for name, error in found.items() if isinstance(error, Unreachable)}
    assert later == {"refused", "unknown host", "own certificate", "closes"}


def test_a_call_that_changes_something_is_repeated_only_if_it_was_not_sent(
    lone: LoneCoordinator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a busy machine, where a handshake ends late."""
    monkeypatch.setattr(OperatorClient, "attempts", 4)
    refused = 1

    def relay(connection: socket.socket) -> None:
        nonlocal refused
        refused -= 1
        if refused >= 0:
            connection.close()
            return
        host, _, port = lone.address.rpartition(":")
        with connection, socket.create_connection((host, int(port))) as onward:
            pair = ((connection, onward), (onward, connection))
            threads = [threading.Thread(target=copy, args=each, daemon=True) for each in pair]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()

    def copy(source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                target.sendall(data)
            target.shutdown(socket.SHUT_WR)

    login = OperatorLogin.load(lone.login)
    lone.coordinator.jobs["heart"] = pb.JobState(name="heart", status="running")
    with (
        listening(relay) as address,
        OperatorClient(address=address, ca=login.ca, chain=login.chain, key=login.key) as client,
    ):
        assert client.cancel_job("heart").status == "cancelled"
        assert refused < 0
        lone.coordinator.cancelled = 0

    # Sent and not answered: whether it was processed is not known, so it is not sent again.
    lone.coordinator.answers = False
    with (
        OperatorClient(
            address=lone.address, ca=login.ca, chain=login.chain, key=login.key
        ) as client,
        pytest.raises(TransportError),
    ):
        client.cancel_job("heart")
    assert lone.coordinator.cancelled == 1


def test_a_listener_for_other_calls_is_named(lone: LoneCoordinator) -> None:
    """As with the port of the gate in an operator's login, or the other way around."""
    login = OperatorLogin.load(lone.login)
    client = OperatorClient(address=lone.address, ca=login.ca, chain=login.chain, key=login.key)
    with client, pytest.raises(TransportError, match="another listener, or of another") as caught:
        client.list_operators()
    assert "check the port" in caught.value.hint


def test_the_pinning_handshake_distinguishes_them_too(tmp_path: Path) -> None:
    assert "nothing listens" in str(pinning_failure(unused()))
    assert "host name is not known" in str(pinning_failure("no-such-host.invalid:443"))
    with listening(web) as address:
        assert "does not speak TLS" in str(pinning_failure(address))
    with listening(lambda connection: connection.close()) as address:
        assert "closed the connection" in str(pinning_failure(address))
    ca = CertificateAuthority.create("test.example", datetime.now(UTC))
    with listening(secure(tmp_path, ca)) as address:
        assert "does not have the pinned key" in str(pinning_failure(address))


def test_a_join_token_for_a_host_that_is_not_known_is_refused_with_a_hint(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(GateClient, "attempts", 1)
    with pytest.raises(Unreachable, match="host name is not known") as caught:
        GateClient.connect("no-such-host.invalid:443", ca_pin=bytes(32))
    assert "spelling" in caught.value.hint
