"""Our client's measurements, kept in this process where hardware has no register for them.

:mod:`attestation.logs.accumulator` describes what such a register proves. It lasts as long as the
process: a new process measures again.
"""

from __future__ import annotations

import hashlib

from attestation.binding import Bound
from attestation.errors import AttesterError
from attestation.logs.accumulator import BANK, RUNTIME, runtime_digest
from attestation.logs.eventlog import EventLog
from attestation.logs.runtime_events import Measurement, record

__all__ = ["RuntimeRegister"]

_DIGEST_BYTES = hashlib.sha256().digest_size


class RuntimeRegister:
    """An accumulator and its log; ``base`` is a log whose events come before ours."""

    def __init__(self, base: EventLog | None = None) -> None:
        if base is not None and BANK not in base.sizes:
            raise AttesterError(f"the firmware's event log has no {BANK} digests")
        self._log = base or EventLog.create((BANK,), index=1)
        self._measured: dict[str, bytes] = {}

    @property
    def log(self) -> EventLog:
        """The whole log."""
        return self._log

    def extend(self, claim: str, digest: bytes) -> None:
        """Measure ``digest`` under ``claim``, once.

        :raises AttesterError: for another size, or a claim that already has another value.
        """
        if len(digest) != _DIGEST_BYTES:
            raise AttesterError(f"a digest has {_DIGEST_BYTES} bytes, not {len(digest)}")
        try:
            measurement = Measurement(claim=claim, digest=digest)
        except ValueError as error:
            raise AttesterError(str(error)) from None
        known = self._measured.setdefault(claim, digest)
        if known != digest:
            raise AttesterError(
                f"{claim} was already measured in this process",
                hint="start a new process for another workload",
            )
        if not any(event.data == measurement.to_data() for event in self._log.extending(RUNTIME)):
            self._log = record(self._log, measurement, RUNTIME)

    def behind(self, base: EventLog | None) -> EventLog:
        """Return ``base`` followed by what was measured here."""
        whole = base or EventLog.create((BANK,), index=1)
        for event in self._log.extending(RUNTIME):
            whole = whole.append(event.index, event.type, event.digests, event.data)
        return whole

    def report_data(self, binding: Bound) -> bytes:
        """Return the 64 bytes that cover ``binding`` and everything measured so far."""
        register = self._log.replay(BANK, ccel=True).get(RUNTIME, b"")
        return runtime_digest(binding.report_data(), register)
