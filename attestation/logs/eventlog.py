"""Crypto-agile event logs: the TCG2 format that TPM firmware, CCEL and we ourselves write.

Format: TCG PC Client Platform Firmware Profile, section 10.2 (``TCG_PCR_EVENT2`` behind a
``Spec ID Event03`` header); UEFI 2.10, section 38 gives the same format to confidential
guests as CCEL, where the register index means something else:

    =====  ===========  =================
    index  TPM          CCEL
    =====  ===========  =================
    0      PCR 0        MRTD
    1..4   PCR 1..4     RTMR 0..3
    =====  ===========  =================

A log is not signed. It counts only after :func:`check_replay` found that it replays to the
registers that a quote signs. Even then only *digests* are proven. The data of an event is proven
only where :meth:`Event.hashes_data` holds, for event types whose digest is defined as the hash of
that data.

Bounds: a log has at most 4 MiB and 16,384 events, which bounds memory to about 16 MiB. The last 64
parsed logs of at most 16 KiB are cached, in less than 16 MiB.
"""

from __future__ import annotations

import hashlib
import hmac
import struct
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from types import MappingProxyType
from typing import Final

from attestation.errors import EventLogError
from attestation.quotes.cursor import Cursor

__all__ = [
    "EV_EVENT_TAG",
    "EV_NO_ACTION",
    "MAX_LOG_BYTES",
    "MAX_REMEMBERED_BYTES",
    "Event",
    "EventLog",
    "ccel_register",
    "check_replay",
    "pcr_register",
]

MAX_LOG_BYTES: Final = 4 * 1024 * 1024
MAX_EVENTS: Final = 16 * 1024
MAX_REMEMBERED_BYTES: Final = 16 * 1024
"""Longer logs are parsed each time; shorter ones are cached."""

EV_NO_ACTION: Final = 0x00000003
"""An event for information, which extends no register."""

EV_EVENT_TAG: Final = 0x00000006
"""An event whose data is a tag and the content that the tag defines."""

_ALGORITHMS: Final = {0x0004: "sha1", 0x000B: "sha256", 0x000C: "sha384", 0x000D: "sha512"}
_IDENTIFIERS: Final = {name: number for number, name in _ALGORITHMS.items()}
_SIGNATURE: Final = b"Spec ID Event03\0"
_OLD: Final = "an old log, of SHA-1 digests alone, proves nothing"
_LOCALITY: Final = b"StartupLocality\0"
_MAX_ALGORITHMS: Final = 8
_MAX_DIGEST: Final = 64
_SHA1_BYTES: Final = 20
_EVENT_HEADER: Final = struct.Struct("<III")
_ALL_ONES_PCRS: Final = range(17, 23)
"""PCRs of a dynamic launch start at all ones (PC Client Platform TPM Profile, 4.6.2)."""


def pcr_register(index: int) -> str:
    """Name a register of a TPM log: ``pcr.7``."""
    return f"pcr.{index}"


def ccel_register(index: int) -> str:
    """Name a register of a CCEL: ``mrtd``, ``rtmr0`` to ``rtmr3``."""
    if index == 0:
        return "mrtd"
    return f"rtmr{index - 1}" if index <= 4 else f"register {index}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """One ``TCG_PCR_EVENT2``.

    ``index``    register index as the log writes it
    ``digests``  by ``hashlib`` name, or ``alg-0x0012`` for an algorithm that is not known
    ``number``   position in the log, from 1
    ``offset``   of its first byte in the log
    """

    index: int
    type: int
    digests: Mapping[str, bytes]
    data: bytes
    number: int = 0
    offset: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "digests", MappingProxyType(dict(self.digests)))

    @property
    def extends(self) -> bool:
        """False for events that are for information only."""
        return self.type != EV_NO_ACTION

    def hashes_data(self) -> bool:
        """True when every known digest is the hash of ``data``."""
        known = [name for name in self.digests if name in _IDENTIFIERS]
        return bool(known) and all(
            hmac.compare_digest(hashlib.new(name, self.data).digest(), self.digests[name])
            for name in known
        )

    def to_bytes(self) -> bytes:
        """Return the event in the format of the log."""
        digests = b"".join(
            struct.pack("<H", _identifier(name)) + digest for name, digest in self.digests.items()
        )
        return (
            struct.pack("<III", self.index, self.type, len(self.digests))
            + digests
            + struct.pack("<I", len(self.data))
            + self.data
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class EventLog:
    """A parsed log: the digest sizes of its header, and its events in order."""

    sizes: Mapping[str, int]
    events: tuple[Event, ...]
    header: bytes

    @classmethod
    def create(cls, algorithms: Sequence[str], *, index: int = 0) -> EventLog:
        """Return an empty log for ``algorithms`` (``hashlib`` names).

        ``index`` is that of the header event: 0 in a TPM log, 1 in a CCEL.
        """
        sizes = {name: hashlib.new(name).digest_size for name in algorithms}
        table = b"".join(
            struct.pack("<HH", _IDENTIFIERS[name], size) for name, size in sizes.items()
        )
        body = _SIGNATURE + struct.pack("<IBBBBI", 0, 0, 2, 0, 2, len(sizes)) + table + b"\0"
        first = struct.pack("<II", index, EV_NO_ACTION) + bytes(_SHA1_BYTES)
        return cls(
            sizes=MappingProxyType(sizes),
            events=(),
            header=first + struct.pack("<I", len(body)) + body,
        )

    @classmethod
    def parse(cls, data: bytes) -> EventLog:
        """Parse a log of at most 4 MiB; padding of one repeated byte (00 or ff) may follow.

        :raises EvidenceError: naming field and offset.
        """
        return _remembered(data) if len(data) <= MAX_REMEMBERED_BYTES else _parse(data)

    def to_bytes(self) -> bytes:
        """Return the log without padding; parsing it gives an equal log."""
        return self.header + b"".join(event.to_bytes() for event in self.events)

    def append(self, index: int, kind: int, digests: Mapping[str, bytes], data: bytes) -> EventLog:
        """Return the log with one more event."""
        unknown = [name for name in digests if self.sizes.get(name) != len(digests[name])]
        if unknown or not digests:
            raise ValueError(f"the log's header does not provide for {unknown or 'no digest'}")
        event = Event(
            index=index,
            type=kind,
            digests=digests,
            data=data,
            number=len(self.events) + 1,
            offset=len(self.to_bytes()),
        )
        return EventLog(sizes=self.sizes, events=(*self.events, event), header=self.header)

    def extending(self, index: int) -> tuple[Event, ...]:
        """Return the events that extend the register ``index``."""
        return tuple(event for event in self.events if event.index == index and event.extends)

    def replay(self, bank: str, *, ccel: bool = False) -> dict[int, bytes]:
        """Return the registers that the log extends, as they are after the last event.

        ``bank`` is a ``hashlib`` name. An event without a digest for it leaves that bank as
        it was. Registers of a CCEL start at zero; PCRs as in the TPM profile, PCR 0 with
        the start-up locality that the log declares.

        :raises EventLogError: when the log has no digests for ``bank``.
        """
        if bank not in self.sizes or bank not in _IDENTIFIERS:
            raise EventLogError(f"the log has no {bank} digests")
        registers: dict[int, bytes] = {}
        for event in self.events:
            digest = event.digests.get(bank)
            if not event.extends or digest is None:
                continue
            before = registers.get(event.index)
            if before is None:
                before = bytes(self.sizes[bank]) if ccel else self.initial(event.index, bank)
            registers[event.index] = hashlib.new(bank, before + digest).digest()
        return registers

    def initial(self, pcr: int, bank: str) -> bytes:
        """Return the value of a PCR before its first event."""
        size = hashlib.new(bank).digest_size
        if pcr in _ALL_ONES_PCRS:
            return b"\xff" * size
        if pcr == 0:
            for event in self.events:
                if event.index == 0 and event.type == EV_NO_ACTION and event.data[:-1] == _LOCALITY:
                    return bytes(size - 1) + event.data[-1:]
        return bytes(size)


def check_replay(
    log: EventLog,
    quoted: Mapping[int, bytes],
    *,
    bank: str,
    name: Callable[[int], str] = pcr_register,
    ccel: bool = False,
    known: Collection[bytes] = (),
) -> None:
    """Check that ``log`` replays to the ``quoted`` registers, register by register.

    Every register that the log extends must be quoted and must match. The log does not explain a
    quoted register without events; the caller decides whether to accept that.

    ``known`` are event digests that reference values name. With them the error names the first
    event whose digest is not among them.

    :raises EventLogError: ``register`` names the first register that differs.
    """
    for index, value in sorted(log.replay(bank, ccel=ccel).items()):
        register = name(index)
        if index not in quoted:
            raise EventLogError(
                f"{register} is extended by event {log.extending(index)[0].number} of the log "
                "and not quoted, so its events are not proven",
                register=register,
            )
        if not hmac.compare_digest(value, quoted[index]):
            raise EventLogError(
                f"{register} replays to {value.hex()}, the quote has {quoted[index].hex()}; "
                + _suspect(log, index, bank, quoted[index], known, ccel=ccel),
                register=register,
                hint="the log was altered, or belongs to another boot or machine",
            )


def _suspect(
    log: EventLog,
    index: int,
    bank: str,
    quoted: bytes,
    known: Collection[bytes],
    *,
    ccel: bool,
) -> str:
    """Describe which event of a register that does not match is the likely cause."""
    events = [event for event in log.extending(index) if bank in event.digests]
    for event in events:
        if known and event.digests[bank] not in known:
            return f"event {event.number} is the first that no reference value knows"
    value = bytes(log.sizes[bank]) if ccel else log.initial(index, bank)
    for event in events:
        if hmac.compare_digest(value, quoted):
            return f"event {event.number} is the first that was never extended"
        value = hashlib.new(bank, value + event.digests[bank]).digest()
    for event in events:
        if event.type == EV_EVENT_TAG and not event.hashes_data():
            return f"event {event.number} is the first whose digest is not that of its content"
    first, last = events[0].number, events[-1].number
    return f"events {first} to {last} of the log extend it"


@lru_cache(maxsize=64)
def _remembered(data: bytes) -> EventLog:
    """Parse a short log once: a client sends the same log each time that it attests."""
    return _parse(data)


def _parse(data: bytes) -> EventLog:
    read = Cursor(data, "event_log", limit=MAX_LOG_BYTES, little=True)
    sizes = _header(read)
    header = data[: read.offset]
    end = _end(data)
    events: list[Event] = []
    while read.offset < end:
        if len(events) == MAX_EVENTS:
            raise read.fail(f"more than {MAX_EVENTS} events", "event")
        events.append(_event(read, sizes, len(events) + 1))
    return EventLog(sizes=MappingProxyType(sizes), events=tuple(events), header=header)


def _header(read: Cursor) -> dict[str, int]:
    """Read the first event, which keeps the old format (``TCG_PCClientPCREvent``)."""
    read.integer(4, "header.index")
    if read.integer(4, "header.eventType") != EV_NO_ACTION:
        raise read.fail(
            f"the first event must be EV_NO_ACTION; {_OLD}", "header.eventType", offset=4
        )
    if any(read.take(_SHA1_BYTES, "header.digest")):
        raise read.fail("the first event's digest must be zero", "header.digest", offset=8)
    size = read.integer(4, "header.eventSize")
    start = read.offset
    if read.take(min(16, read.remaining), "header.signature") != _SIGNATURE:
        raise read.fail(
            f"not a crypto-agile log (Spec ID Event03); {_OLD}",
            "header.signature",
            offset=start,
        )
    read.take(8, "header.version")
    at = read.offset
    count = read.integer(4, "header.numberOfAlgorithms")
    if not 1 <= count <= _MAX_ALGORITHMS:
        raise read.fail(
            f"{count}, 1 to {_MAX_ALGORITHMS} are read", "header.numberOfAlgorithms", offset=at
        )
    sizes: dict[str, int] = {}
    for _ in range(count):
        at = read.offset
        identifier = read.integer(2, "header.algorithm")
        name = _ALGORITHMS.get(identifier, f"alg-{identifier:#06x}")
        length = read.integer(2, "header.digestSize")
        wanted = hashlib.new(name).digest_size if identifier in _ALGORITHMS else length
        if name in sizes or length != wanted or not 1 <= length <= _MAX_DIGEST:
            raise read.fail(f"{name} with digests of {length} bytes", "header.algorithm", offset=at)
        sizes[name] = length
    read.sized("header.vendorInfo", limit=255, prefix=1)
    if read.offset != start + size:
        raise read.fail(
            f"states {size} bytes, its content has {read.offset - start}",
            "header.eventSize",
            offset=start - 4,
        )
    return sizes


def _event(read: Cursor, sizes: Mapping[str, int], number: int) -> Event:
    start = read.offset
    index, kind, count = read.unpack(_EVENT_HEADER, f"event[{number}].header")
    if not 1 <= count <= len(sizes):
        raise read.fail(
            f"{count} digests, the header has {len(sizes)} algorithms",
            f"event[{number}].digests.count",
            offset=start + 8,
        )
    digests: dict[str, bytes] = {}
    field = f"event[{number}].digest"
    for _ in range(count):
        at = read.offset
        identifier = read.integer(2, field)
        name = _ALGORITHMS.get(identifier) or f"alg-{identifier:#06x}"
        if name not in sizes or name in digests:
            raise read.fail(f"{name} is unexpected", f"{field}.algorithm", offset=at)
        digests[name] = read.take(sizes[name], field)
    data = read.sized(f"event[{number}].data", limit=MAX_LOG_BYTES, prefix=4)
    return Event(index=index, type=kind, digests=digests, data=data, number=number, offset=start)


def _end(data: bytes) -> int:
    """Return where padding of one repeated byte begins, or the end of ``data``."""
    return min(len(data.rstrip(b"\xff")), len(data.rstrip(b"\0")))


def _identifier(name: str) -> int:
    return _IDENTIFIERS[name] if name in _IDENTIFIERS else int(name.removeprefix("alg-"), 16)
