"""Measurements that software made at run time, as events in the form of attestation agents.

Format (Confidential Containers, Attestation Agent Event Log, AAEL): an ``EV_EVENT_TAG`` event
of a TCG2 log whose data is ``u32le 0x4141454c | u32le length | text``, and whose digest is
the hash of that data. The text is ``domain operation content``.

Ours is the domain ``fedlearn``, operation ``measure``::

    fedlearn measure app sha256:<64 hex digits>
    fedlearn measure <scope>/app sha256:<64 hex digits>

``scope`` is the name of a job. A register cannot be reset while a machine runs, so a machine that
runs two jobs has the events of both in one register, distinguished only by the scope. A verifier
reports the claims of the quoted scope by their plain names (``app``), and those of every other
scope as ``other/<scope>/app`` (``other/app`` without a scope), so that every measurement of the
machine is reported. One claim of one scope has one value until the machine restarts.
"""

from __future__ import annotations

import hashlib
import re
import struct
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from attestation.errors import EventLogError
from attestation.logs.eventlog import EV_EVENT_TAG, Event, EventLog

__all__ = ["DOMAIN", "Measurement", "RuntimeEvent", "measured_claims", "measurements", "record"]

DOMAIN: Final = "fedlearn"
_MEASURE: Final = "measure"
_TAG: Final = 0x4141454C
_MAX_TEXT_BYTES: Final = 64 * 1024
_DIGEST_BYTES: Final = 32
_CLAIM: Final = re.compile(r"[a-z][a-z0-9_.-]{0,31}")
_SCOPE: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_RESERVED: Final = re.compile(
    r"(?:pcr|rtmr|boot|image|container|measurement|other|event)(?:[0-9.].*)?"
    r"|(?:azure|nvidia|sgx|snp|td|tpm)(?:[.].*)?"
    r"|mr[a-z]+|firmware|kernel|cmdline|initrd|initdata|launch|host_data"
    r"|(?:id|author)_key_digest|firmware_id"
)
"""Names of claims by hardware, firmware and verifiers, under which software may not measure."""

_CONTENT: Final = re.compile(
    rf"(?:(?P<scope>{_SCOPE.pattern})/)?(?P<claim>{_CLAIM.pattern})"
    r" sha256:(?P<digest>[0-9a-f]{64})"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class RuntimeEvent:
    """An AAEL event: ``domain`` and ``operation`` are words, ``content`` is one line."""

    domain: str
    operation: str
    content: str

    def to_data(self) -> bytes:
        """Return the data of the event; its digest is the hash of these bytes."""
        text = f"{self.domain} {self.operation} {self.content}".encode()
        return struct.pack("<II", _TAG, len(text)) + text

    @classmethod
    def parse(cls, event: Event) -> RuntimeEvent | None:
        """Return the event when it is an AAEL event, ``None`` when it is of another kind.

        :raises EventLogError: when it has the tag of one and is malformed, or its digest is
            not that of its content.
        """
        header = struct.pack("<I", _TAG)
        if event.type != EV_EVENT_TAG or not event.data.startswith(header):
            return None
        text = event.data[8:]
        if len(event.data) < 8 or struct.unpack_from("<I", event.data, 4)[0] != len(text):
            raise EventLogError(f"event {event.number}: the length of its text is wrong")
        if not event.hashes_data():
            raise EventLogError(f"event {event.number}: its digest is not that of its content")
        if len(text) > _MAX_TEXT_BYTES:
            raise EventLogError(f"event {event.number}: a text of {len(text)} bytes")
        try:
            words = text.decode("utf-8").split(" ", 2)
        except UnicodeDecodeError:
            raise EventLogError(f"event {event.number}: its text is not UTF-8") from None
        if len(words) != 3 or not all(words):
            raise EventLogError(f"event {event.number}: not 'domain operation content'")
        return cls(domain=words[0], operation=words[1], content=words[2])


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """A claim that software measured: 32 bytes under a name, for the job ``scope``."""

    claim: str
    digest: bytes
    scope: str = ""

    def __post_init__(self) -> None:
        if not _CLAIM.fullmatch(self.claim):
            raise ValueError(f"{self.claim!r} is not a claim name (lower case, at most 32)")
        if _RESERVED.fullmatch(self.claim):
            raise ValueError(f"{self.claim} is measured by hardware or firmware, not by software")
        if self.scope and not _SCOPE.fullmatch(self.scope):
            raise ValueError(f"{self.scope!r} is not a scope (letters, digits, '.', '_', '-')")
        if len(self.digest) != _DIGEST_BYTES:
            raise ValueError(f"a measured digest has {_DIGEST_BYTES} bytes")

    @property
    def name(self) -> str:
        """``scope/claim``, or the claim alone where there is no scope."""
        return f"{self.scope}/{self.claim}" if self.scope else self.claim

    def to_data(self) -> bytes:
        """Return the data of the event that records this measurement."""
        content = f"{self.name} sha256:{self.digest.hex()}"
        return RuntimeEvent(domain=DOMAIN, operation=_MEASURE, content=content).to_data()


def record(log: EventLog, measurement: Measurement, index: int) -> EventLog:
    """Return ``log`` with ``measurement`` as its next event on register ``index``.

    The event has a digest for every algorithm of the log's header; each is what the
    register of that bank is extended with.
    """
    data = measurement.to_data()
    digests = {name: hashlib.new(name, data).digest() for name in log.sizes}
    return log.append(index, EV_EVENT_TAG, digests, data)


def measurements(
    log: EventLog, index: int, bank: str, *, start: bytes = b"", boot: Collection[bytes] = ()
) -> tuple[Measurement, ...]:
    """Return the measurements of our domain in register ``index`` of ``bank``, in order.

    Call it after :func:`attestation.logs.eventlog.check_replay`; before that nothing is proven. A
    value that was measured twice is listed twice.

    Only the digest of an event is proven, not its type or text. So the text of an event could
    hide a measurement, and another event could show a false one. Therefore, in a register that has
    a measurement of ours, the content of every event must explain its digest. The only exception
    are the events before the first one of an agent, when they bring the register from ``start``
    (zero) to one of the ``boot`` values, which the relying party knows.

    :raises EventLogError: for an event that is not explained, a malformed event of our
        domain, or a claim of one scope that has two values.
    """
    found: list[Measurement] = []
    values: dict[str, bytes] = {}
    register = start or bytes(hashlib.new(bank).digest_size)
    unexplained = explained = 0
    for event in log.extending(index):
        entry = RuntimeEvent.parse(event)
        if entry is None or bank not in event.digests:
            if entry is not None:
                raise EventLogError(f"event {event.number}: it was not extended into {bank}")
            if explained:
                unexplained = unexplained or event.number
            elif bank in event.digests:
                register = hashlib.new(bank, register + event.digests[bank]).digest()
                unexplained = event.number
            continue
        if not explained and register in boot:
            unexplained = 0
        explained += 1
        if entry.domain != DOMAIN:
            continue
        measured = _measurement(event, entry)
        if values.setdefault(measured.name, measured.digest) != measured.digest:
            raise EventLogError(
                f"event {event.number}: {measured.name} was measured before with another value",
                hint="a machine must restart before it may measure another value",
            )
        found.append(measured)
    if found and unexplained:
        raise EventLogError(
            f"event {unexplained} extends the register with a digest that its content does not "
            f"explain (before the first measurement the register was {register.hex()})",
            hint="name that value as one that the boot chain leaves, if you know it",
        )
    return tuple(found)


def _measurement(event: Event, entry: RuntimeEvent) -> Measurement:
    match = _CONTENT.fullmatch(entry.content) if entry.operation == _MEASURE else None
    if match is None:
        raise EventLogError(f"event {event.number}: not a measurement of {DOMAIN}")
    try:
        return Measurement(
            claim=match["claim"], digest=bytes.fromhex(match["digest"]), scope=match["scope"] or ""
        )
    except ValueError as error:
        raise EventLogError(f"event {event.number}: {error}") from None


def measured_claims(found: Sequence[Measurement], scope: str) -> Mapping[str, bytes]:
    """Return measurements by their names in policies: plain for ``scope``, else ``other/...``."""
    return {m.claim if m.scope == scope else f"other/{m.name}": m.digest for m in found}
