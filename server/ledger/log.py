"""The ledger on disk: one SQLite table, one writer, any number of readers.

An entry is durable when :meth:`Ledger.append` returns: the database is in WAL mode with
``synchronous=FULL``. Entries that several threads append while a transaction is written form the
next transaction, a *burst*: it costs one synchronization of the disk, is written whole or not at
all, and its entries bear one time. A process killed while it appends leaves every entry that was
returned, and at most one burst more.

The writer checks the whole chain when it opens the ledger and keeps the hash of every entry in
memory, 32 bytes each. What it reads afterwards is compared with them, so that an edit of the
file is found at the entry that is read, also while the coordinator runs.

One process writes at a time, held by a lock on ``<ledger>.lock`` that the kernel drops with
the process. Readers open the file for themselves, read-only, and see a snapshot.
"""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
import threading
import time as clock
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType

from cryptography.hazmat.primitives.asymmetric import ec

from fedlearn.errors import DiskError, LedgerDiskError, LedgerError, StoreError
from server.disk import DATABASE_ERRORS, ledger_error, transaction
from server.ledger.chain import COLUMNS, Chain, hash_of_row, unreadable
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
    require_p256,
    sign_hash,
)
from server.ledger.files import (
    LEDGER_FILE,
    PUBLIC_KEY_FILE,
    check_objects,
    lock,
    open_for_writing,
    open_read_only,
    publish_key,
    require_ledger,
)
from server.ledger.group_commit import GroupCommit
from server.ledger.verification import VerifiedLedger, verify

__all__ = ["Ledger", "LedgerReader"]

SealHead = Callable[[LedgerHead], None]
"""Seals a head; raises :class:`fedlearn.errors.StoreError` when that is not possible."""


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
        _check_range(after, limit)
        # Not by an index: a damaged one would hide entries without an error.
        query = f"SELECT {COLUMNS} FROM entry NOT INDEXED WHERE sequence > ?"  # noqa: S608
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
            except DATABASE_ERRORS as error:
                raise unreadable(error, reached + 1) from error

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

    def chain(self, public_key: ec.EllipticCurvePublicKey) -> Chain:
        """Return the hash of every entry, after checking the chain that they form."""
        with self.snapshot() as connection:
            return Chain(require_p256(public_key)).follow(connection)

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
        chain: Chain,
        seal: SealHead | None,
    ) -> None:
        super().__init__(path)
        self._signer = signer
        self._public_key = signer.public_key()
        self._connection = connection
        self._lock_fd = lock_fd
        self._chain = chain
        self._seal = seal
        self._unsealed = False
        self._uncertain = False
        self._subscribers: list[Callable[[Entry], object]] = []
        self._writer = threading.Lock()
        self._bursts = GroupCommit(self._write)
        self._closed = False

    @classmethod
    def open(
        cls,
        path: Path,
        signer: ec.EllipticCurvePrivateKey,
        *,
        create: bool = True,
        seal: SealHead | None = None,
    ) -> Ledger:
        """Open the ledger at ``path``, making it if there is none, with mode 0600.

        The public key is written next to it as ``ledger.pub.pem``. The chain of hashes is
        checked from the first entry to the last, and the signature of the last, which covers
        it; every signature only by :meth:`verify`.

        :param create: whether there may be no ledger yet.
        :param seal: is given the new head after each entry, before :meth:`append`
            returns.

        Raises :class:`fedlearn.errors.LedgerError` when another process writes to it, when it
        was written with another key, when it is damaged, or is missing though it must exist.
        """
        public_key = require_p256(signer.public_key())
        if not create and not path.is_file():
            raise LedgerError(
                f"entry 1: missing; there is no ledger at {path}, and there was one",
                entry=1,
                hint="restore it from its newest backup",
            )
        lock_fd = lock(path)
        try:
            publish_key(path.parent / PUBLIC_KEY_FILE, public_key)
            connection = open_for_writing(path)
            try:
                chain = Chain(public_key).follow(connection)
                check_objects(connection, path)
            except BaseException:
                connection.close()
                raise
        except BaseException:
            os.close(lock_fd)
            raise
        return cls(path, signer, connection, lock_fd, chain, seal)

    @property
    def public_key(self) -> ec.EllipticCurvePublicKey:
        """The key under which the entries verify."""
        return self._public_key

    def append(self, kind: str, body: Mapping[str, Json]) -> Entry:
        """Append one entry and return it when it is durable.

        Raises :class:`fedlearn.errors.LedgerError` and appends nothing when the kind is not
        one of :data:`server.ledger.KINDS`, the body is not JSON or is larger than 256 KiB,
        or it cannot be written. When the entry can be written and the sealed head cannot,
        the entry stays and the error states this; the next append seals the head first.
        """
        return self.append_all([(kind, body)])[0]

    def append_all(self, entries: Iterable[tuple[str, Mapping[str, Json]]]) -> list[Entry]:
        """Append entries one after the other, all or none; as :meth:`append`.

        No other entry is between them. Return them when they are durable.
        """
        made: list[tuple[str, bytes]] = []
        for kind, body in entries:
            if kind not in KINDS:
                raise LedgerError(f"{kind!r} is not a kind of ledger entry")
            made.append((kind, canonical_body(body)))
        appended = self._bursts.add(made) if made else []
        for entry in appended:
            for subscriber in self._subscribers:
                subscriber(entry)
        return appended

    def _write(self, burst: Sequence[Sequence[tuple[str, bytes]]]) -> list[list[Entry]]:
        """Write what several callers append as one transaction, then seal the head."""
        with self._writer:
            if self._closed:
                raise LedgerError("the ledger is closed")
            if self._uncertain:
                self._chain.follow(self._connection)
                self._uncertain, self._unsealed = False, True
            if self._unsealed:
                self._seal_head()
            made = self._signed(burst)
            try:
                self._insert([entry for each in made for entry in each])
            except LedgerError:
                # Whether the entries were written is read from the file at the next append.
                self._uncertain = True
                raise
            for entry, _ in (each for several in made for each in several):
                self._chain.add(entry.kind, entry.hash, time=entry.time)
            self._unsealed = True
            self._seal_head()
        return [[entry for entry, _ in several] for several in made]

    def subscribe(self, callback: Callable[[Entry], object]) -> None:
        """Have ``callback`` called with each entry that is appended, in the thread that does."""
        self._subscribers.append(callback)

    def _seal_head(self) -> None:
        """Seal where the ledger ends. The caller holds the lock."""
        head = self._chain.head()
        if self._seal is not None and head is not None:
            try:
                self._seal(head)
            except StoreError as error:
                kind = LedgerDiskError if isinstance(error, DiskError) else LedgerError
                raise kind(
                    f"entry {head.sequence} was appended, and its head could not be sealed: "
                    f"{error}",
                    hint=error.hint,
                ) from error
        self._unsealed = False

    def head(self) -> LedgerHead | None:
        """Return where the ledger ends now; None when it is empty."""
        with self._writer:
            return self._chain.head()

    @property
    def last_burst(self) -> int:
        """How many entries at the end may have been written together; they bear one time."""
        with self._writer:
            return self._chain.burst

    def hash_of(self, sequence: int) -> bytes | None:
        """Return the hash of an entry as it was checked; None when there is no such entry."""
        with self._writer:
            return self._chain.hash_of(sequence)

    def entries(
        self, after: int = 0, kind: str | None = None, limit: int | None = None
    ) -> Iterator[Entry]:
        """Yield the entries with a sequence above ``after``, oldest first, each as it was written.

        Raises :class:`fedlearn.errors.LedgerError` at an entry that is missing or is not the
        one that was checked when the ledger was opened, or appended since.
        """
        _check_range(after, limit)
        with self._writer:
            wanted = self._chain.sequences(after, kind)[:limit]
        query = f"SELECT {COLUMNS} FROM entry NOT INDEXED WHERE sequence = ?"  # noqa: S608
        with self.snapshot() as connection:
            for sequence in wanted:
                try:
                    row = connection.execute(query, (sequence,)).fetchone()
                except DATABASE_ERRORS as error:
                    raise unreadable(error, sequence) from error
                if row is None:
                    raise LedgerError(f"entry {sequence}: missing", entry=sequence)
                if hash_of_row(row, sequence) != self._chain.hash_of(sequence):
                    raise LedgerError(
                        f"entry {sequence}: not the one that was written", entry=sequence
                    )
                yield entry_of_row(row, expected=sequence)

    def _signed(
        self, burst: Sequence[Sequence[tuple[str, bytes]]]
    ) -> list[list[tuple[Entry, bytes]]]:
        """Return the entries of a burst, each with its body in bytes; all have one time."""
        time, sequence, previous = clock.time_ns() // 1_000_000, len(self._chain), self._chain.end
        made: list[list[tuple[Entry, bytes]]] = []
        for several in burst:
            made.append([])
            for kind, body in several:
                sequence += 1
                digest = entry_hash(
                    sequence=sequence, time=time, kind=kind, body=body, previous=previous
                )
                entry = Entry(
                    sequence=sequence,
                    time=time,
                    kind=kind,
                    body=json.loads(body),  # a copy: what was appended is the caller's
                    previous=previous,
                    hash=digest,
                    signature=sign_hash(self._signer, digest),
                )
                made[-1].append((entry, body))
                previous = digest
        return made

    def _insert(self, entries: Sequence[tuple[Entry, bytes]]) -> None:
        rows = (
            (each.sequence, each.time, each.kind, body, each.previous, each.hash, each.signature)
            for each, body in entries
        )
        insert = f"INSERT INTO entry ({COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?)"  # noqa: S608
        try:
            with transaction(self._connection, "the ledger could not be written") as db:
                for row in rows:
                    db.execute(insert, row)
        except StoreError as error:
            kind = LedgerDiskError if isinstance(error, DiskError) else LedgerError
            raise kind(str(error), hint=error.hint) from error

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


def _check_range(after: int, limit: int | None) -> None:
    if not 0 <= after <= MAX_SEQUENCE or (limit is not None and limit < 0):
        raise LedgerError("after and limit are whole numbers from 0")


def _last_entry(connection: sqlite3.Connection) -> Entry | None:
    query = f"SELECT {COLUMNS} FROM entry ORDER BY sequence DESC LIMIT 1"  # noqa: S608
    try:
        row = connection.execute(query).fetchone()
    except DATABASE_ERRORS as error:
        raise ledger_error(f"the end of the ledger cannot be read: {error}", error) from error
    return None if row is None else entry_of_row(row, expected=1)
