"""Claims from the events that firmware and boot loader logged, by the names that policies use.

Formats: TCG PC Client Platform Firmware Profile, section 10.4 (event types), UEFI 2.10,
section 38.4.1 (CCEL), and the events of GRUB, shim and the Linux EFI stub.

==================  ==============================================================
``firmware``        digest of the firmware volume that firmware measured of itself
``boot.1``, ``.2``  digest (Authenticode) of each image that firmware started
``kernel``          of the kernel: as GRUB measured it, else the last such image
``cmdline``         of the kernel's command line
``initrd``          of the initial RAM disk
``initdata``        of the initdata document, measured by a guest agent (AAEL)
``image.N``         of the N-th container image that a guest agent pulled (AAEL)
==================  ==============================================================

Values have the size of the log's bank (SHA-384 in a CCEL), except those of agents, which have the
size that the agent wrote.

**What they prove.** A replay proves the digests and their order, but not the type and text of each
event. A kernel that was measured before it ran cannot remove its own digest. It could, however,
send a log that gives its event another label, and that gives the expected label to a digest which
the kernel itself extended later. Therefore these claims are read only from events before
the firmware ended (``Exit Boot Services``), and only from the register that their writer extends.
``kernel`` is read only where no other image was started: every event of that register whose digest
is not the hash of its data counts as an image in ``boot.N``. For the same reason a policy that
relies on these claims pins ``mrtd``, ``rtmr1`` and ``rtmr2``, or names every event of those
registers (:func:`register_events`, :mod:`attestation.policy.launch`).
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Sequence
from typing import Final

from attestation.errors import EventLogError
from attestation.logs.accumulator import CONTAINER, hardware_part
from attestation.logs.eventlog import Event, EventLog, ccel_register, check_replay
from attestation.logs.runtime_events import RuntimeEvent, measured_claims, measurements

__all__ = ["RTMR_RUNTIME", "agent_claims", "boot_claims", "check_ccel", "register_events"]

RTMR_RUNTIME: Final = 4
"""Index of RTMR3 in a CCEL: what software measured while the domain ran."""

_RTMR_KERNEL: Final = 2
_RTMR_SYSTEM: Final = 3
_MAX_DIGESTS: Final = 1024
_BANK: Final = "sha384"
_FIRMWARE_BLOBS: Final = (0x80000008, 0x8000000A)
_BOOT_APPLICATION: Final = 0x80000003
_VARIABLE_BOOT: Final = (0x80000002, 0x8000000C)
_IPL: Final = 0x0000000D
_EVENT_TAG: Final = 0x00000006
_ACTION: Final = 0x80000007
_EXIT: Final = b"Exit Boot Services Invocation"
_LOAD_OPTIONS: Final = 0x8F3B22ED
_INITRD: Final = 0x8F3B22EC
_MAX_EXPLAINED: Final = 64 * 1024
_CCEL_REGISTERS: Final = (1, 2, 3)
_PCR_REGISTERS: Final = (0, 4, 8)
_CMDLINE: Final = re.compile(rb"(?:grub_)?kernel_cmdline:? ")
_DIGEST: Final = re.compile(
    r"(?:sha256[:-](?=[0-9a-f]{64}(?![0-9a-f]))"
    r"|sha384[:-](?=[0-9a-f]{96}(?![0-9a-f]))"
    r"|sha512[:-](?=[0-9a-f]{128}(?![0-9a-f])))([0-9a-f]+)"
)
_AGENT_DOMAINS: Final = frozenset({"github.com/confidential-containers", "coco.com"})
_MAX_IMAGES: Final = 64


def check_ccel(
    log: EventLog | None, rtmrs: Sequence[bytes], *, known: Collection[bytes] = ()
) -> dict[str, bytes]:
    """Replay a CCEL against the quoted RTMRs and return the claims of its events.

    Without a log there are no such claims, only the registers. A log must explain every register
    that is not zero, so that no part of it can be left out. Only a server that isolates containers
    may leave out RTMR2, which has the events of all containers. Events of software registers are
    ignored. ``known`` as for
    :func:`attestation.logs.eventlog.check_replay`.

    :raises EventLogError: naming the first register that differs.
    """
    if log is None:
        return {}
    isolated = bool(log.extending(CONTAINER))
    log = hardware_part(log)
    quoted = {number + 1: value for number, value in enumerate(rtmrs)}
    check_replay(log, quoted, bank=_BANK, name=ccel_register, ccel=True, known=known)
    for index, value in quoted.items():
        withheld = isolated and index == _RTMR_SYSTEM
        if any(value) and not log.extending(index) and not withheld:
            register = ccel_register(index)
            raise EventLogError(
                f"{register} was extended and the log has no event for it",
                register=register,
                hint="send the whole log",
            )
    found = boot_claims(log, _BANK, ccel=True)
    found |= agent_claims(log, RTMR_RUNTIME)
    return {**measured_claims(measurements(log, RTMR_RUNTIME, _BANK), ""), **found}


def register_events(log: EventLog | None) -> dict[str, tuple[str, ...]]:
    """Return the distinct digests (hex) that extended RTMR1 and RTMR2, for policies to compare.

    Call it after :func:`check_ccel`. The attributes have names such as ``log.rtmr1.events``. There
    is none without a log, for a register that was not extended, or with more than 1024 digests.
    """
    found: dict[str, tuple[str, ...]] = {}
    if log is None:
        return found
    for index in (_RTMR_KERNEL, _RTMR_SYSTEM):
        digests = {event.digests.get(_BANK, b"").hex() for event in log.extending(index)}
        if 1 <= len(digests) <= _MAX_DIGESTS:
            found[f"log.{ccel_register(index)}.events"] = tuple(sorted(digests))
    return found


def boot_claims(log: EventLog, bank: str, *, ccel: bool) -> dict[str, bytes]:
    """Return the claims about the boot. Call it after the replay."""
    firmware, images, loader = _CCEL_REGISTERS if ccel else _PCR_REGISTERS
    found: dict[str, bytes] = {}
    started: list[bytes] = []
    for event in _before_exit(log):
        digest = event.digests.get(bank)
        if digest is None or not event.extends:
            continue
        if event.index == firmware and event.type in _FIRMWARE_BLOBS:
            found.setdefault("firmware", digest)
        elif event.index == images and _is_image(event):
            started.append(digest)
        elif event.index == loader or (not ccel and event.index == loader + 1):
            _loader_claim(event, digest, found)
    found |= {f"boot.{number}": digest for number, digest in enumerate(started, 1)}
    if started:
        found.setdefault("kernel", started[-1])
    return found


def _before_exit(log: EventLog) -> Iterator[Event]:
    for event in log.events:
        if event.type == _ACTION and event.data == _EXIT:
            return
        yield event


def _is_image(event: Event) -> bool:
    if event.type == _BOOT_APPLICATION:
        return True
    if event.type in _VARIABLE_BOOT:
        return False
    return not (event.hashes_data() and len(event.data) <= _MAX_EXPLAINED)


def _loader_claim(event: Event, digest: bytes, found: dict[str, bytes]) -> None:
    if event.type == _EVENT_TAG and len(event.data) >= 8:
        tag = int.from_bytes(event.data[:4], "little")
        if tag == _LOAD_OPTIONS:
            found.setdefault("cmdline", digest)
        elif tag == _INITRD:
            found.setdefault("initrd", digest)
    elif event.type == _IPL:
        text = event.data.split(b"\0", 1)[0]
        if _CMDLINE.match(text):
            found["cmdline"] = digest
        elif text == b"grub_linuxefi Kernel" or (b"/vmlinuz" in text and b" " not in text):
            found["kernel"] = digest
        elif text == b"grub_linuxefi Initrd" or (b"/init" in text and b" " not in text):
            found["initrd"] = digest


def agent_claims(log: EventLog, index: int) -> dict[str, bytes]:
    """Return the measurements of a guest agent: the initdata digest and pulled images.

    Agents write AAEL events, whose digest is the hash of their text, so the text is proven.

    :raises EventLogError: for a malformed AAEL event, or a claim with two values.
    """
    found: dict[str, bytes] = {}
    images = 0
    for event in log.extending(index):
        entry = RuntimeEvent.parse(event)
        if entry is None or entry.domain not in _AGENT_DOMAINS:
            continue
        digest = _DIGEST.search(entry.content)
        if digest is None:
            continue
        value = bytes.fromhex(digest[1])
        if entry.operation.lower() in ("initdata", "load-initdata"):
            if found.setdefault("initdata", value) != value:
                raise EventLogError(f"event {event.number}: initdata was measured before")
        elif entry.operation.lower() in ("pullimage", "pull-image") and images < _MAX_IMAGES:
            images += 1
            found[f"image.{images}"] = value
    return found
