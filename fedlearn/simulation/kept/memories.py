"""What the clients of a simulation keep between calls: in a file, and in memory up to a bound.

The file is a log: each memory is appended, and the newest one of a client counts. A checkpoint
names the length of the log, so that a run that is resumed finds the memories of that moment by
reading so far and no further. When most of the log is outdated it is written anew. Clients without
a state have no entry and cost nothing.
"""

from __future__ import annotations

import json
import os
import struct
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from attestation.durable import sync_directory
from edge.client.flower.replies import Memory
from fedlearn.errors import StoreError
from fedlearn.sandbox.memory_file import view_of
from fedlearn.update import arrays as update

__all__ = ["CACHE_BYTES", "Memories", "pack_memory", "unpack_memory"]

CACHE_BYTES: Final = 128 * 1024 * 1024
"""The most bytes of memories that are held in the process; the others are read when needed."""

_HEAD: Final = struct.Struct(">II")
_COMPACT_BYTES: Final = 64 * 1024 * 1024
_MOST_PARTS: Final = 200_000


class Memories:
    """The memories of clients by their place in the job. Not thread-safe.

    :param folder: where the log is; it must exist.
    :param position: the log and its length that a checkpoint named (:meth:`sync`); None begins
        without memories.
    :raises StoreError: when the log is shorter, or is not one.
    """

    def __init__(
        self,
        folder: Path,
        position: tuple[str, int] | None = None,
        *,
        cache_bytes: int = CACHE_BYTES,
    ) -> None:
        self._folder = folder
        self._most = cache_bytes
        self._places: dict[int, tuple[int, int]] = {}
        self._cache: OrderedDict[int, bytes] = OrderedDict()
        self._cached = 0
        self._live = 0
        name, self._size = position or ("memories-0", 0)
        self._name = name
        self._old = ""
        self._file = os.open(folder / name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        if os.fstat(self._file).st_size < self._size:
            raise StoreError(
                f"{folder / name}: has fewer bytes than its checkpoint names ({self._size})",
                hint="begin the run anew",
            )
        os.ftruncate(self._file, self._size)
        for client, start, size in self._entries():
            self._place(client, start, size)

    def __len__(self) -> int:
        """The number of clients that have kept something."""
        return len(self._places)

    def get(self, client: int) -> Memory:
        """Return what a client kept."""
        data = self._cache.get(client)
        if data is None:
            place = self._places.get(client)
            if place is None:
                return Memory()
            data = os.pread(self._file, place[1], place[0])
            self._hold(client, data)
        else:
            self._cache.move_to_end(client)
        return unpack_memory(data or None)

    def put(self, client: int, memory: Memory) -> None:
        """Keep the memory of a client in place of its earlier one."""
        data = pack_memory(memory) or b""
        if not data and client not in self._places:
            return
        entry = _HEAD.pack(client, len(data)) + data
        _write(self._file, entry, self._size)
        self._place(client, self._size + _HEAD.size, len(data))
        self._size += len(entry)
        self._hold(client, data)

    def sync(self) -> tuple[str, int]:
        """Make all memories durable; return the log and its length, for a checkpoint.

        :meth:`committed` is to be called when that checkpoint is durable.
        """
        if self._size > _COMPACT_BYTES and self._size > 3 * self._live:
            self._write_anew()
        if self._size:
            os.fsync(self._file)
        return self._name, self._size

    def committed(self) -> None:
        """Remove the log that no checkpoint names any more."""
        if self._old:
            (self._folder / self._old).unlink(missing_ok=True)
            self._old = ""

    def close(self) -> None:
        """Close the file."""
        os.close(self._file)

    def _write_anew(self) -> None:
        name = f"memories-{int(self._name.rpartition('-')[2]) + 1}"
        fresh = os.open(
            self._folder / name, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600
        )
        places, size = {}, 0
        for client, (start, length) in self._places.items():
            data = os.pread(self._file, length, start)
            _write(fresh, _HEAD.pack(client, length) + data, size)
            places[client] = (size + _HEAD.size, length)
            size += _HEAD.size + length
        os.close(self._file)
        self._file, self._places, self._size = fresh, places, size
        self._live = size
        self._old, self._name = self._name, name
        sync_directory(self._folder)

    def _entries(self) -> Iterator[tuple[int, int, int]]:
        position = 0
        while position < self._size:
            head = os.pread(self._file, _HEAD.size, position)
            if len(head) < _HEAD.size:
                raise StoreError(f"{self._folder / self._name}: is cut short")
            client, size = _HEAD.unpack(head)
            yield client, position + _HEAD.size, size
            position += _HEAD.size + size
        if position > self._size:
            raise StoreError(f"{self._folder / self._name}: is cut short")

    def _place(self, client: int, start: int, size: int) -> None:
        known = self._places.get(client)
        self._live += size + _HEAD.size - (known[1] + _HEAD.size if known else 0)
        self._places[client] = (start, size)

    def _hold(self, client: int, data: bytes) -> None:
        known = self._cache.pop(client, None)
        self._cached += len(data) - (len(known) if known is not None else 0)
        self._cache[client] = data
        while self._cached > self._most and self._cache:
            _, gone = self._cache.popitem(last=False)
            self._cached -= len(gone)


def _write(descriptor: int, data: bytes, offset: int) -> None:
    view = memoryview(data)
    while view:
        written = os.pwrite(descriptor, view, offset)
        view, offset = view[written:], offset + written


def pack_memory(memory: Memory) -> bytes | None:
    """Return what a client has kept as bytes; None when it is nothing."""
    if not memory.state and not memory.residual and not memory.secure:
        return None
    parts = [bytes(view_of(part)) for part in memory.state]
    residual = update.encode(memory.residual) if memory.residual else b""
    sizes = {"state": [*map(len, parts)], "residual": len(residual)}
    head = json.dumps(sizes).encode()
    return b"".join([len(head).to_bytes(4, "big"), head, *parts, residual, memory.secure])


def unpack_memory(data: bytes | None) -> Memory:
    """Return what :func:`pack_memory` packed; views of ``data``."""
    if data is None:
        return Memory()
    view = memoryview(data)
    start = 4 + int.from_bytes(data[:4], "big")
    head = json.loads(data[4:start])
    state = []
    for size in head["state"]:
        state.append(view[start : start + size])
        start += size
    residual = view[start : start + head["residual"]]
    kept = (
        update.decode(residual, max_bytes=len(residual), max_tensors=_MOST_PARTS)
        if len(residual)
        else {}
    )
    return Memory(tuple(state), kept, bytes(view[start + len(residual) :]))
