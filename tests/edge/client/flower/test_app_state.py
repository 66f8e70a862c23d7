"""A client's state goes back with the round."""

from __future__ import annotations

import pytest

from edge.client.flower.app_state import EMPTY, Call, State, StateHistory
from fedlearn.errors import RoundError


def _state(calls: int) -> State:
    return (b"head", str(calls).encode())


def test_a_round_that_is_run_again_finds_the_state_from_before_it() -> None:
    history, state = StateHistory[State](), EMPTY
    for number in (1, 2, 3):
        for kind in ("train", "evaluate"):
            state = history.before(Call.of(number, kind), state)
            state = _state(10 * number + (kind == "evaluate"))
    assert history.before(Call.of(3, "train"), state) == _state(21)
    assert history.before(Call.of(3, "train"), state) == _state(21)
    # The coordinator was sealing round 2 while 3 trained, and stops: it evaluates 1 again.
    assert history.before(Call.of(1, "evaluate"), state) == _state(10)
    assert history.before(Call.of(2, "train"), _state(11)) == _state(11)
    # And the very beginning, for an application that starts over.
    assert history.before(Call.of(1, "train"), state) == EMPTY


def test_a_state_that_is_too_long_ago_is_refused() -> None:
    history = StateHistory[State]()
    for number in range(1, 8):
        history.before(Call.of(number, "train"), _state(number))
    with pytest.raises(RoundError, match="round 7, not 4"):
        history.before(Call.of(4, "train"), _state(8))
    # Without any state there is nothing to go back to.
    assert history.before(Call.of(4, "train"), EMPTY) == EMPTY
