"""The line between an agent and a client process that it started: frames over a socket pair.

A frame is a u32 big-endian length and that many bytes of JSON. The first one, to the client,
is its bootstrap document. Then the client speaks: it says where it stands, and asks for a
voucher, for its seed, and for the charge of an update; only these are answered. When either end
goes away the other one notices.
"""

from __future__ import annotations

import base64
import binascii
import json
import socket
import struct
import threading
from typing import Any, Final

from edge.protocol.bootstrap import MAX_BOOTSTRAP_BYTES
from edge.protocol.workload import Phase
from fedlearn.errors import LaunchError

__all__ = ["AgentChannel", "Gone", "receive", "send"]

_MAX_REPLY_BYTES: Final = 64 * 1024
_ANSWER_SECONDS: Final = 30.0


class Gone(LaunchError):
    """The other end of the line is gone."""


def send(line: socket.socket, message: object) -> None:
    """Send one frame.

    :raises Gone: when nobody is there.
    """
    data = message if isinstance(message, bytes) else json.dumps(message).encode()
    try:
        line.sendall(struct.pack(">I", len(data)) + data)
    except OSError as error:
        raise Gone("the other end of the line is gone") from error


def receive(line: socket.socket, *, limit: int = _MAX_REPLY_BYTES) -> bytes:
    """Receive one frame of at most ``limit`` bytes.

    :raises Gone: when nobody is there.
    :raises LaunchError: for a longer frame.
    """
    (length,) = struct.unpack(">I", _exactly(line, 4))
    if length > limit:
        raise LaunchError(f"a frame of {length} bytes; at most {limit} are read")
    return _exactly(line, length)


class AgentChannel:
    """The client's end. Safe to use from many threads."""

    def __init__(self, line: socket.socket) -> None:
        self._line = line
        self._sending = threading.Lock()
        self._asking = threading.Lock()
        self._answered = threading.Condition()
        self._answers: list[dict[str, Any]] = []
        self._closed = False
        self.stop = threading.Event()
        """Set when the agent asks the client to stop, or is gone."""

    def bootstrap(self) -> bytes:
        """Return the first frame, and from then on listen."""
        data = receive(self._line, limit=MAX_BOOTSTRAP_BYTES)
        threading.Thread(target=self._listen, name="leash", daemon=True).start()
        return data

    def say(self, phase: Phase, reason: str) -> None:
        """Tell the agent where this client stands."""
        with self._sending:
            send(self._line, {"phase": phase.value, "reason": reason[:2000]})

    def vouch(self, nonce: bytes, tls_key: bytes) -> bytes:
        """Ask the agent to vouch; see :class:`edge.protocol.workload.WorkloadApi`."""
        question = {"nonce": nonce.hex(), "tls_key": base64.b64encode(tls_key).decode()}
        return self._ask({"vouch": question}, "does not vouch")

    def grant_seed(self, request: bytes) -> bytes:
        """Ask the agent for the seed; see :class:`edge.protocol.workload.WorkloadApi`."""
        question = base64.b64encode(request).decode()
        return self._ask({"seed": question}, "does not give the seed")

    def charge(self, question: str) -> None:
        """Ask the agent to charge an update; see :class:`edge.protocol.workload.WorkloadApi`."""
        self._ask({"charge": question}, "does not charge the update to the budget of its data")

    def _ask(self, question: dict[str, Any], refusal: str) -> bytes:
        with self._asking:
            with self._sending:
                send(self._line, question)
            answer = self._take_answer(_ANSWER_SECONDS)
        if answer.get("why"):
            raise LaunchError(f"the agent {refusal}: {str(answer['why'])[:500]}")
        try:
            return base64.b64decode(answer["answer"], validate=True)
        except (KeyError, TypeError, binascii.Error):
            raise LaunchError("the agent's answer makes no sense") from None

    def _take_answer(self, seconds: float) -> dict[str, Any]:
        with self._answered:
            self._answered.wait_for(lambda: bool(self._answers) or self._closed, seconds)
            if not self._answers:
                raise Gone("the agent did not answer")
            return self._answers.pop()

    def _listen(self) -> None:
        try:
            while True:
                message = json.loads(receive(self._line))
                if isinstance(message, dict) and "answer" in message:
                    with self._answered:
                        self._answers = [message]
                        self._answered.notify_all()
                else:
                    self.stop.set()
        except (LaunchError, ValueError):
            self.stop.set()
        with self._answered:
            self._closed = True
            self._answered.notify_all()


def _exactly(line: socket.socket, count: int) -> bytes:
    data = bytearray()
    while len(data) < count:
        try:
            part = line.recv(min(count - len(data), 1 << 20))
        except OSError as error:
            raise Gone("the other end of the line is gone") from error
        if not part:
            raise Gone("the other end of the line is gone")
        data += part
    return bytes(data)
