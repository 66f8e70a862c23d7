"""TLS connections of the fleet listener, which share one read buffer.

asyncio allocates a read buffer of 256 KiB for each TLS connection. All connections of one event
loop are read by its thread, one after the other, and what was read is passed to TLS at once: one
buffer serves them all.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from asyncio.sslproto import SSLProtocol
from typing import Any, Final

__all__ = ["TlsAcceptor"]

_READ_BYTES: Final = 256 * 1024
_RECORD_BYTES: Final = 16 * 1024
"""The most plaintext of a TLS record (RFC 8446, section 5.1)."""


class TlsAcceptor:
    """Makes TLS connections of accepted sockets, within one event loop.

    :param handshake_seconds: the most time of a handshake.
    :param close_seconds: the most time of a graceful end.
    """

    def __init__(
        self, context: ssl.SSLContext, *, handshake_seconds: float, close_seconds: float
    ) -> None:
        self._context = context
        self._handshake_seconds = handshake_seconds
        self._close_seconds = close_seconds
        self._buffer = memoryview(bytearray(_READ_BYTES))

    async def accept(self, sock: socket.socket, protocol: asyncio.BaseProtocol) -> None:
        """Connect ``protocol`` to a socket; return after the handshake.

        :raises OSError: when the handshake fails or takes too long.
        """
        loop = asyncio.get_running_loop()
        shaken: asyncio.Future[Any] = loop.create_future()
        tls = _SharedBufferTls(
            self._buffer,
            loop,
            protocol,
            self._context,
            shaken,
            server_side=True,
            ssl_handshake_timeout=self._handshake_seconds,
            ssl_shutdown_timeout=self._close_seconds,
        )
        transport, _ = await loop.connect_accepted_socket(lambda: tls, sock)
        try:
            await shaken
        except BaseException:
            transport.close()
            raise
        tls.forget_parsed_certificate()


class _SharedBufferTls(SSLProtocol):
    """:class:`asyncio.sslproto.SSLProtocol` without a read buffer of its own."""

    max_size = _RECORD_BYTES

    def __init__(self, shared: memoryview, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._ssl_buffer = bytearray()
        self._ssl_buffer_view = shared

    def forget_parsed_certificate(self) -> None:
        """Drop the dictionary that asyncio makes of the certificate; TLS still has its bytes."""
        self._extra.pop("peercert", None)

    def get_buffer(self, n: int) -> memoryview:
        """Return the buffer that the next bytes are read into."""
        return self._ssl_buffer_view
