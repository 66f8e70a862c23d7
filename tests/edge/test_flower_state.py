"""A client's state goes back with the round."""

from __future__ import annotations

import pytest
from flwr.app import ArrayRecord, ConfigRecord, MetricRecord, RecordDict

from edge.flower.state import Call, StateHistory, copied
from fedlearn.errors import RoundError


def _state(calls: int) -> RecordDict:
    return RecordDict({"count": ConfigRecord({"calls": calls, "list": [calls]})})


def test_a_round_that_is_run_again_finds_the_state_from_before_it():
    history, state = StateHistory(), RecordDict()
    for number in (1, 2, 3):
        for kind in ("train", "evaluate"):
            state = history.before(Call.of(number, kind), state)
            state = _state(10 * number + (kind == "evaluate"))
    again = history.before(Call.of(3, "train"), state)
    assert again == _state(21)
    again["count"]["list"].append(5)
    assert history.before(Call.of(3, "train"), state) == _state(21)
    # And the very beginning, for an application that starts over.
    assert history.before(Call.of(1, "train"), state) == RecordDict()


def test_a_state_that_is_too_long_ago_is_refused():
    history = StateHistory()
    for number in range(1, 8):
        history.before(Call.of(number, "train"), _state(number))
    with pytest.raises(RoundError, match="round 7, not 3"):
        history.before(Call.of(3, "train"), _state(8))
    # Without any state there is nothing to go back to.
    assert history.before(Call.of(3, "train"), RecordDict()) == RecordDict()


def test_a_copy_does_not_share_what_can_change():
    state = RecordDict({"a": ArrayRecord(), "m": MetricRecord({"x": [1]}), **_state(1)})
    other = copied(state)
    assert other == state
    state["m"]["x"].append(2)
    assert other["m"]["x"] == [1]
