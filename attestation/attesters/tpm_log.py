"""The runtime log of one machine, kept consistent with the TPM's register.

Several processes measure into one register, and any of them can die at any time. So an event is
written to disk before the register is extended, and the next process that reads the log compares
the two:

- the log replays to the register: nothing to do;
- the log without its last event replays to it: a process died before it extended the register,
  and the event is removed;
- the register is at its initial value: the TPM was reset, and the log belongs to a past boot;
- otherwise software that keeps no log extended the register, and the machine must be restarted.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from attestation.durable import write_durably
from attestation.errors import AttesterError, EvidenceError
from attestation.logs.eventlog import MAX_LOG_BYTES, EventLog

__all__ = ["RuntimeLog"]

_FILE: Final = "runtime.log"


class RuntimeLog:
    """The log file in ``directory`` for register ``index`` of the bank ``bank``.

    ``base`` is a log that firmware wrote, whose events come before ours.
    """

    def __init__(self, directory: Path, index: int, bank: str, base: EventLog | None) -> None:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._path = directory / _FILE
        self._lock = directory / f"{_FILE}.lock"
        self._index = index
        self._bank = bank
        self._base = base
        if base is not None and bank not in base.sizes:
            raise AttesterError(f"the firmware's event log has no {bank} digests")

    @contextmanager
    def held(self) -> Iterator[int]:
        """Hold the lock that measuring takes; yield its descriptor."""
        lock = os.open(self._lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield lock
        finally:
            os.close(lock)

    def load(self, register: bytes) -> EventLog:
        """Return our events of this boot, corrected as described in the module.

        :raises AttesterError: when the log does not explain the register.
        """
        log = self._read()
        if self._replay(log) == register:
            return log
        initial = EventLog.create((self._bank,))
        shorter = EventLog(sizes=log.sizes, events=log.events[:-1], header=log.header)
        for candidate in (shorter, initial):
            if self._replay(candidate) == register:
                self.store(candidate)
                return candidate
        raise AttesterError(
            f"PCR {self._index} was extended by something that is not in {self._path}",
            hint="restart the machine (or the software TPM) so that the register starts anew",
        )

    def store(self, log: EventLog) -> None:
        """Replace the file durably and as a whole."""
        write_durably(self._path, log.to_bytes())

    def complete(self, log: EventLog) -> EventLog:
        """Return the firmware's events followed by ours, as one log."""
        if self._base is None:
            return log
        whole = self._base
        for event in log.events:
            whole = whole.append(event.index, event.type, event.digests, event.data)
        return whole

    def _read(self) -> EventLog:
        try:
            with self._path.open("rb") as stream:
                data = stream.read(MAX_LOG_BYTES + 1)
        except FileNotFoundError:
            return EventLog.create((self._bank,))
        try:
            log = EventLog.parse(data)
        except EvidenceError as error:
            raise AttesterError(
                f"{self._path} is damaged ({error})",
                hint="remove it and restart the machine (or the software TPM)",
            ) from error
        # Banks change while a machine starts, so a log of another bank is of a past boot.
        return log if self._bank in log.sizes else EventLog.create((self._bank,))

    def _replay(self, log: EventLog) -> bytes:
        if self._base is not None:
            value = self._base.replay(self._bank).get(
                self._index, self._base.initial(self._index, self._bank)
            )
        else:
            value = log.initial(self._index, self._bank)
        for event in log.extending(self._index):
            value = hashlib.new(self._bank, value + event.digests[self._bank]).digest()
        return value
