"""Frames of a body: they come back however they are cut, and what is large lies in one file."""

from __future__ import annotations

import errno
import hashlib
import os
import tracemalloc

import pytest

from fedlearn.errors import TransportError
from fedlearn.sandbox.memory_file import SMALL_BYTES, FilePart, MemoryFile, Part
from fedlearn.update.frames import FrameReader, body_pieces, frames_length


def _file(data: bytes) -> FilePart:
    file = MemoryFile.create()
    file.append(data)
    return file.seal().part()


def _body(parts: list[Part], *, most: int = 1000, start: int = 0) -> bytes:
    return b"".join(map(bytes, body_pieces(parts, most=most, start=start)))


@pytest.mark.parametrize("step", [1, 3, 1000])
def test_frames_come_back_however_they_are_cut(step: int) -> None:
    parts: list[Part] = [b"", b"a", bytes(500), b""]
    body = _body(parts)
    assert len(body) == frames_length(parts)
    reader = FrameReader(len(body))
    for at in range(0, len(body), step):
        reader.feed(body[at : at + step])
    assert list(reader.finish()) == parts


@pytest.mark.parametrize("step", [977, 70_000, 1 << 20])
def test_large_frames_lie_in_one_sealed_file_and_are_hashed_once(step: int) -> None:
    parts: list[Part] = [b"head", b"c", os.urandom(SMALL_BYTES), b"small", os.urandom(200_001)]
    body = _body(parts)
    state = hashlib.sha256()
    reader = FrameReader(len(body), first=2, first_bytes=100, state=state)
    for at in range(0, len(body), step):
        reader.feed(body[at : at + step])
    found = reader.finish()
    assert [bytes(each) for each in found] == parts
    files = [each.file for each in found if isinstance(each, FilePart)]
    assert [isinstance(each, FilePart) for each in found] == [False, False, True, False, True]
    assert files[0] is files[1]
    assert files[0].sealed
    assert state.digest() == hashlib.sha256(b"".join(map(bytes, parts[2:]))).digest()


def test_a_body_goes_on_at_any_byte_and_its_pieces_are_bounded() -> None:
    parts: list[Part] = [b"head", _file(os.urandom(2500)), b"", b"tail"]
    body = _body(parts)
    for start in (*range(40), 1000, len(body) - 1, len(body)):
        assert _body(parts, start=start) == body[start:]
    assert max(len(piece) for piece in body_pieces(parts, most=700)) == 700


def test_a_large_frame_does_not_count_as_memory_of_the_process() -> None:
    size, piece = 32 << 20, bytes(256 << 10)
    tracemalloc.start()
    try:
        reader = FrameReader(8 + size)
        reader.feed(size.to_bytes(8, "big"))
        for _ in range(size // len(piece)):
            reader.feed(piece)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert [len(each) for each in reader.finish()] == [size]
    assert peak < 1 << 20


@pytest.mark.parametrize(
    "body",
    [b"\0\0\0\0\0\0\0\x05abc", b"\xff" * 8, b"\0\0\0", b"\0" * 7 + b"\x02abc" + b"\0"],
)
def test_a_body_that_is_not_frames_is_refused(body: bytes) -> None:
    reader = FrameReader(len(body))

    def read() -> None:
        reader.feed(body)
        reader.finish()

    with pytest.raises(TransportError):
        read()


def test_more_than_announced_is_refused() -> None:
    with pytest.raises(TransportError, match="longer than announced"):
        FrameReader(3).feed(b"\0" * 4)


def test_a_first_frame_above_its_bound_is_refused_with_its_head() -> None:
    reader = FrameReader(1 << 30, first=1, first_bytes=100)
    with pytest.raises(TransportError, match="101 bytes; at most 100"):
        reader.feed((101).to_bytes(8, "big"))


def test_no_memory_for_a_frame_is_an_error_that_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def full() -> MemoryFile:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(MemoryFile, "create", full)
    reader = FrameReader(1 << 20)
    reader.feed((1 << 19).to_bytes(8, "big"))
    with pytest.raises(TransportError, match="no memory for a message: Too many open files"):
        reader.feed(b"x")
