"""Follows objects through a watch, without requests while nothing changes."""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Final

import urllib3
from urllib3.exceptions import HTTPError

from edge.kube.api.connection import Kube
from edge.kube.api.errors import Gone, KubeError, Unavailable, cause_of, refusal
from edge.kube.api.resources import Object, Resource
from fedlearn.backoff import Backoff

__all__ = ["Follower"]

_LOG = logging.getLogger(__name__)
_WATCH_SECONDS: Final = 600
_MAX_LINE_BYTES: Final = 4 * 1024 * 1024
_JOIN_SECONDS: Final = 20.0
_FIRST_PAUSE: Final = 0.1
_LONGEST_PAUSE: Final = 30.0
_STEADY_SECONDS: Final = 10.0


class Follower:
    """A watch in a thread of its own, which continues until it is stopped.

    ``listed(objects)`` is called with all objects that have the labels of ``selector`` at
    first, and again whenever changes may have been missed; ``changed(object, gone)`` with each
    change after that.
    """

    def __init__(
        self,
        kube: Kube,
        resource: Resource,
        *,
        listed: Callable[[list[Object]], None],
        changed: Callable[[Object, bool], None],
        selector: Mapping[str, str] | None = None,
    ) -> None:
        self._kube = kube
        self._resource = resource
        self._selector = dict(selector or {})
        self._listed = listed
        self._changed = changed
        self._stopped = threading.Event()
        self._lock = threading.Lock()
        self._answer: urllib3.BaseHTTPResponse | None = None
        self._version = ""
        self._thread = threading.Thread(
            target=self._run, name=f"watch {resource.plural}", daemon=True
        )
        self._thread.start()

    def stop(self) -> None:
        """End the watch; no function is called any more when this returns."""
        self._stopped.set()
        with self._lock:
            if self._answer is not None:
                _cut(self._answer)
        if threading.current_thread() is not self._thread:
            self._thread.join(_JOIN_SECONDS)

    def _run(self) -> None:
        backoff = Backoff(first=_FIRST_PAUSE, longest=_LONGEST_PAUSE)
        while not self._stopped.is_set():
            began = time.monotonic()
            try:
                if not self._version:
                    objects, self._version = self._kube.snapshot(self._resource, self._selector)
                    if self._stopped.is_set():
                        return
                    self._listed(objects)
                self._watch()
            except Gone:
                self._version = ""
            except Unavailable as error:
                _LOG.info("watching %s: %s", self._resource, error)
            except KubeError as error:
                # After a malformed change the state is unknown: begin with a list.
                self._version = ""
                _LOG.warning("watching %s: %s", self._resource, error)
            if time.monotonic() - began > _STEADY_SECONDS:
                backoff.reset()
            self._stopped.wait(backoff.next())

    def _watch(self) -> None:
        """Watch once, until the connection ends."""
        answer = self._kube.stream(
            self._resource, self._selector, version=self._version, seconds=_WATCH_SECONDS
        )
        with self._lock:
            self._answer = answer
        try:
            for line in _lines(answer):
                if self._stopped.is_set():
                    return
                self._version = self._take(line)
        except (HTTPError, OSError, ValueError) as error:
            if not self._stopped.is_set():
                raise Unavailable(f"a watch was interrupted: {cause_of(error)}") from error
        finally:
            with self._lock:
                self._answer = None
            answer.close()

    def _take(self, line: bytes) -> str:
        try:
            event = json.loads(line)
            kind, found = event["type"], event["object"]
            if kind == "ERROR":
                raise refusal(int(found.get("code", 0)), found, f"watch {self._resource}")
            version = str(found["metadata"]["resourceVersion"])
        except (ValueError, KeyError, TypeError, RecursionError):
            raise KubeError("the API server sent a malformed change") from None
        if kind != "BOOKMARK":
            self._changed(found, kind == "DELETED")
        return version


def _lines(answer: urllib3.BaseHTTPResponse) -> Iterator[bytes]:
    rest = b""
    for part in answer.stream(65_536, decode_content=True):
        *whole, rest = (rest + part).split(b"\n")
        if len(rest) > _MAX_LINE_BYTES:
            raise KubeError(f"the API server sent a change of more than {_MAX_LINE_BYTES} bytes")
        yield from filter(None, whole)


def _cut(answer: urllib3.BaseHTTPResponse) -> None:
    """End a read in which another thread waits."""
    try:
        answer.shutdown()
    except (RuntimeError, ValueError, OSError):
        # The connection has just ended by itself.
        return
