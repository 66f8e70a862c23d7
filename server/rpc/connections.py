"""Limits how many connections one address, and one identity, may hold.

A connection counts for its address until its peer is identified, and for its identity
afterwards: the limits of unknown peers do not depend on the connections of known peers, and vice
versa. Where many peers share an address (NAT, a proxy), they share only the limit of unknown
peers.

The classes belong to one event loop and are not safe to use from other threads.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import ipaddress
import logging
import os
import secrets
import socket
import struct
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from fedlearn.errors import ConfigError

__all__ = ["Caps", "Connection", "Connections", "Relay", "accept_all", "listen", "network_of"]

_LOG = logging.getLogger(__name__)
_PIECE: Final = 64 * 1024
_PAUSE_SECONDS: Final = 0.1
_BACKLOG: Final = 1024
_ANSWER_SECONDS: Final = 10.0
_REFUSALS: Final = 100
_ABORT: Final = struct.pack("ii", 1, 0)
"""``SO_LINGER`` of zero seconds: a refused connection leaves no state on this side."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Caps:
    """How many connections are held at once.

    ``unknown``           of all peers that are not identified (yet)
    ``unknown_per_peer``  of the unidentified peers at one address
    ``per_identity``      of one identity; a further one ends the oldest
    """

    unknown: int = 1024
    unknown_per_peer: int = 256
    per_identity: int = 8


class Connection:
    """One accepted connection. ``peer`` is its network address, see :func:`network_of`."""

    def __init__(self, owner: Connections, peer: str, abort: Callable[[], None]) -> None:
        self.peer = peer
        self.identity = ""
        self._owner = owner
        self._abort = abort
        self._refusals = 0
        self._open = True

    def identify(self, identity: str) -> None:
        """Count this connection for ``identity`` from now on, and no longer for its address."""
        if self._open and not self.identity:
            self._owner.identified(self, identity)

    def refused(self) -> None:
        """Note that a call on it was refused; a peer that continues regardless is disconnected."""
        self._refusals += 1
        if self._refusals > _REFUSALS:
            self.abort()

    def abort(self) -> None:
        """End the connection."""
        self._abort()

    def close(self) -> None:
        """No longer count the connection. May be called twice."""
        if self._open:
            self._open = False
            self._owner.closed(self)


class Connections:
    """The open connections of one listener."""

    def __init__(self, caps: Caps) -> None:
        self._caps = caps
        self._unknown: dict[str, int] = {}
        self._unknown_total = 0
        self._known: dict[str, OrderedDict[Connection, None]] = {}

    def take(self, address: str, abort: Callable[[], None]) -> Connection | None:
        """Count a connection from the IP ``address``, and return it; ``None`` beyond the limits.

        ``abort`` ends the connection; the caller calls :meth:`Connection.close` afterwards.
        """
        peer = network_of(address)
        held = self._unknown.get(peer, 0)
        if held >= self._caps.unknown_per_peer or self._unknown_total >= self._caps.unknown:
            return None
        self._unknown[peer] = held + 1
        self._unknown_total += 1
        return Connection(self, peer, abort)

    @property
    def unknown(self) -> int:
        """The number of open connections whose identity is not known."""
        return self._unknown_total

    def of(self, identity: str) -> int:
        """Return how many connections an identity holds."""
        return len(self._known.get(identity, ()))

    def identified(self, connection: Connection, identity: str) -> None:
        """Move ``connection`` from its address to ``identity``; end that one's oldest if needed."""
        self._leave_unknown(connection)
        connection.identity = identity
        held = self._known.setdefault(identity, OrderedDict())
        held[connection] = None
        if len(held) > self._caps.per_identity:
            oldest = next(iter(held))
            oldest.close()
            oldest.abort()

    def closed(self, connection: Connection) -> None:
        """Forget ``connection``."""
        if not connection.identity:
            self._leave_unknown(connection)
            return
        held = self._known.get(connection.identity)
        if held is not None:
            held.pop(connection, None)
            if not held:
                del self._known[connection.identity]

    def _leave_unknown(self, connection: Connection) -> None:
        self._unknown_total -= 1
        left = self._unknown[connection.peer] - 1
        if left:
            self._unknown[connection.peer] = left
        else:
            del self._unknown[connection.peer]


def network_of(address: str) -> str:
    """Return an IPv4 address unchanged, and an IPv6 address as its /64, which one party holds."""
    try:
        ip = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if isinstance(ip, ipaddress.IPv6Address):
        if ip.ipv4_mapped is not None:
            return str(ip.ipv4_mapped)
        return str(ipaddress.ip_network((ip, 64), strict=False))
    return str(ip)


def listen(host: str, port: int) -> socket.socket:
    """Return a non-blocking listening socket.

    :raises ConfigError: when the address cannot be listened on.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        both = host == "::" and socket.has_dualstack_ipv6()
        listener = socket.create_server(
            (host, port), family=family, backlog=_BACKLOG, dualstack_ipv6=both
        )
    except OSError as error:
        raise ConfigError(
            f"{host}:{port} cannot be bound: {os.strerror(error.errno or 0)}",
            key="listen",
            hint="end the process that listens there (`ss -ltnp` lists it), or choose another port",
        ) from error
    listener.setblocking(False)
    return listener


async def accept_all(
    listener: socket.socket,
    connections: Connections,
    serve: Callable[[socket.socket, Connection], Awaitable[None]],
) -> None:
    """Accept until cancelled; run ``serve`` for each connection within the limits.

    A connection beyond the limits is reset at once. When file descriptors run out, accepting
    pauses and open connections stay. ``serve`` owns the socket and closes it.
    """
    loop = asyncio.get_running_loop()
    running: set[asyncio.Task[None]] = set()
    refusing = False
    try:
        while True:
            try:
                sock, address = await loop.sock_accept(listener)
            except OSError as error:
                if error.errno != errno.ECONNABORTED:
                    if not refusing:
                        _LOG.warning("no connection can be accepted: %s", error.strerror)
                    refusing = True
                    await asyncio.sleep(_PAUSE_SECONDS)
                continue
            refusing = False
            task = asyncio.ensure_future(_served(sock, str(address[0]), connections, serve))
            running.add(task)
            task.add_done_callback(running.discard)
    finally:
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)


async def _served(
    sock: socket.socket,
    address: str,
    connections: Connections,
    serve: Callable[[socket.socket, Connection], Awaitable[None]],
) -> None:
    task = asyncio.current_task()

    def abort() -> None:
        if task is not None:
            task.cancel()

    connection = connections.take(address, abort)
    if connection is None:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _ABORT)
        sock.close()
        return
    try:
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        await serve(sock, connection)
    except OSError as error:
        _LOG.debug("a connection from %s ended: %s", connection.peer, error)
    finally:
        connection.close()
        sock.close()


class Relay:
    """Accepts connections for a gRPC server, which cannot count or end the connections of one peer.

    The server listens on a Unix socket in a private folder. Bytes are forwarded unchanged: TLS
    ends in the server. Each connection has its own name at the server, by which
    :meth:`of_peer` finds it again.

    :param path: of the server's socket.
    :param unknown_seconds: how long a connection may be open before a call identifies its peer;
        ``None`` without a limit.
    """

    def __init__(
        self, path: Path, connections: Connections, *, unknown_seconds: float | None
    ) -> None:
        self._path = str(path)
        self._connections = connections
        self._unknown_seconds = unknown_seconds
        self._prefix = f"fedlearn-{os.getpid()}-{secrets.token_hex(8)}-"
        self._buffer = bytearray(_PIECE)
        self._number = 0
        self._named: dict[str, Connection] = {}

    def of_peer(self, peer: str) -> Connection | None:
        """Return the open connection whose name in gRPC is ``peer``."""
        return self._named.get(peer.removeprefix("unix-abstract:"))

    async def serve(self, sock: socket.socket, connection: Connection) -> None:
        """Forward bytes in both directions until either side ends."""
        loop = asyncio.get_running_loop()
        self._number += 1
        name = f"{self._prefix}{self._number}"
        inner = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        timer: asyncio.TimerHandle | None = None
        flows: list[_Flow] = []
        try:
            inner.setblocking(False)
            inner.bind(f"\0{name}")
            self._named[name] = connection
            await loop.sock_connect(inner, self._path)
            if self._unknown_seconds is not None:
                timer = loop.call_later(self._unknown_seconds, _end_unknown, connection)
            flows += [
                _Flow(loop, sock, inner, self._buffer),
                _Flow(loop, inner, sock, self._buffer),
            ]
            asked, answered = (flow.over for flow in flows)
            await asyncio.wait({asked, answered}, return_when=asyncio.FIRST_COMPLETED)
            # A peer that sends no more may still receive a reply; an ended server receives no
            # more requests.
            if not answered.done() and asked.result():
                await asyncio.wait({answered}, timeout=_ANSWER_SECONDS)
        finally:
            for flow in flows:
                flow.stop()
            if timer is not None:
                timer.cancel()
            self._named.pop(name, None)
            inner.close()


class _Flow:
    """Copies bytes from a socket to another in callbacks of the loop, without a task.

    While the target takes no more, nothing is read.

    ``over``  done when the source has ended (True) or either socket has failed (False)

    :param buffer: used between a read and the write after it; flows of one loop may share it.
    """

    __slots__ = ("_buffer", "_loop", "_rest", "_source", "_target", "over")

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        source: socket.socket,
        target: socket.socket,
        buffer: bytearray,
    ) -> None:
        self._loop = loop
        self._source = source
        self._target = target
        self._buffer = buffer
        self._rest = b""
        self.over: asyncio.Future[bool] = loop.create_future()
        loop.add_reader(source, self._read)

    def stop(self) -> None:
        """Copy no more."""
        self._loop.remove_reader(self._source)
        self._loop.remove_writer(self._target)
        if not self.over.done():
            self.over.cancel()

    def _read(self) -> None:
        try:
            size = self._source.recv_into(self._buffer)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            self._end(whole=False)
            return
        if size:
            self._write(memoryview(self._buffer)[:size])
        else:
            self._end(whole=True)

    def _write(self, piece: memoryview) -> None:
        sent = self._sent(piece)
        if sent is not None and sent < len(piece):
            self._rest = bytes(piece[sent:])
            self._loop.remove_reader(self._source)
            self._loop.add_writer(self._target, self._write_rest)

    def _write_rest(self) -> None:
        sent = self._sent(self._rest)
        if sent is None:
            return
        self._rest = self._rest[sent:]
        if not self._rest:
            self._loop.remove_writer(self._target)
            self._loop.add_reader(self._source, self._read)

    def _sent(self, piece: bytes | memoryview) -> int | None:
        """Return how many bytes the target has taken; ``None`` when it has failed."""
        try:
            return self._target.send(piece)
        except (BlockingIOError, InterruptedError):
            return 0
        except OSError:
            self._end(whole=False)
            return None

    def _end(self, *, whole: bool) -> None:
        self._loop.remove_reader(self._source)
        self._loop.remove_writer(self._target)
        with contextlib.suppress(OSError):
            self._target.shutdown(socket.SHUT_WR)
        if not self.over.done():
            self.over.set_result(whole)


def _end_unknown(connection: Connection) -> None:
    if not connection.identity:
        connection.abort()
