"""Records between processes: what arrives is what was sent, and nothing that could change later."""

from __future__ import annotations

import array
import fcntl
import json
import os
import socket
import struct
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from fedlearn.errors import TransportError
from fedlearn.sandbox.process_channel import ChannelClosed, ChannelTimeout, ProcessChannel

LIMIT = 64 << 20
SHRINK, GROW, WRITE = fcntl.F_SEAL_SHRINK, fcntl.F_SEAL_GROW, fcntl.F_SEAL_WRITE


@pytest.fixture
def ends() -> Iterator[tuple[socket.socket, socket.socket]]:
    pair = socket.socketpair()
    yield pair
    for end in pair:
        end.close()


@pytest.fixture
def channels(
    ends: tuple[socket.socket, socket.socket],
) -> tuple[ProcessChannel, ProcessChannel]:
    return ProcessChannel(ends[0], limit=LIMIT), ProcessChannel(ends[1], limit=LIMIT)


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


@pytest.mark.parametrize(
    "blobs",
    [[], [b""], [b"a", b"", bytearray(b"bc")], [bytes(range(256)) * 4096, b"x", b"", b"y" * 10]],
    ids=["none", "empty", "small", "large"],
)
def test_what_arrives_is_what_was_sent(
    channels: tuple[ProcessChannel, ProcessChannel], blobs: list[bytes]
) -> None:
    ours, theirs = channels
    before = open_files()
    for number in range(3):
        ours.send({"number": number}, blobs)
        found = theirs.receive(timeout=10)
        assert found is not None
        header, received = found
        assert header == {"number": number}
        assert [bytes(each) for each in received] == [bytes(each) for each in blobs]
    del found, received
    assert open_files() == before


@pytest.mark.parametrize("times", [1, 100_000])
def test_pieces_arrive_as_one(channels: tuple[ProcessChannel, ProcessChannel], times: int) -> None:
    ours, theirs = channels
    ours.send({}, [[b"ab" * times, np.arange(2 * times).data, b""], b"c", []])
    found = theirs.receive(timeout=10)
    assert found is not None
    first = b"ab" * times + np.arange(2 * times).tobytes()
    assert [bytes(each) for each in found[1]] == [first, b"c", b""]


def test_a_large_record_is_read_only_and_not_in_the_stream(
    channels: tuple[ProcessChannel, ProcessChannel], ends: tuple[socket.socket, socket.socket]
) -> None:
    ours, theirs = channels
    # More than any socket buffer has room for, and nobody reads yet.
    ours.send({}, [np.arange(4 << 20, dtype=np.float32).data], timeout=5)
    found = theirs.receive(timeout=5)
    assert found is not None
    values = np.frombuffer(found[1][0], np.float32)
    assert float(values[-1]) == (4 << 20) - 1
    with pytest.raises(ValueError, match="read-only"):
        values[0] = 1


def test_two_senders_do_not_mix(channels: tuple[ProcessChannel, ProcessChannel]) -> None:
    ours, theirs = channels

    def send(letter: str) -> None:
        for _ in range(50):
            ours.send({"letter": letter}, [letter.encode() * 50_000])

    threads = [threading.Thread(target=send, args=(letter,)) for letter in "ab"]
    for thread in threads:
        thread.start()
    for _ in range(100):
        found = theirs.receive(timeout=20)
        assert found is not None
        assert bytes(found[1][0]) == found[0]["letter"].encode() * 50_000
    for thread in threads:
        thread.join()


# --- files that may change


def memfd(size: int, seals: int, *, sealing: bool = True) -> int:
    file = os.memfd_create("x", os.MFD_ALLOW_SEALING if sealing else 0)
    os.ftruncate(file, size)
    if seals:
        fcntl.fcntl(file, fcntl.F_ADD_SEALS, seals)
    return file


def send_with(end: socket.socket, files: list[int], header: object) -> None:
    body = json.dumps(header).encode()
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", files))]
    end.sendmsg([struct.pack(">I", len(body)) + body], rights)


@pytest.mark.parametrize(
    "seals",
    [0, SHRINK, SHRINK | GROW, SHRINK | WRITE, GROW | WRITE],
    ids=["none", "shrink", "not-write", "not-grow", "not-shrink"],
)
def test_a_file_that_may_change_is_refused(
    channels: tuple[ProcessChannel, ProcessChannel],
    ends: tuple[socket.socket, socket.socket],
    seals: int,
) -> None:
    before = open_files()
    file = memfd(4096, seals)
    send_with(ends[0], [file], {"blobs": [4096]})
    os.close(file)
    with pytest.raises(TransportError, match="not sealed against shrinking, growing and writing"):
        channels[1].receive(timeout=5)
    assert open_files() == before


def test_a_file_that_cannot_be_sealed_is_refused(
    channels: tuple[ProcessChannel, ProcessChannel],
    ends: tuple[socket.socket, socket.socket],
    tmp_path: Path,
) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(4096))
    with path.open("rb") as plain:
        send_with(ends[0], [plain.fileno()], {"blobs": [4096]})
    with pytest.raises(TransportError, match="not sealed"):
        channels[1].receive(timeout=5)


@pytest.mark.parametrize("size", [0, 4095, 4097])
def test_a_file_of_another_size_is_refused(
    channels: tuple[ProcessChannel, ProcessChannel],
    ends: tuple[socket.socket, socket.socket],
    size: int,
) -> None:
    file = memfd(size, SHRINK | GROW | WRITE)
    send_with(ends[0], [file], {"blobs": [4096]})
    os.close(file)
    with pytest.raises(TransportError, match=f"has {size} bytes, and 4096 are announced"):
        channels[1].receive(timeout=5)


@pytest.mark.parametrize("count", [2, 3, 10])
def test_more_than_one_file_is_refused_and_closed(
    channels: tuple[ProcessChannel, ProcessChannel],
    ends: tuple[socket.socket, socket.socket],
    count: int,
) -> None:
    before = open_files()
    files = [memfd(4096, SHRINK | GROW | WRITE) for _ in range(count)]
    send_with(ends[0], files, {"blobs": [4096]})
    for file in files:
        os.close(file)
    with pytest.raises(TransportError, match="more than one file"):
        channels[1].receive(timeout=5)
    assert open_files() == before


# --- bounds


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"x",
        b"[]",
        b"{}",
        b'{"blobs": 3}',
        b'{"blobs": [-1]}',
        b'{"blobs": [1.5]}',
        b'{"blobs": [true]}',
        b'{"blobs": ["1"]}',
        b'{"blobs": {"1": 2}}',
        b'{"blobs": [' + b"[" * 100_000,
        b"\xff\xfe",
    ],
    ids=range(12),
)
def test_a_header_that_is_not_one_is_refused(
    channels: tuple[ProcessChannel, ProcessChannel],
    ends: tuple[socket.socket, socket.socket],
    body: bytes,
) -> None:
    ends[0].sendall(struct.pack(">I", len(body)) + body)
    with pytest.raises(TransportError, match="header is not a JSON object"):
        channels[1].receive(timeout=5)


def test_what_is_too_long_is_not_read(
    channels: tuple[ProcessChannel, ProcessChannel], ends: tuple[socket.socket, socket.socket]
) -> None:
    ends[0].sendall(struct.pack(">I", (1 << 32) - 1))
    with pytest.raises(TransportError, match="at most 67108864 are read"):
        channels[1].receive(timeout=5)
    body = json.dumps({"blobs": [LIMIT, 1]}).encode()
    ends[0].sendall(struct.pack(">I", len(body)) + body)
    with pytest.raises(TransportError, match=f"at most {LIMIT} bytes"):
        channels[1].receive(timeout=5)
    body = json.dumps({"blobs": [0] * 1_000_001}).encode()
    thread = threading.Thread(
        target=ends[0].sendall, args=(struct.pack(">I", len(body)) + body,), daemon=True
    )
    thread.start()
    with pytest.raises(TransportError, match="in 1000001 pieces"):
        channels[1].receive(timeout=20)
    thread.join()


def test_an_end_that_states_nothing_is_waited_for_no_longer_than_asked(
    channels: tuple[ProcessChannel, ProcessChannel], ends: tuple[socket.socket, socket.socket]
) -> None:
    started = time.monotonic()
    with pytest.raises(ChannelTimeout):
        channels[1].receive(timeout=0.1)
    ends[0].sendall(b"\0\0")
    with pytest.raises(ChannelTimeout):
        channels[1].receive(timeout=0.1)
    with pytest.raises(ChannelTimeout):
        channels[0].send({"x": "y" * 10_000_000}, timeout=0.1)
    assert time.monotonic() - started < 5


def test_the_end_of_the_other_side_is_seen(
    channels: tuple[ProcessChannel, ProcessChannel], ends: tuple[socket.socket, socket.socket]
) -> None:
    ours, theirs = channels
    ours.send({"last": True})
    ours.close()
    found = theirs.receive(timeout=5)
    assert found is not None
    assert found[0] == {"last": True}
    assert theirs.receive(timeout=5) is None
    with pytest.raises(ChannelClosed):
        theirs.send({})


def test_a_record_that_is_cut_off_is_no_record(
    channels: tuple[ProcessChannel, ProcessChannel], ends: tuple[socket.socket, socket.socket]
) -> None:
    body = json.dumps({"blobs": [100]}).encode()
    ends[0].sendall(struct.pack(">I", len(body)) + body + bytes(99))
    ends[0].close()
    with pytest.raises(ChannelClosed):
        channels[1].receive(timeout=5)


def test_closing_wakes_a_thread_that_reads(
    channels: tuple[ProcessChannel, ProcessChannel],
) -> None:
    found: list[object] = []
    thread = threading.Thread(target=lambda: found.append(channels[1].receive()))
    thread.start()
    time.sleep(0.05)
    channels[1].close()
    thread.join(5)
    assert found == [None]
