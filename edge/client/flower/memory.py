"""What a client keeps from one call to the next, and for the client that is started after it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from edge.client.flower.app_state import EMPTY, Call, State
from edge.client.flower.state_store import StateStore
from fedlearn.compression.codec import Residual
from fedlearn.errors import JobError
from fedlearn.sandbox.memory_file import Part
from fedlearn.update.arrays import decode, document

__all__ = ["KeptMemory", "Memory"]


@dataclass(frozen=True, slots=True)
class Memory:
    """What a client keeps from one call to the next, all of it.

    ``state``     of the app
    ``residual``  what compression has removed from the updates so far
    ``secure``    the session of secure aggregation, with its secrets
    """

    state: State = EMPTY
    residual: Residual = field(default_factory=dict)
    secure: bytes = field(default=b"", repr=False)

    def parts(self) -> list[Part]:
        """Return it in parts for the next client, which begins secure aggregation anew."""
        return [document({**self.residual}), *self.state]

    @classmethod
    def of_parts(cls, parts: Sequence[Part]) -> Memory:
        """Return what :meth:`parts` wrote. :raises UpdateRejected: for other parts."""
        residual = decode(parts[0], max_bytes=len(parts[0]))
        return cls(tuple(parts[1:]), residual)


class KeptMemory:
    """The memory of one client after the other, in a store.

    :param store: None where nothing is kept.
    :param always: keep even an empty memory: where nothing else of the app leaves, its absence
        would disclose something.
    """

    def __init__(self, store: StateStore | None, *, always: bool) -> None:
        self._store = store
        self._always = always
        self._digest = ""
        self._begun = False

    def before(self, digest: str) -> Memory | None:
        """Return the memory to begin with, in the first call; None for that which there is.

        :param digest: of the memory that the site reported last, as the coordinator knows it;
            empty for none.
        :raises StoreError: when it is not on the disk as it was reported.
        :raises JobError: when this client has no store.
        """
        if self._begun or not digest:
            self._begun = True
            return None
        if self._store is None:
            raise JobError(
                "this client was started again, and the state of the one before it was kept, but "
                "this one has no folder for it",
                hint="start the client where it was started before",
            )
        memory = Memory.of_parts(self._store.load(digest))
        self._digest, self._begun = digest, True
        return memory

    def after(self, call: Call, memory: Memory) -> str:
        """Keep the memory after a call; return the digest to report, empty for none.

        :raises StoreError: when it cannot be kept.
        """
        some = memory.state or memory.residual or self._digest or self._always
        if self._store is not None and some:
            self._digest = self._store.save(call, memory.parts())
        return self._digest
