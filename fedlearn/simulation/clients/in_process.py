"""Clients in the process of the simulation: a call is made when its answer is wanted."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace

from fedlearn.simulation.clients.calls import ClientCall, ClientResult, Clients, Pending
from fedlearn.simulation.parties.output import captured

__all__ = ["InProcess"]


class InProcess:
    """The backend without other processes.

    :param load: loads the app, once, before the first call.
    :param entered: a context in which the client is the party that runs in this process.
    """

    capacity = 0

    def __init__(
        self,
        load: Callable[[], Clients],
        entered: Callable[[], AbstractContextManager[object]] = contextlib.nullcontext,
    ) -> None:
        self._load = load
        self._entered = entered
        self._clients: Clients | None = None

    def submit(self, call: ClientCall) -> Pending:
        """Return the call, which is made when its result is taken."""
        return _Waiting(self, call)

    def call(self, call: ClientCall) -> ClientResult:
        """Make a call."""
        lines: list[str] = []
        with self._entered(), captured(lines.append):
            if self._clients is None:
                self._clients = self._load()
            result = self._clients.call(call)
        return replace(result, lines=[*lines, *result.lines])

    def close(self) -> None:
        """Nothing runs."""


@dataclass(frozen=True, slots=True)
class _Waiting:
    backend: InProcess
    made: ClientCall

    def result(self) -> ClientResult:
        return self.backend.call(self.made)
