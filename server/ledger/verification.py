"""Verification of a ledger: that its entries are those that were written."""

from __future__ import annotations

import sqlite3
from collections import Counter
from collections.abc import Generator, Iterable, Mapping
from contextlib import closing
from dataclasses import dataclass
from types import MappingProxyType

from cryptography.hazmat.primitives.asymmetric import ec

from fedlearn.errors import LedgerError
from server.disk import DATABASE_ERRORS
from server.ledger.entry import (
    Entry,
    LedgerHead,
    canonical_body,
    entry_hash,
    entry_of_row,
    genesis,
    key_fingerprint,
    require_p256,
    verify_signature,
)

__all__ = ["VerifiedLedger", "verify", "verify_rows"]


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifiedLedger:
    """What an intact ledger holds; only :func:`verify_rows` makes one.

    ``head_checked`` is whether the end was compared with a head that was kept elsewhere:
    without one, entries cut off at the end cannot be detected.
    """

    entries: int
    head: LedgerHead | None
    kinds: Mapping[str, int]
    first_time: int
    last_time: int
    key_fingerprint: str
    head_checked: bool


def verify(
    connection: sqlite3.Connection,
    public_key: ec.EllipticCurvePublicKey,
    *,
    expect_head: LedgerHead | None = None,
) -> VerifiedLedger:
    """Check every entry of a ledger under the coordinator's public key.

    ``connection`` reads one snapshot. Other tables, indices and triggers in the file do not
    matter; see :func:`verify_rows`.
    """
    heads = {} if expect_head is None else {"the given head": expect_head}
    with closing(_rows(connection)) as rows:
        return verify_rows(rows, public_key, heads=heads)


def _rows(connection: sqlite3.Connection) -> Generator[tuple[object, ...], None, None]:
    yield from connection.execute(
        "SELECT sequence, time, kind, body, previous, hash, signature "
        "FROM entry NOT INDEXED ORDER BY sequence"
    )


def verify_rows(
    rows: Iterable[tuple[object, ...]],
    public_key: ec.EllipticCurvePublicKey,
    *,
    heads: Mapping[str, LedgerHead] = MappingProxyType({}),
    after: LedgerHead | None = None,
) -> VerifiedLedger:
    """Check every entry of a ledger under the coordinator's public key.

    Finds an edit of any column, a deletion, an insertion and a reordering, and, given a head that
    was exported earlier, entries cut off at the end. Memory does not grow with the ledger.

    :param rows: the columns of every entry, from any source, in the order of the entries.
    :param heads: heads that the ledger must contain, by what they are in a message.
    :param after: a head up to which the ledger is known; ``rows`` begin behind it then.
    :raises LedgerError: its ``entry`` the sequence number of the first entry that is wrong or
        missing; None when the input cannot be used at all.
    """
    require_p256(public_key)
    for what, head in heads.items():
        if head.signature:
            try:
                verify_signature(public_key, head.hash, head.signature)
            except LedgerError as error:
                raise LedgerError(f"{what} is not of this ledger: {error}") from None
    previous = genesis(public_key) if after is None else after.hash
    expected = 1 if after is None else after.sequence + 1
    first_time = last_time = 0
    kinds: Counter[str] = Counter()
    last: Entry | None = None
    try:
        for row in rows:
            entry = _check_row(row, expected, previous, public_key)
            for what, head in heads.items():
                if head.sequence == expected:
                    _check_head(entry, head, what)
            first_time = entry.time if last is None else first_time
            last_time = entry.time
            kinds[entry.kind] += 1
            previous = entry.hash
            expected += 1
            last = entry
    except DATABASE_ERRORS as error:
        raise LedgerError(
            f"entry {expected}: the file cannot be read: {error}", entry=expected
        ) from error
    for what, head in heads.items():
        if head.sequence >= expected:
            raise LedgerError(
                f"entry {expected}: missing; the ledger ends before entry {head.sequence} of "
                f"{what}",
                entry=expected,
            )
    return VerifiedLedger(
        entries=expected - 1,
        head=after if last is None else LedgerHead.of(last),
        kinds=dict(sorted(kinds.items())),
        first_time=first_time,
        last_time=last_time,
        key_fingerprint=key_fingerprint(public_key),
        head_checked=bool(heads),
    )


def _check_row(
    row: tuple[object, ...], expected: int, previous: bytes, public_key: ec.EllipticCurvePublicKey
) -> Entry:
    entry = entry_of_row(row, expected=expected)
    if entry.sequence > expected:
        raise LedgerError(f"entry {expected}: missing", entry=expected)
    if entry.sequence < expected:
        raise LedgerError(f"entry {entry.sequence}: occurs twice", entry=entry.sequence)

    def damaged(what: str) -> LedgerError:
        return LedgerError(f"entry {expected}: {what}", entry=expected)

    digest = entry_hash(
        sequence=entry.sequence,
        time=entry.time,
        kind=entry.kind,
        body=canonical_body(entry.body),
        previous=entry.previous,
    )
    if digest != entry.hash:
        raise damaged("altered; its hash is not that of its content")
    if entry.previous != previous:
        if expected == 1:
            raise damaged("it does not begin a ledger of this key")
        raise damaged(f"it does not follow entry {expected - 1}")
    try:
        verify_signature(public_key, entry.hash, entry.signature)
    except LedgerError as error:
        raise damaged(str(error)) from None
    return entry


def _check_head(entry: Entry, head: LedgerHead, what: str) -> None:
    if entry.hash != head.hash:
        raise LedgerError(
            f"entry {entry.sequence}: not the one that {what} vouches for; "
            "it or an entry before it was rewritten",
            entry=entry.sequence,
        )
