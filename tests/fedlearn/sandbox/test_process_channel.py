"""Records between processes: what arrives is what was sent, and nothing that could change later."""

from __future__ import annotations

import array
import fcntl
import json
import os
import resource
import socket
import struct
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from fedlearn.errors import TransportError
from fedlearn.sandbox.memory_file import FilePart, MemoryFile, gathered
from fedlearn.sandbox.process_channel import (
    MAX_FILES,
    ChannelClosed,
    ChannelTimeout,
    ProcessChannel,
)

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
    send_with(ends[0], [file], {"files": [4096], "blobs": [[0, 0, 4096]]})
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
        send_with(ends[0], [plain.fileno()], {"files": [4096], "blobs": [[0, 0, 4096]]})
    with pytest.raises(TransportError, match="not sealed"):
        channels[1].receive(timeout=5)


@pytest.mark.parametrize("size", [0, 4095, 4097])
def test_a_file_of_another_size_is_refused(
    channels: tuple[ProcessChannel, ProcessChannel],
    ends: tuple[socket.socket, socket.socket],
    size: int,
) -> None:
    file = memfd(size, SHRINK | GROW | WRITE)
    send_with(ends[0], [file], {"files": [4096], "blobs": [[0, 0, 4096]]})
    os.close(file)
    with pytest.raises(TransportError, match=f"has {size} bytes, and 4096 are announced"):
        channels[1].receive(timeout=5)


@pytest.mark.parametrize(
    ("count", "announced"), [(2, 1), (10, 1), (1, 0), (0, 1), (1, 2), (MAX_FILES, 1)]
)
def test_another_number_of_files_than_announced_is_refused_and_closed(
    channels: tuple[ProcessChannel, ProcessChannel],
    ends: tuple[socket.socket, socket.socket],
    count: int,
    announced: int,
) -> None:
    before = open_files()
    files = [memfd(4096, SHRINK | GROW | WRITE) for _ in range(count)]
    send_with(ends[0], files, {"files": [4096] * announced, "blobs": []})
    for file in files:
        os.close(file)
    with pytest.raises(TransportError, match=f"has {count} files, and {announced} are announced"):
        channels[1].receive(timeout=5)
    assert open_files() == before


@pytest.mark.parametrize("count", [MAX_FILES + 1, 2 * MAX_FILES])
def test_too_many_files_are_refused_and_closed(
    channels: tuple[ProcessChannel, ProcessChannel],
    ends: tuple[socket.socket, socket.socket],
    count: int,
) -> None:
    before = open_files()
    files = [memfd(4096, SHRINK | GROW | WRITE) for _ in range(count)]
    send_with(ends[0], files, {"files": [4096] * count, "blobs": []})
    for file in files:
        os.close(file)
    with pytest.raises(TransportError, match=f"more than {MAX_FILES} files"):
        channels[1].receive(timeout=5)
    assert open_files() == before


@pytest.mark.parametrize(
    ("blob", "reason"),
    [
        ([0, 0, 4097], "bytes 0 to 4097 of a file that has 4096"),
        ([0, 4096, 1], "bytes 4096 to 4097 of a file that has 4096"),
        ([1, 0, 1], "file 1 of a record that has 1"),
        ([0, 0, LIMIT + 1], f"at most {LIMIT} bytes"),
    ],
)
def test_a_range_outside_of_the_file_is_refused(
    channels: tuple[ProcessChannel, ProcessChannel],
    ends: tuple[socket.socket, socket.socket],
    blob: list[int],
    reason: str,
) -> None:
    before = open_files()
    file = memfd(4096, SHRINK | GROW | WRITE)
    send_with(ends[0], [file], {"files": [4096], "blobs": [blob]})
    os.close(file)
    with pytest.raises(TransportError, match=reason):
        channels[1].receive(timeout=5)
    assert open_files() == before


def test_a_file_larger_than_a_record_may_be_is_refused_unmapped(
    channels: tuple[ProcessChannel, ProcessChannel], ends: tuple[socket.socket, socket.socket]
) -> None:
    before = open_files()
    file = memfd(LIMIT + 1, SHRINK | GROW | WRITE)
    send_with(ends[0], [file], {"files": [LIMIT + 1], "blobs": [[0, 0, 1]]})
    os.close(file)
    with pytest.raises(TransportError, match=f"at most {LIMIT} bytes"):
        channels[1].receive(timeout=5)
    assert open_files() == before


# --- files that are passed on


def inode(part: object) -> int:
    assert isinstance(part, FilePart)
    return os.fstat(part.file.fileno()).st_ino


def test_a_part_of_a_file_is_passed_on_and_not_copied(
    channels: tuple[ProcessChannel, ProcessChannel],
) -> None:
    ours, theirs = channels
    before = open_files()
    file = MemoryFile.create()
    file.append(b"head" + bytes(range(256)) * 1000)
    one = file.seal().part(4)
    two = gathered([b"x" * 70_000])
    for size in (1, 200_000):  # other byte strings: few, in the stream; many, in one more file
        ours.send({"n": 1}, [b"a" * size, one, two, file.part(0, 4), [b"b", b"c"]])
        found = theirs.receive_parts(timeout=5)
        assert found is not None
        header, parts = found
        assert header == {"n": 1}
        assert [inode(part) for part in (parts[1], parts[3])] == [inode(one)] * 2
        assert inode(parts[2]) == inode(two)
        assert [bytes(part) for part in parts] == [
            b"a" * size,
            bytes(range(256)) * 1000,
            b"x" * 70_000,
            b"head",
            b"bc",
        ]
    del file, one, two, found, parts
    assert open_files() == before


def test_more_files_than_a_record_takes_arrive_all_the_same(
    channels: tuple[ProcessChannel, ProcessChannel],
) -> None:
    ours, theirs = channels
    sent = [gathered([bytes([n]) * 70_000]) for n in range(MAX_FILES + 3)]
    ours.send({}, sent)
    found = theirs.receive(timeout=5)
    assert found is not None
    assert [bytes(each) for each in found[1]] == [bytes(each) for each in sent]


def test_where_no_file_may_be_written_the_bytes_travel_in_the_stream(
    channels: tuple[ProcessChannel, ProcessChannel],
) -> None:
    ours, theirs = channels
    file = gathered([b"f" * 70_000])
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (65_536, hard))
    try:
        made = gathered([b"a" * 1000, b"b" * 70_000, b"c" * 3])
        thread = threading.Thread(target=ours.send, args=({}, [b"x" * 200_000, file, made]))
        thread.start()
        found = theirs.receive_parts(timeout=5)
        thread.join()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert isinstance(made, bytes)
    assert found is not None
    assert [type(part) for part in found[1]] == [bytes, FilePart, bytes]
    assert [bytes(part) for part in found[1]] == [
        b"x" * 200_000,
        b"f" * 70_000,
        b"a" * 1000 + b"b" * 70_000 + b"ccc",
    ]


# --- bounds


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"x",
        b"[]",
        b"{}",
        b'{"blobs": []}',
        b'{"files": []}',
        b'{"files": [], "blobs": 3}',
        b'{"files": [], "blobs": [-1]}',
        b'{"files": [], "blobs": [1.5]}',
        b'{"files": [], "blobs": [true]}',
        b'{"files": [], "blobs": ["1"]}',
        b'{"files": [], "blobs": {"1": 2}}',
        b'{"files": [], "blobs": [[0, 0]]}',
        b'{"files": [], "blobs": [[0, -1, 5]]}',
        b'{"files": [], "blobs": [[0, 0, true]]}',
        b'{"files": [-1], "blobs": []}',
        b'{"files": 3, "blobs": []}',
        b'{"blobs": [' + b"[" * 100_000,
        b"\xff\xfe",
    ],
    ids=range(19),
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
    body = json.dumps({"files": [], "blobs": [LIMIT, 1]}).encode()
    ends[0].sendall(struct.pack(">I", len(body)) + body)
    with pytest.raises(TransportError, match=f"at most {LIMIT} bytes"):
        channels[1].receive(timeout=5)
    body = json.dumps({"files": [], "blobs": [0] * 1_000_001}).encode()
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
    body = json.dumps({"files": [], "blobs": [100]}).encode()
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
