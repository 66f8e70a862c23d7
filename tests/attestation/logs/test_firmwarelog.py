"""What firmware and boot loader logged: which events become claims, and which do not."""

from __future__ import annotations

import hashlib

import pytest

from attestation.errors import EventLogError
from attestation.logs.accumulator import CONTAINER
from attestation.logs.eventlog import EventLog
from attestation.logs.firmwarelog import agent_claims, boot_claims, check_ccel
from attestation.logs.runtime_events import RuntimeEvent
from tests.vectors.intel import event_log

EXIT = b"Exit Boot Services Invocation"
IPL, TAG, ACTION, APPLICATION, GPT = 0x0D, 0x06, 0x80000007, 0x80000003, 0x80000006


def sha(data: bytes) -> bytes:
    return hashlib.sha384(data).digest()


def logged(*events: tuple[int, int, bytes, bytes]) -> EventLog:
    """Return a CCEL; each event is (index, type, label, measured content)."""
    log = EventLog.create(("sha384",), index=1)
    for index, kind, label, content in events:
        log = log.append(index, kind, {"sha384": sha(content)}, label)
    return log


def claims(*events: tuple[int, int, bytes, bytes]) -> dict[str, bytes]:
    return boot_claims(logged(*events), "sha384", ccel=True)


def test_grub_names_kernel_command_line_and_initrd() -> None:
    found = claims(
        (2, APPLICATION, b"shim", b"shim"),
        (2, APPLICATION, b"grub", b"grub"),
        (3, IPL, b"grub_linuxefi Kernel\0x", b"vmlinuz"),
        (3, IPL, b"grub_kernel_cmdline /vmlinuz root=/dev/vda\0", b"root=/dev/vda"),
        (3, IPL, b"grub_linuxefi Initrd\0x", b"initramfs"),
    )
    assert found == {
        "boot.1": sha(b"shim"),
        "boot.2": sha(b"grub"),
        "kernel": sha(b"vmlinuz"),
        "cmdline": sha(b"root=/dev/vda"),
        "initrd": sha(b"initramfs"),
    }


def test_the_efi_stub_names_command_line_and_initrd() -> None:
    found = claims(
        (2, APPLICATION, b"kernel", b"kernel"),
        (3, TAG, b"\xed\x22\x3b\x8f\x1a\0\0\0LOADED_IMAGE::LoadOptions\0", b"ro"),
        (3, TAG, b"\xec\x22\x3b\x8f\x0d\0\0\0Linux initrd\0", b"initrd"),
    )
    assert found["kernel"] == sha(b"kernel")
    assert (found["cmdline"], found["initrd"]) == (sha(b"ro"), sha(b"initrd"))


@pytest.mark.parametrize(
    "hidden",
    [
        (2, GPT, b"a partition table, it states", b"another kernel"),
        (2, ACTION, b"a harmless action", b"another kernel"),
        (2, IPL, b"", b"another kernel"),
    ],
    ids=["partition table", "action", "boot loader"],
)
def test_an_image_under_another_label_is_an_image(hidden: tuple[int, int, bytes, bytes]) -> None:
    found = claims(hidden, (2, APPLICATION, b"kernel", b"the expected kernel"))
    assert found["boot.1"] == sha(b"another kernel")
    assert found["boot.2"] == sha(b"the expected kernel")


def test_what_explains_itself_is_no_image() -> None:
    action = b"Calling EFI Application from Boot Option"
    found = claims((2, ACTION, action, action), (2, APPLICATION, b"kernel", b"kernel"))
    assert found == {"boot.1": sha(b"kernel"), "kernel": sha(b"kernel")}


def test_nothing_counts_after_the_firmware_handed_over() -> None:
    found = claims(
        (2, APPLICATION, b"kernel", b"an evil kernel"),
        (2, ACTION, EXIT, EXIT),
        (2, APPLICATION, b"kernel", b"the expected kernel"),
        (3, IPL, b"kernel_cmdline: good\0", b"good"),
    )
    assert found == {"boot.1": sha(b"an evil kernel"), "kernel": sha(b"an evil kernel")}


def test_events_count_only_in_the_register_of_their_writer() -> None:
    found = claims(
        (4, APPLICATION, b"kernel", b"kernel"),
        (2, 0x8000000A, b"firmware", b"firmware"),
        (4, IPL, b"kernel_cmdline: good\0", b"good"),
    )
    assert "cmdline" not in found
    assert "firmware" not in found


def test_an_agent_names_initdata_and_images() -> None:
    log = EventLog.create(("sha384",), index=1)
    for operation, content in (
        ("initdata", f"sha384:{'ab' * 48}"),
        ("PullImage", f'{{"image":"registry.example/app@sha256:{"cd" * 32}"}}'),
        ("PullImage", f"registry.example/side@sha256:{'ef' * 32}"),
    ):
        event = RuntimeEvent(
            domain="github.com/confidential-containers", operation=operation, content=content
        )
        log = log.append(4, TAG, {"sha384": sha(event.to_data())}, event.to_data())
    assert agent_claims(log, 4) == {
        "initdata": b"\xab" * 48,
        "image.1": b"\xcd" * 32,
        "image.2": b"\xef" * 32,
    }


def test_initdata_has_one_value() -> None:
    log = EventLog.create(("sha384",), index=1)
    for digit in "ab":
        event = RuntimeEvent(
            domain="github.com/confidential-containers",
            operation="initdata",
            content=f"sha256:{digit * 64}",
        )
        log = log.append(4, TAG, {"sha384": sha(event.to_data())}, event.to_data())
    with pytest.raises(EventLogError, match="measured before"):
        agent_claims(log, 4)


def test_a_log_explains_every_register_that_is_not_zero() -> None:
    data, rtmrs = event_log()
    log = EventLog.parse(data)
    assert check_ccel(None, rtmrs) == {}
    assert {"app", "job", "kernel"} <= check_ccel(log, rtmrs).keys()
    for index, name in enumerate(("rtmr0", "rtmr1", "rtmr2", "rtmr3"), 1):
        cut = EventLog(
            sizes=log.sizes,
            events=tuple(event for event in log.events if event.index != index),
            header=log.header,
        )
        with pytest.raises(EventLogError) as refused:
            check_ccel(cut, rtmrs)
        assert refused.value.register == name


def test_only_a_server_of_containers_may_withhold_rtmr2() -> None:
    data, rtmrs = event_log()
    log = EventLog.parse(data)
    without = tuple(event for event in log.events if event.index != 3)
    cut = EventLog(sizes=log.sizes, events=without, header=log.header)
    container = cut.append(CONTAINER, 0x14, {"sha384": sha(b"a file")}, b"a file")
    assert "cmdline" not in check_ccel(container, rtmrs)
    with pytest.raises(EventLogError):
        check_ccel(cut, rtmrs)
