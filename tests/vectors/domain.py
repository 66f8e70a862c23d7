"""Evidence of a TDX domain with a boot log, and its claims."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from attestation.evidence import Claims, Evidence
from attestation.logs.eventlog import EventLog
from attestation.trust import TrustAnchors
from attestation.verifiers import verify
from tests.vectors import keys
from tests.vectors.cases import binding
from tests.vectors.intel import Intel, event_log

INTEL = Intel()


def boot_log() -> EventLog:
    """Return the firmware's part of the log of the test vectors."""
    log = EventLog.parse(event_log()[0])
    events = tuple(event for event in log.events if event.index != 4)
    return replace(log, events=events)


def rtmrs(log: EventLog) -> tuple[bytes, ...]:
    registers = log.replay("sha384", ccel=True)
    return tuple(registers.get(index, bytes(48)) for index in range(1, 5))


def quote(report_data: bytes, log: EventLog | None = None) -> bytes:
    return INTEL.quote(4, report_data=report_data, rtmrs=rtmrs(log or boot_log()))


def judged(evidence: Evidence, **trust: Any) -> Claims:
    anchors = TrustAnchors(intel_root=INTEL.root_key, collateral=(INTEL.collateral(),), **trust)
    return verify(evidence, binding=binding(), trust=anchors, now=keys.AT)
