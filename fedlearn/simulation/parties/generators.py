"""The global generators of the parties of a simulation, which share a process.

In the field the ServerApp, the aggregator and each ClientApp have processes of their own, so each
has its own state of the generators of ``random``, numpy and torch. Here one process has all of
them: the state of a party is put aside when another one runs, and put back when it goes on.
"""

from __future__ import annotations

import contextlib
import random
import sys
from collections.abc import Iterator
from typing import Any, Final

import numpy as np
from flwr.supercore.task_identity import TaskIdentity

__all__ = ["AGGREGATOR", "APPLICATION", "CLIENT", "Parties"]

APPLICATION: Final = "application"
AGGREGATOR: Final = "aggregator"
CLIENT: Final = "client"
_IDENTITY: Final = ("_task_id", "_run_id", "_node_id")
"""Not by the public names, which raise where nothing was set."""


class Parties:
    """Which party runs in this process; at first, and after all, the caller of the simulation.

    Not thread-safe.
    """

    def __init__(self) -> None:
        self.now = ""
        self._aside: dict[str, _State] = {}

    @contextlib.contextmanager
    def entered(self, party: str) -> Iterator[None]:
        """A context in which another party runs."""
        before = self.now
        if party == before:
            yield
            return
        self._aside[before] = _State()
        # A call of a client seeds the generators itself, and keeps nothing of them.
        if party in self._aside and party != CLIENT:
            self._aside.pop(party).put_back()
        self.now = party
        try:
            yield
        finally:
            if party != CLIENT:
                self._aside[party] = _State()
            self._aside.pop(before).put_back()
            self.now = before


class _State:
    """The state of the global generators, and whose messages Flower makes."""

    __slots__ = ("_cuda", "_identity", "_numpy", "_random", "_torch")

    def __init__(self) -> None:
        self._random = random.getstate()
        self._numpy: Any = np.random.get_state(legacy=False)
        self._identity = {name: getattr(TaskIdentity, name) for name in _IDENTITY}
        torch: Any = sys.modules.get("torch")
        self._torch = None if torch is None else torch.get_rng_state()
        on_gpu = torch is not None and torch.cuda.is_initialized()
        self._cuda = torch.cuda.get_rng_state_all() if on_gpu else None

    def put_back(self) -> None:
        random.setstate(self._random)
        np.random.set_state(self._numpy)
        for name, value in self._identity.items():
            setattr(TaskIdentity, name, value)
        torch: Any = sys.modules.get("torch")
        if self._torch is not None:
            torch.set_rng_state(self._torch)
        if self._cuda is not None:
            torch.cuda.set_rng_state_all(self._cuda)
