"""The phase of one client of a job at its site."""

from __future__ import annotations

import enum
from typing import Final

__all__ = ["Phase"]


class Phase(enum.StrEnum):
    """The phase of a client, as its site reports it."""

    ACCEPTED = "accepted"
    """The site will start it, perhaps later."""
    STARTING = "starting"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    REFUSED = "refused"
    """The site does not start it, or the coordinator did not admit it; a retry would not help."""
    STOPPED = "stopped"

    @property
    def final(self) -> bool:
        """Whether the client has ended."""
        return self not in {Phase.ACCEPTED, Phase.STARTING, Phase.RUNNING}

    def ended(self, reason: str) -> str:
        """Return in one sentence how a client ended, as in ``its client failed: out of memory``.

        :raises ValueError: when the phase is not final.
        """
        if self not in _ENDINGS:
            raise ValueError(f"a client that is {self} has not ended")
        return f"its client {_ENDINGS[self]}{f': {reason}' if reason else ''}"


_ENDINGS: Final = {
    Phase.SUCCEEDED: "ended",
    Phase.FAILED: "failed",
    Phase.REFUSED: "was refused",
    Phase.STOPPED: "was stopped",
}
