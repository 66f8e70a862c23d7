"""HTTP/1.1 over mutual TLS to the fleet server, for small calls and for bodies of a model's size.

``http.client`` of the standard library writes the head of a request and reads that of the
answer; bodies go between files and the TLS socket in large pieces. A connection is used again if
its answer was read to the end.
"""

from __future__ import annotations

import base64
import contextlib
import http.client
import itertools
import select
import socket
import ssl
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from fedlearn.errors import TransportError
from fedlearn.identity import spiffe
from fedlearn.identity.tls import client_context
from fedlearn.sandbox.memory_file import Buffer

__all__ = ["Answer", "Identity", "Session"]

_CONNECT_SECONDS: Final = 10.0
_READ_BYTES: Final = 512 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """A client's certificate chain, leaf first, its key, and the authorities that it trusts."""

    chain: tuple[x509.Certificate, ...]
    key: ec.EllipticCurvePrivateKey
    authorities: tuple[x509.Certificate, ...]


class Answer:
    """The answer to a request; its body is read once."""

    def __init__(self, response: http.client.HTTPResponse) -> None:
        self._response = response
        self.status = response.status

    @property
    def length(self) -> int | None:
        """The announced bytes of the body."""
        return self._response.length

    def header(self, name: str) -> str:
        """Return a header; empty if there is none."""
        return self._response.getheader(name, "")

    def pieces(self) -> Iterator[memoryview]:
        """Yield the body in views of two buffers, each valid until the next but one.

        :raises TransportError: when it ends early.
        """
        size = min(_READ_BYTES, self._response.length or 1)
        buffers = itertools.cycle([memoryview(bytearray(size)), memoryview(bytearray(size))])
        while size := self._response.readinto(buffer := next(buffers)):
            yield buffer[:size]
        if self._response.length:
            raise TransportError(
                f"the coordinator's answer ends {self._response.length} bytes early"
            )

    def read(self, limit: int) -> bytes:
        """Return the body.

        :raises TransportError: when it has more than ``limit`` bytes, or ends early.
        """
        body = self._response.read(limit + 1)
        if len(body) > limit:
            raise TransportError(f"an answer of more than {limit} bytes")
        if self._response.length:
            raise TransportError("the coordinator's answer ends early")
        return body


class Session:
    """The connections with one certificate. Safe to use from many threads.

    The coordinator is identified by its CA and the name
    :data:`fedlearn.identity.spiffe.COORDINATOR_DNS`, whatever its address is.

    :param address: ``host:port``.
    """

    def __init__(self, address: str, identity: Identity) -> None:
        host, _, port = address.rpartition(":")
        self._address = (host.strip("[]"), int(port))
        self._context = client_context(identity.chain, identity.key, identity.authorities)
        pem = identity.key.public_key().public_bytes(
            Encoding.PEM, PublicFormat.SubjectPublicKeyInfo
        )
        self.key = base64.b64encode(pem).decode("ascii")
        self._lock = threading.Lock()
        self._idle: list[http.client.HTTPConnection] = []
        self._all: set[http.client.HTTPConnection] = set()
        self._closed = False

    @contextmanager
    def post(
        self,
        path: str,
        body: Iterable[Buffer],
        *,
        headers: Mapping[str, str],
        seconds: float,
        answer_seconds: float,
    ) -> Iterator[Answer]:
        """Send a request and yield its answer.

        :param seconds: how long sending may make no progress.
        :param answer_seconds: how long the answer may.
        :raises OSError: when the coordinator cannot be reached.
        :raises http.client.HTTPException: when its answer is not HTTP.
        """
        connection = self._take()
        reusable = False
        try:
            connection.sock.settimeout(seconds)
            connection.putrequest("POST", path, skip_accept_encoding=True)
            for name, value in headers.items():
                connection.putheader(name, value)
            connection.endheaders()
            whole = _send(connection.sock, body)
            connection.sock.settimeout(answer_seconds)
            response = connection.getresponse()
            yield Answer(response)
            reusable = whole and response.isclosed() and connection.sock is not None
        finally:
            self._give_back(connection, reusable=reusable)

    def close(self) -> None:
        """End all connections; a call that uses one of them fails."""
        with self._lock:
            self._closed = True
            idle, busy = self._idle, self._all.difference(self._idle)
            self._idle = []
        for connection in idle:
            connection.close()
        for connection in busy:
            with contextlib.suppress(OSError, AttributeError):
                connection.sock.shutdown(socket.SHUT_RDWR)

    def _take(self) -> http.client.HTTPConnection:
        while True:
            with self._lock:
                connection = self._idle.pop() if self._idle else None
            if connection is None:
                break
            # What is readable before a request is the end of the connection.
            if not _readable(connection.sock):
                return connection
            self._give_back(connection, reusable=False)
        connection = http.client.HTTPConnection(*self._address)
        raw = socket.create_connection(self._address, timeout=_CONNECT_SECONDS)
        try:
            raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            connection.sock = self._context.wrap_socket(raw, server_hostname=spiffe.COORDINATOR_DNS)
        except BaseException:
            raw.close()
            raise
        with self._lock:
            self._all.add(connection)
        return connection

    def _give_back(self, connection: http.client.HTTPConnection, *, reusable: bool) -> None:
        with self._lock:
            if reusable and not self._closed:
                self._idle.append(connection)
                return
            self._all.discard(connection)
        connection.close()


def _send(sock: socket.socket, body: Iterable[Buffer]) -> bool:
    """Send a body; stop when an answer arrives before its end. Return whether all was sent."""
    for piece in body:
        if _readable(sock):
            return False
        try:
            sock.sendall(piece)
        except (ConnectionError, ssl.SSLError):
            return False  # a coordinator that refuses a body may close before it is whole
    return True


def _readable(sock: socket.socket) -> bool:
    """Return whether there is something to read, or the connection has ended."""
    poll = select.poll()  # select() has no descriptors above 1023
    poll.register(sock, select.POLLIN)
    return bool(poll.poll(0))
