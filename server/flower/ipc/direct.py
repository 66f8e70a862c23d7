"""Calls in both directions between an aggregator and an application in one process.

The same calls as those of :class:`server.flower.ipc.peer.Peer`: names, fields and errors pass
through JSON, so that both sides see what they would see of another process. Byte strings are
handed over as they are. A call runs in the thread of the caller; those of several threads of the
application come one after the other. Only a simulation uses this: in a
deployment user code has a process of its own.
"""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

from fedlearn.errors import TransportError
from fedlearn.sandbox.memory_file import Part
from server.flower.ipc.failures import raised
from server.flower.ipc.peer import Handler, answered

__all__ = ["DirectCalls"]

Crossing = Callable[[], AbstractContextManager[object]]
"""Entered around each call, on the way from one side to the other."""


class DirectCalls:
    """Both ends of such calls. ``aggregator`` and ``application`` are what each end calls with.

    :param into_aggregator: see :data:`Crossing`.
    :param into_application: the same in the other direction.
    """

    def __init__(
        self,
        *,
        into_aggregator: Crossing = contextlib.nullcontext,
        into_application: Crossing = contextlib.nullcontext,
    ) -> None:
        self.handler: Handler | None = None
        """Answers the calls of the application; to be set before the first."""
        self.lock = threading.RLock()
        self.application = _Application(self, into_aggregator)
        self.aggregator = _Aggregator(self.application, into_application)


class _Application:
    """The application's end."""

    def __init__(self, calls: DirectCalls, crossing: Crossing) -> None:
        self._calls = calls
        self._crossing = crossing
        self.serving: Handler | None = None

    def call(
        self, name: str, fields: Mapping[str, Any] | None = None, blobs: Sequence[Part] = ()
    ) -> tuple[dict[str, Any], list[Part]]:
        """Call the aggregator and return its answer.

        :raises FedlearnError: the error with which it answered.
        """
        with self._calls.lock:
            return _called(self._calls.handler, self._crossing, name, fields or {}, blobs)

    def call_serving(
        self, name: str, fields: Mapping[str, Any], blobs: Sequence[Part], handler: Handler
    ) -> tuple[dict[str, Any], list[Part]]:
        """As :meth:`call`; meanwhile the aggregator's calls go to ``handler``."""
        if self.serving is not None:
            raise TransportError("a call that serves is under way already")
        self.serving = handler
        try:
            return self.call(name, fields, blobs)
        finally:
            self.serving = None


class _Aggregator:
    """The aggregator's end."""

    def __init__(self, application: _Application, crossing: Crossing) -> None:
        self._application = application
        self._crossing = crossing

    def call(
        self, name: str, fields: Mapping[str, Any] | None = None, blobs: Sequence[Part] = ()
    ) -> tuple[dict[str, Any], list[Part]]:
        """Call the application, which waits in a call that serves, and return its answer.

        :raises FedlearnError: the error with which it answered.
        """
        return _called(self._application.serving, self._crossing, name, fields or {}, blobs)


def _called(
    handler: Handler | None,
    crossing: Crossing,
    name: str,
    fields: Mapping[str, Any],
    blobs: Sequence[Part],
) -> tuple[dict[str, Any], list[Part]]:
    if handler is None:
        raise TransportError(f"{name[:40]!r} was called, and the other end serves no calls")
    with crossing():
        found, parts = answered(handler, name, json.loads(json.dumps(dict(fields))), list(blobs))
    failure = found.get("error")
    if failure is not None:
        raise raised(failure)
    return json.loads(json.dumps(found["answer"])), list(parts)
