"""Calls between aggregator and application in one process behave as those between two."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest

from fedlearn.errors import JobError, QuorumNotReached, TransportError
from server.flower.ipc.direct import DirectCalls


def calls(handler: Any, **crossings: Any) -> DirectCalls:
    made = DirectCalls(**crossings)
    made.handler = handler
    return made


def test_fields_pass_through_json_and_bytes_do_not() -> None:
    blob = b"x" * 9
    seen: list[Any] = []

    def handler(name: str, fields: dict[str, Any], blobs: list[Any]) -> Any:
        seen.append((name, fields, blobs[0] is blob))
        return {"pair": (1, 2)}, blobs

    answer, parts = calls(handler).application.call("ask", {"sites": ("a", "b")}, [blob])
    assert seen == [("ask", {"sites": ["a", "b"]}, True)]
    assert answer == {"pair": [1, 2]}
    assert parts[0] is blob


def test_an_error_arrives_as_it_does_from_another_process() -> None:
    def quorum(*_: Any) -> Any:
        raise QuorumNotReached("2 of 3", hint="wait")

    with pytest.raises(QuorumNotReached, match="2 of 3") as caught:
        calls(quorum).application.call("start")
    assert caught.value.hint == "wait"

    def broken(*_: Any) -> Any:
        raise KeyError("planted")

    with pytest.raises(JobError, match="start raised KeyError: 'planted'"):
        calls(broken).application.call("start")


def test_the_aggregator_calls_back_while_the_application_serves_only() -> None:
    order: list[str] = []

    @contextlib.contextmanager
    def crossing(to: str) -> Iterator[None]:
        order.append(f"into {to}")
        yield
        order.append(f"out of {to}")

    made = DirectCalls(
        into_aggregator=lambda: crossing("aggregator"),
        into_application=lambda: crossing("application"),
    )

    def start(name: str, fields: dict[str, Any], blobs: list[Any]) -> Any:
        answer, _ = made.aggregator.call("evaluate", {"round": 1})
        return answer, ()

    made.handler = start
    answer, _ = made.application.call_serving("start", {}, (), lambda *_: ({"ok": True}, ()))
    assert answer == {"ok": True}
    assert order == [
        "into aggregator",
        "into application",
        "out of application",
        "out of aggregator",
    ]
    with pytest.raises(TransportError, match="'evaluate' was called, and the other end serves no"):
        made.aggregator.call("evaluate")
