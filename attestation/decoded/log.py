"""Fields of an event log. Names: TCG PC Client Platform Firmware Profile, section 10."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from attestation.decoded.fields import Field
from attestation.eventlog import Event, EventLog

__all__ = ["decode_log"]

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


def decode_log(data: bytes) -> Iterator[Field]:
    """Yield the header and every event of a crypto-agile log (TCG2 or CCEL).

    :raises EvidenceError: naming field and offset.
    """
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
        yield Field(section=section, name="event", value=_content(event))


def _content(event: Event) -> str:
    text = event.data.rstrip(b"\0")
    if text and all(0x20 <= byte < 0x7F for byte in text):
        shown = text.decode("ascii")
    else:
        shown = event.data.hex()
    return shown if len(shown) <= _MAX_SHOWN else f"{shown[:_MAX_SHOWN]}… ({len(event.data)} bytes)"
