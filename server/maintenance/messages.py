"""The messages on ``STATE/maintenance.sock``, and the proofs that both ends have the root key.

The coordinator writes first; then the command sends one request and gets one reply. A message is
``u32be length | JSON``::

    coordinator  {"version": 1, "nonce": 32 random bytes}   or {"refused": reason}
    command      {"text": request as JSON, "proof": HMAC}
    coordinator  {"text": reply as JSON, "proof": HMAC}

    HMAC = HMAC-SHA-256(key, side | LP(nonce) | LP(text))    LP(x) = u32be(len x) | x
    key  = the key for "maintenance" that is derived from the root key
    side = "fedlearn/maintenance-request/1\\0" or "fedlearn/maintenance-reply/1\\0"

Whoever makes a request has therefore opened the state, as for a command that works without a
running coordinator, and the reply is the coordinator's. Bytes are hexadecimal in JSON.

The page is docs/adr/0035-maintenance-socket.md.
"""

from __future__ import annotations

import contextlib
import hmac
import json
import os
import socket
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from attestation.length_prefixed import pack
from fedlearn.errors import TransportError
from server.keys.root_key import RootKey

__all__ = [
    "REPLY",
    "REQUEST",
    "SOCKET_FILE",
    "VERSION",
    "proof_key",
    "receive",
    "receive_proven",
    "send",
    "send_proven",
    "short_path",
]

SOCKET_FILE: Final = "maintenance.sock"
VERSION: Final = 1
REQUEST: Final = b"fedlearn/maintenance-request/1\0"
REPLY: Final = b"fedlearn/maintenance-reply/1\0"
_LENGTH: Final = struct.Struct(">I")
_MAX_BYTES: Final = 64 * 1024


def proof_key(root: RootKey) -> bytes:
    """Return the key of the proofs."""
    return root.derive("maintenance")


@contextlib.contextmanager
def short_path(state: Path) -> Iterator[str]:
    """Yield a path of the socket that a Unix address has room for (108 bytes), however deep it is.

    :raises OSError: when the folder cannot be opened.
    """
    folder = os.open(state, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{folder}/{SOCKET_FILE}"
    finally:
        os.close(folder)


def send(connection: socket.socket, message: Mapping[str, Any]) -> None:
    """Send a message."""
    data = json.dumps(message).encode()
    connection.sendall(_LENGTH.pack(len(data)) + data)


def receive(connection: socket.socket) -> dict[str, Any]:
    """Return the next message.

    :raises EOFError: when the other end closed the connection.
    :raises TransportError: when it is too long, or not a JSON object.
    """
    (length,) = _LENGTH.unpack(_exactly(connection, _LENGTH.size))
    if length > _MAX_BYTES:
        raise TransportError(f"a message of {length} bytes; at most {_MAX_BYTES} are read")
    try:
        message = json.loads(_exactly(connection, length))
    except (ValueError, RecursionError):
        raise TransportError("a message that is not JSON") from None
    if not isinstance(message, dict):
        raise TransportError("a message that is not a JSON object")
    return message


def send_proven(
    connection: socket.socket, body: Mapping[str, Any], *, key: bytes, side: bytes, nonce: bytes
) -> None:
    """Send ``body`` with the proof of having ``key``."""
    text = json.dumps(body)
    send(connection, {"text": text, "proof": _proof(key, side, nonce, text).hex()})


def receive_proven(
    connection: socket.socket, *, key: bytes, side: bytes, nonce: bytes
) -> dict[str, Any]:
    """Return what the other end sent with a proof of having ``key``.

    :raises EOFError: as :func:`receive`.
    :raises TransportError: as :func:`receive`, or when the proof is not one for this nonce.
    """
    message = receive(connection)
    if "refused" in message:
        raise TransportError(f"the coordinator refuses the request: {message['refused']}")
    text, proof = message.get("text"), message.get("proof")
    if not isinstance(text, str) or not isinstance(proof, str):
        raise TransportError("a message without text and proof")
    expected = _proof(key, side, nonce, text).hex()
    if not hmac.compare_digest(proof.encode(), expected.encode()):
        raise TransportError("a message whose sender does not have the coordinator's root key")
    body = json.loads(text)
    if not isinstance(body, dict):
        raise TransportError("a message that is not a JSON object")
    return body


def _proof(key: bytes, side: bytes, nonce: bytes, text: str) -> bytes:
    return hmac.digest(key, side + pack(nonce, text.encode()), "sha256")


def _exactly(connection: socket.socket, count: int) -> bytes:
    data = bytearray()
    while len(data) < count:
        piece = connection.recv(count - len(data))
        if not piece:
            raise EOFError("the connection was closed")
        data += piece
    return bytes(data)
