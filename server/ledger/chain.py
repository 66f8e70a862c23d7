"""The chain of hashes that the entries of a ledger form, checked, and kept in memory."""

from __future__ import annotations

import sqlite3
from array import array
from bisect import bisect_right
from collections.abc import Sequence
from typing import Any, Final

from cryptography.hazmat.primitives.asymmetric import ec

from fedlearn.errors import LedgerDiskError, LedgerError
from server.disk import DATABASE_ERRORS, DISK_HINT, disk_failed
from server.ledger.entry import (
    HASH_BYTES,
    LedgerHead,
    check_columns,
    entry_hash,
    genesis,
    verify_signature,
)

__all__ = ["COLUMNS", "Chain", "hash_of_row", "unreadable"]

COLUMNS: Final = "sequence, time, kind, body, previous, hash, signature"


class Chain:
    """The kind and hash of every entry of a ledger whose chain was checked.

    ``burst``  how many entries at the end bear one time, as those of one transaction do
    """

    def __init__(self, public_key: ec.EllipticCurvePublicKey) -> None:
        self._public_key = public_key
        self._hashes = bytearray()
        self._kinds: dict[str, array[int]] = {}
        self._time = -1
        self.burst = 0

    def follow(self, connection: sqlite3.Connection) -> Chain:
        """Add the entries of the file that follow this chain, and return this chain.

        Every entry's hash and place is checked, and the signature of the last, which covers all.
        Raises :class:`fedlearn.errors.LedgerError` naming the first entry that is wrong.
        """
        signature = b""
        number = len(self)
        try:
            query = (
                f"SELECT {COLUMNS} FROM entry NOT INDEXED "  # noqa: S608
                "WHERE sequence > ? ORDER BY sequence"
            )
            for row in connection.execute(query, (number,)):
                number += 1
                digest = hash_of_row(row, number)
                if row[0] != number:
                    raise _unusable(number, "missing" if row[0] > number else "occurs twice")
                if digest != row[5]:
                    raise _unusable(number, "altered; its hash is not that of its content")
                if row[4] != self.end:
                    raise _unusable(number, "it does not follow the entry before it")
                self.add(row[2], digest, time=row[1])
                signature = row[6]
            if signature:
                verify_signature(self._public_key, self.end, signature)
        except DATABASE_ERRORS as error:
            raise unreadable(error, number + 1) from error
        except LedgerError as error:
            if error.entry is None:
                raise _unusable(number, str(error)) from None
            raise
        return self

    @property
    def end(self) -> bytes:
        """The hash that the next entry has to follow."""
        return self.hash_of(len(self)) or genesis(self._public_key)

    def add(self, kind: str, digest: bytes, *, time: int) -> None:
        """Add the next entry."""
        self.burst = self.burst + 1 if time == self._time else 1
        self._time = time
        self._hashes += digest
        self._kinds.setdefault(kind, array("Q")).append(len(self))

    def __len__(self) -> int:
        return len(self._hashes) // HASH_BYTES

    def hash_of(self, sequence: int) -> bytes | None:
        """Return the hash of an entry; None when there is no such entry."""
        if not 1 <= sequence <= len(self):
            return None
        return bytes(self._hashes[(sequence - 1) * HASH_BYTES : sequence * HASH_BYTES])

    def head(self) -> LedgerHead | None:
        """Return where the ledger ends, without a signature."""
        digest = self.hash_of(len(self))
        return None if digest is None else LedgerHead(sequence=len(self), hash=digest)

    def sequences(self, after: int, kind: str | None) -> Sequence[int]:
        """Return the entries above ``after``, of one kind or all."""
        if kind is None:
            return range(after + 1, len(self) + 1)
        known = self._kinds.get(kind, array("Q"))
        return known[bisect_right(known, after) :]


def hash_of_row(row: tuple[Any, ...], expected: int) -> bytes:
    """Return the hash of a row's content; raises LedgerError when a column is malformed."""
    check_columns(row, expected=expected)
    sequence, time, kind, body, previous, *_ = row
    return entry_hash(sequence=sequence, time=time, kind=kind, body=body, previous=previous)


def _unusable(entry: int, what: str) -> LedgerError:
    return LedgerError(
        f"entry {entry}: {what}",
        entry=entry,
        hint="run: fedlearn ledger verify; nothing is appended to a damaged ledger",
    )


def unreadable(error: Exception, entry: int) -> LedgerError:
    """Return what is raised where the file of a ledger cannot be read."""
    message = f"entry {entry}: the file cannot be read: {error}"
    if disk_failed(error):
        return LedgerDiskError(message, entry=entry, hint=DISK_HINT)
    return LedgerError(message, entry=entry)
