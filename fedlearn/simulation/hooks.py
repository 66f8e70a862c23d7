"""Where research code sees and changes what passes between aggregator and clients of a simulation.

A deployment has no such place: attacks, observers and defences under study are hooks. A hook runs
in the process of the simulation, whatever the number of workers, and sees calls in the order of
the job. It has the generators of no party: draw from a generator of its own, with a seed of its
own, so that a run repeats to the bit.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

__all__ = ["Arrays", "Call", "Hook", "Metrics"]

Arrays = Mapping[str, NDArray[Any]]
"""The arrays of a message by name, which must not be written to."""

Metrics = Mapping[str, Any]
"""The metrics of an answer: numbers, or lists of numbers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One call of a client.

    ``kind``  ``train``, ``evaluate`` or ``query``, with what an app appends to it (``train.head``)
    """

    site: str
    round: int
    kind: str


class Hook:
    """Sees calls and may change what is sent. Each method changes nothing by default.

    What a method returns is used in place of what it was given; return that very object to leave
    it as it was. Names, types and shapes are checked as in the field.
    """

    def asked(self, call: Call, arrays: Arrays) -> Arrays:
        """Return the model that a client is sent, given the one that the strategy sends."""
        return arrays

    def answered(self, call: Call, asked: Arrays, arrays: Arrays, metrics: Metrics) -> Arrays:
        """Return the arrays of an answer, given those that leave the client.

        They are those after the privacy and the compression of the job, decoded: what the
        aggregator would get. ``asked`` is the model that the client was sent.
        """
        return arrays

    def round_answered(self, round: int, answers: Mapping[str, Arrays]) -> Mapping[str, Arrays]:  # noqa: A002
        """Return the updates of a round by site, given all of them, before the aggregator adds
        the first. All of them are in memory at once where a hook has this method."""
        return answers


def sees_rounds(hook: Hook) -> bool:
    """Return whether a hook looks at all updates of a round at once."""
    return type(hook).round_answered is not Hook.round_answered
