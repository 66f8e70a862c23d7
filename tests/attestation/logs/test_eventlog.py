"""Event logs: real ones replay to what the hardware signed, and altered ones do not."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from attestation.errors import AttestationError, EventLogError, EvidenceError
from attestation.logs.eventlog import (
    EV_EVENT_TAG,
    EV_NO_ACTION,
    MAX_LOG_BYTES,
    Event,
    EventLog,
    ccel_register,
    check_replay,
)
from attestation.logs.runtime_events import (
    Measurement,
    RuntimeEvent,
    measured_claims,
    measurements,
    record,
)

RTMR_OFFSET = 48 + 328


@pytest.fixture(scope="module")
def ccel(vectors: Path) -> bytes:
    return (vectors / "gcp_ccel_data.dat").read_bytes()


@pytest.fixture(scope="module")
def rtmrs(vectors: Path) -> dict[int, bytes]:
    quote = (vectors / "gcp_cos113_tdx_quote.bin").read_bytes()
    offsets = (RTMR_OFFSET + 48 * i for i in range(4))
    return {i + 1: quote[offset : offset + 48] for i, offset in enumerate(offsets)}


def check_ccel(log: EventLog, rtmrs: dict[int, bytes], known: tuple[bytes, ...] = ()) -> None:
    check_replay(log, rtmrs, bank="sha384", name=ccel_register, ccel=True, known=known)


def test_a_real_ccel_replays_to_the_rtmrs_of_its_quote(
    ccel: bytes, rtmrs: dict[int, bytes]
) -> None:
    log = EventLog.parse(ccel)
    check_ccel(log, rtmrs)
    assert [len(log.extending(i)) for i in range(1, 5)] == [16, 7, 20, 0]
    replayed = log.replay("sha384", ccel=True)
    for index in range(1, 5):
        assert replayed.get(index, bytes(48)) == rtmrs[index]


@pytest.mark.parametrize(
    "name", ["gcp_ccel_data.dat", "trustee_CCEL_data_ovmf", "trustee_CCEL_AAEL_alibabacloud"]
)
def test_real_logs_are_written_as_they_were_read(vectors: Path, name: str) -> None:
    data = (vectors / name).read_bytes()
    log = EventLog.parse(data)
    written = log.to_bytes()
    assert data.startswith(written)
    assert set(data[len(written) :]) <= {0xFF}
    assert EventLog.parse(written) == log


def test_events_of_the_attestation_agent_are_understood(vectors: Path) -> None:
    log = EventLog.parse((vectors / "trustee_CCEL_AAEL_alibabacloud").read_bytes())
    found = [e for event in log.events if (e := RuntimeEvent.parse(event)) is not None]
    assert [(e.domain, e.operation) for e in found] == [("coco.com", "some-operation")] * 2
    assert found[0].content == "some-content"
    assert found[1].content.startswith('{"key": "value"')
    assert [event.index for event in log.events[-2:]] == [4, 4]
    assert measurements(log, 4, "sha384") == ()


def drop(log: EventLog, position: int) -> EventLog:
    return replace(log, events=log.events[:position] + log.events[position + 1 :])


def swap(log: EventLog, position: int) -> EventLog:
    events = list(log.events)
    events[position], events[position + 1] = events[position + 1], events[position]
    return replace(log, events=tuple(events))


def repeat(log: EventLog, position: int) -> EventLog:
    event = log.events[position]
    return replace(log, events=(*log.events[: position + 1], event, *log.events[position + 1 :]))


def edit(log: EventLog, position: int) -> EventLog:
    event = log.events[position]
    digest = bytes(b ^ 1 for b in event.digests["sha384"])
    changed = replace(event, digests={"sha384": digest})
    return replace(log, events=(*log.events[:position], changed, *log.events[position + 1 :]))


def silence(log: EventLog, position: int) -> EventLog:
    changed = replace(log.events[position], type=EV_NO_ACTION)
    return replace(log, events=(*log.events[:position], changed, *log.events[position + 1 :]))


@pytest.mark.parametrize("tamper", [drop, repeat, edit, silence])
def test_every_altered_event_of_a_real_log_is_noticed_at_its_register(
    ccel: bytes, rtmrs: dict[int, bytes], tamper: Callable[[EventLog, int], EventLog]
) -> None:
    log = EventLog.parse(ccel)
    for position, event in enumerate(log.events):
        if not event.extends:
            continue
        altered = EventLog.parse(tamper(log, position).to_bytes())
        with pytest.raises(EventLogError) as caught:
            check_ccel(altered, rtmrs)
        assert caught.value.register == ccel_register(event.index)


def test_every_swap_within_a_register_is_noticed(ccel: bytes, rtmrs: dict[int, bytes]) -> None:
    log = EventLog.parse(ccel)
    for position in range(len(log.events) - 1):
        one, two = log.events[position : position + 2]
        if (
            one.index != two.index
            or one.digests == two.digests
            or not (one.extends and two.extends)
        ):
            continue
        with pytest.raises(EventLogError):
            check_ccel(swap(log, position), rtmrs)


def test_an_event_behind_the_last_is_pointed_at(ccel: bytes, rtmrs: dict[int, bytes]) -> None:
    log = EventLog.parse(ccel)
    longer = log.append(1, EV_EVENT_TAG, {"sha384": bytes(48)}, b"")
    with pytest.raises(EventLogError, match="event 44 is the first that was never extended"):
        check_ccel(longer, rtmrs)


def test_the_first_event_that_no_reference_knows_is_pointed_at(
    ccel: bytes, rtmrs: dict[int, bytes]
) -> None:
    log = EventLog.parse(ccel)
    known = tuple(event.digests["sha384"] for event in log.events)
    altered = edit(log, 5)
    with pytest.raises(EventLogError, match="event 6 is the first that no reference value knows"):
        check_ccel(altered, rtmrs, known)


def test_a_register_that_is_not_quoted_proves_nothing(ccel: bytes, rtmrs: dict[int, bytes]) -> None:
    log = EventLog.parse(ccel)
    with pytest.raises(EventLogError, match="not quoted") as caught:
        check_ccel(log, {i: v for i, v in rtmrs.items() if i != 2})
    assert caught.value.register == "rtmr1"


def test_a_bank_without_digests_is_refused(ccel: bytes) -> None:
    with pytest.raises(EventLogError, match="no sha256 digests"):
        EventLog.parse(ccel).replay("sha256", ccel=True)


@pytest.mark.parametrize("bank", ["sha1", "sha256", "sha384", "sha512"])
def test_every_bank_is_extended_by_its_own_rule(bank: str) -> None:
    size = hashlib.new(bank).digest_size
    digest = b"d" * size
    log = EventLog.create((bank,))
    for pcr in (3, 17):
        log = log.append(pcr, 8, {bank: digest}, b"data")
    log = log.append(3, EV_NO_ACTION, {bank: bytes(size)}, b"reported, not extended")
    assert log.replay(bank) == {
        3: hashlib.new(bank, bytes(size) + digest).digest(),
        17: hashlib.new(bank, b"\xff" * size + digest).digest(),
    }
    assert EventLog.parse(log.to_bytes()) == log


def test_start_up_locality_is_the_first_value_of_pcr_0() -> None:
    log = EventLog.create(("sha256",))
    log = log.append(0, EV_NO_ACTION, {"sha256": bytes(32)}, b"StartupLocality\0\x03")
    log = log.append(0, 8, {"sha256": b"d" * 32}, b"")
    expected = hashlib.sha256(bytes(31) + b"\x03" + b"d" * 32).digest()
    assert log.replay("sha256") == {0: expected}


def test_padding_of_one_byte_is_no_event() -> None:
    log = EventLog.create(("sha256",)).append(1, 8, {"sha256": b"d" * 32}, b"x\0")
    for padding in (b"", b"\0" * 1000, b"\xff" * 1000):
        assert EventLog.parse(log.to_bytes() + padding) == log
    with pytest.raises(EvidenceError):
        EventLog.parse(log.to_bytes() + b"\0" * 100 + b"\xff" * 100)


def test_a_log_is_refused_truncated_at_every_length() -> None:
    log = EventLog.create(("sha256",)).append(1, 8, {"sha256": b"d" * 32}, b"data")
    data = log.to_bytes()
    for length in range(len(data)):
        if length == len(log.header):
            continue
        with pytest.raises(EvidenceError) as caught:
            EventLog.parse(data[:length])
        assert caught.value.field.startswith("event_log.")
        assert caught.value.offset is not None


@pytest.mark.parametrize(
    ("offset", "value", "field"),
    [
        (4, b"\x08", "eventType"),
        (8, b"\x01", "digest"),
        (28, b"\xff", "eventSize"),
        (32, b"X", "signature"),
        (56, b"\x00", "numberOfAlgorithms"),
        (56, b"\x7f", "numberOfAlgorithms"),
        (62, b"\x21", "algorithm"),
    ],
)
def test_a_broken_header_names_its_field(offset: int, value: bytes, field: str) -> None:
    data = bytearray(EventLog.create(("sha256",)).to_bytes())
    data[offset : offset + 1] = value
    with pytest.raises(EvidenceError) as caught:
        EventLog.parse(bytes(data))
    assert caught.value.field == f"event_log.header.{field}"


def test_lengths_are_bounded_before_use() -> None:
    header = EventLog.create(("sha256",)).to_bytes()
    event = struct.pack("<IIIH", 1, 8, 1, 0x0B) + bytes(32)
    for claimed in (0xFFFFFFFE, MAX_LOG_BYTES + 1, 1000):
        with pytest.raises(EvidenceError):
            EventLog.parse(header + event + struct.pack("<I", claimed) + b"abc")
    for count in (0, 2, 0xFFFFFFFE):
        with pytest.raises(EvidenceError, match="digests"):
            EventLog.parse(header + struct.pack("<III", 1, 8, count) + b"x" * 100)
    with pytest.raises(EvidenceError, match="at most"):
        EventLog.parse(bytes(MAX_LOG_BYTES + 1))
    many = header + (event + bytes(4)) * 20_000
    with pytest.raises(EvidenceError, match="more than 16384 events"):
        EventLog.parse(many)


@given(data=st.binary(max_size=400), behind=st.booleans())
@settings(max_examples=400, deadline=None)
def test_no_bytes_raise_anything_but_our_errors(data: bytes, behind: bool) -> None:
    start = EventLog.create(("sha1", "sha256")).to_bytes() if behind else b""
    try:
        log = EventLog.parse(start + data)
        log.replay("sha256")
        for event in log.events:
            RuntimeEvent.parse(event)
        measurements(log, 14, "sha256")
    except AttestationError:
        return


# What software measured.


def measure(*items: tuple[str, bytes, str], index: int = 14) -> EventLog:
    log = EventLog.create(("sha256",))
    for claim, digest, scope in items:
        log = record(log, Measurement(claim=claim, digest=digest, scope=scope), index)
    return log


def test_measurements_come_back_by_name_and_scope() -> None:
    log = measure(
        ("app", b"a" * 32, "job-1"),
        ("job", b"j" * 32, "job-1"),
        ("app", b"b" * 32, "job-2"),
        ("app", b"c" * 32, ""),
    )
    found = measurements(EventLog.parse(log.to_bytes()), 14, "sha256")
    assert measured_claims(found, "job-1") == {
        "app": b"a" * 32,
        "job": b"j" * 32,
        "other/job-2/app": b"b" * 32,
        "other/app": b"c" * 32,
    }
    assert measured_claims(found, "")["app"] == b"c" * 32
    assert "app" not in measured_claims(found, "job-3")
    text = log.events[0].data[8:].decode()
    assert text == f"fedlearn measure job-1/app sha256:{b'a'.hex() * 32}"
    assert log.events[0].digests["sha256"] == hashlib.sha256(log.events[0].data).digest()


def test_the_same_value_twice_is_one_claim_and_another_is_refused() -> None:
    same = measure(("app", b"a" * 32, "s"), ("app", b"a" * 32, "s"))
    assert measured_claims(measurements(same, 14, "sha256"), "s") == {"app": b"a" * 32}
    other = measure(("app", b"a" * 32, "s"), ("app", b"b" * 32, "s"))
    with pytest.raises(EventLogError, match="another value"):
        measurements(other, 14, "sha256")


def test_events_of_other_registers_are_not_measurements() -> None:
    assert measurements(measure(("app", b"a" * 32, ""), index=16), 14, "sha256") == ()


def tagged(text: bytes, *, length: int | None = None, digest: bytes | None = None) -> Event:
    size = len(text) if length is None else length
    data = struct.pack("<II", 0x4141454C, size) + text
    value = hashlib.sha256(data).digest() if digest is None else digest
    return Event(index=14, type=EV_EVENT_TAG, digests={"sha256": value}, data=data, number=1)


@pytest.mark.parametrize(
    ("event", "reason"),
    [
        (tagged(b"fedlearn measure app sha256:" + b"0" * 64, digest=b"d" * 32), "its content"),
        (tagged(b"fedlearn measure app sha256:" + b"0" * 64, length=3), "length"),
        (tagged(b"fedlearn measure app sha256:" + b"0" * 63), "not a measurement"),
        (tagged(b"fedlearn measure app sha1:" + b"0" * 40), "not a measurement"),
        (tagged(b"fedlearn measure a/b/c sha256:" + b"0" * 64), "not a measurement"),
        (tagged(b"fedlearn forget app sha256:" + b"0" * 64), "not a measurement"),
        (tagged(b"fedlearn measure app sha256:" + b"0" * 64 + b"\n"), "not a measurement"),
        (tagged(b"fedlearn"), "domain operation content"),
        (tagged(b"fedlearn measure \xff"), "UTF-8"),
    ],
)
def test_malformed_measurements_are_refused(event: Event, reason: str) -> None:
    log = replace(EventLog.create(("sha256",)), events=(event,))
    with pytest.raises(EventLogError, match=reason):
        measurements(log, 14, "sha256")


def test_a_measurement_that_was_only_extended_elsewhere_is_refused() -> None:
    measurement = Measurement(claim="app", digest=b"a" * 32)
    data = measurement.to_data()
    log = EventLog.create(("sha1", "sha256"))
    log = log.append(14, EV_EVENT_TAG, {"sha1": hashlib.sha1(data).digest()}, data)
    assert log.replay("sha256") == {}
    with pytest.raises(EventLogError, match="not extended into sha256"):
        measurements(log, 14, "sha256")


@pytest.mark.parametrize(
    "bad",
    [
        {"claim": "App"},
        {"claim": ""},
        {"claim": "a" * 33},
        {"claim": "a b"},
        {"scope": "a/b"},
        {"scope": " "},
        {"scope": "a" * 65},
        {"digest": b"short"},
    ],
)
def test_names_that_a_log_cannot_hold_are_refused(bad: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"not a|bytes"):
        Measurement(**{"claim": "app", "digest": bytes(32), **bad})  # type: ignore[arg-type]
