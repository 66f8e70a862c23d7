"""Calls in both directions between the aggregator and the process of the application.

Both ends may call. A record of a :class:`fedlearn.sandbox.process_channel.ProcessChannel` is a call
(``call``, ``id``) or the answer to one (``answer`` or ``error``, ``id``). Calls of the other end
are handled by threads of a pool, so that a call may lead to another one in the opposite
direction, and that several threads of the application may wait at once. Byte strings that lie in
files are handed over unmapped, and can be passed on. What arrives is data of
a process that is not trusted: names, sizes and numbers of calls are bounded here, fields by who
handles them.
"""

from __future__ import annotations

import itertools
import logging
import queue
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final, Protocol

from fedlearn.errors import FedlearnError, JobError, TransportError
from fedlearn.sandbox.memory_file import Part
from fedlearn.sandbox.process_channel import ChannelClosed, ProcessChannel
from server.flower.ipc.failures import failure_of, raised

__all__ = ["Answer", "Caller", "Handler", "Peer", "ServingCaller", "answered"]

Answer = tuple[Mapping[str, Any], Sequence[Part]]
Handler = Callable[[str, dict[str, Any], list[Part]], Answer]
"""Handles one call of the other end: its name, its fields and its byte strings."""

_LOG = logging.getLogger(__name__)
_MAX_OPEN_CALLS: Final = 256
_THREADS: Final = 40


class Caller(Protocol):
    """What calls the other end: a :class:`Peer`, or one end of
    :class:`server.flower.ipc.direct.DirectCalls`."""

    def call(
        self, name: str, fields: Mapping[str, Any] | None = None, blobs: Sequence[Part] = ()
    ) -> tuple[dict[str, Any], list[Part]]: ...


class ServingCaller(Caller, Protocol):
    """What answers the other end's calls while it waits for its own answer."""

    def call_serving(
        self, name: str, fields: Mapping[str, Any], blobs: Sequence[Part], handler: Handler
    ) -> tuple[dict[str, Any], list[Part]]: ...


def answered(
    handler: Handler, name: str, fields: object, blobs: list[Part]
) -> tuple[dict[str, Any], Sequence[Part]]:
    """Return what a handler answers (``answer``), or the failure that it raised (``error``)."""
    try:
        if not isinstance(fields, dict):
            raise TransportError("a call has no fields")
        answer, parts = handler(name, fields, blobs)
        return {"answer": dict(answer)}, parts
    except FedlearnError as error:
        return {"error": failure_of(error)}, ()
    except Exception as error:  # noqa: BLE001  user code, or bytes that it made; reported
        _LOG.exception("the call %s failed", name[:40])
        return {"error": failure_of(JobError(f"{name} raised {type(error).__name__}: {error}"))}, ()


class Peer:
    """One end. Safe to use from many threads.

    An error of :mod:`fedlearn.errors` that a handler raises reaches the caller as that error.

    :param handler: answers the calls of the other end, in threads of a pool. None: they are
        answered in :meth:`call_serving`, by the thread that is in it. The application's functions
        run in the thread that started its strategy, as in Flower.
    """

    def __init__(self, process_channel: ProcessChannel, handler: Handler | None) -> None:
        self._process_channel = process_channel
        self._handler = handler
        self._sending = threading.Lock()
        self._numbers = itertools.count(1)
        self._lock = threading.Lock()
        self._waiting: dict[int, queue.SimpleQueue[Any]] = {}
        self._serving: tuple[queue.SimpleQueue[Any], Handler] | None = None
        self._open = 0
        self._failure: TransportError | None = None
        self._closed = threading.Event()
        self._pool = ThreadPoolExecutor(_THREADS, thread_name_prefix="call")
        self._reader = threading.Thread(target=self._read, name="process channel", daemon=True)

    def start(self) -> None:
        """Begin to read."""
        self._reader.start()

    def wait_closed(self, seconds: float | None = None) -> bool:
        """Wait until the other end is gone; return whether it is."""
        return self._closed.wait(seconds)

    @property
    def failure(self) -> TransportError | None:
        """Why the other end is gone; None where it is not, or closed regularly."""
        return self._failure

    def call(
        self, name: str, fields: Mapping[str, Any] | None = None, blobs: Sequence[Part] = ()
    ) -> tuple[dict[str, Any], list[Part]]:
        """Call the other end and return its answer.

        :raises TransportError: when the other end is gone.
        :raises FedlearnError: the error with which it answered.
        """
        return self._wait(*self._begin(name, fields or {}, blobs))

    def call_serving(
        self,
        name: str,
        fields: Mapping[str, Any],
        blobs: Sequence[Part],
        handler: Handler,
    ) -> tuple[dict[str, Any], list[Part]]:
        """As :meth:`call`; until the answer comes, this thread answers the other end's calls."""
        answers: queue.SimpleQueue[Any] = queue.SimpleQueue()
        with self._lock:
            if self._serving is not None:
                raise TransportError("a call that serves is under way already")
            self._serving = answers, handler
        try:
            return self._wait(*self._begin(name, fields, blobs, into=answers), handler)
        finally:
            with self._lock:
                self._serving = None

    def _begin(
        self,
        name: str,
        fields: Mapping[str, Any],
        blobs: Sequence[Part],
        *,
        into: queue.SimpleQueue[Any] | None = None,
    ) -> tuple[int, queue.SimpleQueue[Any]]:
        number = next(self._numbers)
        answers: queue.SimpleQueue[Any] = into or queue.SimpleQueue()
        with self._lock:
            if self._closed.is_set():
                raise self._failure or ChannelClosed("the other process is gone")
            self._waiting[number] = answers
        self._send({"id": number, "call": name, "fields": dict(fields)}, blobs)
        return number, answers

    def _wait(
        self, number: int, answers: queue.SimpleQueue[Any], handler: Handler | None = None
    ) -> tuple[dict[str, Any], list[Part]]:
        while True:
            kind, header, blobs = answers.get()
            if kind == "call" and handler is not None:
                self._handle(handler, header, blobs)
                continue
            if kind == "closed":
                raise self._failure or ChannelClosed("the other process is gone")
            with self._lock:
                self._waiting.pop(number, None)
            failure = header.get("error")
            if failure is not None:
                raise raised(failure)
            answer = header.get("answer")
            if not isinstance(answer, dict):
                raise TransportError("an answer is not an object")
            return answer, blobs

    def _send(self, header: Mapping[str, Any], blobs: Sequence[Part]) -> None:
        with self._sending:
            self._process_channel.send(header, blobs)

    def _read(self) -> None:
        failure: TransportError | None = None
        try:
            while (record := self._process_channel.receive_parts()) is not None:
                self._route(record[0], [*record[1]])
        except TransportError as error:
            failure = error
        finally:
            with self._lock:
                self._failure = failure
                self._closed.set()
                waiting = [*self._waiting.values()]
            for answers in waiting:
                answers.put(("closed", {}, []))
            self._pool.shutdown(wait=False, cancel_futures=True)

    def _route(self, header: dict[str, Any], blobs: list[Part]) -> None:
        number = header.get("id")
        if type(number) is not int:
            raise TransportError("a record has no number")
        if "call" not in header:
            with self._lock:
                answers = self._waiting.get(number)
            if answers is None:
                raise TransportError("an answer to nothing that was asked")
            answers.put(("answer", header, blobs))
            return
        with self._lock:
            self._open += 1
            count, serving = self._open, self._serving
        if count > _MAX_OPEN_CALLS:
            raise TransportError(f"more than {_MAX_OPEN_CALLS} calls at once")
        if self._handler is not None:
            self._pool.submit(self._handle, self._handler, header, blobs)
        elif serving is not None:
            serving[0].put(("call", header, blobs))
        else:
            raise TransportError("a call arrived, and this end serves none")

    def _handle(self, handler: Handler, header: dict[str, Any], blobs: list[Part]) -> None:
        found, parts = answered(handler, str(header["call"]), header.get("fields"), blobs)
        with self._lock:
            self._open -= 1
        try:
            self._send({"id": header["id"], **found}, parts)
        except ChannelClosed:
            return  # the reader detects and reports it too
