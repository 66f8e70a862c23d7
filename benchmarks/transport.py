"""Measures model bytes over mutual TLS: the Fleet listener against a gRPC stream and raw sockets.

    python benchmarks/transport.py [--mib 100] [--repeat 7] [--quick] [--json]

A process with a Fleet listener, a gRPC server and two raw servers; a client in this process. All
that use TLS have certificates of one authority, and ask for the other side's. The bytes are random.
*fetch* goes from server to client, *deliver* from client to server.

Ours ends in sealed files in memory, and the server has hashed what was delivered. The gRPC stream
has pieces of 1 MiB, which its receiver drops; *gRPC stream, stored* does with them what ours does.
Raw sockets drop what they receive, too.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import socket
import ssl
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Final

ROOT: Final = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import grpc  # noqa: E402
from _report import Row, at_least, interleave, measured, options, show  # noqa: E402
from cryptography import x509  # noqa: E402
from cryptography.hazmat.primitives import serialization  # noqa: E402
from cryptography.hazmat.primitives.asymmetric import ec  # noqa: E402

from edge.client.flower.fleet import Fleet, Identity  # noqa: E402
from fedlearn.app.message import Flat, Head, Record, write_content  # noqa: E402
from fedlearn.identity.spiffe import COORDINATOR_DNS  # noqa: E402
from fedlearn.identity.tls import client_context, server_context  # noqa: E402
from fedlearn.sandbox.memory_file import FilePart, MemoryFile  # noqa: E402

PIECE: Final = 1 << 20
JOB: Final = "bytes"
GRPC: Final = "gRPC stream"
STORED: Final = "gRPC stream, stored"
TLS: Final = "raw TLS"
TCP: Final = "raw TCP"


def _random(size: int) -> FilePart:
    file = MemoryFile.create()
    for start in range(0, size, PIECE):
        file.append(os.urandom(min(PIECE, size - start)))
    return file.seal().part()


def _message(size: int, *, number: int, to: int, reply_to: str = "") -> tuple[Head, bytes]:
    """Return head and content of a message with one array of ``size`` bytes."""
    content = write_content([Record("a", "arrays", [["w", "uint8", [size], "numpy", 0]])])
    head = Head(
        id=f"message-{number}",
        run=1,
        sender=1 if not reply_to else to,
        receiver=to if not reply_to else 1,
        reply_to=reply_to,
        created=1.0,
        ttl=3600.0,
        kind="train",
        parts=("content", "w"),
    )
    return head, content


class _Raw:
    """A server of raw bytes: a command of one byte, then a stream in one direction."""

    def __init__(self, data: FilePart, context: ssl.SSLContext | None) -> None:
        self._data, self._context = data, context
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = self._listener.getsockname()
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            sock, _ = self._listener.accept()
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with contextlib.suppress(OSError):
                self._answer(
                    self._context.wrap_socket(sock, server_side=True) if self._context else sock
                )

    def _answer(self, sock: socket.socket) -> None:
        while command := sock.recv(1):
            if command == b"d":
                _receive(sock, len(self._data))
                sock.sendall(b"k")
            else:
                for piece in self._data.pieces():
                    sock.sendall(piece)


def _receive(sock: socket.socket, size: int) -> None:
    buffer = memoryview(bytearray(PIECE))
    while size:
        size -= sock.recv_into(buffer[: min(size, PIECE)])


class _Store:
    """Keeps a stream as ours does: in a file in memory, hashed if it is delivered."""

    def __init__(self, *, hashed: bool) -> None:
        self._file = MemoryFile.create()
        self._state = hashlib.sha256() if hashed else None

    def put(self, piece: bytes) -> None:
        self._file.append(piece)
        if self._state is not None:
            self._state.update(piece)


class _Stream(grpc.GenericRpcHandler):
    def __init__(self, data: FilePart) -> None:
        self._data = data

    def service(self, call: Any) -> Any:
        if call.method == "/s/fetch":
            return grpc.unary_stream_rpc_method_handler(lambda *_: self._data.pieces())
        stored = call.method == "/s/store"
        return grpc.stream_unary_rpc_method_handler(lambda pieces, _: _take(pieces, stored=stored))


def _take(pieces: Iterator[bytes], *, stored: bool, hashed: bool = True) -> bytes:
    store = _Store(hashed=hashed) if stored else None
    for piece in pieces:
        if store is not None:
            store.put(piece)
    return b"k"


def _serve(parent: Connection, size: int) -> None:
    """Run all servers; answer the parent's requests until it ends."""
    from server.flower.exchange.job_exchange import JobExchange
    from tests.harness.flower_federation import FlowerFederation, _csr
    from tests.harness.job_plans import job_plan

    data = _random(size)
    link = JobExchange(job_plan(job=JOB, sites=["site"]))

    class Host:
        def __init__(self) -> None:
            self.link = link

    with tempfile.TemporaryDirectory() as folder:
        federation = FlowerFederation(Path(folder))
        federation.hosts = {JOB: Host()}
        node = link.create_node("site", b"")
        identity = federation.admit(JOB, "site", node_id=node)
        key = ec.generate_private_key(ec.SECP256R1())
        issued = federation.ca.issue_server(_csr(key), ips=["127.0.0.1"], now=datetime.now(UTC))
        chain = x509.load_pem_x509_certificates(issued.chain_pem)
        raw = [_Raw(data, None), _Raw(data, server_context(chain, key, [federation.root]))]
        server = grpc.server(ThreadPoolExecutor(4))
        server.add_generic_rpc_handlers((_Stream(data),))
        pem = key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        credentials = grpc.ssl_server_credentials(
            [(pem, issued.chain_pem)],
            root_certificates=federation.ca.certificate_pem,
            require_client_auth=True,
        )
        port = server.add_secure_port("127.0.0.1:0", credentials)
        server.start()
        parent.send((identity, federation.address, port, *[each.address for each in raw]))
        number = 0
        with contextlib.suppress(EOFError):
            while command := parent.recv():
                if command == "cpu":
                    parent.send(time.process_time())
                    continue
                number += 1
                link.forget([f"message-{number - 1}"])
                link.pull([f"message-{number - 1}"], 0)
                head, content = _message(size, number=number, to=node)
                part: Any = data if command == "large" else b"small"
                link.push([head.to_bytes()], [("content", content), ("w", part)])
                parent.send(head.id)
        server.stop(0)
        federation.hosts = {}
        federation.close()


class Client:
    """The client's end of all transports; each measure returns GB/s and CPU seconds for one GB."""

    def __init__(self, parent: Connection, size: int) -> None:
        self._parent, self._size = parent, size
        identity, fleet, port, tcp, tls = parent.recv()
        key = serialization.load_pem_private_key(identity["key"].encode(), None)
        found = Identity(
            chain=tuple(x509.load_pem_x509_certificates(identity["chain"].encode())),
            key=key,  # type: ignore[arg-type]
            authorities=(x509.load_pem_x509_certificate(identity["root"].encode()),),
        )
        self._fleet = Fleet("{}:{}".format(*fleet), found, max_message_bytes=2 * size + (1 << 20))
        self._node, _ = self._fleet.activate()
        self._data = _random(size)
        context = client_context(found.chain, found.key, found.authorities)
        self._tcp = socket.create_connection(tcp)
        self._tls = context.wrap_socket(
            socket.create_connection(tls), server_hostname=COORDINATOR_DNS
        )
        for each in (self._tcp, self._tls):
            each.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        channel = grpc.secure_channel(
            f"127.0.0.1:{port}",
            grpc.ssl_channel_credentials(
                identity["root"].encode(), identity["key"].encode(), identity["chain"].encode()
            ),
            [
                ("grpc.ssl_target_name_override", COORDINATOR_DNS),
                ("grpc.enable_http_proxy", 0),
            ],
        )
        self.close = channel.close
        self._fetch = channel.unary_stream("/s/fetch")
        self._deliver = channel.stream_unary("/s/deliver")
        self._store = channel.stream_unary("/s/store")

    def _ask(self, command: str) -> Any:
        self._parent.send(command)
        return self._parent.recv()

    def measure(self, work: Callable[[], object]) -> tuple[float, float]:
        """Return GB/s, and CPU seconds of both ends for one GB."""
        before = self._ask("cpu") + time.process_time()
        start = time.perf_counter()
        work()
        wall = time.perf_counter() - start
        cpu = self._ask("cpu") + time.process_time() - before
        return self._size / 1e9 / wall, cpu / (self._size / 1e9)

    def fetches(self) -> dict[str, Callable[[], object]]:
        """Return what is measured from server to client."""
        self._ask("large")

        def ours() -> None:
            work = self._fleet.fetch()
            if work is None or len(work.objects["w"]) != self._size:
                raise SystemExit("the message did not come")

        return {
            "ours": ours,
            GRPC: lambda: _take(self._fetch(b""), stored=False),
            STORED: lambda: _take(self._fetch(b""), stored=True, hashed=False),
            TLS: lambda: self._down(self._tls),
            TCP: lambda: self._down(self._tcp),
        }

    def deliveries(self) -> dict[str, Callable[[], object]]:
        """Return what is measured from client to server."""
        return {
            "ours": self._reply,
            GRPC: lambda: self._deliver(self._data.pieces()),
            STORED: lambda: self._store(self._data.pieces()),
            TLS: lambda: self._up(self._tls),
            TCP: lambda: self._up(self._tcp),
        }

    def prepare(self) -> None:
        """Have a question in hand, so that the next reply is expected."""
        question = self._ask("small")
        if self._fleet.fetch() is None:
            raise SystemExit("the question did not come")
        head, content = _message(self._size, number=0, to=self._node, reply_to=question)
        objects: Any = {"content": content, "w": self._data}
        self._flat = Flat(messages=(head.to_bytes(),), ids=(head.id,), objects=objects)

    def _reply(self) -> None:
        if not self._fleet.deliver(self._flat):
            raise SystemExit("the reply was not expected")

    def _down(self, sock: socket.socket) -> None:
        sock.sendall(b"f")
        _receive(sock, self._size)

    def _up(self, sock: socket.socket) -> None:
        sock.sendall(b"d")
        for piece in self._data.pieces():
            sock.sendall(piece)
        if sock.recv(1) != b"k":
            raise SystemExit("the bytes did not arrive")


def _rows(name: str, found: dict[str, list[tuple[float, float]]], how: str) -> list[Row]:
    rows = []
    for index, (what, unit) in enumerate((("", "GB/s"), (", processor time", "CPU s/GB"))):
        series = {key: [each[index] for each in values] for key, values in found.items()}
        rows.append(
            measured(
                f"{name} over mutual TLS{what}",
                unit=unit,
                ours=series["ours"],
                peers={key: series[key] for key in (GRPC, STORED)},
                floor={key: series[key] for key in (TLS, TCP)},
                target=[at_least(0.9, of=GRPC)] if not index else [],
                how=how,
            )
        )
    return rows


def main() -> None:
    """Run the benchmark."""
    parser = options(__doc__)
    parser.add_argument("--mib", type=int, default=100)
    parser.add_argument("--repeat", type=int, default=7)
    arguments = parser.parse_args()
    mib, repeat = (8, 2) if arguments.quick else (arguments.mib, arguments.repeat)
    context = get_context("spawn")
    one, other = socket.socketpair()
    ours, theirs = Connection(one.detach()), Connection(other.detach())
    server = context.Process(target=_serve, args=(theirs, mib << 20), daemon=True)
    server.start()
    theirs.close()
    client = Client(ours, mib << 20)
    how = f"{mib} MiB of random bytes on the loopback; medians of {repeat} interleaved turns"

    def turns(works: dict[str, Callable[[], object]], before: Callable[[], None]) -> Any:
        found: dict[str, list[tuple[float, float]]] = {key: [] for key in works}

        def turn(key: str) -> float:
            before()
            found[key].append(client.measure(works[key]))
            return found[key][-1][0]

        interleave({key: lambda key=key: turn(key) for key in works}, repeat=repeat)  # type: ignore[misc]
        return {key: values[1:] for key, values in found.items()}  # the first loads code

    rows = _rows("fetch", turns(client.fetches(), lambda: None), how)
    rows += _rows("deliver", turns(client.deliveries(), client.prepare), how)
    client.close()
    ours.close()
    server.join(10)
    show(rows, as_json=arguments.json)


if __name__ == "__main__":
    main()
