"""Files in memory that processes pass on: immutable once sealed, refused when they are not."""

from __future__ import annotations

import fcntl
import gc
import mmap
import os

import pytest

from fedlearn.errors import TransportError
from fedlearn.sandbox.memory_file import MemoryFile


def test_what_was_appended_is_read_in_place_and_in_pieces() -> None:
    file = MemoryFile.create()
    data = os.urandom(3_000_001)
    for start in range(0, len(data), 700_000):
        file.append(data[start : start + 700_000])
    part = file.seal().part(5, 2_500_000)
    assert len(part) == 2_500_000
    assert bytes(part) == data[5:2_500_005]
    assert bytes(part.view()) == data[5:2_500_005]
    assert [len(piece) for piece in part.pieces(most=1_000_000)] == [1_000_000] * 2 + [500_000]
    assert b"".join(part.pieces(2_499_999)) == data[2_500_004:2_500_005]
    with pytest.raises(TypeError):
        part.view()[0] = 1


def test_a_sealed_file_cannot_be_changed_by_anybody() -> None:
    file = MemoryFile.create()
    file.append(b"weights")
    file.seal()
    with pytest.raises(PermissionError):
        file.append(b"more")
    with pytest.raises(PermissionError):
        os.ftruncate(file.fileno(), 0)
    with pytest.raises(PermissionError):
        mmap.mmap(file.fileno(), 7, prot=mmap.PROT_READ | mmap.PROT_WRITE)
    assert bytes(file.seal().part()) == b"weights"


def test_nothing_is_read_from_a_file_that_can_still_be_changed() -> None:
    file = MemoryFile.create()
    file.append(b"weights")
    with pytest.raises(TransportError, match="can still be changed"):
        file.part()
    with pytest.raises(TransportError, match="can still be changed"):
        file.map()


@pytest.mark.parametrize(("start", "size"), [(-1, 2), (0, 8), (8, 0), (3, -1)])
def test_a_range_beyond_the_file_is_refused(start: int, size: int) -> None:
    file = MemoryFile.create()
    file.append(b"weights")
    file.seal()
    with pytest.raises(TransportError, match="of a file that has 7"):
        file.part(start, size)


def test_a_descriptor_of_another_process_is_taken_only_when_it_is_sealed() -> None:
    file = MemoryFile.create()
    file.append(b"weights")
    other = os.dup(file.fileno())
    with pytest.raises(TransportError, match="not sealed"):
        MemoryFile.adopt(other)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(other)
    file.seal()
    assert bytes(MemoryFile.adopt(os.dup(file.fileno())).part()) == b"weights"
    read, write = os.pipe()
    os.close(write)
    with pytest.raises(TransportError, match="not sealed"):
        MemoryFile.adopt(read)


def test_a_file_is_closed_with_its_last_part_and_a_view_outlives_it() -> None:
    file = MemoryFile.create()
    file.append(b"weights")
    part = file.seal().part(0, 4)
    number = file.fileno()
    del file
    gc.collect()
    assert fcntl.fcntl(number, fcntl.F_GETFD) is not None
    view = part.view()
    del part
    gc.collect()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(number)
    assert bytes(view) == b"weig"


def test_an_empty_file_has_an_empty_view() -> None:
    assert bytes(MemoryFile.create().seal().map()) == b""
