"""Concatenates byte strings so that different lists of them never give the same bytes.

Inputs of hashes, signatures and key derivations consist of fields, each after its length::

    LP(x) = u32be(len x) | x
    pack(a, b, ...) = LP(a) | LP(b) | ...
"""

from __future__ import annotations

__all__ = ["pack"]


def pack(*fields: bytes) -> bytes:
    """Return the fields, each after its length: 4 bytes, big-endian.

    :raises OverflowError: for a field of 4 GiB or more.
    """
    return b"".join(len(field).to_bytes(4, "big") + field for field in fields)
