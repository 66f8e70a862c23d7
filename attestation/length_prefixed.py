"""Byte strings put together so that no two lists of them give the same bytes.

What is hashed, signed or derived from consists of fields, each behind its length::

    LP(x) = u32be(len x) | x
    pack(a, b, ...) = LP(a) | LP(b) | ...
"""

from __future__ import annotations

__all__ = ["pack"]


def pack(*fields: bytes) -> bytes:
    """Return the fields, each behind its length: 4 bytes, big-endian.

    :raises OverflowError: for a field of 4 GiB or more.
    """
    return b"".join(len(field).to_bytes(4, "big") + field for field in fields)
