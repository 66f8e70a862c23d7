"""The ledger on disk: one SQLite table, one writer, any number of readers.

An entry is durable when :meth:`Ledger.append` returns: the database is in WAL mode with
``synchronous=FULL``, and an entry is one transaction. A process killed while it appends
leaves every entry that was returned, and at most one more; never half of one.

One process writes at a time, held by a lock on ``<ledger>.lock`` that the kernel drops with
the process. Readers open the file for themselves, read-only, and see a snapshot.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import threading
import time as clock
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Final

from cryptography.hazmat.primitives.asymmetric import ec

from fedlearn.errors import LedgerError
from server.ledger.contributions import Contribution, contributions
from server.ledger.entry import (
    KINDS,
    MAX_SEQUENCE,
    Entry,
    Json,
    LedgerHead,
    canonical_body,
    entry_hash,
    entry_of_row,
    genesis,
    parse_body,
    require_p256,
    sign_hash,
    verify_signature,
)
from server.ledger.files import (
    LEDGER_FILE,
    PUBLIC_KEY_FILE,
    lock,
    open_for_writing,
    open_read_only,
    publish_key,
    require_ledger,
)
from server.ledger.verification import VerifiedLedger, verify

__all__ = ["Ledger", "LedgerReader"]

_COLUMNS: Final = "sequence, time, kind, body, previous, hash, signature"


class LedgerReader:
    """Reads a ledger, without its private key; safe to use from several threads.

    Raises :class:`fedlearn.errors.LedgerError`: with ``entry`` set when an entry is damaged,
    with ``entry`` None when there is no ledger to read at ``path``.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        if not path.is_file():
            raise LedgerError(
                f"there is no ledger at {path}",
                hint=f"name the coordinator's state directory, which holds {LEDGER_FILE}",
            )

    @contextlib.contextmanager
    def snapshot(self) -> Iterator[sqlite3.Connection]:
        """Open a read-only connection that sees one moment of the ledger."""
        connection = open_read_only(self.path)
        try:
            require_ledger(connection, self.path)
            connection.execute("BEGIN")
            yield connection
        finally:
            connection.close()

    def entries(
        self, after: int = 0, kind: str | None = None, limit: int | None = None
    ) -> Iterator[Entry]:
        """Yield the entries with a sequence above ``after``, oldest first.

        They stream from one snapshot; memory does not grow with the ledger. Hashes and
        signatures are not checked here: that is :meth:`verify`.
        """
        if not 0 <= after <= MAX_SEQUENCE or (limit is not None and limit < 0):
            raise LedgerError("after and limit are whole numbers from 0")
        query = f"SELECT {_COLUMNS} FROM entry WHERE sequence > ?"  # noqa: S608 constants
        values: list[int | str] = [after]
        if kind is not None:
            query += " AND kind = ?"
            values.append(kind)
        query += " ORDER BY sequence"
        if limit is not None:
            query += " LIMIT ?"
            values.append(min(limit, MAX_SEQUENCE))
        reached = after
        with self.snapshot() as connection:
            try:
                for row in connection.execute(query, values):
                    entry = entry_of_row(row, expected=reached + 1)
                    reached = entry.sequence
                    yield entry
            except sqlite3.Error as error:
                raise _damaged(error, reached + 1) from error

    def head(self) -> LedgerHead | None:
        """Return where the ledger ends now; None when it is empty."""
        with self.snapshot() as connection:
            last = _last_entry(connection)
        return None if last is None else LedgerHead.of(last)

    def verify(
        self, public_key: ec.EllipticCurvePublicKey, *, expect_head: LedgerHead | None = None
    ) -> VerifiedLedger:
        """Check every entry; see :func:`server.ledger.verification.verify`."""
        with self.snapshot() as connection:
            return verify(connection, public_key, expect_head=expect_head)

    def contributions(
        self,
        job: str,
        *,
        version: int | None = None,
        round: int | None = None,  # noqa: A002
    ) -> list[Contribution]:
        """List who made a model; see :func:`server.ledger.contributions.contributions`."""
        return contributions(self.entries, job, version=version, round=round)


class Ledger(LedgerReader):
    """The ledger, open for writing by this process alone; thread-safe.

    Use :meth:`open`; close it, or use it as a context manager, when done.
    """

    def __init__(
        self,
        path: Path,
        signer: ec.EllipticCurvePrivateKey,
        connection: sqlite3.Connection,
        lock_fd: int,
    ) -> None:
        super().__init__(path)
        self._signer = signer
        self._public_key = signer.public_key()
        self._connection = connection
        self._lock_fd = lock_fd
        self._writer = threading.Lock()
        self._closed = False

    @classmethod
    def open(cls, path: Path, signer: ec.EllipticCurvePrivateKey) -> Ledger:
        """Open the ledger at ``path``, making it if there is none, with mode 0600.

        The public key is written next to it as ``ledger.pub.pem``. The last entry is
        verified; the whole chain only by :meth:`verify`. Raises
        :class:`fedlearn.errors.LedgerError` when another process writes to it, when it was
        written with another key, or when its end is damaged.
        """
        public_key = require_p256(signer.public_key())
        lock_fd = lock(path)
        try:
            publish_key(path.parent / PUBLIC_KEY_FILE, public_key)
            connection = open_for_writing(path)
            try:
                last = _last_entry(connection)
                if last is not None:
                    _check_last(connection, last, public_key)
            except BaseException:
                connection.close()
                raise
        except BaseException:
            os.close(lock_fd)
            raise
        return cls(path, signer, connection, lock_fd)

    @property
    def public_key(self) -> ec.EllipticCurvePublicKey:
        """The key under which the entries verify."""
        return self._public_key

    def append(self, kind: str, body: Mapping[str, Json]) -> Entry:
        """Append one entry and return it when it is durable.

        Raises :class:`fedlearn.errors.LedgerError` and appends nothing when the kind is not
        one of :data:`server.ledger.KINDS`, the body is not JSON or is larger than 256 KiB,
        or the disk does not take it.
        """
        return self.append_all([(kind, body)])[0]

    def append_all(self, items: Iterable[tuple[str, Mapping[str, Json]]]) -> list[Entry]:
        """Append several entries in one transaction: all of them or none."""
        prepared = []
        for kind, body in items:
            if kind not in KINDS:
                raise LedgerError(f"{kind!r} is not a kind of ledger entry")
            prepared.append((kind, canonical_body(body)))
        with self._writer:
            if self._closed:
                raise LedgerError("the ledger is closed")
            try:
                self._connection.execute("BEGIN IMMEDIATE")
                try:
                    entries = self._insert(prepared)
                    self._connection.execute("COMMIT")
                except BaseException:
                    if self._connection.in_transaction:
                        self._connection.execute("ROLLBACK")
                    raise
            except sqlite3.Error as error:
                raise LedgerError(
                    f"the ledger could not be written: {error}",
                    hint="nothing was appended; see whether the disk of the state "
                    "directory is full or read-only",
                ) from error
        return entries

    def _insert(self, prepared: list[tuple[str, bytes]]) -> list[Entry]:
        row = self._connection.execute(
            "SELECT sequence, hash FROM entry ORDER BY sequence DESC LIMIT 1"
        ).fetchone()
        sequence, previous = row if row is not None else (0, genesis(self._public_key))
        entries = []
        for kind, body in prepared:
            sequence += 1
            time = clock.time_ns() // 1_000_000
            digest = entry_hash(
                sequence=sequence, time=time, kind=kind, body=body, previous=previous
            )
            signature = sign_hash(self._signer, digest)
            self._connection.execute(
                f"INSERT INTO entry ({_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?)",  # noqa: S608
                (sequence, time, kind, body, previous, digest, signature),
            )
            entries.append(
                Entry(
                    sequence=sequence,
                    time=time,
                    kind=kind,
                    body=parse_body(body),
                    previous=previous,
                    hash=digest,
                    signature=signature,
                )
            )
            previous = digest
        return entries

    def close(self) -> None:
        """Close the ledger and let another process write to it. Closing twice is harmless."""
        with self._writer:
            if not self._closed:
                self._closed = True
                self._connection.close()
                os.close(self._lock_fd)

    def __enter__(self) -> Ledger:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def _damaged(error: sqlite3.Error, entry: int) -> LedgerError:
    return LedgerError(f"entry {entry}: the file cannot be read: {error}", entry=entry)


def _last_entry(connection: sqlite3.Connection) -> Entry | None:
    query = f"SELECT {_COLUMNS} FROM entry ORDER BY sequence DESC LIMIT 1"  # noqa: S608
    try:
        row = connection.execute(query).fetchone()
    except sqlite3.Error as error:
        raise LedgerError(f"the end of the ledger cannot be read: {error}") from error
    return None if row is None else entry_of_row(row, expected=1)


def _check_last(
    connection: sqlite3.Connection, last: Entry, public_key: ec.EllipticCurvePublicKey
) -> None:
    count = connection.execute("SELECT count(*) FROM entry").fetchone()[0]
    digest = entry_hash(
        sequence=last.sequence,
        time=last.time,
        kind=last.kind,
        body=canonical_body(last.body),
        previous=last.previous,
    )
    try:
        if count != last.sequence:
            raise LedgerError(f"the ledger has {count} entries and ends with {last.sequence}")
        if digest != last.hash:
            raise LedgerError("its hash is not that of its content")
        verify_signature(public_key, last.hash, last.signature)
    except LedgerError as error:
        raise LedgerError(
            f"entry {last.sequence}: {error}",
            entry=last.sequence,
            hint="run: fedlearn ledger verify; nothing is appended to a damaged ledger",
        ) from None
