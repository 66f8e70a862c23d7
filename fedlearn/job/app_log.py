"""A sealed log of an app as the wire carries it, for each party that sends, keeps or fetches it."""

from __future__ import annotations

from dataclasses import dataclass, field

__all__ = ["SealedAppLog"]


@dataclass(frozen=True, slots=True, kw_only=True)
class SealedAppLog:
    """One log; :mod:`fedlearn.sealing.app_log` seals and opens it.

    ``fault``  why the coordinator does not have it any more; ``sealed`` is empty then
    """

    client: str
    stream: bytes
    round: int
    sequence: int
    sealed: bytes = field(repr=False)
    fault: str = ""
