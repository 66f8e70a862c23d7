"""The protocol buffers wire format, as far as a handful of small messages needs it.

Reference: https://protobuf.dev/programming-guides/encoding/. Reading is bounded and strict:
only varints and length-delimited fields, each of them wholly inside of its message.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

__all__ = ["WireError", "bytes_field", "fields", "number_field"]

_VARINT: Final = 0
_FIXED64: Final = 1
_BYTES: Final = 2
_FIXED32: Final = 5
_MAX_VARINT: Final = 10


class WireError(ValueError):
    """Bytes that are not a message."""


def bytes_field(number: int, value: bytes) -> bytes:
    """Return a field with bytes, text in UTF-8, or a message."""
    return _varint(number << 3 | _BYTES) + _varint(len(value)) + value


def number_field(number: int, value: int) -> bytes:
    """Return a field with an unsigned number."""
    return _varint(number << 3 | _VARINT) + _varint(value)


def fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Yield each field of a message: its number, and its value.

    :raises WireError: when the bytes are not a message.
    """
    offset = 0
    while offset < len(data):
        key, offset = _read(data, offset)
        number, kind = key >> 3, key & 7
        if kind == _VARINT:
            value, offset = _read(data, offset)
            yield number, value
            continue
        size = {_FIXED64: 8, _FIXED32: 4}.get(kind)
        if kind == _BYTES:
            size, offset = _read(data, offset)
        if number == 0 or size is None or offset + size > len(data):
            raise WireError(f"field {number} of type {kind} at offset {offset}")
        if kind == _BYTES:
            yield number, data[offset : offset + size]
        offset += size


def _varint(value: int) -> bytes:
    found = bytearray()
    while value > 0x7F:
        found.append(value & 0x7F | 0x80)
        value >>= 7
    found.append(value)
    return bytes(found)


def _read(data: bytes, offset: int) -> tuple[int, int]:
    value = 0
    for position in range(_MAX_VARINT):
        if offset >= len(data):
            raise WireError("a number that does not end")
        byte = data[offset]
        offset += 1
        value |= (byte & 0x7F) << (7 * position)
        if byte < 0x80:
            return value, offset
    raise WireError("a number of more than 10 bytes")
