"""The coordinator as a job's aggregator sees it, whatever is behind.

In a deployment it is :class:`server.flower.exchange.calls.CoordinatorClient`, whose requests go to
another process. A simulation has one in the same process (:mod:`fedlearn.simulation`).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from fedlearn.app.message import Flat
from fedlearn.errors import FedlearnError
from server.flower.job_plan import Checkpoint, Reply

__all__ = ["Coordinator", "Node"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """A site's client as a job sees it."""

    number: int
    site: str


class Coordinator(Protocol):
    """The requests of an aggregator; :class:`server.flower.exchange.calls.CoordinatorClient`
    states what each guarantees."""

    def push(self, flat: Flat) -> list[str]: ...

    def pull(self, ids: Collection[str], seconds: float) -> deque[Reply]: ...

    def forget(self, ids: Iterable[str]) -> None: ...

    def online(self, count: int = 0, seconds: float = 0.0) -> list[Node]: ...

    def live_sites(self) -> dict[str, int]: ...

    def traffic(self) -> tuple[int, int]: ...

    def event(self, kind: str, **fields: Any) -> None: ...

    def note(self, kind: str, **fields: Any) -> None: ...

    def charge(self, stage: int, round_: int, inputs: bytes) -> None: ...

    def save(self, checkpoint: Checkpoint) -> None: ...

    def settle(self) -> None: ...

    def keep_files(self, files: Mapping[str, memoryview]) -> None: ...

    def load(self) -> Checkpoint | None: ...

    def done(self, *, rounds: int, error: FedlearnError | None = None) -> None: ...
