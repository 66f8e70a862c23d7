"""Phases of clients on the wire: a number, and a text for versions that have no number yet."""

from __future__ import annotations

from typing import Any, Final

from fedlearn.errors import ConfigError
from fedlearn.job.phase import Phase
from fedlearn.wire import fedlearn_pb2 as pb

__all__ = ["phase_fields", "phase_of"]

_NUMBERS: Final[dict[Phase, Any]] = {
    phase: getattr(pb.WorkloadStatus, phase.name) for phase in Phase
}
_OF_NUMBER: Final = {number: phase for phase, number in _NUMBERS.items()}
_OF_TEXT: Final = {phase.value: phase for phase in Phase}


def phase_fields(phase: Phase) -> dict[str, Any]:
    """Return the fields of a message that state ``phase``."""
    return {"phase": phase.value, "state": _NUMBERS[phase]}


def phase_of(message: pb.WorkloadStatus | pb.ClientState) -> Phase:
    """Return the phase in a message: of its number, or of its text where it has no number.

    :raises ConfigError: when this version does not know the phase.
    """
    number, text = message.state, message.phase
    found = _OF_NUMBER.get(number) if number else _OF_TEXT.get(text)
    if found is None:
        raise ConfigError(
            f"{number or text[:40]!a} is no phase",
            key="phase",
            hint=f"phases are {', '.join(Phase)}; upgrade who receives them first",
        )
    return found
