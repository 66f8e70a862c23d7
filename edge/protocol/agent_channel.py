"""The messages between an agent and a client process that it started.

Records of a :class:`~fedlearn.sandbox.process_channel.ProcessChannel`. The first one, to the
client, holds its bootstrap document. From then on the client reports and asks, and the agent
answers, or asks it to stop:

==============================================  ====================================
``{"phase": ..., "reason": ...}``               the client's phase
``{"ask": "vouch", "number": n}``               blobs: the nonce, the TLS key
``{"ask": "seed", "number": n}``                blob: the request
``{"ask": "charge", "number": n}``              blob: the question
``{"number": n}``                               blob: the answer to question n
``{"number": n, "refused": reason}``            why question n is refused
``{"stop": reason}``                            the client ends
==============================================  ====================================

Each end detects that the other one has ended.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Sequence
from typing import Any, Final

from edge.protocol.bootstrap import MAX_BOOTSTRAP_BYTES
from fedlearn.errors import LaunchError, TransportError
from fedlearn.job.phase import Phase
from fedlearn.sandbox.memory_file import Part
from fedlearn.sandbox.process_channel import ProcessChannel

__all__ = ["AgentChannel", "Gone", "agent_end"]

_MAX_RECORD_BYTES: Final = 64 * 1024
_ANSWER_SECONDS: Final = 30.0


class Gone(LaunchError):
    """The agent has ended, or does not answer."""


def agent_end(end: socket.socket) -> ProcessChannel:
    """Return the agent's end."""
    return ProcessChannel(end, limit=_MAX_RECORD_BYTES, max_header=_MAX_RECORD_BYTES)


class AgentChannel:
    """The client's end. Safe to use from many threads."""

    def __init__(self, end: socket.socket) -> None:
        self._channel = ProcessChannel(end, limit=MAX_BOOTSTRAP_BYTES, max_header=_MAX_RECORD_BYTES)
        self._asking = threading.Lock()
        self._number = 0
        self._answered = threading.Condition()
        self._answer: tuple[dict[str, Any], list[memoryview]] = ({}, [])
        self._closed = False
        self.stop = threading.Event()
        """Set when the agent asks the client to stop, or has ended."""

    def bootstrap(self) -> bytes:
        """Return the bootstrap document, and from then on listen.

        :raises Gone: when the agent ended before it sent one.
        """
        try:
            record = self._channel.receive()
        except TransportError as error:
            raise Gone(f"no bootstrap document came: {error}") from error
        if record is None or len(record[1]) != 1:
            raise Gone("no bootstrap document came")
        threading.Thread(target=self._listen, name="agent", daemon=True).start()
        return bytes(record[1][0])

    def report(self, phase: Phase, reason: str) -> None:
        """Report this client's phase to the agent.

        :raises Gone: when the agent has ended.
        """
        self._send({"phase": phase.value, "reason": reason[:2000]})

    def vouch(self, nonce: bytes, tls_key: bytes) -> bytes:
        """Ask the agent to vouch; see :class:`edge.protocol.workload.WorkloadApi`."""
        return self._ask("vouch", [nonce, tls_key], "does not vouch")

    def grant_seed(self, request: bytes) -> bytes:
        """Ask the agent for the seed; see :class:`edge.protocol.workload.WorkloadApi`."""
        return self._ask("seed", [request], "does not give the seed")

    def charge(self, question: str) -> None:
        """Ask the agent to charge an update; see :class:`edge.protocol.workload.WorkloadApi`."""
        refusal = "does not charge the update to the budget of its data"
        self._ask("charge", [question.encode()], refusal)

    def _ask(self, what: str, blobs: Sequence[Part], refusal: str) -> bytes:
        with self._asking:
            self._number += 1
            self._send({"ask": what, "number": self._number}, blobs)
            with self._answered:
                self._answered.wait_for(self._is_answered, _ANSWER_SECONDS)
                if self._answer[0].get("number") != self._number:
                    raise Gone(
                        "the agent is gone"
                        if self._closed
                        else f"the agent did not answer within {_ANSWER_SECONDS:g} s"
                    )
                header, answer = self._answer
        if "refused" in header:
            raise LaunchError(f"the agent {refusal}: {str(header['refused'])[:500]}")
        if len(answer) != 1:
            raise LaunchError("the agent's answer holds no bytes")
        return bytes(answer[0])

    def _is_answered(self) -> bool:
        """Return whether the answer to the last question has arrived, or none will arrive."""
        return self._closed or self._answer[0].get("number") == self._number

    def _send(self, header: dict[str, Any], blobs: Sequence[Part] = ()) -> None:
        try:
            self._channel.send(header, blobs)
        except TransportError as error:
            raise Gone("the agent is gone") from error

    def _listen(self) -> None:
        try:
            while (record := self._channel.receive()) is not None:
                if "number" not in record[0]:
                    self.stop.set()
                    continue
                with self._answered:
                    self._answer = record
                    self._answered.notify_all()
        except TransportError:
            pass  # as when the agent has ended
        finally:
            self.stop.set()
            with self._answered:
                self._closed = True
                self._answered.notify_all()
