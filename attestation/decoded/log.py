"""Fields of an event log. Names: TCG PC Client Platform Firmware Profile, section 10.

Firmware older than TPM 2.0 writes another log, with SHA-1 digests only (TCG PC Client Specific
Implementation Specification for Conventional BIOS 1.21, ``TCG_PCClientPCREventStruct``). Such a
log is decoded here and never verified, because SHA-1 is broken.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from attestation.decoded.fields import Field
from attestation.errors import EvidenceError
from attestation.logs.eventlog import MAX_EVENTS, MAX_LOG_BYTES, EventLog
from attestation.quotes.cursor import Cursor

__all__ = ["decode_log", "is_log", "is_old_log"]

_TYPES: Final = {
    0x00000000: "EV_PREBOOT_CERT",
    0x00000001: "EV_POST_CODE",
    0x00000003: "EV_NO_ACTION",
    0x00000004: "EV_SEPARATOR",
    0x00000005: "EV_ACTION",
    0x00000006: "EV_EVENT_TAG",
    0x00000007: "EV_S_CRTM_CONTENTS",
    0x00000008: "EV_S_CRTM_VERSION",
    0x00000009: "EV_CPU_MICROCODE",
    0x0000000A: "EV_PLATFORM_CONFIG_FLAGS",
    0x0000000B: "EV_TABLE_OF_DEVICES",
    0x0000000C: "EV_COMPACT_HASH",
    0x0000000D: "EV_IPL",
    0x0000000E: "EV_IPL_PARTITION_DATA",
    0x00000012: "EV_OMIT_BOOT_DEVICE_EVENTS",
    0x00000013: "EV_POST_CODE2",
    0x80000001: "EV_EFI_VARIABLE_DRIVER_CONFIG",
    0x80000002: "EV_EFI_VARIABLE_BOOT",
    0x80000003: "EV_EFI_BOOT_SERVICES_APPLICATION",
    0x80000004: "EV_EFI_BOOT_SERVICES_DRIVER",
    0x80000005: "EV_EFI_RUNTIME_SERVICES_DRIVER",
    0x80000006: "EV_EFI_GPT_EVENT",
    0x80000007: "EV_EFI_ACTION",
    0x80000008: "EV_EFI_PLATFORM_FIRMWARE_BLOB",
    0x80000009: "EV_EFI_HANDOFF_TABLES",
    0x8000000A: "EV_EFI_PLATFORM_FIRMWARE_BLOB2",
    0x8000000B: "EV_EFI_HANDOFF_TABLES2",
    0x8000000C: "EV_EFI_VARIABLE_BOOT2",
    0x80000010: "EV_EFI_HCRTM_EVENT",
    0x800000E0: "EV_EFI_VARIABLE_AUTHORITY",
    0x800000E1: "EV_EFI_SPDM_FIRMWARE_BLOB",
}
_MAX_SHOWN: Final = 96
_SIGNATURE: Final = b"Spec ID Event03"
_SIGNATURE_AT: Final = 32
_SHA1_BYTES: Final = 20
_OLD_PCRS: Final = frozenset({*range(24), 0xFFFFFFFF})
"""PCRs of an old log; the last is no PCR, for events that only inform."""


def is_log(data: bytes) -> bool:
    """Return whether ``data`` starts like a crypto-agile log (TCG2 or CCEL)."""
    return data[_SIGNATURE_AT : _SIGNATURE_AT + len(_SIGNATURE)] == _SIGNATURE


def is_old_log(data: bytes) -> bool:
    """Return whether ``data`` is a log of SHA-1 digests, from its first event to its last.

    Such a log has no mark, so callers must rule out other kinds of files first.
    """
    try:
        fields = list(_decode_old(data))
    except EvidenceError:
        return False
    return bool(fields)


def decode_log(data: bytes) -> Iterator[Field]:
    """Yield the header and every event of a log: TCG2, CCEL, or the old form with SHA-1.

    :raises EvidenceError: naming field and offset.
    """
    if not is_log(data) and is_old_log(data):
        yield from _decode_old(data)
        return
    log = EventLog.parse(data)
    sizes = ", ".join(f"{name} ({size} bytes)" for name, size in log.sizes.items())
    yield Field(section="TCG_EfiSpecIDEvent", name="digestSizes", value=sizes)
    for event in log.events:
        section = f"TCG_PCR_EVENT2 {event.number}"
        kind = _TYPES.get(event.type, f"{event.type:#010x}")
        yield Field(section=section, name="pcrIndex", value=str(event.index))
        yield Field(section=section, name="eventType", value=kind)
        for name, digest in event.digests.items():
            yield Field(section=section, name=f"digests.{name}", value=digest.hex())
        yield Field(section=section, name="event", value=_shown(event.data))


def _decode_old(data: bytes) -> Iterator[Field]:
    read = Cursor(data, "event_log", limit=MAX_LOG_BYTES, little=True)
    end = min(len(data.rstrip(b"\xff")), len(data.rstrip(b"\0")))
    number = 0
    while read.offset < end:
        number += 1
        if number > MAX_EVENTS:
            raise EvidenceError(f"more than {MAX_EVENTS} events", field="event_log")
        field = f"event[{number}]"
        section = f"TCG_PCClientPCREvent {number}"
        at = read.offset
        index = read.integer(4, f"{field}.pcrIndex")
        if index not in _OLD_PCRS:
            raise read.fail(f"{index} is no PCR", f"{field}.pcrIndex", offset=at)
        kind = read.integer(4, f"{field}.eventType")
        digest = read.take(_SHA1_BYTES, f"{field}.digest")
        content = read.sized(f"{field}.event", limit=MAX_LOG_BYTES, prefix=4)
        yield Field(section=section, name="pcrIndex", value=str(index))
        yield Field(section=section, name="eventType", value=_TYPES.get(kind, f"{kind:#010x}"))
        yield Field(section=section, name="digest.sha1", value=digest.hex())
        yield Field(section=section, name="event", value=_shown(content))


def _shown(data: bytes) -> str:
    text = data.rstrip(b"\0")
    plain = text and all(0x20 <= byte < 0x7F for byte in text)
    shown = text.decode("ascii") if plain else data.hex()
    return shown if len(shown) <= _MAX_SHOWN else f"{shown[:_MAX_SHOWN]}… ({len(data)} bytes)"
