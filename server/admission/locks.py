"""Which decisions of the gate may overlap: many admissions, but no change of rules with them.

An admission reads what an operator may change: policies, exclusions, the sites of the registry.
:meth:`AdmissionLocks.changing` waits for the admissions under way and keeps new ones out, so that
none is decided by the former rules and takes effect under the new ones. Admissions of different
clients overlap, so that their entries in the ledger become durable together.

The page is docs/adr/0042-scale.md.
"""

from __future__ import annotations

import threading
from collections.abc import Hashable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Final

__all__ = ["AdmissionLocks"]

_STRIPES: Final = 256


class AdmissionLocks:
    """Locks of one gate. A change may be nested in a change of the same thread, nothing else."""

    def __init__(self) -> None:
        self._turn = threading.Condition(threading.Lock())
        self._admitting = 0
        self._waiting = 0
        self._changing: int | None = None
        self._depth = 0
        self._stripes = tuple(threading.Lock() for _ in range(_STRIPES))

    @contextmanager
    def admitting(self, *parties: Hashable) -> Iterator[None]:
        """Hold the rules still, and keep out other admissions that concern one of ``parties``."""
        with self._turn:
            # Changes go first: admissions never cease where many clients seek them.
            self._turn.wait_for(lambda: self._changing is None and not self._waiting)
            self._admitting += 1
        try:
            with ExitStack() as held:
                # In one order, so that no two admissions wait for each other.
                for stripe in sorted({hash(party) % _STRIPES for party in parties}):
                    held.enter_context(self._stripes[stripe])
                yield
        finally:
            with self._turn:
                self._admitting -= 1
                self._turn.notify_all()

    @contextmanager
    def changing(self) -> Iterator[None]:
        """Wait for the admissions under way, and keep out new ones and other changes."""
        me = threading.get_ident()
        with self._turn:
            if self._changing != me:
                self._waiting += 1
                try:
                    self._turn.wait_for(lambda: self._changing is None and not self._admitting)
                finally:
                    self._waiting -= 1
                self._changing = me
            self._depth += 1
        try:
            yield
        finally:
            with self._turn:
                self._depth -= 1
                if not self._depth:
                    self._changing = None
                    self._turn.notify_all()
