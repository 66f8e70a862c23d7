"""The messages of the protocol, as bytes: fields after their lengths.

================  ===============================================================
message           fields
================  ===============================================================
advertised keys   channel, mask, chain, signature
roster            site, channel, mask, chain, signature of each client
shares            commitment, then receiver and sealed shares, one after the other
sealed shares     sender and sealed shares, one after the other
survivors         the number of each
revealed shares   client and share, one after the other
================  ===============================================================

Numbers are 4 bytes, big-endian, and strictly growing.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Final

from attestation.length_prefixed import pack
from fedlearn.errors import UpdateRejected
from fedlearn.secure_aggregation.roster import PublicKeys

__all__ = [
    "MAX_BYTES",
    "read_fields",
    "read_keys",
    "read_numbered",
    "read_numbers",
    "read_roster",
    "read_shares",
    "write_fields",
    "write_keys",
    "write_numbered",
    "write_numbers",
    "write_roster",
    "write_shares",
]

MAX_BYTES: Final = 64 * 1024 * 1024
"""Upper bound of one message: a roster of 8,191 clients has 1.2 MB without certificates."""

_MAX_FIELD: Final = 64 * 1024
_KEY_FIELDS: Final = 4


def write_keys(keys: PublicKeys) -> bytes:
    """Return the keys of a client; who it is, its connection states."""
    return pack(keys.channel, keys.mask, keys.chain, keys.signature)


def read_keys(data: bytes, site: str) -> PublicKeys:
    """Return the keys of a site's client.

    :raises UpdateRejected: when they are not such a message.
    """
    channel, mask, chain, signature = _fields(data, _KEY_FIELDS)
    return PublicKeys(site=site, channel=channel, mask=mask, chain=chain, signature=signature)


def write_roster(keys: Iterable[PublicKeys], signed: Collection[str]) -> bytes:
    """Return a roster with the certificates and signatures of the sites in ``signed`` only."""
    fields: list[bytes] = []
    for each in keys:
        proof = (each.chain, each.signature) if each.site in signed else (b"", b"")
        fields += (each.site.encode(), each.channel, each.mask, *proof)
    return pack(*fields)


def read_roster(data: bytes) -> list[PublicKeys]:
    """Return the keys of a roster.

    :raises UpdateRejected: when it is not one.
    """
    fields = _fields(data)
    if len(fields) % (_KEY_FIELDS + 1):
        raise UpdateRejected(f"a roster of {len(fields)} fields")
    found = []
    for at in range(0, len(fields), _KEY_FIELDS + 1):
        site, channel, mask, chain, signature = fields[at : at + _KEY_FIELDS + 1]
        try:
            name = site.decode("ascii")
        except UnicodeDecodeError:
            raise UpdateRejected("a site of a roster is not ASCII") from None
        found.append(
            PublicKeys(site=name, channel=channel, mask=mask, chain=chain, signature=signature)
        )
    return found


def write_shares(sealed: Mapping[int, bytes], commitment: bytes) -> bytes:
    """Return the sealed shares of a client and the commitment to its seed."""
    return pack(commitment) + write_numbered(sealed)


def read_shares(data: bytes) -> tuple[dict[int, bytes], bytes]:
    """Return sealed shares by receiver, and the commitment.

    :raises UpdateRejected: when they are not such a message.
    """
    fields = _fields(data)
    if not fields:
        raise UpdateRejected("shares without a commitment")
    return _numbered(fields[1:]), fields[0]


def write_numbered(values: Mapping[int, bytes]) -> bytes:
    """Return byte strings by number."""
    return pack(*(part for key in sorted(values) for part in (_number(key), values[key])))


def read_numbered(data: bytes) -> dict[int, bytes]:
    """Return byte strings by number.

    :raises UpdateRejected: when they are not such a message.
    """
    return _numbered(_fields(data))


def write_numbers(numbers: Iterable[int]) -> bytes:
    """Return numbers."""
    return pack(*map(_number, sorted(numbers)))


def read_numbers(data: bytes) -> list[int]:
    """Return numbers.

    :raises UpdateRejected: when they are not such a message.
    """
    return _grown([_read_number(field) for field in _fields(data)])


def write_fields(*fields: bytes) -> bytes:
    """Return byte strings, each after its length."""
    return pack(*fields)


def read_fields(data: bytes, count: int | None) -> list[bytes]:
    """Return so many byte strings, or all for None.

    :raises UpdateRejected: when there are others.
    """
    return _fields(data, count, most=MAX_BYTES)


def _numbered(fields: Sequence[bytes]) -> dict[int, bytes]:
    if len(fields) % 2:
        raise UpdateRejected("a number without its value")
    numbers = _grown([_read_number(field) for field in fields[::2]])
    return dict(zip(numbers, fields[1::2], strict=True))


def _grown(numbers: list[int]) -> list[int]:
    if any(first >= second for first, second in itertools.pairwise(numbers)):
        raise UpdateRejected("numbers that do not grow")
    return numbers


def _number(value: int) -> bytes:
    return value.to_bytes(4, "big")


def _read_number(field: bytes) -> int:
    if len(field) != 4:
        raise UpdateRejected(f"a number of {len(field)} bytes, not 4")
    return int.from_bytes(field, "big")


def _fields(data: bytes, count: int | None = None, *, most: int = _MAX_FIELD) -> list[bytes]:
    """Return the fields of a message; raises UpdateRejected where they are not these."""
    if len(data) > MAX_BYTES:
        raise UpdateRejected(f"a message of {len(data)} bytes; at most {MAX_BYTES} are read")
    found: list[bytes] = []
    at = 0
    while at < len(data):
        length = int.from_bytes(data[at : at + 4], "big")
        end = at + 4 + length
        if at + 4 > len(data) or length > most or end > len(data):
            raise UpdateRejected("a message of secure aggregation is cut short or malformed")
        found.append(data[at + 4 : end])
        at = end
    if count is not None and len(found) != count:
        raise UpdateRejected(f"a message of {len(found)} fields, not {count}")
    return found
