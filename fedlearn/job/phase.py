"""The phase of one client of a job at its site."""

from __future__ import annotations

import enum

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
