"""The state of a ClientApp between rounds, and its restoration when a round is run again.

Flower gives an app a ``Context`` whose ``state`` exists as long as the client. When the
coordinator resumes a job, or repeats a round, the app must have the state that it had before that
round, or the result would depend on the interruption. So the client keeps the state before each
call, as the bytes that the app's process sent, which it does not parse. For the client that is
started after it, :mod:`edge.client.flower.state_store` keeps the state on the disk of the site.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Generic, TypeVar

from fedlearn.errors import RoundError
from fedlearn.sandbox.memory_file import Part

__all__ = ["EMPTY", "Call", "State", "StateHistory"]

T = TypeVar("T")
State = Sequence[Part]
"""A message with the records of a state, in frames; the empty tuple is the empty state."""

EMPTY: Final[State] = ()

_ROUNDS: Final = 3
"""Rounds whose states are kept: the current one, the one that is sealed meanwhile, and the one that
the coordinator has sealed, which it evaluates again after a crash."""

_PHASES: Final = {"train": 0, "query": 1, "evaluate": 2}


@dataclass(frozen=True, slots=True, order=True)
class Call:
    """The position of a call of the app: the round, and the phase in it."""

    round: int
    phase: int

    @classmethod
    def of(cls, round_: int, message_type: str) -> Call:
        """Return the call for a message of a type like ``train`` or ``query.name``."""
        return cls(round_, _PHASES.get(message_type.split(".")[0], len(_PHASES)))


class StateHistory(Generic[T]):
    """The states before the last calls, and the state before the first one.

    A state is a :data:`State`, or another value that is false when it is empty.
    """

    def __init__(self) -> None:
        self._before: dict[Call, T] = {}
        self._latest: Call | None = None

    def before(self, call: Call, state: T) -> T:
        """Return the state to have for ``call``, given the one that there is.

        :raises RoundError: when there is a state, and that of ``call`` is not kept any more.
        """
        if call in self._before:
            found = self._before[call]
            for later in [each for each in self._before if each > call]:
                del self._before[later]
            self._latest = call
            return found
        if self._latest is not None and call < self._latest and state:
            raise RoundError(
                f"the client's state is that of round {self._latest.round}, not {call.round}",
                hint="restart the client, or cancel the job",
            )
        self._before[call] = state
        self._latest = call
        self._trim()
        return state

    def _trim(self) -> None:
        first = min(self._before)
        rounds = sorted({call.round for call in self._before})
        for call in list(self._before):
            if call != first and call.round not in rounds[-_ROUNDS:]:
                del self._before[call]
