"""The ledger as admission writes to it: in order, through disk errors, bounded for each peer."""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from collections.abc import Mapping
from typing import Any, Final

from fedlearn.errors import DiskError
from server.admission.ledger_entries import left_out_entry
from server.admission.types import Record
from server.quota import Quota

__all__ = ["AdmissionLedger"]

_ENTRIES_AT_ONCE: Final = 64


class AdmissionLedger:
    """Writes the entries of admission. Safe to use from many threads.

    :param record: appends to the ledger, durably: ``record(kind, body)``.
    """

    def __init__(self, record: Record) -> None:
        self._record = record
        self._quotas = {
            kind: Quota(burst=_ENTRIES_AT_ONCE, every=1.0) for kind in ("challenge", "refusal")
        }
        self._lock = threading.RLock()
        self._owed: deque[tuple[str, Mapping[str, Any]]] = deque()

    def append(self, kind: str, body: Mapping[str, Any]) -> None:
        """Write an entry, after those that could not be written before.

        :raises DiskError: when it cannot be written.
        """
        self.catch_up()
        self._record(kind, body)

    def append_later(self, kind: str, body: Mapping[str, Any]) -> None:
        """Write an entry for what has happened already; while the disk fails, later."""
        self._owed.append((kind, body))
        with contextlib.suppress(DiskError):
            self.catch_up()

    def append_bounded(self, peer: str, kind: str, body: Mapping[str, Any]) -> None:
        """Write an entry that ``peer`` can cause at will, as often as its quota allows.

        An entry after some that were left out has their number as ``left_out``.
        """
        left_out = self._quotas[kind].take(peer)
        if left_out is not None:
            self.append(kind, {**body, **({"left_out": left_out} if left_out else {})})

    def settle(self) -> None:
        """Write how many entries were left out for each peer, once it has stopped."""
        for kind, quota in self._quotas.items():
            for peer, left_out in quota.settle().items():
                self.append(kind, left_out_entry(kind, peer, left_out))

    def catch_up(self) -> None:
        """Write what could not be written before, in its order.

        :raises DiskError: when it cannot be written now either.
        """
        with self._lock:
            while self._owed:
                self._record(*self._owed[0])
                self._owed.popleft()
