"""Events: what is reported is checked, and what is not understood is kept."""

from __future__ import annotations

import dataclasses
import json
import math
from typing import Any

import pytest

from fedlearn.errors import TransportError
from fedlearn.job import events

FIELDS: dict[str, Any] = {
    "bytes": 1234,
    "detail": "d",
    "delta": 1e-5,
    "epsilon": 1.5,
    "accountant": "rdp",
    "job": "medpar",
    "line": "hello",
    "metrics": {"loss": 0.5, "auc": 0.7},
    "model": "m",
    "reason": "no",
    "round": 1,
    "rounds": 5,
    "sampling": "full",
    "seconds": 0.25,
    "site": "a",
    "tee": "tpm",
    "unit": "site",
}


def _example(kind: type[events.Event]) -> events.Event:
    values = {f.name: FIELDS[f.name] for f in dataclasses.fields(kind) if f.name in FIELDS}
    if "sites" in {f.name for f in dataclasses.fields(kind)}:
        values["sites"] = 2 if kind is events.RoundFinished else ("a", "b")
    return kind(**values)


@pytest.mark.parametrize("kind", events.KINDS.values(), ids=events.KINDS)
def test_every_kind_crosses_the_wire_unchanged(kind: type[events.Event]) -> None:
    event = _example(kind)
    assert events.Event.decode(event.kind, event.encode()) == event
    assert event.to_json()["kind"] == event.kind


def test_a_newer_coordinator_is_understood_as_far_as_possible() -> None:
    event = events.Event.decode("round.started", '{"round":1,"rounds":2,"sites":[],"new":1}')
    assert event == events.RoundStarted(round=1, rounds=2, sites=())
    other = events.Event.decode("round.paused", '{"round":1}')
    assert other.to_json() == {"kind": "round.paused", "round": 1}


def test_a_diverged_metric_is_carried_as_words() -> None:
    event = events.RoundFinished(
        round=1, seconds=1, sites=1, bytes=1, metrics={"loss": math.nan, "w": -math.inf}
    )
    text = event.encode()
    assert json.loads(text, parse_constant=pytest.fail)["metrics"] == {"loss": "nan", "w": "-inf"}
    back = events.Event.decode(event.kind, text)
    assert isinstance(back, events.RoundFinished)
    assert math.isnan(back.metrics["loss"])
    assert back.metrics["w"] == -math.inf


@pytest.mark.parametrize(
    "change",
    [
        {"round": -1},
        {"round": True},
        {"round": "1"},
        {"round": 2**63},
        {"seconds": "fast"},
        {"seconds": math.nan},
        {"metrics": [1]},
        {"metrics": {"loss": None}},
        {"metrics": {1: 1.0}},
        {"bytes": 1.5},
    ],
)
def test_an_impossible_event_is_refused_where_it_is_made(change: dict[str, Any]) -> None:
    values = {"round": 1, "seconds": 1.0, "sites": 1, "bytes": 1, **change}
    with pytest.raises(ValueError, match=next(iter(change))):
        events.RoundFinished(**values)


@pytest.mark.parametrize(
    "text",
    ["", "[]", "nul", "{", "{}", '{"round": "x"}', "[" * 5000, "x" * (events.MAX_EVENT_BYTES + 1)],
    ids=lambda text: text[:10],
)
def test_a_malformed_event_is_a_transport_error(text: str) -> None:
    with pytest.raises(TransportError):
        events.Event.decode("round.started", text)
