"""Reads untrusted binary structures forward; errors name the field and the offset."""

from __future__ import annotations

import struct
from typing import Literal

from attestation.errors import EvidenceError

__all__ = ["Cursor"]


class Cursor:
    """Reads forward through bytes; an ``EvidenceError`` names the field and the offset."""

    __slots__ = ("_data", "_offset", "_order", "_where")

    def __init__(self, data: bytes, where: str, *, limit: int, little: bool = False) -> None:
        if len(data) > limit:
            raise EvidenceError(f"{len(data)} bytes, at most {limit} are read", field=where)
        self._data = data
        self._where = where
        self._offset = 0
        self._order: Literal["big", "little"] = "little" if little else "big"

    @property
    def offset(self) -> int:
        """The position of the next byte."""
        return self._offset

    @property
    def remaining(self) -> int:
        """How many bytes are left."""
        return len(self._data) - self._offset

    def fail(self, message: str, field: str, *, offset: int | None = None) -> EvidenceError:
        """Return the error for ``field``, at ``offset`` or where the cursor is."""
        at = self._offset if offset is None else offset
        return EvidenceError(message, field=f"{self._where}.{field}", offset=at)

    def take(self, length: int, field: str) -> bytes:
        """Read ``length`` bytes."""
        start = self._offset
        end = start + length
        if end > len(self._data):
            raise self.fail(f"needs {length} bytes, {self.remaining} are left", field)
        self._offset = end
        return self._data[start:end]

    def integer(self, size: int, field: str) -> int:
        """Read an unsigned integer of ``size`` bytes."""
        return int.from_bytes(self.take(size, field), self._order)

    def unpack(self, layout: struct.Struct, field: str) -> tuple[int, ...]:
        """Read the integers of a fixed layout, which names its own byte order."""
        return layout.unpack(self.take(layout.size, field))

    def sized(self, field: str, *, limit: int, prefix: int = 2) -> bytes:
        """Read a length of ``prefix`` bytes, at most ``limit``, and that many bytes."""
        start = self._offset
        length = int.from_bytes(self.take(prefix, field), self._order)
        if length > limit:
            raise self.fail(f"{length} bytes, at most {limit} are legal", field, offset=start)
        return self.take(length, field)

    def finish(self) -> None:
        """Refuse bytes after the structure."""
        if self.remaining:
            raise self.fail(f"{self.remaining} bytes too many", "end")
